//! compressed-tensors' integers: `pack-quantized` and `int-quantized`.
//!
//! **Source**: `pack_to_int32` and the compressors of vLLM's compressed-tensors.

use lathe_formats::{AnyFormat, Blocks, Int};
use serde_json::{Map, Value, json};

use super::{
    Activations, Files, Found, Kind, Layout, Source, Weight, bits,
    dense::floats,
    fp4, fp8, gptq,
    ints::{self, Ints, Order},
    parts::{Group, Module, Part},
};
use crate::{Dtype, Error, Result, Stored};

/// What the shapes of a packed weight's parts say.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    bits: usize,
    groups: usize,
    /// Columns that share a scale.
    group: usize,
    asymmetric: bool,
}

/// Bits that may be meant, the likeliest first.
const BITS: [usize; 7] = [4, 8, 3, 2, 6, 5, 7];

/// The weight that `name` is the packed codes or the int8 codes of.
pub(super) fn find(files: &Files<'_>, name: &str) -> Result<Option<Found>> {
    if let Some(module) = name.strip_suffix(".weight_packed") {
        let packed = files.tensors.find(files.path, name)?;
        // Bytes are floats of four bits.
        return if packed.dtype == Dtype::U8 {
            Ok(None)
        } else {
            find_packed(files, module).map(Some)
        };
    }
    let Some(module) = name.strip_suffix(".weight") else { return Ok(None) };
    let codes = files.tensors.find(files.path, name)?;
    let scale = format!("{module}.weight_scale");
    if codes.dtype != Dtype::I8 || files.tensors.get(&scale).is_none() {
        return Ok(None);
    }
    let (shape, format) = (codes.shape.clone(), "int8".to_owned());
    let weight = Weight { shape, format, kind: Kind::Int8 };
    let mut parts = vec![name.to_owned(), scale];
    let others = ["weight_zero_point", "weight_g_idx", "input_scale", "input_zero_point"];
    parts.extend(others.map(|part| format!("{module}.{part}")));
    Ok(Some(Found { name: name.to_owned(), weight, parts }))
}

fn find_packed(files: &Files<'_>, module: &str) -> Result<Found> {
    let (path, tensors) = (files.path, files.tensors);
    let name = format!("{module}.weight");
    let bad = |problem: String| Error::malformed(path, format!("tensor `{name}` {problem}"));
    let parts = [
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        "weight_shape",
        "weight_g_idx",
        "input_scale",
        "input_zero_point",
    ];
    let parts = parts.map(|part| format!("{module}.{part}"));
    let [packed, scale, zero, shape, ..] = &parts;
    let (packed, scale) = (tensors.find(path, packed)?, tensors.find(path, scale)?);
    let [rows, cols] = whole_numbers(tensors.find(path, shape)?)
        .and_then(|shape| <[usize; 2]>::try_from(shape).ok())
        .ok_or_else(|| bad("has a `weight_shape` that is not two sizes".into()))?;
    let fits = |bits: &usize| {
        packed.dtype == Dtype::I32
            && bits::words(cols, *bits).is_some_and(|words| packed.shape == [rows, words])
    };
    let likely = files.method.bits.filter(|bits| BITS.contains(bits));
    let bits = likely.into_iter().chain(BITS).find(fits).ok_or_else(|| {
        let (dtype, shape) = (packed.dtype, &packed.shape);
        Error::unsupported(
            path,
            format!("the packing of tensor `{name}` ([{rows}, {cols}] as {dtype} {shape:?})"),
            "Lathe reads 2 to 8 bits; pass the model that it was made from",
        )
    })?;
    let groups = match scale.shape.as_slice() {
        [n, groups] if *n == rows && *groups > 0 && cols.is_multiple_of(*groups) => *groups,
        [1] | [] => 1,
        other => return Err(bad(format!("has scales of shape {other:?} for [{rows}, {cols}]"))),
    };
    let asymmetric = tensors.get(zero).is_some();
    let group = ints::group_of(cols, groups, files.method.group);
    let layout = Packed { bits, groups, group, asymmetric };
    let format = ints::name(bits, layout.group, cols, asymmetric, scale.dtype);
    let weight = Weight { shape: vec![rows, cols], format, kind: Kind::Packed(layout) };
    Ok(Found { name, weight, parts: parts.into() })
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

/// Regroups packed codes, scales and zero points.
pub(super) fn packed(from: &Source<'_>, layout: &Packed) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let get = |part: &str| from.tensors.find(from.path, &from.part(part));
    let (codes, scale) = (get("weight_packed")?, get("weight_scale")?);
    let bits = layout.bits;
    let groups = layout.groups;
    let zeros = layout.asymmetric.then(|| get("weight_zero_point")).transpose()?;
    let zeros = zeros.map(|zeros| zero_points(from, zeros, bits, rows, groups)).transpose()?;
    let codes = bits::unpack_rows(&codes.data, rows, cols, bits);
    grid(from, scale, (codes, bits), (groups, layout.group), zeros)
}

/// Puts codes, scales and zero points together, and their columns in order where a file of old has
/// them elsewhere (`weight_g_idx`).
fn grid(
    from: &Source<'_>,
    scale: &Stored,
    (codes, bits): (Vec<u8>, usize),
    (groups, group): (usize, usize),
    zeros: Option<Vec<u8>>,
) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let mut scales = floats(scale).ok_or_else(|| from.bad("has scales that are no floats"))?;
    if scales.len() == 1 {
        scales = vec![scales[0]; rows * groups];
    }
    let index = match from.tensors.get(&from.part("weight_g_idx")) {
        // Minus one throughout: never set.
        Some(index) if index.data.iter().any(|byte| *byte != 0xff) => {
            Some(gptq::group_index(from, index, groups)?)
        }
        _ => None,
    };
    let order = index.as_ref().map_or(Order::Natural, |index| Order::of(index, groups, group));
    let codes = order.apply(codes, cols);
    let dtype = scale.dtype;
    let mut ints = Ints { bits, rows, cols, group, codes, scales, dtype, zeros, order: None };
    match (order, &index) {
        (Order::Elsewhere(order), _) => ints.order = Some(order),
        (Order::Uneven, Some(index)) => ints.spread(index),
        _ => {}
    }
    ints.blocks(from)
}

/// Zero points as codes, row by row. Packed ones are packed along the rows.
fn zero_points(
    from: &Source<'_>,
    tensor: &Stored,
    bits: usize,
    rows: usize,
    groups: usize,
) -> Result<Vec<u8>> {
    let middle = ints::middle(bits);
    if tensor.dtype == Dtype::I8 && tensor.count() == rows * groups {
        return Ok(tensor.data.iter().map(|zero| zero.wrapping_add(middle)).collect());
    }
    if tensor.dtype == Dtype::I8 && tensor.count() == 1 {
        return Ok(vec![tensor.data[0].wrapping_add(middle); rows * groups]);
    }
    let words = bits::words(rows, bits).unwrap_or(0);
    if tensor.dtype != Dtype::I32 || tensor.shape != [words, groups] {
        let shape = &tensor.shape;
        return Err(from.bad(format!("has zero points of shape {shape:?}, {}", tensor.dtype)));
    }
    let turned = bits::unpack_columns(&tensor.data, rows, groups, bits);
    Ok(ints::turn(&turned, rows))
}

/// Regroups unpacked int8 codes and their scales.
pub(super) fn int8(from: &Source<'_>) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let codes = from.tensors.find(from.path, from.name)?;
    let scale = from.tensors.find(from.path, &from.part("weight_scale"))?;
    let count = scale.count();
    let groups = count.checked_div(rows).unwrap_or(0).max(1);
    if count != 1 && (count != rows * groups || !cols.is_multiple_of(groups)) {
        return Err(from.bad(format!("has {count} scales")));
    }
    let zeros = match from.tensors.get(&from.part("weight_zero_point")) {
        // A symmetric weight may carry zero points that are all zero.
        Some(zeros) if zeros.data.iter().any(|b| *b != 0) => {
            Some(zero_points(from, zeros, 8, rows, groups)?)
        }
        _ => None,
    };
    let codes = codes.data.iter().map(|code| code ^ 0x80).collect();
    grid(from, scale, (codes, 8), (groups, ints::group_of(cols, groups, None)), zeros)
}

/// Whether a folder of compressed-tensors can hold the format.
pub(super) fn holds(format: &dyn AnyFormat) -> bool {
    format.name() == "int8"
        || Int::named(format.name()).is_some()
        || fp8::holds(Layout::CompressedTensors, format)
        || fp4::holds(format)
}

/// The tensors of a weight `[rows, cols]`.
pub(super) fn plan(module: &Module<'_>, (rows, cols): (usize, usize)) -> Option<Vec<Part>> {
    let floats = || fp8::plan(module, (rows, cols)).or_else(|| fp4::plan(module, (rows, cols)));
    if let Some(parts) = floats() {
        return Some(parts);
    }
    let int = Int::named(module.format.name());
    if int.is_none() && module.style.activations == Activations::Int8PerToken {
        return Some(vec![
            module.part("weight", Dtype::I8, &[rows, cols]),
            module.part("weight_scale", Dtype::F32, &[rows, 1]),
        ]);
    }
    let bits = int.map_or(8, |int| usize::from(int.bits()));
    let groups = cols.checked_div(int.and_then(Int::columns).unwrap_or(cols))?;
    let scale = int.map_or(Dtype::F32, |int| ints::dtype(int.scale_type()));
    let mut parts = vec![
        module.part("weight_packed", Dtype::I32, &[rows, bits::words(cols, bits)?]),
        module.part("weight_scale", scale, &[rows, groups]),
    ];
    if int.is_some_and(Int::zero_points) {
        let words = bits::words(rows, bits)?;
        parts.push(module.part("weight_zero_point", Dtype::I32, &[words, groups]));
    }
    parts.push(module.part("weight_shape", Dtype::I64, &[2]));
    Some(parts)
}

/// A weight's parts in the order of [`plan`].
pub(super) fn split(ints: &Ints, activations: Activations) -> Vec<Vec<u8>> {
    let Ints { bits, rows, cols, .. } = *ints;
    let scales = ints.scale_bytes(false);
    if bits == 8 && ints.dtype == Dtype::F32 && activations == Activations::Int8PerToken {
        return vec![ints.codes.iter().map(|code| code ^ 0x80).collect(), scales];
    }
    let mut parts = vec![bits::pack_rows(&ints.codes, cols, bits), scales];
    if ints.zeros.is_some() {
        parts.push(bits::pack_columns(&ints.turned_zeros(), rows, ints.groups(), bits));
    }
    parts.push([rows as i64, cols as i64].iter().flat_map(|n| n.to_le_bytes()).collect());
    parts
}

/// The `quantization_config` under which transformers and vLLM load such a folder; `dense` are
/// the linear modules that are not quantized.
///
/// INT8 without quantized activations is `pack-quantized` too: weight-only INT8 is what it is, and
/// `int-quantized` without quantized activations is not loaded by vLLM.
pub(super) fn config(groups: &[Group], dense: &[String], activations: Activations) -> Value {
    let one = groups.len() == 1;
    let scheme = |format| {
        let floats = fp8::scheme(format, activations).or_else(|| fp4::scheme(format));
        floats.unwrap_or_else(|| scheme(format, activations))
    };
    let schemes: Vec<Value> = groups.iter().map(|(format, _)| scheme(*format)).collect();
    let formats: Vec<&Value> = schemes.iter().map(|scheme| &scheme["format"]).collect();
    let same = formats.windows(2).all(|pair| pair[0] == pair[1]);
    let format = match formats.first() {
        Some(first) if same => (*first).clone(),
        _ => json!("mixed-precision"),
    };
    let named: Map<String, Value> = groups
        .iter()
        .zip(schemes)
        .enumerate()
        .map(|(i, ((_, modules), mut scheme))| {
            scheme["targets"] = if one { json!(["Linear"]) } else { json!(modules) };
            (format!("group_{i}"), scheme)
        })
        .collect();
    json!({
        "config_groups": named,
        "format": format,
        "global_compression_ratio": null,
        "ignore": dense,
        "kv_cache_scheme": null,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    })
}

fn scheme(format: &dyn AnyFormat, activations: Activations) -> Value {
    let int = Int::named(format.name());
    let columns = int.and_then(Int::columns);
    let weights = json!({
        "actorder": null,
        "block_structure": null,
        "dynamic": false,
        "group_size": columns,
        "num_bits": int.map_or(8, Int::bits),
        "observer": "minmax",
        "observer_kwargs": {},
        "strategy": if columns.is_some() { "group" } else { "channel" },
        "symmetric": !int.is_some_and(Int::zero_points),
        "type": "int",
    });
    let quantized = int.is_none() && activations == Activations::Int8PerToken;
    let inputs = json!({
        "dynamic": true,
        "num_bits": 8,
        "observer": null,
        "strategy": "token",
        "symmetric": true,
        "type": "int",
    });
    json!({
        "format": if quantized { "int-quantized" } else { "pack-quantized" },
        "input_activations": if quantized { inputs } else { Value::Null },
        "output_activations": null,
        "weights": weights,
    })
}
