use std::fmt;
use std::sync::Arc;

use lathe_api::Error;

/// The logits that the mock gives after each token: a function of the tokens so far.
#[derive(Clone)]
pub enum Distribution {
    /// Every token is as likely as any other: perplexity V.
    Uniform,
    /// The same logits everywhere, \[V\].
    Constant(Vec<f32>),
    /// Uniform noise in ±`spread` from a hash of `seed`, the last three tokens and the candidate.
    Hashed { seed: u64, spread: f32 },
    /// Another distribution's logits plus uniform noise in ±`spread` from a hash: a model and its
    /// slightly damaged copy.
    Perturbed { of: Box<Distribution>, seed: u64, spread: f32 },
    /// Whatever the closure writes for the tokens so far (the last one included) into \[V\].
    Function(Arc<Function>),
}

/// Writes the logits \[V\] that follow the tokens given.
pub type Function = dyn Fn(&[u32], &mut [f32]) + Send + Sync;

impl Distribution {
    pub fn function(f: impl Fn(&[u32], &mut [f32]) + Send + Sync + 'static) -> Self {
        Self::Function(Arc::new(f))
    }

    pub(super) fn check(&self, vocab: usize) -> Result<(), Error> {
        match self {
            Self::Constant(logits) if logits.len() != vocab => Err(Error::BadRequest {
                what: format!("{} logits were set for a vocabulary of {vocab}", logits.len()),
            }),
            Self::Perturbed { of, .. } => of.check(vocab),
            _ => Ok(()),
        }
    }

    /// Writes the logits after `history` into `row`.
    pub(super) fn fill(&self, history: &[u32], row: &mut [f32]) {
        match self {
            Self::Uniform => row.fill(0.0),
            Self::Constant(logits) => row.copy_from_slice(logits),
            Self::Hashed { seed, spread } => {
                row.fill(0.0);
                add_noise(*seed, *spread, history, row);
            }
            Self::Perturbed { of, seed, spread } => {
                of.fill(history, row);
                add_noise(*seed, *spread, history, row);
            }
            Self::Function(f) => f(history, row),
        }
    }
}

impl fmt::Debug for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => write!(f, "Uniform"),
            Self::Constant(logits) => write!(f, "Constant({} logits)", logits.len()),
            Self::Hashed { seed, spread } => write!(f, "Hashed({seed}, ±{spread})"),
            Self::Perturbed { of, seed, spread } => {
                write!(f, "Perturbed({of:?}, {seed}, ±{spread})")
            }
            Self::Function(_) => write!(f, "Function"),
        }
    }
}

fn add_noise(seed: u64, spread: f32, history: &[u32], row: &mut [f32]) {
    let recent = &history[history.len().saturating_sub(3)..];
    let state = recent.iter().fold(mix(seed), |s, &t| mix(s ^ u64::from(t)));
    for (i, value) in row.iter_mut().enumerate() {
        let bits = mix(state.wrapping_add(i as u64)) >> 40;
        *value += spread * (bits as f32 / (1u32 << 23) as f32 - 1.0);
    }
}

/// One step of the SplitMix64 generator (Steele, Lea and Flood 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
