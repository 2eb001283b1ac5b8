//! Draws that the field names, from a seeded generator.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// A uniform draw above 0 and up to 1: its logarithm is finite.
fn positive(rng: &mut ChaCha8Rng) -> f64 {
    1.0 - rng.random::<f64>()
}

/// Mean 1.
pub(super) fn exponential(rng: &mut ChaCha8Rng) -> f64 {
    -positive(rng).ln()
}

/// Mean 0, standard deviation 1 (Box and Muller 1958).
pub(super) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * positive(rng).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// Mean 1, variance 1 / `shape` (Marsaglia and Tsang 2000).
pub(super) fn gamma(rng: &mut ChaCha8Rng, shape: f64) -> f64 {
    // Below 1 the method needs a boost: a draw of shape + 1 times a power of a uniform draw.
    let boost = if shape < 1.0 { positive(rng).powf(1.0 / shape) } else { 1.0 };
    let d = if shape < 1.0 { shape + 1.0 } else { shape } - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && positive(rng).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return boost * d * v / shape;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn moments(draw: impl Fn(&mut ChaCha8Rng) -> f64) -> (f64, f64) {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let drawn: Vec<f64> = (0..40_000).map(|_| draw(&mut rng)).collect();
        let mean = lathe_stats::mean(&drawn).unwrap();
        (mean, lathe_stats::standard_deviation(&drawn).unwrap().powi(2))
    }

    #[test]
    fn draws_have_the_moments_of_their_distribution() {
        let near = |(mean, variance): (f64, f64), m: f64, v: f64| {
            assert!((mean - m).abs() < 0.04 && (variance - v).abs() < 0.1 * v, "{mean} {variance}");
        };
        near(moments(exponential), 1.0, 1.0);
        near(moments(normal), 0.0, 1.0);
        for shape in [0.25, 1.0, 4.0] {
            near(moments(|rng| gamma(rng, shape)), 1.0, 1.0 / shape);
        }
    }
}
