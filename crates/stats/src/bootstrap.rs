use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::{check, check_probability};
use crate::special::{normal_cdf, normal_quantile};
use crate::{Ecdf, Error, Interval, Method};

/// The fewest independent units for which a bootstrap is offered.
///
/// Below it resampling sees too few distinct samples and its intervals are too short (even at n = 8
/// the nominal 95 % interval of a normal mean covers only about nine times in ten, as a test shows);
/// use Student's t there.
pub const SMALLEST_BOOTSTRAP: usize = 8;

/// A seeded bootstrap over independent units.
///
/// The resamples depend on `seed`, `resamples` and the number of units alone. Two figures with as
/// many units (the same documents under two models) are therefore resampled alike.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    pub resamples: usize,
    pub seed: u64,
    /// Two-sided confidence.
    pub level: f64,
    pub kind: Kind,
}

/// How the resampled values become an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Quantiles of the resampled values: for medians and other statistics that are not smooth.
    Percentile,
    /// Bias-corrected and accelerated (Efron 1987): for smooth statistics such as means.
    Bca,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 2000, seed: 0, level: 0.95, kind: Kind::Bca }
    }
}

impl Bootstrap {
    /// The interval of `statistic` over `values`, each an independent unit.
    ///
    /// # Errors
    /// See [`Bootstrap::over`]; also [`Error::NotFinite`].
    pub fn of(&self, values: &[f64], statistic: impl Fn(&[f64]) -> f64) -> Result<Interval, Error> {
        check("a bootstrap", values, SMALLEST_BOOTSTRAP)?;
        let mut drawn = Vec::with_capacity(values.len());
        self.over(values.len(), |units| {
            drawn.clear();
            drawn.extend(units.iter().map(|&i| values[i]));
            statistic(&drawn)
        })
    }

    /// The interval of `statistic` over the pooled values of `clusters`, resampled by cluster: for
    /// per-token times, which are independent between requests only.
    ///
    /// # Errors
    /// See [`Bootstrap::over`]; also [`Error::NotFinite`].
    pub fn of_clusters(
        &self,
        clusters: &[Vec<f64>],
        statistic: impl Fn(&[f64]) -> f64,
    ) -> Result<Interval, Error> {
        for cluster in clusters {
            check("a cluster", cluster, 1)?;
        }
        let mut drawn = Vec::new();
        self.over(clusters.len(), |units| {
            drawn.clear();
            units.iter().for_each(|&i| drawn.extend_from_slice(&clusters[i]));
            statistic(&drawn)
        })
    }

    /// The interval of a statistic of `n` units, which is given the indices drawn.
    ///
    /// # Errors
    /// [`Error::TooFew`] below [`SMALLEST_BOOTSTRAP`] units or 100 resamples;
    /// [`Error::BadProbability`] for the level; [`Error::Undefined`] where the statistic is NaN or
    /// infinite.
    pub fn over(
        &self,
        n: usize,
        mut statistic: impl FnMut(&[usize]) -> f64,
    ) -> Result<Interval, Error> {
        self.check(n)?;
        let all: Vec<usize> = (0..n).collect();
        let point = finite(statistic(&all))?;
        let mut values = Vec::with_capacity(self.resamples);
        let mut draws = Draws::new(self.seed, n);
        for _ in 0..self.resamples {
            values.push(finite(statistic(draws.next()))?);
        }
        let tail = (1.0 - self.level) / 2.0;
        let (lower, upper, method) = match self.kind {
            Kind::Percentile => (tail, 1.0 - tail, Method::Percentile),
            Kind::Bca => {
                let (lower, upper) = corrected(point, &values, n, tail, &mut statistic)?;
                (lower, upper, Method::Bca)
            }
        };
        let ecdf = Ecdf::new(&values)?;
        let (low, high) = (ecdf.quantile(lower)?, ecdf.quantile(upper)?);
        Ok(Interval { low, point, high, level: self.level, n, method })
    }

    pub(crate) fn check(&self, n: usize) -> Result<(), Error> {
        check_probability("a confidence level", self.level)?;
        for (what, needed, found) in [
            ("a bootstrap", SMALLEST_BOOTSTRAP, n),
            ("a bootstrap's resamples", 100, self.resamples),
        ] {
            if found < needed {
                return Err(Error::TooFew { what, needed, found });
            }
        }
        Ok(())
    }
}

/// The quantiles at which BCa reads the resampled values.
fn corrected(
    point: f64,
    values: &[f64],
    n: usize,
    tail: f64,
    statistic: &mut impl FnMut(&[usize]) -> f64,
) -> Result<(f64, f64), Error> {
    let below = values.iter().filter(|&&v| v < point).count() as f64;
    let ties = values.iter().filter(|&&v| v == point).count() as f64;
    // Half of the ties count as below; the clamp keeps the bias finite where all lie on one side.
    let size = values.len() as f64;
    let share = ((below + ties / 2.0) / size).clamp(0.5 / size, 1.0 - 0.5 / size);
    let bias = normal_quantile(share);
    let acceleration = acceleration(n, statistic)?;
    let place = |z: f64| {
        let shifted = bias + z;
        normal_cdf(bias + shifted / (1.0 - acceleration * shifted).max(1e-3))
    };
    let z = normal_quantile(1.0 - tail);
    Ok((place(-z), place(z)))
}

/// A sixth of the skewness of the jackknife values. Beyond 500 units whole groups are left out,
/// which estimates the same number in bounded time.
fn acceleration(n: usize, statistic: &mut impl FnMut(&[usize]) -> f64) -> Result<f64, Error> {
    const GROUPS: usize = 500;
    let groups = n.min(GROUPS);
    let mut left_out = Vec::with_capacity(groups);
    let mut kept = Vec::with_capacity(n);
    for group in 0..groups {
        kept.clear();
        kept.extend((0..n).filter(|i| i % groups != group));
        left_out.push(finite(statistic(&kept))?);
    }
    let centre = left_out.iter().sum::<f64>() / groups as f64;
    let (mut squares, mut cubes) = (0.0, 0.0);
    for value in left_out {
        let d = centre - value;
        squares += d * d;
        cubes += d * d * d;
    }
    Ok(if squares == 0.0 { 0.0 } else { cubes / (6.0 * squares.powf(1.5)) })
}

fn finite(value: f64) -> Result<f64, Error> {
    if value.is_finite() { Ok(value) } else { Err(Error::Undefined) }
}

/// Draws of `n` units out of `n` with replacement.
pub(crate) struct Draws {
    rng: ChaCha8Rng,
    units: Vec<usize>,
}

impl Draws {
    pub(crate) fn new(seed: u64, n: usize) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), units: vec![0; n] }
    }

    pub(crate) fn next(&mut self) -> &[usize] {
        let n = self.units.len() as u128;
        for unit in &mut self.units {
            // Multiply and keep the high half: written out so that a new version of a random
            // number library cannot change old results. The bias is below n / 2^64.
            *unit = ((u128::from(self.rng.next_u64()) * n) >> 64) as usize;
        }
        &self.units
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mean, median};

    fn data() -> Vec<f64> {
        (0..40).map(|i| f64::from(i * 37 % 41)).collect()
    }

    #[test]
    fn same_seed_same_interval_and_other_seed_another() {
        let b = Bootstrap::default();
        let first = b.of(&data(), |v| mean(v).unwrap()).unwrap();
        assert_eq!(first, b.of(&data(), |v| mean(v).unwrap()).unwrap());
        assert_ne!(first, Bootstrap { seed: 1, ..b }.of(&data(), |v| mean(v).unwrap()).unwrap());
        assert!(first.low < first.point && first.point < first.high);
    }

    #[test]
    fn equal_values_give_an_interval_of_no_width() {
        for kind in [Kind::Percentile, Kind::Bca] {
            let b = Bootstrap { kind, ..Bootstrap::default() };
            let i = b.of(&[3.0; 12], |v| median(v).unwrap()).unwrap();
            assert_eq!((i.low, i.point, i.high), (3.0, 3.0, 3.0));
        }
    }

    #[test]
    fn clusters_widen_the_interval_when_values_within_agree() {
        let clusters: Vec<Vec<f64>> = data().iter().take(20).map(|&v| vec![v; 50]).collect();
        let pooled: Vec<f64> = clusters.concat();
        let b = Bootstrap::default();
        let by_cluster = b.of_clusters(&clusters, |v| mean(v).unwrap()).unwrap();
        let by_value = b.of(&pooled, |v| mean(v).unwrap()).unwrap();
        assert!(by_cluster.half_width() > 4.0 * by_value.half_width());
        assert_eq!(by_cluster.n, 20);
    }

    #[test]
    fn rejects_too_few_units_bad_levels_and_undefined_statistics() {
        let b = Bootstrap::default();
        assert!(matches!(b.of(&[1.0; 7], |_| 0.0), Err(Error::TooFew { needed: 8, found: 7, .. })));
        let odd = Bootstrap { level: 1.0, ..b };
        assert!(matches!(odd.of(&[1.0; 9], |_| 0.0), Err(Error::BadProbability { .. })));
        assert_eq!(b.of(&[1.0; 9], |_| f64::NAN), Err(Error::Undefined));
        assert!(matches!(
            b.of(&[f64::INFINITY; 9], |_| 0.0),
            Err(Error::NotFinite { index: 0, .. })
        ));
    }
}
