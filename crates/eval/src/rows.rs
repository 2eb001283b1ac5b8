//! Arithmetic on one row of logits \[V\], in double precision throughout: plain loops over eight
//! lanes, which compilers turn into vector code, for whichever instruction set runs them.

use lathe_simd::{Isa, Op};

/// Logits this many nats below the largest of their row count as exactly this many below: the end of
/// what a double can hold as a probability. It keeps the divergence finite where a model masks
/// tokens with minus infinity.
const DEEPEST: f64 = -708.0;
const LANES: usize = 8;

/// What is needed of a row to turn its logits into log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    /// The index of the largest logit, the first of equals.
    pub(crate) top: usize,
    max: f32,
    /// Σ exp(logit − max)
    sum: f64,
    log_sum: f64,
}

impl Row {
    /// `None` if the row holds NaN, +∞ or nothing but −∞.
    pub(crate) fn new(logits: &[f32]) -> Option<Self> {
        Self::measure(logits, |max| lathe_simd::run(Sum { logits, max }))
    }

    /// As `new`, and writes exp(logit − max) of each logit, \[V\], for [`divergence`].
    pub(crate) fn weigh(logits: &[f32], weights: &mut [f64]) -> Option<Self> {
        Self::measure(logits, |max| lathe_simd::run(Weigh { logits, max, weights }))
    }

    fn measure(logits: &[f32], sum: impl FnOnce(f64) -> f64) -> Option<Self> {
        let max = maximum(logits);
        if !max.is_finite() {
            return None;
        }
        let sum = sum(f64::from(max));
        let top = logits.iter().position(|&x| x == max)?;
        sum.is_finite().then(|| Self { top, max, sum, log_sum: sum.ln() })
    }

    /// ln p of a logit of this row, in nats.
    pub(crate) fn log_p(&self, logit: f32) -> f64 {
        deep(f64::from(logit) - f64::from(self.max)) - self.log_sum
    }
}

/// A row with its logits and their weights, all \[V\].
#[derive(Clone, Copy)]
pub(crate) struct Weighed<'a> {
    pub(crate) row: &'a Row,
    pub(crate) logits: &'a [f32],
    pub(crate) weights: &'a [f64],
}

/// Σ p ln(p / q) in nats.
///
/// Summed as p·(ln p − ln q − 1) + q, which is the same because Σp = Σq, but has no negative terms:
/// small divergences keep their digits, and that of a row with itself is exactly 0. Rounding can
/// leave about −1e-16, which is clamped to 0.
pub(crate) fn divergence(p: Weighed<'_>, q: Weighed<'_>) -> f64 {
    lathe_simd::run(Between { p, q })
}

/// Σ exp(logit − max)
struct Sum<'a> {
    logits: &'a [f32],
    max: f64,
}

impl Op for Sum<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> f64 {
        let mut lanes = [0.0; LANES];
        let (whole, rest) = self.logits.as_chunks::<LANES>();
        for chunk in whole {
            let terms = exp(chunk.map(|x| f64::from(x) - self.max));
            for i in 0..LANES {
                lanes[i] += terms[i];
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += exp([f64::from(x) - self.max])[0];
        }
        lanes.iter().sum()
    }
}

/// The same, with the terms.
struct Weigh<'a> {
    logits: &'a [f32],
    max: f64,
    weights: &'a mut [f64],
}

impl Op for Weigh<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> f64 {
        let mut lanes = [0.0; LANES];
        let (whole, rest) = self.logits.as_chunks::<LANES>();
        let (out, out_rest) = self.weights.as_chunks_mut::<LANES>();
        for (chunk, out) in whole.iter().zip(out) {
            *out = exp(chunk.map(|x| f64::from(x) - self.max));
            for i in 0..LANES {
                lanes[i] += out[i];
            }
        }
        for ((lane, &x), out) in lanes.iter_mut().zip(rest).zip(out_rest) {
            *out = exp([f64::from(x) - self.max])[0];
            *lane += *out;
        }
        lanes.iter().sum()
    }
}

/// What [`divergence`] says.
struct Between<'a> {
    p: Weighed<'a>,
    q: Weighed<'a>,
}

impl Op for Between<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> f64 {
        let Self { p, q } = self;
        let terms = Terms {
            p_max: f64::from(p.row.max),
            q_max: f64::from(q.row.max),
            p_scale: 1.0 / p.row.sum,
            q_scale: 1.0 / q.row.sum,
            shift: q.row.log_sum - p.row.log_sum,
        };
        let mut lanes = [0.0; LANES];
        let (x, x_rest) = p.logits.as_chunks::<LANES>();
        let (y, y_rest) = q.logits.as_chunks::<LANES>();
        let (a, a_rest) = p.weights.as_chunks::<LANES>();
        let (b, b_rest) = q.weights.as_chunks::<LANES>();
        for ((x, y), (a, b)) in x.iter().zip(y).zip(a.iter().zip(b)) {
            for i in 0..LANES {
                lanes[i] += terms.of((x[i], a[i]), (y[i], b[i]));
            }
        }
        let rest = x_rest.iter().zip(a_rest).zip(y_rest.iter().zip(b_rest));
        for (lane, ((x, a), (y, b))) in lanes.iter_mut().zip(rest) {
            *lane += terms.of((*x, *a), (*y, *b));
        }
        lanes.iter().sum::<f64>().max(0.0)
    }
}

/// What the terms of a divergence have in common.
struct Terms {
    p_max: f64,
    q_max: f64,
    p_scale: f64,
    q_scale: f64,
    shift: f64,
}

impl Terms {
    /// The term of one token, of whose logit and weight in both rows.
    #[inline(always)]
    fn of(&self, (x, a): (f32, f64), (y, b): (f32, f64)) -> f64 {
        let ratio = deep(f64::from(x) - self.p_max) - deep(f64::from(y) - self.q_max) + self.shift;
        let p = a * self.p_scale;
        p * ratio - p + b * self.q_scale
    }
}

fn maximum(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 2 * LANES];
    let chunks = row.chunks_exact(2 * LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// Clamps from below; NaN stays NaN.
#[inline(always)]
fn deep(x: f64) -> f64 {
    if x < DEEPEST { DEEPEST } else { x }
}

/// e^x of several x ≤ 0 (and a little above), to about one unit in the last place; x below −708
/// gives e^−708.
///
/// x = k ln 2 + r with |r| ≤ ln 2 / 2; e^r is its Taylor polynomial of degree 13, whose remainder is
/// below 5e-18, and 2^k goes straight into the exponent's bits.
#[inline(always)]
fn exp<const N: usize>(x: [f64; N]) -> [f64; N] {
    /// Adding it leaves the nearest integer in the low bits of the sum.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// ln 2 in two parts, the first with zeros at its end so that k times it is exact.
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const INVERSE_FACTORIALS: [f64; 14] = {
        let mut c = [1.0; 14];
        let mut i = 1;
        while i < 14 {
            c[i] = c[i - 1] / i as f64;
            i += 1;
        }
        c
    };
    let (mut r, mut scale) = ([0.0; N], [0.0; N]);
    for i in 0..N {
        // Log-probabilities reach DEEPEST minus ln V, still within a normal double's range after
        // this.
        let x = deep(x[i]);
        let shifted = x * std::f64::consts::LOG2_E + ROUND;
        let k = shifted - ROUND;
        r[i] = (x - k * LN_2_HIGH) - k * LN_2_LOW;
        scale[i] = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0_f64.to_bits()));
    }
    // Step by step for all of them: a chain of its own for each would wait for itself.
    let mut e = [INVERSE_FACTORIALS[13]; N];
    for factor in INVERSE_FACTORIALS[..13].iter().rev() {
        for i in 0..N {
            e[i] = e[i] * r[i] + factor;
        }
    }
    for i in 0..N {
        e[i] *= scale[i];
    }
    e
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(seed: u32, n: usize, scale: f32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                scale * (state >> 8) as f32 / (1 << 24) as f32
            })
            .collect()
    }

    fn kl(p: &[f32], q: &[f32]) -> f64 {
        let (mut a, mut b) = (vec![0.0; p.len()], vec![0.0; q.len()]);
        let (p_row, q_row) = (Row::weigh(p, &mut a).unwrap(), Row::weigh(q, &mut b).unwrap());
        assert_eq!(Row::new(p), Some(p_row));
        divergence(
            Weighed { row: &p_row, logits: p, weights: &a },
            Weighed { row: &q_row, logits: q, weights: &b },
        )
    }

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in 0..70_000 {
            let x = -f64::from(i) * 0.010_1;
            let error = (exp([x])[0] / x.exp() - 1.0).abs();
            assert!(error < 4e-16, "{x}: {error:e}");
        }
        assert_eq!(exp([0.0]), [1.0]);
        assert!(exp([f64::NAN])[0].is_nan());
        assert!(exp([f64::NEG_INFINITY])[0] < 1e-300);
    }

    #[test]
    fn log_probabilities_sum_to_one_at_any_length() {
        for n in [1, 2, 7, 8, 9, 31, 1000] {
            let row = logits(n as u32, n, 30.0);
            let r = Row::new(&row).unwrap();
            let total: f64 = row.iter().map(|&x| r.log_p(x).exp()).sum();
            assert!((total - 1.0).abs() < 1e-13, "{n}: {total}");
        }
    }

    #[test]
    fn two_known_distributions_have_their_divergence() {
        // p = (3/4, 1/4), q = (1/2, 1/2): KL = ¾ ln 1.5 + ¼ ln ½.
        let (p, q) = ([3.0_f32.ln(), 0.0], [5.0, 5.0]);
        let expected = 0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln();
        assert!((kl(&p, &q) - expected).abs() < 1e-7);
    }

    #[test]
    fn a_row_has_no_divergence_from_itself_nor_from_its_shift() {
        let p = logits(3, 1003, 20.0);
        assert_eq!(kl(&p, &p), 0.0);
        let shifted: Vec<f32> = p.iter().map(|x| x.round() + 64.0).collect();
        let rounded: Vec<f32> = p.iter().map(|x| x.round()).collect();
        assert!(kl(&rounded, &shifted) < 1e-15);
    }

    #[test]
    fn small_divergences_keep_their_digits() {
        // For logits q = p + ε·d the divergence tends to ε²/2 · Var_p(d).
        let p = logits(5, 512, 8.0);
        let d: Vec<f32> =
            logits(6, 512, 1.0).iter().map(|x| (x * 1024.0).round() / 1024.0).collect();
        let row = Row::new(&p).unwrap();
        let weights: Vec<f64> = p.iter().map(|&x| row.log_p(x).exp()).collect();
        let q: Vec<f32> = p.iter().zip(&d).map(|(p, d)| p + d / 4096.0).collect();
        // What the rounding of q to single precision really added.
        let real: Vec<f64> = p.iter().zip(&q).map(|(&p, &q)| f64::from(q) - f64::from(p)).collect();
        let mean: f64 = weights.iter().zip(&real).map(|(w, d)| w * d).sum();
        let variance: f64 =
            weights.iter().zip(&real).map(|(w, d)| w * (d - mean) * (d - mean)).sum();
        let ratio = kl(&p, &q) / (variance / 2.0);
        assert!((ratio - 1.0).abs() < 1e-3, "{ratio}, {}", kl(&p, &q));
    }

    #[test]
    fn masked_tokens_are_finite_and_broken_rows_are_refused() {
        let p = [1.0, f32::NEG_INFINITY, 2.0];
        assert_eq!(kl(&p, &p), 0.0);
        assert!(kl(&[1.0, 1.0, 2.0], &p).is_finite());
        assert_eq!(Row::new(&[1.0, f32::NAN]), None);
        assert_eq!(Row::new(&[1.0, f32::INFINITY]), None);
        assert_eq!(Row::new(&[f32::NEG_INFINITY; 9]), None);
        assert_eq!(Row::new(&[]), None);
    }

    #[test]
    fn the_first_of_equal_logits_is_the_top() {
        assert_eq!(Row::new(&[0.0, 2.0, 2.0]).unwrap().top, 1);
    }
}
