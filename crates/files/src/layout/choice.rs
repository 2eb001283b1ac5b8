use std::fmt;

use lathe_formats::AnyFormat;
use serde::Serialize;

use super::{
    awq, bitsandbytes, compressed,
    fp8::{self, Scaled},
    gptq,
};

/// The tool whose layout the quantized weights of a Hugging Face folder have: the names of their
/// tensors, their packing, and the `quantization_config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// The usual one of the formats.
    #[default]
    Auto,
    /// GPTQ as most engines read it: zero points are stored less one.
    Gptq,
    /// `gptq_v2` of GPTQModel: zero points as they are, so that 0 is one like any other.
    GptqV2,
    /// AWQ's GEMM packing.
    Awq,
    /// bitsandbytes: NF4, FP4, LLM.int8().
    BitsAndBytes,
    /// compressed-tensors, as llm-compressor writes it.
    CompressedTensors,
    /// DeepSeek's plain FP8.
    Fp8,
}

impl Layout {
    /// Every layout, the likeliest for a folder first.
    pub const ALL: [Self; 6] = [
        Self::CompressedTensors,
        Self::Gptq,
        Self::Awq,
        Self::BitsAndBytes,
        Self::GptqV2,
        Self::Fp8,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Gptq => "gptq",
            Self::GptqV2 => "gptq-v2",
            Self::Awq => "awq",
            Self::BitsAndBytes => "bitsandbytes",
            Self::CompressedTensors => "compressed-tensors",
            Self::Fp8 => "fp8",
        }
    }

    /// The layout of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain([Self::Auto]).find(|layout| layout.name() == name)
    }

    /// Whether weights can be laid out so; weights that are not quantized can in any.
    pub fn holds(self, format: &dyn AnyFormat) -> bool {
        is_dense(format)
            || match self {
                Self::Auto => Self::ALL.iter().any(|layout| layout.holds(format)),
                Self::Gptq | Self::GptqV2 => gptq::holds(format),
                Self::Awq => awq::holds(format),
                Self::BitsAndBytes => bitsandbytes::holds(format),
                Self::CompressedTensors => compressed::holds(format),
                Self::Fp8 => fp8::holds(self, format),
            }
    }

    /// The layout to write these formats in: this one, or the usual one of the first quantized
    /// format if it holds the others too, or any that holds all. `None` where there is none.
    ///
    /// f16 scales are GPTQ's where zero points are in the middle, and AWQ's (4 bits) or GPTQ's
    /// second version where they are not.
    pub fn choose<'a>(self, formats: impl Iterator<Item = &'a dyn AnyFormat>) -> Option<Self> {
        let formats: Vec<_> = formats.filter(|format| !is_dense(*format)).collect();
        let all = |layout: &Self| {
            formats.iter().all(|format| layout.holds(*format)) && layout.mixes(&formats)
        };
        if self != Self::Auto {
            return Some(self).filter(all);
        }
        let usual = formats.first().map_or(Some(Self::CompressedTensors), |f| Self::usual(*f));
        usual.into_iter().chain(Self::ALL).find(all)
    }

    /// Whether one folder can have all of these formats, each of which the layout holds:
    /// bitsandbytes is told of one table of levels, plain FP8 of one size of blocks.
    fn mixes(self, formats: &[&dyn AnyFormat]) -> bool {
        let family = |format: &dyn AnyFormat| match self {
            Self::BitsAndBytes => format.name().split('_').next().map(str::to_owned),
            Self::Fp8 => Some(format.name().to_owned()),
            _ => None,
        };
        formats.windows(2).all(|pair| family(pair[0]) == family(pair[1]))
    }

    fn usual(format: &dyn AnyFormat) -> Option<Self> {
        let name = format.name();
        let asymmetric = name.contains("_asym_");
        let order: &[Self] = match () {
            () if name.starts_with("int") && name.ends_with("_f16") && asymmetric => {
                &[Self::Awq, Self::GptqV2]
            }
            () if name.starts_with("int") && name.ends_with("_f16") => &[Self::Gptq],
            () => &Self::ALL,
        };
        order.iter().copied().find(|layout| layout.holds(format))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What an engine is to do with the inputs of quantized weights: a part of the configuration of
/// compressed-tensors and of plain FP8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// Nothing: they stay floating-point numbers.
    #[default]
    Float,
    /// Eight-bit integers with a scale for each token (W8A8).
    Int8PerToken,
    /// FP8 with scales made on the spot: for each token, or, beside weights in blocks, for each 128
    /// of its numbers.
    Fp8,
    /// FP8 with a scale for each matrix's inputs, known from calibration.
    Fp8Static,
}

impl Activations {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Float, Self::Int8PerToken, Self::Fp8, Self::Fp8Static];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Int8PerToken => "int8",
            Self::Fp8 => "fp8",
            Self::Fp8Static => "fp8-static",
        }
    }

    /// The one of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|activations| activations.name() == name)
    }

    /// What is usual with weights in these formats: where all that are coded are FP8, their inputs
    /// are as well; else inputs stay as they are.
    pub fn usual<'a>(formats: impl Iterator<Item = &'a dyn AnyFormat>) -> Self {
        let mut coded = formats.filter(|format| !is_dense(*format)).peekable();
        let all = coded.peek().is_some() && coded.all(|format| Self::Fp8.suit(format));
        if all { Self::Fp8 } else { Self::Float }
    }

    /// Whether weights in the format are multiplied with such inputs.
    pub fn suit(self, format: &dyn AnyFormat) -> bool {
        match self {
            Self::Float => true,
            Self::Int8PerToken => format.name() == "int8",
            Self::Fp8 => Scaled::of(format).is_some(),
            Self::Fp8Static => Scaled::of(format).is_some_and(|scaled| scaled != Scaled::Block),
        }
    }

    /// Whether a folder of this layout can say so.
    pub fn said_by(self, layout: Layout) -> bool {
        match layout {
            Layout::CompressedTensors => true,
            // Its configuration has no word for inputs that stay as they are.
            Layout::Fp8 => matches!(self, Self::Fp8 | Self::Fp8Static),
            _ => self == Self::Float,
        }
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Stored as plain tensors, which every tool reads.
pub(crate) fn is_dense(format: &dyn AnyFormat) -> bool {
    matches!(format.name(), "f32" | "f16" | "bf16")
}
