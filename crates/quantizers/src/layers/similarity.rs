use std::{f64::consts::PI, ops::Range};

/// How alike the residual stream is before and after layers: layers that hardly turn it can go.
///
/// What is averaged is the angle between the states of the same token before layer a and before
/// layer b, for all a < b, as a part of π.
///
/// **Source**: blocks of layers by angular distance as in arXiv 2403.17887; single layers by the
/// same measure, whose order is that of ShortGPT's block influence (arXiv 2403.03853) as long as
/// cosines vary little.
#[derive(Clone, Debug, PartialEq)]
pub struct Similarity {
    layers: usize,
    /// Sums of angles and of cosines, by a and then b, both up to `layers`.
    angles: Vec<f64>,
    cosines: Vec<f64>,
    count: u64,
}

impl Similarity {
    /// Nothing measured yet of a model of `layers` layers.
    pub fn new(layers: usize) -> Self {
        let pairs = (layers + 1) * (layers + 1);
        Self { layers, angles: vec![0.0; pairs], cosines: vec![0.0; pairs], count: 0 }
    }

    /// Takes one token in: its states \[D\] before each layer and after the last.
    ///
    /// Tokens with a state that is not finite, or is zero, are passed over.
    pub fn add(&mut self, states: &[&[f32]]) {
        debug_assert_eq!(states.len(), self.layers + 1);
        let norms: Vec<f64> = states.iter().map(|x| dot(x, x).sqrt()).collect();
        if norms.iter().any(|norm| !(norm.is_finite() && *norm > 0.0)) {
            return;
        }
        self.count += 1;
        for a in 0..=self.layers {
            for b in a + 1..=self.layers {
                let cosine = (dot(states[a], states[b]) / (norms[a] * norms[b])).clamp(-1.0, 1.0);
                let at = a * (self.layers + 1) + b;
                self.cosines[at] += cosine;
                self.angles[at] += cosine.acos() / PI;
            }
        }
    }

    /// Tokens taken in.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean angle, as a part of π, by which `layers` turn a token's state.
    pub fn distance(&self, layers: Range<usize>) -> f64 {
        self.angles[layers.start * (self.layers + 1) + layers.end] / self.count.max(1) as f64
    }

    /// ShortGPT's block influence of one layer: 1 − the mean cosine.
    pub fn influence(&self, layer: usize) -> f64 {
        let at = layer * (self.layers + 1) + layer + 1;
        1.0 - self.cosines[at] / self.count.max(1) as f64
    }

    /// The `count` neighbouring layers that together turn the states least, the last layer not
    /// among them: what it does is what the head is used to. Of equals the first; None where
    /// there are not that many.
    pub fn block(&self, count: usize) -> Option<Range<usize>> {
        let last_start = self.layers.checked_sub(count + 1)?;
        let blocks = (0..=last_start).map(|start| start..start + count);
        blocks.min_by(|a, b| self.distance(a.clone()).total_cmp(&self.distance(b.clone())))
    }

    /// The `count` layers of least influence, ascending; None where there are not that many. Of
    /// equals the first.
    pub fn least(&self, count: usize) -> Option<Vec<usize>> {
        let mut layers: Vec<usize> = (0..self.layers).collect();
        layers.sort_by(|a, b| self.influence(*a).total_cmp(&self.influence(*b)));
        layers.get(..count)?;
        layers.truncate(count);
        layers.sort_unstable();
        Some(layers)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turned by these angles (parts of π) from layer to layer.
    fn turned(angles: &[f64]) -> Similarity {
        let mut similarity = Similarity::new(angles.len());
        let mut at = 0.3;
        let mut states = vec![vec![(PI * at).cos() as f32, (PI * at).sin() as f32]];
        for angle in angles {
            at += angle;
            // Lengths do not count.
            states.push(vec![3.0 * (PI * at).cos() as f32, 3.0 * (PI * at).sin() as f32]);
        }
        let states: Vec<&[f32]> = states.iter().map(Vec::as_slice).collect();
        similarity.add(&states);
        similarity
    }

    #[test]
    fn distances_are_the_angles_between_states() {
        let similarity = turned(&[0.1, 0.02, -0.05, 0.2]);
        assert!((similarity.distance(0..2) - 0.12).abs() < 1e-6);
        assert!((similarity.distance(1..3) - 0.03).abs() < 1e-6);
        assert!((similarity.influence(3) - (1.0 - (0.2 * PI).cos())).abs() < 1e-6);
    }

    #[test]
    fn the_layers_that_turn_least_go_and_the_last_is_not_in_a_block() {
        let similarity = turned(&[0.1, 0.02, -0.05, 0.2, 0.001]);
        assert_eq!(similarity.block(1), Some(1..2));
        assert_eq!(similarity.block(2), Some(1..3));
        assert_eq!(similarity.block(5), None);
        assert_eq!(similarity.least(3), Some(vec![1, 2, 4]));
        assert_eq!(similarity.least(6), None);
    }

    #[test]
    fn states_that_are_no_numbers_are_passed_over() {
        let mut similarity = turned(&[0.1, 0.2]);
        let before = similarity.clone();
        similarity.add(&[&[1.0, 0.0], &[f32::NAN, 0.0], &[1.0, 0.0]]);
        similarity.add(&[&[1.0, 0.0], &[0.0, 0.0], &[1.0, 0.0]]);
        assert_eq!(similarity, before);
    }
}
