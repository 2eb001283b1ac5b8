//! compressed-tensors' parts: `pack-quantized` with 4 and 8 bits, and `int-quantized`.
//!
//! **Source**: `pack_to_int32` and the compressors of vLLM's compressed-tensors.

use std::path::Path;

use lathe_base::{Buf, bf16};
use lathe_formats::{AnyFormat, Blocks};
use serde_json::{Value, json};

use super::{
    Found, Layout, Source, Weight,
    dense::{encoded, floats},
};
use crate::{Dtype, Error, Result, Stored, Tensors};

/// What the shapes of a packed weight's parts say.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    bits: usize,
    /// Columns that share a scale.
    group: usize,
    asymmetric: bool,
}

/// The weight that `name` is the packed codes or the int8 codes of.
pub(super) fn find(path: &Path, tensors: &Tensors, name: &str) -> Result<Option<Found>> {
    if let Some(module) = name.strip_suffix(".weight_packed") {
        return find_packed(path, tensors, module).map(Some);
    }
    let Some(module) = name.strip_suffix(".weight") else { return Ok(None) };
    let codes = tensors.find(path, name)?;
    let scale = format!("{module}.weight_scale");
    if codes.dtype != Dtype::I8 || tensors.get(&scale).is_none() {
        return Ok(None);
    }
    let (shape, format) = (codes.shape.clone(), "int8".to_owned());
    let weight = Weight { shape, format, layout: Layout::Int8 };
    let parts = vec![name.to_owned(), scale, format!("{module}.weight_zero_point")];
    Ok(Some(Found { name: name.to_owned(), weight, parts }))
}

fn find_packed(path: &Path, tensors: &Tensors, module: &str) -> Result<Found> {
    let name = format!("{module}.weight");
    let bad = |problem: String| Error::malformed(path, format!("tensor `{name}` {problem}"));
    let parts =
        ["weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"];
    let parts = parts.map(|part| format!("{module}.{part}"));
    let [packed, scale, zero, shape, order] = &parts;
    let (packed, scale) = (tensors.find(path, packed)?, tensors.find(path, scale)?);
    let [rows, cols] = whole_numbers(tensors.find(path, shape)?)
        .and_then(|shape| <[usize; 2]>::try_from(shape).ok())
        .ok_or_else(|| bad("has a `weight_shape` that is not two sizes".into()))?;
    let words = |bits: usize| cols.checked_mul(bits).map(|n| n.div_ceil(32));
    let bits = [4, 8].into_iter().find(|bits| {
        packed.dtype == Dtype::I32 && words(*bits).is_some_and(|w| packed.shape == [rows, w])
    });
    let bits = bits.ok_or_else(|| {
        let (dtype, shape) = (packed.dtype, &packed.shape);
        Error::unsupported(
            path,
            format!("the packing of tensor `{name}` ([{rows}, {cols}] as {dtype} {shape:?})"),
            "Lathe reads 4 and 8 bits; pass the model that it was made from",
        )
    })?;
    let groups = match scale.shape.as_slice() {
        [n, groups] if *n == rows && *groups > 0 && cols.is_multiple_of(*groups) => *groups,
        [1] | [] => 1,
        other => return Err(bad(format!("has scales of shape {other:?} for [{rows}, {cols}]"))),
    };
    if tensors.get(order).is_some() {
        return Err(Error::unsupported(
            path,
            format!("the reordered columns of tensor `{name}`"),
            "quantize the model without activation order, or pass the original",
        ));
    }
    let asymmetric = tensors.get(zero).is_some();
    let layout = Packed { bits, group: cols / groups, asymmetric };
    let format = layout.format().map_or_else(|| format!("int{bits}"), str::to_owned);
    let weight = Weight { shape: vec![rows, cols], format, layout: Layout::Packed(layout) };
    Ok(Found { name, weight, parts: parts.into() })
}

impl Packed {
    /// Lathe's format with the same grid, where there is one.
    fn format(&self) -> Option<&'static str> {
        Some(match (self.bits, self.group, self.asymmetric) {
            (4, 32, false) => "int4_g32",
            (4, 64, false) => "int4_g64",
            (4, 128, false) => "int4_g128",
            (4, 32, true) => "int4_asym_g32",
            (4, 64, true) => "int4_asym_g64",
            (4, 128, true) => "int4_asym_g128",
            _ => return None,
        })
    }
}

fn whole_numbers(tensor: &Stored) -> Option<Vec<usize>> {
    let one = |n: i64| usize::try_from(n).ok();
    match tensor.dtype {
        Dtype::I64 if tensor.data.len() <= 64 => {
            tensor.data.as_chunks().0.iter().map(|b| one(i64::from_le_bytes(*b))).collect()
        }
        Dtype::I32 if tensor.data.len() <= 64 => {
            tensor.data.as_chunks().0.iter().map(|b| one(i32::from_le_bytes(*b).into())).collect()
        }
        _ => None,
    }
}

/// The numbers of a quantized matrix, whatever its packing.
struct Grid<'a> {
    codes: &'a [u8],
    /// One per row and group; `shared` if there is one for all.
    scales: Vec<f32>,
    zeros: Option<Vec<i8>>,
    bits: usize,
    /// Codes are stored as unsigned, with half of their range added.
    offset: i32,
    /// Bytes of a row of codes.
    stride: usize,
    group: usize,
    groups: usize,
}

impl Grid<'_> {
    fn code(&self, row: usize, col: usize) -> i32 {
        let bytes = &self.codes[row * self.stride..];
        let code = match self.bits {
            4 => i32::from(bytes[col / 2] >> (4 * (col % 2)) & 15),
            _ if self.offset == 0 => i32::from(bytes[col] as i8),
            _ => i32::from(bytes[col]),
        };
        code - self.offset
    }

    fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales[if self.scales.len() == 1 { 0 } else { row * self.groups + group }]
    }

    fn zero(&self, row: usize, group: usize) -> i32 {
        self.zeros.as_ref().map_or(0, |zeros| i32::from(zeros[row * self.groups + group]))
    }

    /// The numbers themselves in the scales' type, rounded as the reference rounds them.
    fn decoded(&self, from: &Source<'_>, dtype: Dtype) -> Result<Blocks> {
        let (rows, cols) = from.matrix()?;
        let (format, size) = match dtype {
            Dtype::F16 => ("f16", 2),
            Dtype::Bf16 => ("bf16", 2),
            _ => ("f32", 4),
        };
        let mut data = Vec::with_capacity(rows * cols * size);
        for row in 0..rows {
            for col in 0..cols {
                let group = col / self.group;
                let steps = self.code(row, col) - self.zero(row, group);
                encoded(steps as f32 * self.scale(row, group), dtype, &mut data);
            }
        }
        from.make(format, (rows, cols), data, Buf::new())
    }
}

/// Regroups packed codes, scales and zero points; where Lathe has no format of that grid (or the
/// scales are finer than bf16), the weight becomes the numbers that it stands for.
pub(super) fn packed(from: &Source<'_>, layout: &Packed) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let module = from.name.strip_suffix(".weight").unwrap_or(from.name);
    let get = |part: &str| from.tensors.find(from.path, &format!("{module}.{part}"));
    let (codes, scale) = (get("weight_packed")?, get("weight_scale")?);
    let groups = cols.checked_div(layout.group).unwrap_or(0);
    let scales = floats(scale).ok_or_else(|| from.bad("has scales that are no floats"))?;
    let zeros = layout.asymmetric.then(|| get("weight_zero_point")).transpose()?;
    let zeros = match zeros {
        Some(zeros) => Some(zero_points(from, zeros, layout.bits, rows, groups)?),
        None => None,
    };
    let grid = Grid {
        codes: &codes.data,
        scales,
        zeros,
        bits: layout.bits,
        offset: 1 << (layout.bits - 1),
        stride: (cols * layout.bits).div_ceil(32) * 4,
        group: layout.group.max(1),
        groups,
    };
    if layout.bits == 8 && groups == 1 && !layout.asymmetric {
        return int8_rows(from, &grid);
    }
    let narrow = |s: &f32| bf16::from_f32(*s).to_f32() == *s;
    match layout.format() {
        Some(format) if grid.scales.iter().all(narrow) => int4_groups(from, &grid, format),
        _ => grid.decoded(from, scale.dtype),
    }
}

fn int4_groups(from: &Source<'_>, grid: &Grid<'_>, format: &str) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let half = grid.group / 2;
    let mut data = Vec::with_capacity(rows * grid.groups * (half + 3));
    for row in 0..rows {
        for group in 0..grid.groups {
            data.extend(bf16::from_f32(grid.scale(row, group)).to_le_bytes());
            if grid.zeros.is_some() {
                data.push((grid.zero(row, group) + grid.offset) as u8);
            }
            data.extend_from_slice(&grid.codes[row * grid.stride + group * half..][..half]);
        }
    }
    from.make(format, (rows, cols), data, Buf::new())
}

fn int8_rows(from: &Source<'_>, grid: &Grid<'_>) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let mut data = Vec::with_capacity(rows * (cols + 4));
    for row in 0..rows {
        data.extend((0..cols).map(|col| grid.code(row, col) as i8 as u8));
        data.extend(grid.scale(row, 0).to_le_bytes());
    }
    from.make("int8", (rows, cols), data, Buf::new())
}

/// Zero points as signed numbers, row by row. Packed ones are packed along the rows.
fn zero_points(
    from: &Source<'_>,
    tensor: &Stored,
    bits: usize,
    rows: usize,
    groups: usize,
) -> Result<Vec<i8>> {
    let per_word = 32 / bits;
    let words = rows.div_ceil(per_word);
    if tensor.dtype == Dtype::I8 && tensor.shape == [rows, groups] {
        return Ok(tensor.data.iter().map(|b| *b as i8).collect());
    }
    if tensor.dtype != Dtype::I32 || tensor.shape != [words, groups] {
        let shape = &tensor.shape;
        return Err(from.bad(format!("has zero points of shape {shape:?}, {}", tensor.dtype)));
    }
    let (mask, offset) = ((1u32 << bits) - 1, 1i32 << (bits - 1));
    let (data, _) = tensor.data.as_chunks::<4>();
    let one = |i: usize| {
        let (row, group) = (i / groups, i % groups);
        let word = u32::from_le_bytes(data[row / per_word * groups + group]);
        ((word >> (bits * (row % per_word)) & mask) as i32 - offset) as i8
    };
    Ok((0..rows * groups).map(one).collect())
}

/// Regroups unpacked int8 codes and their scales.
pub(super) fn int8(from: &Source<'_>) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let module = from.name.strip_suffix(".weight").unwrap_or(from.name);
    let codes = from.tensors.find(from.path, from.name)?;
    let scale = from.tensors.find(from.path, &format!("{module}.weight_scale"))?;
    let scales = floats(scale).ok_or_else(|| from.bad("has scales that are no floats"))?;
    let groups = scales.len().checked_div(rows).unwrap_or(0).max(1);
    if scales.len() != 1 && (scales.len() != rows * groups || !cols.is_multiple_of(groups)) {
        return Err(from.bad(format!("has {} scales", scales.len())));
    }
    let zeros = match from.tensors.get(&format!("{module}.weight_zero_point")) {
        // A symmetric weight may carry zero points that are all zero.
        Some(zeros) if zeros.data.iter().any(|b| *b != 0) => {
            Some(zero_points(from, zeros, 8, rows, groups)?)
        }
        _ => None,
    };
    let group = (cols / groups).max(1);
    let codes = &codes.data;
    let grid = Grid { codes, scales, zeros, bits: 8, offset: 0, stride: cols, group, groups };
    if groups == 1 && grid.zeros.is_none() {
        return int8_rows(from, &grid);
    }
    grid.decoded(from, scale.dtype)
}

/// INT8 rows as `[packed codes, scales]`.
pub(super) fn split_int8(blocks: &Blocks) -> Vec<Vec<u8>> {
    let (mut codes, mut scales) = (Vec::with_capacity(blocks.data.len()), Vec::new());
    for row in 0..blocks.rows {
        let (row, scale) = blocks.row(row).split_at(blocks.cols);
        codes.extend(row.iter().map(|code| code ^ 0x80));
        codes.resize(codes.len().next_multiple_of(4), 0);
        scales.extend_from_slice(scale);
    }
    vec![codes, scales]
}

/// INT4 groups as `[packed codes, scales]`, and zero points where the format has them.
pub(super) fn split_int4(blocks: &Blocks, asymmetric: bool) -> Vec<Vec<u8>> {
    let head = if asymmetric { 3 } else { 2 };
    let group = blocks.format.block();
    let (mut codes, mut scales) = (Vec::with_capacity(blocks.data.len()), Vec::new());
    let mut zeros = Vec::new();
    for block in blocks.data.chunks_exact(head + group / 2) {
        scales.extend_from_slice(&block[..2]);
        zeros.extend_from_slice(&block[2..head]);
        codes.extend_from_slice(&block[head..]);
    }
    let mut parts = vec![codes, scales];
    if asymmetric {
        parts.push(packed_zeros(&zeros, blocks.rows, blocks.cols / group));
    }
    parts
}

fn packed_zeros(zeros: &[u8], rows: usize, groups: usize) -> Vec<u8> {
    let mut words = vec![0u32; rows.div_ceil(8) * groups];
    for (i, zero) in zeros.iter().enumerate() {
        let (row, group) = (i / groups, i % groups);
        words[row / 8 * groups + group] |= u32::from(*zero & 15) << (4 * (row % 8));
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// One format, and the linear modules that are in it.
pub(crate) type Group = (&'static dyn AnyFormat, Vec<String>);

/// The `quantization_config` under which transformers and vLLM load such a folder; `dense` are
/// the linear modules that are not quantized.
///
/// INT8 is `pack-quantized` too: weight-only INT8 is what it is, and `int-quantized` without
/// quantized activations is not loaded by vLLM.
pub(crate) fn quantization_config(groups: &[Group], dense: &[String]) -> Value {
    let one = groups.len() == 1;
    let groups: serde_json::Map<String, Value> = groups
        .iter()
        .enumerate()
        .map(|(i, (format, modules))| {
            let targets = if one { json!(["Linear"]) } else { json!(modules) };
            (format!("group_{i}"), group_config(*format, targets))
        })
        .collect();
    json!({
        "config_groups": groups,
        "format": "pack-quantized",
        "global_compression_ratio": null,
        "ignore": dense,
        "kv_cache_scheme": null,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    })
}

fn group_config(format: &dyn AnyFormat, targets: Value) -> Value {
    let eight = format.name() == "int8";
    json!({
        "format": "pack-quantized",
        "input_activations": null,
        "output_activations": null,
        "targets": targets,
        "weights": {
            "actorder": null,
            "block_structure": null,
            "dynamic": false,
            "group_size": if eight { Value::Null } else { format.block().into() },
            "num_bits": if eight { 8 } else { 4 },
            "observer": "minmax",
            "observer_kwargs": {},
            "strategy": if eight { "channel" } else { "group" },
            "symmetric": !format.name().starts_with("int4_asym"),
            "type": "int",
        },
    })
}
