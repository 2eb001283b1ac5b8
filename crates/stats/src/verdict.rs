use serde::{Deserialize, Serialize};

use crate::Interval;

/// A requirement on a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    /// Judges a measured figure: not by its estimate but by the end of its interval that speaks
    /// against the requirement (a test of non-inferiority).
    ///
    /// `Meets` and `Fails` are each wrong with probability at most `1 - interval.one_sided_level()`:
    /// 2.5 % for a 95 % interval, 5 % for a 90 % one. A configuration that is to meet several
    /// requirements at once needs no correction for their number (each must pass: an
    /// intersection-union test, Berger 1982); several configurations tried against one do, see
    /// [`shared_level`] and [`holm`].
    pub fn judge(&self, interval: &Interval) -> Verdict {
        let (met, failed) = match *self {
            Bound::AtMost(limit) => (interval.high <= limit, interval.low > limit),
            Bound::AtLeast(limit) => (interval.low >= limit, interval.high < limit),
        };
        match (met, failed) {
            (true, _) => Verdict::Meets,
            (_, true) => Verdict::Fails,
            _ => Verdict::Undecided,
        }
    }

    pub fn limit(&self) -> f64 {
        match *self {
            Bound::AtMost(limit) | Bound::AtLeast(limit) => limit,
        }
    }
}

/// What a measurement says about a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Meets,
    Fails,
    /// The interval reaches across the bound: measure more.
    Undecided,
}

impl Verdict {
    /// The verdict on several requirements together: one failure fails, and all must be met.
    pub fn all(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
        verdicts.into_iter().fold(Verdict::Meets, |all, one| match (all, one) {
            (Verdict::Fails, _) | (_, Verdict::Fails) => Verdict::Fails,
            (Verdict::Undecided, _) | (_, Verdict::Undecided) => Verdict::Undecided,
            _ => Verdict::Meets,
        })
    }
}

/// The level for each of `tests` intervals so that all hold together with confidence `level`
/// (Bonferroni): for a pick among several configurations.
pub fn shared_level(level: f64, tests: usize) -> f64 {
    1.0 - (1.0 - level) / tests.max(1) as f64
}

/// Holm's adjusted p-values, in the order given: reject those at or below α and the chance of any
/// false rejection stays at most α, however the tests depend on each other.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest: f64 = 0.0;
    for (rank, &index) in order.iter().enumerate() {
        let left = (p_values.len() - rank) as f64;
        largest = largest.max((p_values[index] * left).min(1.0));
        adjusted[index] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Method;

    fn interval(low: f64, high: f64) -> Interval {
        let point = (low + high) / 2.0;
        Interval { low, point, high, level: 0.9, n: 5, method: Method::StudentT }
    }

    #[test]
    fn the_bound_of_the_interval_decides_not_the_estimate() {
        let limit = Bound::AtMost(2.0);
        assert_eq!(limit.judge(&interval(1.0, 2.0)), Verdict::Meets);
        assert_eq!(limit.judge(&interval(1.0, 2.5)), Verdict::Undecided);
        assert_eq!(limit.judge(&interval(2.1, 2.5)), Verdict::Fails);
        let floor = Bound::AtLeast(2.0);
        assert_eq!(floor.judge(&interval(2.0, 3.0)), Verdict::Meets);
        assert_eq!(floor.judge(&interval(1.9, 3.0)), Verdict::Undecided);
        assert_eq!(floor.judge(&interval(1.0, 1.9)), Verdict::Fails);
    }

    #[test]
    fn an_interval_that_is_not_a_number_decides_nothing() {
        assert_eq!(Bound::AtMost(1.0).judge(&interval(f64::NAN, f64::NAN)), Verdict::Undecided);
    }

    #[test]
    fn requirements_combine() {
        use Verdict::{Fails, Meets, Undecided};
        assert_eq!(Verdict::all([]), Meets);
        assert_eq!(Verdict::all([Meets, Undecided]), Undecided);
        assert_eq!(Verdict::all([Undecided, Fails, Meets]), Fails);
    }

    #[test]
    fn holm_steps_down_and_never_falls() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (a, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((a - expected).abs() < 1e-12);
        }
        assert!((shared_level(0.95, 5) - 0.99).abs() < 1e-12);
    }
}
