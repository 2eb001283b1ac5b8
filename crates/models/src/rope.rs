use std::f64::consts::PI;

use crate::{Error, spec::bad};

/// Rotary position embedding (Su et al. 2021, arXiv 2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// How many of a head's first dimensions are rotated; even, at most K.
    pub dims: usize,
    /// The base of the wavelengths.
    pub theta: f64,
    pub layout: Layout,
    pub scaling: Scaling,
}

/// Which two dimensions form the pair that is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// i and i + dims/2 (Hugging Face, NeoX).
    Half,
    /// 2i and 2i + 1 (the original; llama2.c, and Llama in GGUF).
    Interleaved,
}

/// How a model was stretched beyond the context it was trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// Positions divided by the factor (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        factor: f64,
    },
    /// A base that grows with the sequence, beyond `original` tokens ("NTK-aware").
    Dynamic {
        factor: f64,
        original: usize,
    },
    /// Interpolation by wavelength (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        factor: f64,
        original: usize,
        beta_fast: f64,
        beta_slow: f64,
        /// What cosines and sines are multiplied by.
        magnitude: f64,
        /// Round the ramp's ends to whole dimensions.
        truncate: bool,
    },
    /// Interpolation of long wavelengths only (Llama 3.1).
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: usize,
    },
    /// A divisor per frequency, another beyond `original` tokens (Ding et al. 2024,
    /// arXiv 2402.13753; Phi-3).
    LongRope {
        short: Vec<f32>,
        long: Vec<f32>,
        original: usize,
        magnitude: f64,
    },
    /// A divisor per frequency, as GGUF's `rope_freqs.weight` stores Llama 3's scaling.
    Factors(Vec<f32>),
}

/// The angles per position of each rotated pair, and what cosine and sine are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub struct Frequencies {
    /// dims/2 angles in radians per position.
    pub inverse: Vec<f32>,
    pub magnitude: f32,
}

impl Rope {
    /// Plain rope in the Hugging Face layout.
    pub fn new(dims: usize, theta: f64) -> Self {
        Self { dims, theta, layout: Layout::Half, scaling: Scaling::None }
    }

    /// The frequencies for a sequence of `length` tokens.
    ///
    /// Only [`Scaling::Dynamic`] and [`Scaling::LongRope`] depend on the length: see
    /// [`Rope::depends_on_length`].
    pub fn frequencies(&self, length: usize) -> Frequencies {
        let plain = self.plain(self.theta);
        match &self.scaling {
            Scaling::None => unscaled(plain),
            Scaling::Linear { factor } => unscaled(plain.map(|f| f / factor)),
            Scaling::Dynamic { factor, original } => {
                let ratio = length.max(*original) as f64 / *original as f64;
                let dims = self.dims as f64;
                let stretch = (factor * ratio - (factor - 1.0)).powf(dims / (dims - 2.0));
                unscaled(self.plain(self.theta * stretch))
            }
            Scaling::Yarn { .. } => self.yarn(),
            Scaling::Llama3 { factor, low, high, original } => {
                let (longest, shortest) = (*original as f64 / low, *original as f64 / high);
                unscaled(plain.map(|f| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength < shortest {
                        f
                    } else if wavelength > longest {
                        f / factor
                    } else {
                        let smooth = (*original as f64 / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                }))
            }
            Scaling::LongRope { short, long, original, magnitude } => {
                let factors = if length > *original { long } else { short };
                let inverse = divided(plain, factors);
                Frequencies { inverse, magnitude: *magnitude as f32 }
            }
            Scaling::Factors(factors) => {
                Frequencies { inverse: divided(plain, factors), magnitude: 1.0 }
            }
        }
    }

    /// The length for which [`Rope::frequencies`] is asked matters.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, Scaling::Dynamic { .. } | Scaling::LongRope { .. })
    }

    fn plain(&self, theta: f64) -> impl Iterator<Item = f64> + use<> {
        let dims = self.dims;
        (0..dims / 2).map(move |i| theta.powf(-((2 * i) as f64) / dims as f64))
    }

    fn yarn(&self) -> Frequencies {
        let Scaling::Yarn { factor, original, beta_fast, beta_slow, magnitude, truncate } =
            self.scaling
        else {
            return unscaled(self.plain(self.theta));
        };
        let dims = self.dims as f64;
        // The dimension that turns `turns` times over the original context.
        let dimension = |turns: f64| {
            dims * (original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let inverse = self
            .plain(self.theta)
            .enumerate()
            .map(|(i, f)| {
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                ((f / factor) * ramp + f * (1.0 - ramp)) as f32
            })
            .collect();
        Frequencies { inverse, magnitude: magnitude as f32 }
    }

    pub(crate) fn check(&self, head_dim: usize) -> Result<(), Error> {
        if self.dims < 2 || !self.dims.is_multiple_of(2) || self.dims > head_dim {
            let expected = format!("an even number of dimensions up to the head's {head_dim}");
            return Err(bad("partial_rotary_factor", self.dims, expected));
        }
        if !(self.theta.is_finite() && self.theta > 1.0) {
            return Err(bad("rope_theta", self.theta, "a number above 1"));
        }
        self.scaling.check(self.dims)
    }
}

impl Scaling {
    fn check(&self, dims: usize) -> Result<(), Error> {
        let factor_is_sane = |f: f64| {
            if f.is_finite() && f > 0.0 {
                Ok(())
            } else {
                Err(bad("rope_scaling.factor", f, "a positive number"))
            }
        };
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => factor_is_sane(*factor),
            Self::Dynamic { factor, original } => {
                if dims < 4 {
                    return Err(bad("head_dim", dims, "at least 4 with dynamic rope scaling"));
                }
                original_is_sane(*original)?;
                if *factor < 1.0 {
                    return Err(bad("rope_scaling.factor", factor, "at least 1"));
                }
                factor_is_sane(*factor)
            }
            Self::Yarn { factor, original, beta_fast, beta_slow, magnitude, .. } => {
                original_is_sane(*original)?;
                [*factor, *beta_fast, *beta_slow, *magnitude]
                    .into_iter()
                    .try_for_each(factor_is_sane)
            }
            Self::Llama3 { factor, low, high, original } => {
                original_is_sane(*original)?;
                if high <= low {
                    return Err(bad("rope_scaling.high_freq_factor", high, "above the low one"));
                }
                [*factor, *low, *high].into_iter().try_for_each(factor_is_sane)
            }
            Self::LongRope { short, long, original, magnitude } => {
                original_is_sane(*original)?;
                factors_are_sane("rope_scaling.short_factor", short, dims)?;
                factors_are_sane("rope_scaling.long_factor", long, dims)?;
                factor_is_sane(*magnitude)
            }
            Self::Factors(factors) => factors_are_sane("rope_freqs.weight", factors, dims),
        }
    }
}

fn original_is_sane(original: usize) -> Result<(), Error> {
    if original > 0 {
        return Ok(());
    }
    Err(bad("original_max_position_embeddings", original, "at least 1"))
}

fn factors_are_sane(key: &'static str, factors: &[f32], dims: usize) -> Result<(), Error> {
    if factors.len() != dims / 2 {
        let found = format!("{} numbers", factors.len());
        return Err(bad(key, found, format!("{} numbers, one per rotated pair", dims / 2)));
    }
    match factors.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
        Some(f) => Err(bad(key, f, "positive numbers")),
        None => Ok(()),
    }
}

fn unscaled(inverse: impl Iterator<Item = f64>) -> Frequencies {
    Frequencies { inverse: inverse.map(|f| f as f32).collect(), magnitude: 1.0 }
}

fn divided(plain: impl Iterator<Item = f64>, factors: &[f32]) -> Vec<f32> {
    plain.zip(factors).map(|(f, by)| (f / f64::from(*by)) as f32).collect()
}
