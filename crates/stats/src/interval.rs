use std::fmt;

use serde::{Deserialize, Serialize};

/// An estimate with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub low: f64,
    /// The estimate itself.
    pub point: f64,
    pub high: f64,
    /// Two-sided confidence, such as 0.95. Either end alone is a bound with confidence
    /// `1 - (1 - level) / 2`, see [`Interval::one_sided_level`].
    pub level: f64,
    /// Independent units behind the estimate: rounds, requests or documents, not tokens.
    pub n: usize,
    pub method: Method,
}

impl Interval {
    /// A quantity without sampling error, such as a size on disk.
    pub fn exact(value: f64) -> Self {
        Self { low: value, point: value, high: value, level: 1.0, n: 1, method: Method::Exact }
    }

    /// The confidence with which one end alone bounds the true value.
    pub fn one_sided_level(&self) -> f64 {
        1.0 - (1.0 - self.level) / 2.0
    }

    /// The two-sided level whose ends, each alone, are bounds with confidence `one_sided`.
    pub fn level_for_one_sided(one_sided: f64) -> f64 {
        1.0 - 2.0 * (1.0 - one_sided)
    }

    /// The interval of `f(x)` for a monotone `f`, such as `exp` from log-perplexity to perplexity.
    ///
    /// A falling `f` swaps the ends.
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        let (a, b) = (f(self.low), f(self.high));
        Self { low: a.min(b), point: f(self.point), high: a.max(b), ..self }
    }

    pub fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// Whether the interval is wider to each side, in the mean, than the estimate is large, as after
    /// two rounds that differ: its ends are no figures to show to people.
    pub fn is_vague(&self) -> bool {
        self.half_width() > self.point.abs()
    }

    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

impl fmt::Display for Interval {
    /// `18.86 (18.41 to 19.33, 95 %)`; a precision, as in `{:.3}`, sets the decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or(2);
        let percent = self.level * 100.0;
        write!(
            f,
            "{:.decimals$} ({:.decimals$} to {:.decimals$}, {percent:.3$} %)",
            self.point,
            self.low,
            self.high,
            usize::from((percent - percent.round()).abs() > 0.05),
        )
    }
}

/// How an interval was computed.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Counted, not estimated.
    Exact,
    /// Student's t on the values.
    StudentT,
    /// Student's t on the logarithms, then back: for ratios and other positive quantities.
    StudentTOnLogs,
    /// Student's t on a ratio of sums, with the linearised (Taylor) standard error over units.
    StudentTOnRatio,
    /// Percentile bootstrap.
    Percentile,
    /// Bias-corrected and accelerated bootstrap.
    Bca,
    /// Studentised bootstrap over units (documents).
    BootstrapT,
    /// Exact, distribution-free, between two order statistics; `level` is the true coverage.
    OrderStatistic,
    /// Wilson's score interval of a proportion.
    Wilson,
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: Interval =
        Interval { low: 1.0, point: 2.0, high: 4.0, level: 0.95, n: 5, method: Method::StudentT };

    #[test]
    fn maps_both_ways() {
        assert_eq!(X.map(|v| -v).low, -4.0);
        assert_eq!(X.map(|v| -v).high, -1.0);
        assert_eq!(X.map(|v| v + 1.0).point, 3.0);
    }

    #[test]
    fn an_interval_that_is_wider_than_its_figure_is_vague() {
        assert!(!X.is_vague() && !Interval::exact(0.0).is_vague());
        assert!(Interval { high: 6.0, ..X }.is_vague());
        assert!(Interval { low: 0.0, high: f64::MAX, ..X }.is_vague());
    }

    #[test]
    fn one_sided_and_two_sided_levels_agree() {
        assert!((X.one_sided_level() - 0.975).abs() < 1e-12);
        assert!((Interval::level_for_one_sided(0.95) - 0.90).abs() < 1e-12);
    }

    #[test]
    fn prints_with_the_asked_decimals() {
        assert_eq!(format!("{X:.1}"), "2.0 (1.0 to 4.0, 95 %)");
        assert_eq!(format!("{:.1}", Interval { level: 0.9375, ..X }), "2.0 (1.0 to 4.0, 93.8 %)");
    }

    #[test]
    fn survives_json() {
        let text = serde_json::to_string(&X).unwrap();
        assert!(text.contains("\"student_t\""));
        assert_eq!(serde_json::from_str::<Interval>(&text).unwrap(), X);
    }
}
