use crate::error::{check, check_pairs, check_positive, check_probability};
use crate::special::{binomial_cdf, student_quantile};
use crate::{Bootstrap, Error, Interval, Method, mean, standard_deviation};

/// Student's t interval of a mean.
///
/// # Errors
/// [`Error::TooFew`] below two values; [`Error::NotFinite`]; [`Error::BadProbability`].
pub fn mean_interval(values: &[f64], level: f64) -> Result<Interval, Error> {
    check("an interval of a mean", values, 2)?;
    check_probability("a confidence level", level)?;
    let n = values.len();
    let point = mean(values)?;
    let error = standard_deviation(values)? / (n as f64).sqrt();
    let reach = error * student_quantile(1.0 - (1.0 - level) / 2.0, (n - 1) as f64);
    let (low, high) = (point - reach, point + reach);
    Ok(Interval { low, point, high, level, n, method: Method::StudentT })
}

/// The mean of `a[i] - b[i]` over rounds, by Student's t on the differences.
///
/// # Errors
/// As [`mean_interval`]; [`Error::Unpaired`].
pub fn paired_difference(a: &[f64], b: &[f64], level: f64) -> Result<Interval, Error> {
    check_pairs(a, b)?;
    check("a paired difference", a, 2)?;
    check("a paired difference", b, 2)?;
    mean_interval(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>(), level)
}

/// How many times `a` is as large as `b`: the geometric mean of `a[i] / b[i]` over rounds.
///
/// Entries with the same index come from the same round (each, say, the round's median time), so
/// that what slowed the whole machine in that round cancels. By Student's t on the logarithms: fit
/// for the three to five rounds that a speed trial has, where no bootstrap is honest. Its coverage
/// on normal and on skewed errors is tested.
///
/// # Errors
/// As [`mean_interval`]; [`Error::Unpaired`]; [`Error::NotPositive`].
pub fn paired_ratio(a: &[f64], b: &[f64], level: f64) -> Result<Interval, Error> {
    check_pairs(a, b)?;
    check_positive("a paired ratio", a, 2)?;
    check_positive("a paired ratio", b, 2)?;
    let logs: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a / b).ln()).collect();
    let interval = mean_interval(&logs, level)?.map(f64::exp);
    Ok(Interval { method: Method::StudentTOnLogs, ..interval })
}

/// The ratio of a statistic (median, mean) of `a` to that of `b`, rounds resampled as pairs.
///
/// # Errors
/// As [`Bootstrap::over`]: at least [`crate::SMALLEST_BOOTSTRAP`] rounds; use [`paired_ratio`]
/// below. [`Error::Unpaired`], [`Error::NotPositive`].
pub fn paired_ratio_of(
    a: &[f64],
    b: &[f64],
    statistic: impl Fn(&[f64]) -> f64,
    bootstrap: &Bootstrap,
) -> Result<Interval, Error> {
    check_pairs(a, b)?;
    check_positive("a paired ratio", a, 2)?;
    check_positive("a paired ratio", b, 2)?;
    let mut drawn = (Vec::new(), Vec::new());
    let logs = bootstrap.over(a.len(), |rounds| {
        drawn.0.clear();
        drawn.1.clear();
        drawn.0.extend(rounds.iter().map(|&i| a[i]));
        drawn.1.extend(rounds.iter().map(|&i| b[i]));
        (statistic(&drawn.0) / statistic(&drawn.1)).ln()
    })?;
    Ok(logs.map(f64::exp))
}

/// The two-sided p-value of the exact sign test: `up` pairs rose, `down` fell, ties left out.
///
/// On right answers that turned wrong and wrong ones that turned right it is McNemar's exact test.
pub fn sign_test(up: usize, down: usize) -> f64 {
    let n = up + down;
    (2.0 * binomial_cdf(up.min(down) as i64, n, 0.5)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::median;

    #[test]
    fn a_constant_ratio_is_found_whatever_the_rounds_do() {
        let b = [1.0, 3.0, 2.0, 10.0];
        let a = b.map(|v| v * 1.5);
        let i = paired_ratio(&a, &b, 0.95).unwrap();
        assert!((i.point - 1.5).abs() < 1e-12 && i.half_width() < 1e-12);
        assert_eq!(i.method, Method::StudentTOnLogs);
    }

    #[test]
    fn the_t_interval_matches_a_hand_computed_one() {
        // mean 2, s 1, n 3: 2 ± 4.302653 / √3
        let i = mean_interval(&[1.0, 2.0, 3.0], 0.95).unwrap();
        assert!((i.half_width() - 4.302_652_730 / 3.0_f64.sqrt()).abs() < 1e-8);
        let d = paired_difference(&[2.0, 4.0, 6.0], &[1.0, 2.0, 3.0], 0.95).unwrap();
        assert_eq!((d.low, d.high), (i.low, i.high));
    }

    #[test]
    fn ratios_of_medians_are_resampled_as_pairs() {
        let b: Vec<f64> = (1..=30).map(f64::from).collect();
        let a: Vec<f64> = b.iter().map(|v| v * 0.8).collect();
        let i = paired_ratio_of(&a, &b, |v| median(v).unwrap(), &Bootstrap::default()).unwrap();
        assert!((i.low - 0.8).abs() < 1e-9 && (i.high - 0.8).abs() < 1e-9);
    }

    #[test]
    fn the_sign_test_matches_the_binomial() {
        assert!((sign_test(0, 5) - 2.0 / 32.0).abs() < 1e-12);
        assert_eq!(sign_test(3, 3), 1.0);
        assert_eq!(sign_test(0, 0), 1.0);
    }

    #[test]
    fn rejects_what_is_not_pairs_of_positive_numbers() {
        assert_eq!(
            paired_ratio(&[1.0, 2.0], &[1.0], 0.95),
            Err(Error::Unpaired { left: 2, right: 1 })
        );
        assert!(matches!(
            paired_ratio(&[1.0, 0.0], &[1.0, 1.0], 0.95),
            Err(Error::NotPositive { index: 1, .. })
        ));
        assert!(matches!(paired_ratio(&[1.0], &[1.0], 0.95), Err(Error::TooFew { .. })));
    }
}
