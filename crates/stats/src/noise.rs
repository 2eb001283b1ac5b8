use serde::{Deserialize, Serialize};

use crate::error::{check, check_positive, check_probability};
use crate::special::{normal_cdf, student_quantile};
use crate::{Bound, Error, mad, mean, median, standard_deviation};

/// Indices of the values that lie more than 3.5 robust standard deviations from the median
/// (Iglewicz and Hoaglin 1993).
///
/// Where more than half of the values are equal the median absolute deviation is zero and the mean
/// one takes its place. They are flagged for the reader, never dropped.
pub fn outliers(values: &[f64]) -> Result<Vec<usize>, Error> {
    let centre = median(values)?;
    let deviations: Vec<f64> = values.iter().map(|v| (v - centre).abs()).collect();
    // Both scaled to estimate the standard deviation of normal data.
    let spread = match mad(values)? {
        0.0 => 1.253_314 * mean(&deviations)?,
        spread => 1.482_602 * spread,
    };
    Ok((0..values.len()).filter(|&i| deviations[i] > 3.5 * spread).collect())
}

/// How noisy repeated measurements of one positive quantity were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Standard deviation over mean.
    pub variation: f64,
    /// 1.4826 times the median absolute deviation over the median: blind to a few wild values.
    pub robust_variation: f64,
    /// Indices flagged by [`outliers`].
    pub outliers: Vec<usize>,
    /// Whether values rise or fall with time, as they do when a machine heats up.
    pub trend: Trend,
}

impl Noise {
    /// Whether to warn: robust variation above `limit` (0.05 is usual), a trend at p < 0.01, or
    /// more than one value in ten wild.
    pub fn is_noisy(&self, limit: f64, n: usize) -> bool {
        self.robust_variation > limit
            || self.trend.p_value < 0.01
            || (self.outliers.len() > 1 && self.outliers.len() * 10 > n)
    }
}

/// Kendall's τ between value and time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    /// −1 falls always, 0 no trend, 1 rises always.
    pub tau: f64,
    /// Two-sided, by the normal approximation with correction for ties.
    pub p_value: f64,
}

/// Summarises the noise of positive values in the order in which they were measured.
///
/// # Errors
/// [`Error::TooFew`] below two values; [`Error::NotFinite`]; [`Error::NotPositive`].
pub fn noise(values: &[f64]) -> Result<Noise, Error> {
    check_positive("a noise estimate", values, 2)?;
    Ok(Noise {
        variation: standard_deviation(values)? / mean(values)?,
        robust_variation: 1.482_602 * mad(values)? / median(values)?,
        outliers: outliers(values)?,
        trend: kendall(values)?,
    })
}

/// Kendall's rank correlation of values with their order (the Mann-Kendall test). At most the first
/// 2000 values, evenly thinned, are compared, because it takes all pairs.
///
/// # Errors
/// [`Error::TooFew`] below two values; [`Error::NotFinite`].
pub fn kendall(values: &[f64]) -> Result<Trend, Error> {
    check("a trend", values, 2)?;
    let step = values.len().div_ceil(2000);
    let values: Vec<f64> = values.iter().copied().step_by(step).collect();
    let n = values.len() as f64;
    let mut score = 0.0;
    for (i, early) in values.iter().enumerate() {
        for late in &values[i + 1..] {
            score += f64::from(u8::from(late > early)) - f64::from(u8::from(late < early));
        }
    }
    let mut variance = n * (n - 1.0) * (2.0 * n + 5.0);
    let mut sorted = values;
    sorted.sort_by(f64::total_cmp);
    for ties in sorted.chunk_by(|a, b| a == b) {
        let t = ties.len() as f64;
        variance -= t * (t - 1.0) * (2.0 * t + 5.0);
    }
    let variance = variance / 18.0;
    // Continuity correction: the score moves in steps of two.
    let z = if variance > 0.0 { (score.abs() - 1.0).max(0.0) / variance.sqrt() } else { 0.0 };
    Ok(Trend { tau: score / (n * (n - 1.0) / 2.0), p_value: 2.0 * normal_cdf(-z) })
}

/// How many rounds in all would probably decide a requirement on the mean of `values` (logarithms
/// for a ratio), judged by the two-sided interval at `level`; `None` if even `most` would not.
///
/// It assumes that mean and spread stay what they are; `values.len()` means that the requirement is
/// decided already. The estimate is itself noisy below about five rounds: add rounds in steps.
///
/// # Errors
/// [`Error::TooFew`] below two values; [`Error::NotFinite`]; [`Error::BadProbability`].
pub fn rounds_to_decide(
    values: &[f64],
    bound: Bound,
    level: f64,
    most: usize,
) -> Result<Option<usize>, Error> {
    check("an estimate of rounds", values, 2)?;
    check_probability("a confidence level", level)?;
    let distance = (mean(values)? - bound.limit()).abs();
    let spread = standard_deviation(values)?;
    Ok((values.len()..=most).find(|&n| {
        let t = student_quantile(1.0 - (1.0 - level) / 2.0, (n - 1) as f64);
        t * spread / (n as f64).sqrt() <= distance
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_the_wild_value_only() {
        assert_eq!(outliers(&[10.0, 10.1, 9.9, 10.05, 30.0]).unwrap(), [4]);
        assert!(outliers(&[1.0, 1.0, 1.0]).unwrap().is_empty());
        assert_eq!(outliers(&[vec![1.0; 20], vec![9.0]].concat()).unwrap(), [20]);
    }

    #[test]
    fn sees_a_machine_that_slows_down() {
        let rising: Vec<f64> = (0..12).map(|i| 1.0 + 0.01 * f64::from(i)).collect();
        let n = noise(&rising).unwrap();
        assert_eq!(n.trend.tau, 1.0);
        assert!(n.trend.p_value < 0.001 && n.is_noisy(0.05, 12));
        let steady = noise(&[1.0, 1.01, 0.99, 1.0, 1.005, 0.995]).unwrap();
        assert!(!steady.is_noisy(0.05, 6));
    }

    #[test]
    fn equal_values_have_no_trend() {
        let t = kendall(&[2.0; 6]).unwrap();
        assert_eq!((t.tau, t.p_value), (0.0, 1.0));
    }

    #[test]
    fn a_small_margin_needs_more_rounds() {
        let values = [1.0, 1.2, 0.8, 1.1, 0.9];
        let far = rounds_to_decide(&values, Bound::AtMost(2.0), 0.95, 100).unwrap();
        let near = rounds_to_decide(&values, Bound::AtMost(1.05), 0.95, 100).unwrap();
        let never = rounds_to_decide(&values, Bound::AtMost(1.0), 0.95, 100).unwrap();
        assert_eq!(far, Some(5));
        // s = 0.158: 2.02 · 0.158 / √n ≤ 0.05 from about 41 rounds on.
        assert!(near.is_some_and(|n| (38..=45).contains(&n)), "{near:?}");
        assert_eq!(never, None);
    }

    #[test]
    fn rejects_times_that_are_not_positive() {
        assert!(matches!(noise(&[1.0, -1.0]), Err(Error::NotPositive { .. })));
        assert!(matches!(noise(&[1.0]), Err(Error::TooFew { .. })));
    }
}
