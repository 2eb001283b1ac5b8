use serde::{Deserialize, Serialize};

use crate::bootstrap::{Draws, SMALLEST_BOOTSTRAP};
use crate::error::check;
use crate::special::student_quantile;
use crate::{Bootstrap, Ecdf, Error, Interval, Method};

/// What one independent unit (a document) adds to a ratio of sums: a sum over its tokens and how
/// many tokens that were.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    pub sum: f64,
    pub count: f64,
}

/// The interval of Σ sum / Σ count over documents, the tokens of a document depending on each
/// other.
///
/// All figures of quality have this shape: mean negative log-likelihood (whose `exp` is
/// perplexity), mean KL divergence, top-1 agreement; and, because two models are scored on the same
/// tokens, so has the paired difference of two models (`sum` is then the difference of their sums),
/// whose `exp` is the ratio of their perplexities.
///
/// From [`SMALLEST_BOOTSTRAP`] units on it is the studentised bootstrap over documents, with the
/// linearised standard error of a ratio estimator; it keeps its coverage on skewed sums, where the
/// percentile bootstrap is too short. Below, Student's t with the same standard error and n − 1
/// degrees of freedom. `bootstrap.kind` is not used. Units without tokens are left out.
///
/// An interval of no width means that all units agree to the last digit, as a model does with
/// itself.
///
/// # Errors
/// [`Error::TooFew`] below two units; [`Error::NotFinite`]; [`Error::NotPositive`] for a negative
/// count.
pub fn ratio_of_sums(units: &[Unit], bootstrap: &Bootstrap) -> Result<Interval, Error> {
    if let Some(index) = units.iter().position(|u| u.count < 0.0) {
        let value = units[index].count;
        return Err(Error::NotPositive { what: "tokens per document", index, value });
    }
    let (sums, counts): (Vec<f64>, Vec<f64>) =
        units.iter().filter(|u| u.count != 0.0).map(|u| (u.sum, u.count)).unzip();
    check("an interval over documents", &sums, 2)?;
    check("an interval over documents", &counts, 2)?;
    crate::error::check_probability("a confidence level", bootstrap.level)?;
    let n = sums.len();
    let all: Vec<usize> = (0..n).collect();
    let whole = estimate(&sums, &counts, &all);
    let tail = (1.0 - bootstrap.level) / 2.0;
    let (lower, upper, method) = if n < SMALLEST_BOOTSTRAP {
        let t = student_quantile(1.0 - tail, (n - 1) as f64);
        (-t, t, Method::StudentTOnRatio)
    } else {
        bootstrap.check(n)?;
        let mut draws = Draws::new(bootstrap.seed, n);
        let scores: Vec<f64> = (0..bootstrap.resamples)
            .map(|_| estimate(&sums, &counts, draws.next()).score_against(whole.ratio))
            .collect();
        let scores = Ecdf::new(&scores)?;
        (scores.quantile(tail)?, scores.quantile(1.0 - tail)?, Method::BootstrapT)
    };
    Ok(Interval {
        low: whole.ratio - upper * whole.error,
        point: whole.ratio,
        high: whole.ratio - lower * whole.error,
        level: bootstrap.level,
        n,
        method,
    })
}

#[derive(Clone, Copy)]
struct Estimate {
    ratio: f64,
    /// Standard error of `ratio`.
    error: f64,
}

impl Estimate {
    /// How many standard errors this resample lies above the whole. A resample of one unit only has
    /// no spread: it is as far out as the widest Student t would put it, on its own side.
    fn score_against(&self, whole: f64) -> f64 {
        const FAR: f64 = 1e3;
        let distance = self.ratio - whole;
        if distance == 0.0 { 0.0 } else { (distance / self.error).clamp(-FAR, FAR) }
    }
}

fn estimate(sums: &[f64], counts: &[f64], units: &[usize]) -> Estimate {
    let n = units.len() as f64;
    let sum: f64 = units.iter().map(|&i| sums[i]).sum();
    let count: f64 = units.iter().map(|&i| counts[i]).sum();
    let ratio = sum / count;
    let squares: f64 = units
        .iter()
        .map(|&i| {
            let residual = sums[i] - ratio * counts[i];
            residual * residual
        })
        .sum();
    Estimate { ratio, error: (squares * n / (n - 1.0)).sqrt() / count }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(sum: f64, count: f64) -> Unit {
        Unit { sum, count }
    }

    #[test]
    fn the_point_is_the_ratio_of_the_sums_not_the_mean_of_ratios() {
        let units = [unit(10.0, 10.0), unit(300.0, 100.0), unit(0.0, 0.0)];
        let i = ratio_of_sums(&units, &Bootstrap::default()).unwrap();
        assert_eq!(i.point, 310.0 / 110.0);
        assert_eq!((i.n, i.method), (2, Method::StudentTOnRatio));
        // By hand: R = 31/11, residuals ∓200/11, se = sqrt(2 · 2 · (200/11)²) / 110,
        // t(0.975, 1) = 12.7062.
        let expected = 12.706_204_736 * (2.0 * 200.0 / 11.0) / 110.0;
        assert!((i.half_width() - expected).abs() < 1e-6);
    }

    #[test]
    fn equal_documents_give_an_interval_of_no_width() {
        let i = ratio_of_sums(&[unit(0.0, 5.0); 20], &Bootstrap::default()).unwrap();
        assert_eq!((i.low, i.point, i.high), (0.0, 0.0, 0.0));
    }

    #[test]
    fn pairing_shortens_the_interval_of_a_small_difference() {
        // Documents differ a lot from each other, the two models by about 0.01 on each.
        let count = 100.0;
        let base: Vec<f64> = (0..30).map(|i| 200.0 + f64::from(i * 7 % 30) * 10.0).collect();
        let other: Vec<f64> =
            base.iter().enumerate().map(|(i, b)| b + 1.0 + (i % 3) as f64 * 0.1).collect();
        let bootstrap = Bootstrap::default();
        let single: Vec<Unit> = other.iter().map(|&s| unit(s, count)).collect();
        let paired: Vec<Unit> = other.iter().zip(&base).map(|(o, b)| unit(o - b, count)).collect();
        let single = ratio_of_sums(&single, &bootstrap).unwrap();
        let paired = ratio_of_sums(&paired, &bootstrap).unwrap();
        assert!(paired.half_width() * 100.0 < single.half_width());
        assert!(paired.low > 0.0);
    }

    #[test]
    fn rejects_one_document_and_bad_numbers() {
        let b = Bootstrap::default();
        assert!(matches!(ratio_of_sums(&[unit(1.0, 1.0)], &b), Err(Error::TooFew { .. })));
        assert!(matches!(ratio_of_sums(&[], &b), Err(Error::TooFew { found: 0, .. })));
        let bad = [unit(f64::NAN, 1.0), unit(1.0, 1.0)];
        assert!(matches!(ratio_of_sums(&bad, &b), Err(Error::NotFinite { .. })));
        let bad = [unit(1.0, -1.0), unit(1.0, 1.0)];
        assert!(matches!(ratio_of_sums(&bad, &b), Err(Error::NotPositive { .. })));
    }
}
