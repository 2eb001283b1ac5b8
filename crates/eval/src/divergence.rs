use crate::rows::{Row, Weighed, divergence};

/// Takes the KL divergence between rows of logits, one pair after the other, in room that it keeps.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    base: Vec<f64>,
    other: Vec<f64>,
}

impl Divergence {
    /// Σ p ln(p / q) in nats, where p is what the logits `base` say and q what `other` says, both
    /// \[V\]; in double precision. `None` if either has NaN, +∞ or nothing but −∞.
    pub fn between(&mut self, base: &[f32], other: &[f32]) -> Option<f64> {
        self.base.resize(base.len(), 0.0);
        self.other.resize(other.len(), 0.0);
        let (p, q) = (Row::weigh(base, &mut self.base)?, Row::weigh(other, &mut self.other)?);
        Some(divergence(
            Weighed { row: &p, logits: base, weights: &self.base },
            Weighed { row: &q, logits: other, weights: &self.other },
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_different_lengths_follow_one_another() {
        let mut between = Divergence::default();
        let expected = 0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln();
        for _ in 0..2 {
            let found = between.between(&[3.0_f32.ln(), 0.0], &[5.0, 5.0]).unwrap();
            assert!((found - expected).abs() < 1e-7);
            assert_eq!(between.between(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]), Some(0.0));
        }
        assert_eq!(between.between(&[1.0, f32::NAN], &[1.0, 1.0]), None);
    }
}
