//! FP8 weights: E4M3 codes and their scales, as compressed-tensors' `float-quantized`, DeepSeek's
//! blocks (`weight_scale_inv`) and plain per-tensor files have them; and the scales of inputs, where
//! those are known beforehand.
//!
//! **Source**: `NaiveQuantizationCompressor` of compressed-tensors; `weight_dequant` in
//! DeepSeek-V3's inference code; vLLM's `Fp8LinearMethod`; transformers' `FP8Linear`.

use lathe_base::Buf;
use lathe_formats::{AnyFormat, Blocks, Fp8Block};
use serde_json::{Value, json};

use super::{
    Activations, Files, Found, Kind, Layout, Source, Weight,
    dense::{contiguous, floats},
    parts::{Group, Module, Part},
};
use crate::{Dtype, Error, Result};

/// Rows and columns of a block.
const TILE: usize = 128;

/// Which numbers share a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scaled {
    Tensor,
    Row,
    Block,
}

impl Scaled {
    fn format(self) -> &'static str {
        match self {
            Self::Tensor => "fp8_tensor",
            Self::Row => "fp8_row",
            Self::Block => "fp8_block",
        }
    }

    pub(super) fn of(format: &dyn AnyFormat) -> Option<Self> {
        [Self::Tensor, Self::Row, Self::Block].into_iter().find(|s| s.format() == format.name())
    }

    /// What scales of this shape are for, in a matrix of `[rows, cols]`.
    fn by_shape(shape: &[usize], (rows, cols): (usize, usize)) -> Option<Self> {
        let tiles = [rows.div_ceil(TILE), cols.div_ceil(TILE)];
        match shape {
            [n] | [n, 1] if *n == rows => Some(Self::Row),
            shape if shape == tiles => Some(Self::Block),
            [] | [1] | [1, 1] => Some(Self::Tensor),
            _ => None,
        }
    }
}

/// The names under which scales are stored.
const SCALES: [&str; 2] = ["weight_scale", "weight_scale_inv"];

/// The names under which scales of inputs are stored: compressed-tensors' and vLLM's,
/// transformers'.
const INPUT_SCALES: [&str; 2] = ["input_scale", "activation_scale"];

/// The weight that `name` is the codes of.
pub(super) fn find(files: &Files<'_>, name: &str) -> Result<Option<Found>> {
    let Some(module) = name.strip_suffix(".weight") else { return Ok(None) };
    let codes = files.tensors.find(files.path, name)?;
    let mut scales = SCALES.iter().map(|part| format!("{module}.{part}"));
    let Some(scale) = scales.find(|name| files.tensors.get(name).is_some()) else {
        return Ok(None);
    };
    let &[rows, cols] = codes.shape.as_slice() else { return Ok(None) };
    if codes.dtype != Dtype::F8E4m3 {
        return Ok(None);
    }
    let scales = files.tensors.find(files.path, &scale)?;
    let by_shape = Scaled::by_shape(&scales.shape, (rows, cols));
    let scaled = by_shape.filter(|_| floats(scales).is_some()).ok_or_else(|| {
        Error::unsupported(
            files.path,
            format!(
                "scales {} {:?} for tensor `{name}` {:?}",
                scales.dtype, scales.shape, codes.shape
            ),
            "Lathe reads FP8 with a scale for the tensor, each row or each 128 × 128 block; pass \
             the model that it was made from",
        )
    })?;
    let (shape, format) = (codes.shape.clone(), scaled.format().to_owned());
    let weight = Weight { shape, format, kind: Kind::Fp8(scaled) };
    let mut parts = vec![name.to_owned()];
    let others = SCALES.iter().chain(&INPUT_SCALES).chain(&["weight_zero_point"]);
    parts.extend(others.map(|part| format!("{module}.{part}")));
    Ok(Some(Found { name: name.to_owned(), weight, parts }))
}

/// The codes, mapped where scales are not within them.
pub(super) fn blocks(from: &Source<'_>, scaled: Scaled) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let codes = contiguous(from.tensors.find(from.path, from.name)?);
    let mut scales = SCALES.iter().filter_map(|part| from.tensors.get(&from.part(part)));
    let scales = scales.next().and_then(floats);
    let scales = scales.ok_or_else(|| from.bad("has scales that are no floats"))?;
    let (data, side) = match scaled {
        Scaled::Tensor => (codes, bytes(&scales).into()),
        Scaled::Block => (codes, Fp8Block::side(&scales)),
        Scaled::Row => {
            let mut data = Vec::with_capacity(codes.len() + 4 * rows);
            for (codes, scale) in codes.chunks_exact(cols.max(1)).zip(&scales) {
                data.extend_from_slice(codes);
                data.extend(scale.to_le_bytes());
            }
            (data.into(), Buf::new())
        }
    };
    let blocks = from.make(scaled.format(), (rows, cols), data, side)?;
    Ok(Blocks { input_scale: input_scale(from)?, ..blocks })
}

/// The scale of a weight's inputs, where the file has one; of several (parts of a fused matrix)
/// the largest, as vLLM takes it.
fn input_scale(from: &Source<'_>) -> Result<Option<f32>> {
    let mut found = INPUT_SCALES.iter().filter_map(|part| from.tensors.get(&from.part(part)));
    let Some(tensor) = found.next() else { return Ok(None) };
    let scale = floats(tensor).and_then(|scales| scales.into_iter().reduce(f32::max));
    match scale.filter(|scale| scale.is_finite() && *scale > 0.0) {
        Some(scale) => Ok(Some(scale)),
        None => Err(from.bad("has a scale of its inputs that is no positive number")),
    }
}

fn bytes(scales: &[f32]) -> Vec<u8> {
    scales.iter().flat_map(|scale| scale.to_le_bytes()).collect()
}

/// Whether the layout can hold the format.
pub(super) fn holds(layout: Layout, format: &dyn AnyFormat) -> bool {
    match Scaled::of(format) {
        None => false,
        Some(Scaled::Row) => layout == Layout::CompressedTensors,
        Some(_) => matches!(layout, Layout::CompressedTensors | Layout::Fp8),
    }
}

/// The tensors of a weight `[rows, cols]`; `None` for a format that is not FP8.
pub(super) fn plan(module: &Module<'_>, (rows, cols): (usize, usize)) -> Option<Vec<Part>> {
    let plain = module.style.layout == Layout::Fp8;
    let one: &[usize] = if plain { &[] } else { &[1] };
    let (name, shape) = match Scaled::of(module.format)? {
        Scaled::Tensor => ("weight_scale", one.to_vec()),
        Scaled::Row => ("weight_scale", vec![rows, 1]),
        Scaled::Block => {
            let name = if plain { "weight_scale_inv" } else { "weight_scale" };
            (name, vec![rows.div_ceil(TILE), cols.div_ceil(TILE)])
        }
    };
    let mut parts = vec![
        module.part("weight", Dtype::F8E4m3, &[rows, cols]),
        module.part(name, Dtype::F32, &shape),
    ];
    if module.style.activations == Activations::Fp8Static {
        parts.push(module.part("input_scale", Dtype::F32, one));
    }
    Some(parts)
}

/// A weight's parts in the order of [`plan`]; `None` for another format, or without a scale of the
/// inputs where one is wanted.
pub(super) fn split(blocks: &Blocks, activations: Activations) -> Option<Vec<Buf>> {
    let mut parts: Vec<Buf> = match Scaled::of(blocks.format)? {
        Scaled::Tensor => vec![blocks.data.clone(), blocks.side.clone()],
        Scaled::Block => vec![blocks.data.clone(), bytes(&Fp8Block::scales(blocks)).into()],
        Scaled::Row => {
            let (mut codes, mut scales) = (Vec::with_capacity(blocks.data.len()), Vec::new());
            for row in 0..blocks.rows {
                let (row, scale) = blocks.row(row).split_at(blocks.cols);
                codes.extend_from_slice(row);
                scales.extend_from_slice(scale);
            }
            vec![codes.into(), scales.into()]
        }
    };
    if activations == Activations::Fp8Static {
        parts.push(bytes(&[blocks.input_scale?]).into());
    }
    Some(parts)
}

/// The `quantization_config` of the plain layout, as transformers and vLLM read it.
pub(super) fn config(groups: &[Group], dense: &[String], activations: Activations) -> Value {
    let block = groups.iter().any(|(f, _)| Scaled::of(*f) == Some(Scaled::Block));
    let fixed = activations == Activations::Fp8Static;
    json!({
        "activation_scheme": if fixed { "static" } else { "dynamic" },
        "fmt": "e4m3",
        "ignored_layers": dense,
        "modules_to_not_convert": dense,
        "quant_method": "fp8",
        "weight_block_size": block.then_some([TILE, TILE]),
    })
}

/// The scheme of compressed-tensors; `None` for a format that is not FP8.
pub(super) fn scheme(format: &dyn AnyFormat, activations: Activations) -> Option<Value> {
    let scaled = Scaled::of(format)?;
    let (strategy, block) = match scaled {
        Scaled::Tensor => ("tensor", Value::Null),
        Scaled::Row => ("channel", Value::Null),
        Scaled::Block => ("block", json!([TILE, TILE])),
    };
    let fixed = activations == Activations::Fp8Static;
    // Blocks are multiplied with inputs that have a scale for each 128 of a token's numbers.
    let (input, group) = match scaled {
        _ if fixed => ("tensor", Value::Null),
        Scaled::Block => ("group", json!(TILE)),
        _ => ("token", Value::Null),
    };
    let inputs = json!({
        "dynamic": !fixed,
        "group_size": group,
        "num_bits": 8,
        "observer": fixed.then_some("minmax"),
        "strategy": input,
        "symmetric": true,
        "type": "float",
    });
    let quantized = activations != Activations::Float;
    Some(json!({
        "format": if quantized { "float-quantized" } else { "naive-quantized" },
        "input_activations": if quantized { inputs } else { Value::Null },
        "output_activations": null,
        "weights": {
            "actorder": null,
            "block_structure": block,
            "dynamic": false,
            "group_size": null,
            "num_bits": 8,
            "observer": "minmax",
            "observer_kwargs": {},
            "strategy": strategy,
            "symmetric": true,
            "type": "float",
        },
    }))
}
