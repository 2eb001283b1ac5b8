use lathe_base::{e4m3, f16};

use crate::{Pool, output::Output};

/// What a product does to its inputs before it multiplies: the activation schemes that quantized
/// checkpoints are made for.
///
/// Each token is rounded on its own, so that its results do not depend on what it is fed with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Inputs {
    /// Nothing but what [`crate::Precision`] says.
    #[default]
    Own,
    /// Eight bits with one scale per token, the largest magnitude over 127: W8A8 as vLLM computes
    /// it for compressed-tensors and SmoothQuant checkpoints with dynamic activations.
    Int8PerToken,
    /// LLM.int8() (Dettmers et al. 2022, as bitsandbytes computes it): numbers from `threshold` on
    /// stay as they are, the token's others are rounded to f16 and then to eight bits with one
    /// scale. bitsandbytes takes a column out for all tokens of a call where one of them has an
    /// outlier there; for tokens that are fed one at a time that is the same.
    LlmInt8 { threshold: f32 },
    /// FP8 e4m3 with one scale per token, the largest magnitude over 448.
    Fp8PerToken,
    /// FP8 e4m3 with a scale for each so many columns of a token, the largest magnitude over 448:
    /// what belongs to FP8 weights in blocks (DeepSeek-V3's report, section 3.3).
    Fp8PerGroup { columns: usize },
    /// FP8 e4m3 with a scale known beforehand; what is too large becomes the largest number.
    Fp8Static(f32),
}

/// Inputs `[T, cols]` after their scheme.
pub(crate) struct Rounded {
    /// What the products are made with, without the outliers.
    pub(crate) x: Vec<f32>,
    /// What each token's `x` are multiples of, in schemes with one scale per token.
    pub(crate) scales: Vec<f32>,
    /// Token, column and number, in this order.
    pub(crate) outliers: Vec<(usize, usize, f32)>,
}

impl Inputs {
    /// Whether tokens become eight integer bits and a scale each.
    pub(crate) fn is_integer(self) -> bool {
        matches!(self, Self::Int8PerToken | Self::LlmInt8 { .. })
    }

    /// Whether a token's numbers are FP8 times one scale: exactly bf16 without it.
    pub(crate) fn is_scaled(self) -> bool {
        matches!(self, Self::Fp8PerToken | Self::Fp8Static(_))
    }

    /// Rounds inputs `[T, cols]`.
    pub(crate) fn round(self, pool: &Pool, x: &[f32], cols: usize) -> Rounded {
        let tokens = x.len() / cols;
        let mut rounded =
            Rounded { x: vec![0.0; x.len()], scales: vec![0.0; tokens], outliers: Vec::new() };
        let (to, scales) = (Output::new(&mut rounded.x), Output::new(&mut rounded.scales));
        pool.run(tokens, &|token| {
            // SAFETY: each token is one task's alone.
            let (to, scale) = unsafe { (to.part(token * cols, cols), scales.part(token, 1)) };
            scale[0] = self.round_token(&x[token * cols..][..cols], to);
        });
        if let Self::LlmInt8 { threshold } = self {
            let all = x.iter().enumerate().filter(|(_, x)| is_outlier(**x, threshold));
            rounded.outliers = all.map(|(i, x)| (i / cols, i % cols, *x)).collect();
        }
        rounded
    }

    /// Rounds one token and gives its scale; outliers become 0.
    fn round_token(self, x: &[f32], to: &mut [f32]) -> f32 {
        let largest = |x: &[f32]| x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        match self {
            Self::Own => {
                to.copy_from_slice(x);
                1.0
            }
            Self::Int8PerToken => {
                to.copy_from_slice(x);
                round_integers(to, largest(x))
            }
            Self::LlmInt8 { threshold } => {
                for (to, x) in to.iter_mut().zip(x) {
                    *to = if is_outlier(*x, threshold) { 0.0 } else { half(*x) };
                }
                let most = largest(to);
                round_integers(to, most)
            }
            Self::Fp8PerToken => {
                let scale = largest(x) / e4m3::MAX;
                round_fp8(x, scale, to);
                scale
            }
            Self::Fp8PerGroup { columns } => {
                let columns = columns.max(1);
                for (x, to) in x.chunks(columns).zip(to.chunks_mut(columns)) {
                    round_fp8(x, largest(x) / e4m3::MAX, to);
                }
                // No one scale: it is not asked for but of integers.
                1.0
            }
            Self::Fp8Static(scale) => {
                round_fp8(x, scale, to);
                scale
            }
        }
    }
}

impl Rounded {
    /// The inputs of an exact product: outliers are back in their places.
    pub(crate) fn whole(mut self, cols: usize) -> Vec<f32> {
        for (token, col, x) in &self.outliers {
            self.x[token * cols + col] = *x;
        }
        self.x
    }
}

fn half(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// As bitsandbytes sees it, in f16.
fn is_outlier(x: f32, threshold: f32) -> bool {
    half(x).abs() >= threshold
}

/// Rounds to multiples of a 127th of the largest magnitude, and gives that 127th.
fn round_integers(x: &mut [f32], most: f32) -> f32 {
    let (scale, inverse) = (most / 127.0, if most > 0.0 { 127.0 / most } else { 0.0 });
    x.iter_mut().for_each(|x| *x = (*x * inverse).round_ties_even() * scale);
    scale
}

fn round_fp8(x: &[f32], scale: f32, to: &mut [f32]) {
    if scale == 0.0 {
        return to.fill(0.0);
    }
    for (to, x) in to.iter_mut().zip(x) {
        *to = e4m3::from_f32(x / scale).to_f32() * scale;
    }
}
