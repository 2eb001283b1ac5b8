use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::check;

/// The `p` quantile, interpolated between order statistics (type 7 of Hyndman and Fan 1996, the
/// default of R and NumPy).
///
/// # Errors
/// [`Error::TooFew`] without values, [`Error::BadProbability`] unless 0 ≤ p ≤ 1.
pub fn quantile(values: &[f64], p: f64) -> Result<f64, Error> {
    Ok(quantiles(values, &[p])?[0])
}

/// Several quantiles of the same values, sorted once. See [`quantile`].
pub fn quantiles(values: &[f64], ps: &[f64]) -> Result<Vec<f64>, Error> {
    let ecdf = Ecdf::new(values)?;
    ps.iter().map(|&p| ecdf.quantile(p)).collect()
}

/// The middle value, or the mean of the two middle ones.
pub fn median(values: &[f64]) -> Result<f64, Error> {
    quantile(values, 0.5)
}

/// The median absolute deviation from the median, not scaled.
///
/// Times 1.4826 it estimates the standard deviation of normal data.
pub fn mad(values: &[f64]) -> Result<f64, Error> {
    let middle = median(values)?;
    median(&values.iter().map(|v| (v - middle).abs()).collect::<Vec<_>>())
}

pub fn mean(values: &[f64]) -> Result<f64, Error> {
    check("a mean", values, 1)?;
    Ok(values.iter().sum::<f64>() / values.len() as f64)
}

/// The sample standard deviation (divisor n − 1).
pub fn standard_deviation(values: &[f64]) -> Result<f64, Error> {
    check("a standard deviation", values, 2)?;
    let centre = mean(values)?;
    let squares: f64 = values.iter().map(|v| (v - centre) * (v - centre)).sum();
    Ok((squares / (values.len() - 1) as f64).sqrt())
}

/// The mean without the `cut` share of values at either end (0 is the mean, close to 0.5 the
/// median).
///
/// # Errors
/// [`Error::BadProbability`] unless 0 ≤ cut < 0.5.
pub fn trimmed_mean(values: &[f64], cut: f64) -> Result<f64, Error> {
    if !(0.0..0.5).contains(&cut) {
        return Err(Error::BadProbability { what: "twice the share to trim", value: 2.0 * cut });
    }
    let sorted = Ecdf::new(values)?.sorted;
    let drop = (cut * sorted.len() as f64).floor() as usize;
    mean(&sorted[drop..sorted.len() - drop])
}

/// The empirical distribution of some values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ecdf {
    sorted: Vec<f64>,
}

impl Ecdf {
    /// # Errors
    /// [`Error::TooFew`] without values, [`Error::NotFinite`] for NaN or infinity.
    pub fn new(values: &[f64]) -> Result<Self, Error> {
        check("a distribution", values, 1)?;
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Ok(Self { sorted })
    }

    /// The share of values at or below `x`.
    pub fn at(&self, x: f64) -> f64 {
        self.sorted.partition_point(|&v| v <= x) as f64 / self.sorted.len() as f64
    }

    /// See [`quantile`].
    pub fn quantile(&self, p: f64) -> Result<f64, Error> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::BadProbability { what: "a quantile", value: p });
        }
        let place = p * (self.sorted.len() - 1) as f64;
        let below = place.floor() as usize;
        let above = (below + 1).min(self.sorted.len() - 1);
        let share = place - below as f64;
        Ok(self.sorted[below] + share * (self.sorted[above] - self.sorted[below]))
    }

    /// The values in order.
    pub fn sorted(&self) -> &[f64] {
        &self.sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_as_type_seven() {
        let values = [3.0, 1.0, 2.0, 4.0];
        assert_eq!(quantile(&values, 0.25).unwrap(), 1.75);
        assert_eq!(median(&values).unwrap(), 2.5);
        assert_eq!(quantiles(&values, &[0.0, 1.0]).unwrap(), [1.0, 4.0]);
        assert_eq!(quantile(&[7.0], 0.99).unwrap(), 7.0);
    }

    #[test]
    fn robust_figures_ignore_one_wild_value() {
        let values = [1.0, 2.0, 3.0, 4.0, 1000.0];
        assert_eq!(median(&values).unwrap(), 3.0);
        assert_eq!(mad(&values).unwrap(), 1.0);
        assert_eq!(trimmed_mean(&values, 0.2).unwrap(), 3.0);
        assert_eq!(trimmed_mean(&values, 0.0).unwrap(), mean(&values).unwrap());
    }

    #[test]
    fn the_ecdf_counts_ties() {
        let ecdf = Ecdf::new(&[1.0, 2.0, 2.0, 5.0]).unwrap();
        assert_eq!([ecdf.at(0.5), ecdf.at(2.0), ecdf.at(9.0)], [0.0, 0.75, 1.0]);
    }

    #[test]
    fn standard_deviation_divides_by_n_less_one() {
        assert_eq!(standard_deviation(&[1.0, 3.0]).unwrap(), 2.0_f64.sqrt());
    }

    #[test]
    fn rejects_empty_and_not_finite_data() {
        assert!(matches!(median(&[]), Err(Error::TooFew { found: 0, .. })));
        assert!(matches!(mean(&[1.0, f64::NAN]), Err(Error::NotFinite { index: 1, .. })));
        assert!(matches!(standard_deviation(&[1.0]), Err(Error::TooFew { needed: 2, .. })));
        assert!(matches!(quantile(&[1.0], 1.1), Err(Error::BadProbability { .. })));
        assert!(matches!(trimmed_mean(&[1.0], 0.5), Err(Error::BadProbability { .. })));
    }
}
