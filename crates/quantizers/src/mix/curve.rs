use super::search::Sensitivity;

/// An item's divergence as a function of its error, measured at some options.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    errors: Vec<f64>,
    measured: Vec<Option<f64>>,
}

impl Curve {
    pub(super) fn new(errors: Vec<f64>) -> Self {
        let measured = vec![None; errors.len()];
        Self { errors, measured }
    }

    pub(super) fn set(&mut self, option: usize, divergence: f64) {
        self.measured[option] = Some(divergence.max(0.0));
    }

    /// The divergence that an option alone leads to.
    ///
    /// It is a power of the error, the same beyond the measurements as between them; proportional
    /// to it where there is one measurement.
    pub(super) fn cost(&self, option: usize) -> f64 {
        if let Some(measured) = self.measured[option] {
            return measured;
        }
        let error = self.errors[option];
        let points = self.points();
        let above = points.iter().find(|(e, _)| *e >= error);
        let below = points.iter().rev().find(|(e, _)| *e <= error);
        match (below, above) {
            (Some((low, a)), Some((high, b))) if low < high && *a > 0.0 && *b > 0.0 => {
                let share = (error / low).ln() / (high / low).ln();
                a * (b / a).powf(share)
            }
            (_, Some((e, d))) | (Some((e, d)), None) => d * (error / e).powf(power(&points)),
            (None, None) => f64::INFINITY,
        }
    }

    /// Error and divergence of what was measured and has an error, by error.
    fn points(&self) -> Vec<(f64, f64)> {
        let known = self.errors.iter().zip(&self.measured);
        let known = known.filter_map(|(error, measured)| Some((*error, (*measured)?)));
        let mut points: Vec<_> = known.filter(|(error, _)| *error > 0.0).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }

    /// Options that no other one beats in both bytes and error, by bytes.
    fn efficient(&self, bytes: &[u64]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..bytes.len()).collect();
        order.sort_by(|a, b| {
            bytes[*a]
                .cmp(&bytes[*b])
                .then(self.cost_or_error(*a).total_cmp(&self.cost_or_error(*b)))
        });
        let mut least = f64::INFINITY;
        order.retain(|option| {
            let better = self.cost_or_error(*option) < least;
            least = least.min(self.cost_or_error(*option));
            better
        });
        order
    }

    fn cost_or_error(&self, option: usize) -> f64 {
        let cost = self.cost(option);
        if cost.is_finite() { cost } else { self.errors[option] }
    }

    /// The `count` options to measure: efficient ones, those around `usual` bytes.
    pub(super) fn anchors(&self, bytes: &[u64], usual: u64, count: usize) -> Vec<usize> {
        let mut efficient = self.efficient(bytes);
        let above = efficient.partition_point(|option| bytes[*option] < usual);
        let first = above.saturating_sub(count.div_ceil(2));
        let first = first.min(efficient.len().saturating_sub(count));
        efficient.drain(..first);
        efficient.truncate(count);
        efficient
    }

    /// The efficient options on both sides of one.
    pub(super) fn next_to(&self, bytes: &[u64], option: usize) -> Vec<usize> {
        let efficient = self.efficient(bytes);
        let smaller = efficient.iter().rev().find(|other| bytes[**other] < bytes[option]);
        let larger = efficient
            .iter()
            .find(|other| bytes[**other] > bytes[option] && self.cost(**other) < self.cost(option));
        smaller.into_iter().chain(larger).copied().collect()
    }

    /// Divergence per error, over what was measured.
    fn slope(&self) -> f64 {
        let points = self.points();
        let ratios: f64 = points.iter().map(|(error, divergence)| divergence / error).sum();
        if points.is_empty() { 0.0 } else { ratios / points.len() as f64 }
    }

    pub(super) fn sensitivity(&self) -> Sensitivity {
        Sensitivity {
            slope: self.slope(),
            errors: self.errors.clone(),
            costs: (0..self.errors.len()).map(|option| self.cost(option)).collect(),
            measured: self.measured.iter().map(Option::is_some).collect(),
        }
    }
}

/// The power of the error that measured divergences grow with, as far as it is likely.
fn power(points: &[(f64, f64)]) -> f64 {
    let (Some((e, d)), Some((f, g))) = (points.first(), points.last()) else { return 1.0 };
    let power = (g / d).ln() / (f / e).ln();
    if power.is_finite() { power.clamp(0.5, 1.5) } else { 1.0 }
}

/// The power of the error that divergence grows with: the median over the curves of the slope
/// between their outermost measurements, in logarithms.
pub(super) fn exponent(curves: &[Curve]) -> Option<f64> {
    let of = |curve: &Curve| {
        let points = curve.points();
        let ((e, d), (f, g)) = (*points.first()?, *points.last()?);
        (f > e && d > 0.0 && g > 0.0).then(|| (g / d).ln() / (f / e).ln())
    };
    let mut all: Vec<f64> = curves.iter().filter_map(of).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_lies_around_the_usual_size() {
        let curve = Curve::new(vec![8.0, 4.0, 5.0, 2.0, 1.0]);
        // The third is beaten by the second, which is smaller.
        let bytes = [10, 20, 30, 40, 50];
        assert_eq!(curve.anchors(&bytes, 45, 2), [3, 4]);
        assert_eq!(curve.anchors(&bytes, 40, 2), [1, 3]);
        assert_eq!(curve.anchors(&bytes, 5, 2), [0, 1]);
        assert_eq!(curve.anchors(&bytes, 99, 2), [3, 4]);
        assert_eq!(curve.anchors(&bytes, 40, 1), [1]);
        assert_eq!(curve.anchors(&bytes, 40, usize::MAX), [0, 1, 3, 4]);
    }
}
