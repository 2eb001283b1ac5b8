use lathe_base::Buf;
use lathe_formats::{AnyFormat, Blocks, Int, ScaleType};

use super::{bitsandbytes, compressed};
use crate::Dtype;

/// The tools whose layout a format is stored in inside a safetensors folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Plain tensors, read by everything.
    Dense,
    BitsAndBytes,
    CompressedTensors,
}

impl Family {
    /// The layout for `format`; `None` where no tool reads such tensors from safetensors.
    pub(crate) fn of(format: &dyn AnyFormat) -> Option<Self> {
        Some(match format.name() {
            "f32" | "f16" | "bf16" => Self::Dense,
            "nf4" | "nf4_dq" => Self::BitsAndBytes,
            "int8" => Self::CompressedTensors,
            name => {
                let int = Int::named(name)?;
                let known = int.bits() == 4 && int.columns().is_some();
                return (known && int.scale_type() == ScaleType::Bf16)
                    .then_some(Self::CompressedTensors);
            }
        })
    }
}

/// A tensor that a weight is stored as.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    /// `None`: a text whose length is known only with the weight's numbers, at most [`TEXT`] bytes.
    pub(crate) shape: Option<Vec<usize>>,
}

impl Part {
    /// An upper bound of the length of a text part: keys, two sizes, one float.
    pub(crate) const TEXT: usize = 320;

    /// The tensors that weight `name` of `shape` takes in `format`; `None` where a matrix format
    /// is asked for something that is not a matrix, or that bytes cannot hold.
    pub(crate) fn plan(name: &str, shape: &[usize], format: &dyn AnyFormat) -> Option<Vec<Self>> {
        let new = |name: String, dtype, shape: &[usize]| Self {
            name,
            dtype,
            shape: Some(shape.to_vec()),
        };
        let dense = |dtype| vec![new(name.to_owned(), dtype, shape)];
        match format.name() {
            "f32" => return Some(dense(Dtype::F32)),
            "f16" => return Some(dense(Dtype::F16)),
            "bf16" => return Some(dense(Dtype::Bf16)),
            _ => {}
        }
        let &[rows, cols] = shape else { return None };
        let count = rows.checked_mul(cols)?;
        let groups = cols / format.block();
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let part = |part: &str| format!("{module}.{part}");
        Some(match Family::of(format)? {
            Family::Dense => return None,
            Family::BitsAndBytes => {
                let blocks = count / 64;
                let double = format.name() == "nf4_dq";
                let scale = if double { Dtype::U8 } else { Dtype::F32 };
                let mut parts = vec![
                    new(name.to_owned(), Dtype::U8, &[count / 2, 1]),
                    new(format!("{name}.absmax"), scale, &[blocks]),
                    new(format!("{name}.quant_map"), Dtype::F32, &[16]),
                ];
                if double {
                    let nested = blocks.div_ceil(256);
                    parts.push(new(format!("{name}.nested_absmax"), Dtype::F32, &[nested]));
                    parts.push(new(format!("{name}.nested_quant_map"), Dtype::F32, &[256]));
                }
                let name = format!("{name}{}", bitsandbytes::STATE);
                parts.push(Self { name, dtype: Dtype::U8, shape: None });
                parts
            }
            Family::CompressedTensors if format.name() == "int8" => vec![
                new(part("weight_packed"), Dtype::I32, &[rows, cols.div_ceil(4)]),
                new(part("weight_scale"), Dtype::F32, &[rows, 1]),
                new(part("weight_shape"), Dtype::I64, &[2]),
            ],
            Family::CompressedTensors => {
                let mut parts = vec![
                    new(part("weight_packed"), Dtype::I32, &[rows, cols.div_ceil(8)]),
                    new(part("weight_scale"), Dtype::Bf16, &[rows, groups]),
                ];
                if is_asymmetric(format) {
                    let zeros = part("weight_zero_point");
                    parts.push(new(zeros, Dtype::I32, &[rows.div_ceil(8), groups]));
                }
                parts.push(new(part("weight_shape"), Dtype::I64, &[2]));
                parts
            }
        })
    }
}

fn is_asymmetric(format: &dyn AnyFormat) -> bool {
    format.name().starts_with("int4_asym")
}

/// A weight's bytes, part by part as planned, and its text part.
pub(crate) struct Split {
    pub(crate) parts: Vec<Buf>,
    pub(crate) text: Option<String>,
}

/// Takes `blocks` apart; `dtype` is the type that bitsandbytes decodes to.
pub(crate) fn split(blocks: &Blocks, dtype: &str) -> Split {
    let packed = |mut parts: Vec<Vec<u8>>| {
        let shape = [blocks.rows as i64, blocks.cols as i64];
        parts.push(shape.iter().flat_map(|n| n.to_le_bytes()).collect());
        Split { parts: parts.into_iter().map(Buf::from).collect(), text: None }
    };
    match blocks.format.name() {
        "nf4" | "nf4_dq" => {
            let (parts, text) = bitsandbytes::split(blocks, dtype);
            Split { parts: parts.into_iter().map(Buf::from).collect(), text: Some(text) }
        }
        "int8" => packed(compressed::split_int8(blocks)),
        name if name.starts_with("int4_") => {
            packed(compressed::split_int4(blocks, is_asymmetric(blocks.format)))
        }
        _ => Split { parts: vec![blocks.data.clone()], text: None },
    }
}
