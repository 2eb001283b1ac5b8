use crate::error::{check, check_probability};
use crate::special::binomial_cdf;
use crate::{Ecdf, Error, Interval, Method};

/// The exact interval of a median between two order statistics. See [`quantile_interval`].
pub fn median_interval(values: &[f64], level: f64) -> Result<Interval, Error> {
    quantile_interval(values, 0.5, level)
}

/// The interval of the `p` quantile between two order statistics: no assumption about the
/// distribution but that the values are independent.
///
/// `level` of the result is the true coverage. It is at least what was asked for where the data
/// allow it; where they do not (the median of five values reaches 93.75 % at most, the p99 of fifty
/// far less) the ends are the smallest and largest value and `level` says what that is worth.
///
/// # Errors
/// [`Error::TooFew`] below two values; [`Error::BadProbability`]; [`Error::NotFinite`].
pub fn quantile_interval(values: &[f64], p: f64, level: f64) -> Result<Interval, Error> {
    check("an interval of a quantile", values, 2)?;
    check_probability("a quantile", p)?;
    check_probability("a confidence level", level)?;
    let ecdf = Ecdf::new(values)?;
    let n = values.len();
    let tail = (1.0 - level) / 2.0;
    let (low, high) = ends(n, p, tail);
    // The quantile lies between order statistics low and high (from 0) exactly when the count of
    // values below it is in low + 1 ..= high.
    let coverage = binomial_cdf(high as i64, n, p) - binomial_cdf(low as i64, n, p);
    Ok(Interval {
        low: ecdf.sorted()[low],
        point: ecdf.quantile(p)?,
        high: ecdf.sorted()[high],
        level: coverage,
        n,
        method: Method::OrderStatistic,
    })
}

/// Indices of the highest lower end and lowest upper end that leave at most `tail` outside.
fn ends(n: usize, p: f64, tail: f64) -> (usize, usize) {
    // A rounding error in the tail must not cost a whole order statistic.
    let tail = tail * (1.0 + 1e-12);
    let fits = |k: usize| binomial_cdf(k as i64, n, p);
    let low = (0..n).take_while(|&k| fits(k) <= tail).last().unwrap_or(0);
    let high = (0..n).rev().take_while(|&k| 1.0 - fits(k) <= tail).last().unwrap_or(n - 1);
    (low, high.max(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_ten_lies_between_the_second_and_ninth() {
        let values: Vec<f64> = (1..=10).map(f64::from).collect();
        let i = median_interval(&values, 0.95).unwrap();
        assert_eq!((i.low, i.point, i.high), (2.0, 5.5, 9.0));
        // 1 − 2·(1 + 10)/1024
        assert!((i.level - 0.978_515_625).abs() < 1e-12);
    }

    #[test]
    fn too_few_values_lower_the_level_instead_of_the_truth() {
        let i = median_interval(&[5.0, 1.0, 2.0, 4.0, 3.0], 0.95).unwrap();
        assert_eq!((i.low, i.high), (1.0, 5.0));
        assert!((i.level - 0.9375).abs() < 1e-12);
        let three = median_interval(&[1.0, 2.0, 3.0], 0.95).unwrap();
        assert!((three.level - 0.75).abs() < 1e-12);
    }

    #[test]
    fn a_far_quantile_of_few_values_admits_that_it_is_not_bounded() {
        let values: Vec<f64> = (0..50).map(f64::from).collect();
        let i = quantile_interval(&values, 0.99, 0.95).unwrap();
        assert_eq!(i.high, 49.0);
        assert!(i.level < 0.45, "{}", i.level);
    }

    #[test]
    fn rejects_one_value() {
        assert!(matches!(median_interval(&[1.0], 0.95), Err(Error::TooFew { .. })));
    }
}
