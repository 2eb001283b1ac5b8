/// Maps values to places on a chart.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
    fixed: Option<Vec<f64>>,
}

impl Scale {
    /// A linear scale over `values` and zero where `zero`, with a little room at the ends.
    pub(crate) fn linear(values: impl IntoIterator<Item = f64>, zero: bool) -> Self {
        let (mut low, mut high) = range(values);
        if zero {
            low = low.min(0.0);
        }
        let room = if high > low { (high - low) * 0.05 } else { high.abs().max(1.0) * 0.1 };
        if low != 0.0 {
            low -= room;
        }
        high += room;
        Self { low, high, from: 0.0, to: 1.0, log: false, fixed: None }
    }

    /// A linear scale that begins at zero unless that would leave most of the chart empty.
    pub(crate) fn near(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let (low, high) = range(values.iter().copied());
        Self::linear(values, low < high * 0.4)
    }

    /// The same scale with these labels.
    pub(crate) fn with_ticks(self, ticks: Vec<f64>) -> Self {
        Self { fixed: Some(ticks), ..self }
    }

    /// A logarithmic scale over the positive ones of `values`.
    pub(crate) fn log(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values.into_iter().filter(|v| *v > 0.0));
        let (low, high) = if low > 0.0 { (low, high) } else { (1e-6, 1.0) };
        Self { low: low / 1.4, high: high * 1.4, from: 0.0, to: 1.0, log: true, fixed: None }
    }

    /// Places the scale between two coordinates.
    pub(crate) fn onto(self, from: f64, to: f64) -> Self {
        Self { from, to, ..self }
    }

    /// Where a value stands; what lies outside is put on the edge.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Round values to label, about `count` of them.
    pub(crate) fn ticks(&self, count: usize) -> Vec<f64> {
        match &self.fixed {
            Some(ticks) => ticks.clone(),
            None if self.log => self.log_ticks(),
            None => self.linear_ticks(count),
        }
    }

    fn linear_ticks(&self, count: usize) -> Vec<f64> {
        let rough = (self.high - self.low) / count.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|m| m * power)
            .find(|step| *step >= rough)
            .unwrap_or(power * 10.0);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }

    fn log_ticks(&self) -> Vec<f64> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let decades = last - first;
        let steps: &[f64] = match decades {
            ..=1 => &[1.0, 2.0, 3.0, 5.0, 7.0],
            2..=3 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        (first..=last)
            .flat_map(|e| steps.iter().map(move |s| s * 10f64.powi(e)))
            .filter(|v| (self.low..=self.high).contains(v))
            .collect()
    }
}

fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let finite = values.into_iter().filter(|v| v.is_finite() && v.abs() < 1e300);
    let (low, high) =
        finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// A tick's label: as many digits as the value needs.
pub(crate) fn tick_label(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let size = value.abs();
    if size >= 1e6 {
        format!("{}M", trimmed(value / 1e6))
    } else if size >= 1e4 {
        format!("{}k", trimmed(value / 1e3))
    } else if size >= 1e-4 {
        trimmed(value)
    } else {
        format!("{value:.0e}")
    }
}

/// Bytes in the unit that suits the largest of them, with its name.
pub(crate) fn byte_unit(largest: f64) -> (f64, &'static str) {
    const KIB: f64 = 1024.0;
    match largest {
        v if v >= KIB * KIB * KIB => (KIB * KIB * KIB, "GiB"),
        v if v >= KIB * KIB => (KIB * KIB, "MiB"),
        _ => (KIB, "KiB"),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::linear([0.0, 97.0], true);
        assert_eq!(scale.ticks(5), [0.0, 50.0, 100.0]);
        let log = Scale::log([0.001, 0.5]);
        let ticks = log.ticks(5);
        assert!(ticks.iter().any(|t| (t - 0.01).abs() < 1e-9), "{ticks:?}");
        assert!(ticks.iter().all(|t| *t >= log.low && *t <= log.high));
    }

    #[test]
    fn places_are_in_order_and_on_the_page() {
        let log = Scale::log([1.0, 100.0]).onto(0.0, 10.0);
        assert!(log.at(1.0) < log.at(10.0) && log.at(10.0) < log.at(100.0));
        assert_eq!(log.at(0.0), 0.0);
        let flat = Scale::linear([5.0, 5.0], false).onto(0.0, 1.0);
        assert!((flat.at(5.0) - 0.5).abs() < 1e-9);
        let empty = Scale::linear([], true).onto(0.0, 1.0);
        assert!(empty.at(0.5).is_finite() && !empty.ticks(4).is_empty());
    }

    #[test]
    fn labels_are_short() {
        for (value, text) in
            [(0.0, "0"), (0.002, "0.002"), (50.0, "50"), (20_000.0, "20k"), (2.5e6, "2.5M")]
        {
            assert_eq!(tick_label(value), text);
        }
    }
}
