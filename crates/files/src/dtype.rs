use std::fmt;

use crate::gguf::GgmlType;

/// The element type that a tensor is stored in, in any container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    /// Eight-bit floats with 4 exponent and 3 mantissa bits, no infinities.
    F8E4m3,
    /// Eight-bit floats with 5 exponent and 2 mantissa bits.
    F8E5m2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    /// One of ggml's block types (its plain types are mapped to the plain ones above).
    Ggml(GgmlType),
}

impl Dtype {
    /// Elements per block and bytes per block; plain types have blocks of one element.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F64 | Self::I64 | Self::U64 => (1, 8),
            Self::F32 | Self::I32 | Self::U32 => (1, 4),
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => (1, 2),
            Self::F8E4m3 | Self::F8E5m2 | Self::I8 | Self::U8 | Self::Bool => (1, 1),
            Self::Ggml(t) => t.block(),
        }
    }

    /// Bytes of `count` elements; `None` when they do not fill whole blocks or the size overflows.
    pub fn bytes(self, count: usize) -> Option<usize> {
        let (elements, bytes) = self.block();
        if !count.is_multiple_of(elements) {
            return None;
        }
        (count / elements).checked_mul(bytes)
    }

    /// The type that a safetensors header calls `name`.
    pub(crate) fn from_safetensors(name: &str) -> Option<Self> {
        Some(match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F8_E4M3" => Self::F8E4m3,
            "F8_E5M2" => Self::F8E5m2,
            "I64" => Self::I64,
            "I32" => Self::I32,
            "I16" => Self::I16,
            "I8" => Self::I8,
            "U64" => Self::U64,
            "U32" => Self::U32,
            "U16" => Self::U16,
            "U8" => Self::U8,
            "BOOL" => Self::Bool,
            _ => return None,
        })
    }

    /// The name that a safetensors header uses; `None` for ggml's block types.
    pub(crate) fn safetensors(self) -> Option<&'static str> {
        Some(match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F8E4m3 => "F8_E4M3",
            Self::F8E5m2 => "F8_E5M2",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::Ggml(_) => return None,
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ggml(t) => t.fmt(f),
            plain => f.pad(&plain.safetensors().unwrap_or("?").to_ascii_lowercase()),
        }
    }
}
