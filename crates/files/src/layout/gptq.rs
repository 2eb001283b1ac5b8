//! GPTQ's parts: `qweight`, `qzeros`, `scales`, `g_idx`, as AutoGPTQ and GPTQModel store them.
//!
//! The matrix lies transposed: `qweight` i32 \[in·bits/32, out\] is packed along the inputs, `qzeros`
//! i32 \[groups, out·bits/32\] along the outputs, `scales` are \[groups, out\], and `g_idx` i32 \[in\] is
//! the group of each input. Version 1 stores zero points less one.
//!
//! **Source**: `TorchLinear`, `PackableQuantLinear.pack_original` and
//! `convert_gptq_v1_to_v2_format_module` of GPTQModel.

use lathe_formats::{AnyFormat, Blocks, Int, ScaleType};
use serde_json::{Map, Value, json};

use super::{
    Files, Found, Kind, Source, Weight, bits,
    dense::floats,
    ints::{self, Ints, Order, middle},
    parts::{Group, Module, Part},
};
use crate::{Dtype, Error, Result, Stored};

/// What the shapes of a weight's parts say.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    bits: usize,
    groups: usize,
    group: usize,
    /// Whether zero points are stored less one (version 1).
    minus_one: bool,
    /// Whether the configuration says that zero points are anywhere.
    asymmetric: bool,
}

const BITS: [usize; 4] = [4, 8, 3, 2];

/// The weight whose codes `name` is.
pub(super) fn find(files: &Files<'_>, name: &str) -> Result<Option<Found>> {
    let Some(module) = name.strip_suffix(".qweight") else { return Ok(None) };
    let parts = ["qweight", "qzeros", "scales", "g_idx"].map(|part| format!("{module}.{part}"));
    let get = |name: &str| files.tensors.find(files.path, name);
    let (codes, zeros, scales) = (get(&parts[0])?, get(&parts[1])?, get(&parts[2])?);
    let index = files.tensors.get(&parts[3]);
    let (&[height, out], &[groups, scaled]) = (codes.shape.as_slice(), scales.shape.as_slice())
    else {
        return Err(unlike(files, module, codes, scales));
    };
    // AWQ has the same names for other shapes.
    if out != scaled {
        return super::awq::find(files, module, &parts).map(Some);
    }
    let cols = |bits: usize| match index {
        Some(index) => Some(index.count()).filter(|n| bits::words(*n, bits) == Some(height)),
        None => height.checked_mul(32).map(|n| n / bits),
    };
    let fits = |bits: &usize| {
        bits::words(out, *bits).is_some_and(|words| zeros.shape == [groups, words])
            && cols(*bits).is_some_and(|cols| groups > 0 && cols >= groups)
    };
    let likely = files.method.bits.filter(|bits| BITS.contains(bits));
    let found = likely.into_iter().chain(BITS).find(fits);
    let Some((bits, cols)) = found.and_then(|bits| Some((bits, cols(bits)?))) else {
        return Err(unlike(files, module, codes, scales));
    };
    let packed = Packed {
        bits,
        groups,
        group: ints::group_of(cols, groups, files.method.group),
        minus_one: !files.method.version_2,
        asymmetric: files.method.symmetric == Some(false),
    };
    let asymmetric = packed.asymmetric || !packed.looks_symmetric(zeros);
    let format = ints::name(bits, packed.group, cols, asymmetric, scales.dtype);
    let weight = Weight { shape: vec![out, cols], format, kind: Kind::Gptq(packed) };
    Ok(Some(Found { name: format!("{module}.weight"), weight, parts: parts.into() }))
}

fn unlike(files: &Files<'_>, module: &str, codes: &Stored, scales: &Stored) -> Error {
    Error::unsupported(
        files.path,
        format!("the packing of `{module}` (codes {:?}, scales {:?})", codes.shape, scales.shape),
        "Lathe reads GPTQ with 2, 3, 4 and 8 bits and AWQ (gemm) with 4; pass the model that it \
         was made from",
    )
}

impl Packed {
    /// Whether the first zero points are all in the middle.
    fn looks_symmetric(&self, zeros: &Stored) -> bool {
        let words = zeros.shape.last().copied().unwrap_or(0).min(bits::WORDS * 3);
        let count = words * 32 / self.bits;
        if self.bits == 3 && words < 3 || zeros.data.len() < 4 * words {
            return false;
        }
        let first = self.zeros(&zeros.data[..4 * words], 1, count);
        first.iter().all(|zero| *zero == middle(self.bits))
    }

    /// The zero points themselves of packed ones, \[groups, out\].
    fn zeros(&self, data: &[u8], groups: usize, out: usize) -> Vec<u8> {
        let mask = u8::MAX >> (8 - self.bits);
        if self.bits == 3 || !self.minus_one {
            let add = u8::from(self.minus_one);
            let mut zeros = bits::unpack_rows(data, groups, out, self.bits);
            zeros.iter_mut().for_each(|zero| *zero = (*zero + add) & mask);
            return zeros;
        }
        // GPTQModel adds to whole words: a zero point of 0, stored as −1, borrows from the next.
        let words = shifted(data, ones(self.bits));
        bits::unpack_rows(&words, groups, out, self.bits)
    }
}

/// A one in every field of a word.
fn ones(bits: usize) -> u32 {
    u32::MAX / ((1 << bits) - 1)
}

fn shifted(data: &[u8], by: u32) -> Vec<u8> {
    let (words, _) = data.as_chunks::<4>();
    words.iter().flat_map(|w| u32::from_le_bytes(*w).wrapping_add(by).to_le_bytes()).collect()
}

/// Regroups the parts into blocks, act-order and all.
pub(super) fn blocks(from: &Source<'_>, packed: &Packed) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let get = |part: &str| from.tensors.find(from.path, &from.part(part));
    let (codes, zeros, scale) = (get("qweight")?, get("qzeros")?, get("scales")?);
    let Packed { bits, groups, group, .. } = *packed;
    if codes.dtype != Dtype::I32 || zeros.dtype != Dtype::I32 {
        return Err(from.bad("has codes or zero points that are not i32"));
    }
    let scales = floats(scale).ok_or_else(|| from.bad("has scales that are no floats"))?;
    let index = match from.tensors.get(&from.part("g_idx")) {
        Some(index) => group_index(from, index, groups)?,
        None => (0..cols).map(|col| (col / group.max(1)) as u32).collect(),
    };
    let order = Order::of(&index, groups, group);
    let zeros = packed.zeros(&zeros.data, groups, rows);
    let symmetric = !packed.asymmetric && zeros.iter().all(|zero| *zero == middle(bits));
    let codes = order.apply(bits::unpack_columns(&codes.data, cols, rows, bits), cols);
    let (scales, zeros) = (ints::turn(&scales, rows), ints::turn(&zeros, rows));
    let mut ints = Ints {
        bits,
        rows,
        cols,
        group,
        codes,
        scales,
        dtype: scale.dtype,
        zeros: (!symmetric).then_some(zeros),
        order: None,
    };
    match order {
        Order::Natural => {}
        Order::Elsewhere(order) => ints.order = Some(order),
        Order::Uneven => ints.spread(&index),
    }
    ints.blocks(from)
}

/// The group of each input.
pub(super) fn group_index(from: &Source<'_>, tensor: &Stored, groups: usize) -> Result<Vec<u32>> {
    let index: Vec<u32> = match tensor.dtype {
        Dtype::I32 => tensor.data.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
        _ => Vec::new(),
    };
    let (_, cols) = from.matrix()?;
    if index.len() != cols {
        return Err(from.bad(format!("has a `g_idx` that is not {cols} whole numbers")));
    }
    match index.iter().find(|g| **g as usize >= groups) {
        Some(g) => Err(from.bad(format!("has a column in group {g} of {groups}"))),
        None => Ok(index),
    }
}

/// Whether a GPTQ folder can hold the format: f16 scales, as every tool expects them.
pub(super) fn holds(format: &dyn AnyFormat) -> bool {
    Int::named(format.name()).is_some_and(|int| int.scale_type() == ScaleType::F16)
}

/// The tensors of a weight `[rows, cols]`; `None` where they would not fill whole words.
pub(super) fn plan(module: &Module<'_>, (rows, cols): (usize, usize)) -> Option<Vec<Part>> {
    let int = Int::named(module.format.name())?;
    let bits = usize::from(int.bits());
    let groups = cols.checked_div(int.columns().unwrap_or(cols))?;
    let words = |n: usize| (n * bits).is_multiple_of(32).then_some(n * bits / 32);
    Some(vec![
        module.part("qweight", Dtype::I32, &[words(cols)?, rows]),
        module.part("qzeros", Dtype::I32, &[groups, words(rows)?]),
        module.part("scales", Dtype::F16, &[groups, rows]),
        module.part("g_idx", Dtype::I32, &[cols]),
    ])
}

/// A weight's parts in the order of [`plan`].
pub(super) fn split(ints: &Ints, version_2: bool) -> Vec<Vec<u8>> {
    let Ints { bits, rows, cols, .. } = *ints;
    let mut zeros = ints.turned_zeros();
    if bits == 3 && !version_2 {
        zeros.iter_mut().for_each(|zero| *zero = zero.wrapping_sub(1) & 7);
    }
    let mut zeros = bits::pack_rows(&zeros, rows, bits);
    if bits != 3 && !version_2 {
        zeros = shifted(&zeros, ones(bits).wrapping_neg());
    }
    vec![
        bits::pack_columns(&ints.natural(), cols, rows, bits),
        zeros,
        ints.scale_bytes(true),
        ints.group_index().iter().flat_map(|g| g.to_le_bytes()).collect(),
    ]
}

/// The `quantization_config` under which GPTQModel, transformers and vLLM load such a folder.
///
/// The most common format is the default; modules in others, and those that are not quantized, are
/// exceptions in `dynamic`.
pub(super) fn config(groups: &[Group], dense: &[String], order: bool, version_2: bool) -> Value {
    let most = groups.iter().max_by_key(|(_, modules)| modules.len());
    let settings = |format: &dyn AnyFormat| {
        let int = Int::named(format.name());
        let group = int.and_then(Int::columns).map_or(json!(-1), |n| json!(n));
        let bits = int.map_or(4, Int::bits);
        let sym = !int.is_some_and(Int::zero_points);
        json!({"bits": bits, "group_size": group, "sym": sym, "desc_act": order})
    };
    let mut dynamic = Map::new();
    let pattern = |sign: char, module: &str| format!("{sign}:^{}$", module.replace('.', "\\."));
    for module in dense.iter().filter(|module| *module != "lm_head") {
        dynamic.insert(pattern('-', module), json!({}));
    }
    for (format, modules) in groups {
        if most.is_some_and(|(most, _)| most.name() != format.name()) {
            for module in modules {
                dynamic.insert(pattern('+', module), settings(*format));
            }
        }
    }
    let mut config = most.map_or_else(|| json!({}), |(format, _)| settings(*format));
    let version = if version_2 { "gptq_v2" } else { "gptq" };
    config["quant_method"] = json!("gptq");
    config["checkpoint_format"] = json!(version);
    config["format"] = json!(version);
    config["pack_dtype"] = json!("int32");
    config["lm_head"] = json!(!dense.iter().any(|module| module == "lm_head"));
    config["meta"] = json!({"quantizer": [format!("lathe:{}", env!("CARGO_PKG_VERSION"))]});
    if !dynamic.is_empty() {
        config["dynamic"] = Value::Object(dynamic);
    }
    config
}
