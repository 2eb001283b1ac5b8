//! bitsandbytes' parts: NF4 and FP4 with and without double quantization, and LLM.int8().
//!
//! **Source**: `QuantState.as_dict` in bitsandbytes/functional.py, `Linear8bitLt` in nn/modules.py.

use lathe_base::Buf;
use lathe_formats::{AnyFormat, Blocks, Float4, Int8, Nested, NormalFloat, Table};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Files, Found, Kind, Source, Weight,
    dense::floats,
    parts::{Group, Module, Part},
};
use crate::{Dtype, Error, Result};

/// bitsandbytes' default and, with four bits, the only block size in use.
const BLOCK: usize = 64;
const NESTED_BLOCK: usize = 256;
const STATE: &str = ".quant_state.bitsandbytes__";
/// The JSON with the shape is some 200 bytes long.
const STATE_CAP: usize = 4096;

/// The two tables of sixteen levels.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Levels {
    Nf4,
    Fp4,
}

impl Levels {
    /// The table of that name, which is a part's name and the format's.
    fn named(name: &str) -> Option<Self> {
        [Self::Nf4, Self::Fp4].into_iter().find(|levels| levels.formats()[0] == name)
    }

    fn of(format: &dyn AnyFormat) -> Option<Self> {
        [Self::Nf4, Self::Fp4].into_iter().find(|l| l.formats().contains(&format.name()))
    }

    /// The formats with plain and with nested scales.
    fn formats(self) -> [&'static str; 2] {
        match self {
            Self::Nf4 => NormalFloat::NAMES,
            Self::Fp4 => Float4::NAMES,
        }
    }

    /// The levels by code.
    fn table(self) -> [f32; 16] {
        fn by_code<T: Table>() -> [f32; 16] {
            let mut table = [0.0; 16];
            for (code, level) in T::CODES.iter().zip(T::LEVELS) {
                table[usize::from(*code)] = *level;
            }
            table
        }
        match self {
            Self::Nf4 => by_code::<NormalFloat>(),
            Self::Fp4 => by_code::<Float4>(),
        }
    }
}

/// What the name and the JSON part of a weight say.
#[derive(Clone, Debug)]
pub(super) struct FourBit {
    levels: Levels,
    state: State,
}

#[derive(Clone, Debug, Deserialize)]
struct State {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// The weight whose description `name` is.
pub(super) fn find(files: &Files<'_>, name: &str) -> Result<Option<Found>> {
    let (path, tensors) = (files.path, files.tensors);
    if let Some(weight) = name.strip_suffix(".SCB") {
        return llm_int8_parts(files, weight).map(Some);
    }
    let Some((weight, levels)) = name.rsplit_once(STATE) else { return Ok(None) };
    let state = tensors.find(path, name)?;
    let bad = |problem: String| Error::malformed(path, format!("tensor `{name}` {problem}"));
    if state.data.len() > STATE_CAP {
        return Err(bad(format!("is {} bytes long", state.data.len())));
    }
    let levels = Levels::named(levels).ok_or_else(|| bad("is of neither NF4 nor FP4".into()))?;
    let state: State = serde_json::from_slice(&state.data)
        .map_err(|e| bad(format!("does not describe NF4 or FP4: {e}")))?;
    let nested = state.nested_offset.is_some();
    let mut parts = vec![weight.to_owned(), name.to_owned()];
    parts.extend(["absmax", "quant_map"].map(|part| format!("{weight}.{part}")));
    if nested {
        parts.extend(["nested_absmax", "nested_quant_map"].map(|part| format!("{weight}.{part}")));
    }
    for part in &parts {
        tensors.find(path, part)?;
    }
    let (shape, format) = (state.shape.clone(), levels.formats()[usize::from(nested)].to_owned());
    let weight_ = Weight { shape, format, kind: Kind::FourBit(FourBit { levels, state }) };
    Ok(Some(Found { name: weight.to_owned(), weight: weight_, parts }))
}

fn llm_int8_parts(files: &Files<'_>, module: &str) -> Result<Found> {
    let name = format!("{module}.weight");
    let codes = files.tensors.find(files.path, &name)?;
    let weight = Weight { shape: codes.shape.clone(), format: "int8".into(), kind: Kind::LlmInt8 };
    let parts = ["weight", "SCB", "weight_format"].map(|part| format!("{module}.{part}"));
    Ok(Found { name, weight, parts: parts.into() })
}

/// Regroups the parts of a weight of four bits. Where its blocks run over the ends of rows, or its
/// levels are not the usual ones, it becomes the f32 numbers that it stands for.
pub(super) fn blocks(from: &Source<'_>, FourBit { levels, state }: &FourBit) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let count = rows.checked_mul(cols).filter(|n| n.is_multiple_of(2));
    let codes = from.tensors.find(from.path, from.name)?;
    if codes.dtype != Dtype::U8 || count != Some(codes.data.len().saturating_mul(2)) {
        return Err(from.bad(format!("has {} bytes of codes", codes.data.len())));
    }
    if state.blocksize == 0 {
        return Err(from.bad("has blocks of no weights"));
    }
    let parts = Parts {
        codes: &codes.data,
        levels: part(from, "quant_map", 16)?,
        block: state.blocksize,
        absmax: from.tensors.find(from.path, &format!("{}.absmax", from.name))?.data.clone(),
        nested: nested(from, state)?,
    };
    let blocks = (rows * cols).div_ceil(state.blocksize);
    parts.check(from, blocks)?;
    let ours = state.blocksize == BLOCK
        && cols.is_multiple_of(BLOCK)
        && parts.levels == levels.table()
        && parts.nested.as_ref().is_none_or(|(size, _)| *size == NESTED_BLOCK);
    if !ours {
        return from.make("f32", (rows, cols), parts.decoded(), Buf::new());
    }
    let scale = if parts.nested.is_some() { 1 } else { 4 };
    let mut data = Vec::with_capacity(blocks * (scale + BLOCK / 2));
    for (absmax, codes) in parts.absmax.chunks_exact(scale).zip(codes.data.chunks_exact(BLOCK / 2))
    {
        data.extend_from_slice(absmax);
        data.extend_from_slice(codes);
    }
    let side = parts.nested.map_or_else(Buf::new, |(_, nested)| nested.to_side());
    from.make(levels.formats()[usize::from(scale == 1)], (rows, cols), data, side)
}

struct Parts<'a> {
    codes: &'a [u8],
    levels: Vec<f32>,
    block: usize,
    absmax: Buf,
    /// The nested block size and numbers.
    nested: Option<(usize, Nested)>,
}

impl Parts<'_> {
    fn check(&self, from: &Source<'_>, blocks: usize) -> Result<()> {
        let (size, expected) = match &self.nested {
            Some((size, nested)) => {
                if nested.absmax.len() != blocks.div_ceil(*size) {
                    return Err(from.bad("has the wrong number of nested scales"));
                }
                (1, blocks)
            }
            None => (4, blocks),
        };
        if self.absmax.len() != size * expected {
            return Err(from.bad(format!("has {} bytes of scales", self.absmax.len())));
        }
        Ok(())
    }

    fn absmax_of(&self, block: usize) -> f32 {
        match &self.nested {
            None => {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(&self.absmax[4 * block..][..4]);
                f32::from_le_bytes(bytes)
            }
            Some((size, nested)) => {
                let code = nested.map[usize::from(self.absmax[block])];
                code * nested.absmax[block / size] + nested.offset
            }
        }
    }

    fn decoded(&self) -> Buf {
        let mut out = Vec::with_capacity(8 * self.codes.len());
        for (i, byte) in self.codes.iter().enumerate() {
            for (j, code) in [byte >> 4, byte & 15].into_iter().enumerate() {
                let absmax = self.absmax_of((2 * i + j) / self.block);
                out.extend((self.levels[usize::from(code)] * absmax).to_le_bytes());
            }
        }
        out.into()
    }
}

fn part(from: &Source<'_>, part: &str, expected: usize) -> Result<Vec<f32>> {
    let tensor = from.tensors.find(from.path, &format!("{}.{part}", from.name))?;
    match floats(tensor) {
        Some(numbers) if numbers.len() == expected => Ok(numbers),
        _ => Err(from.bad(format!("has a `{part}` that is not {expected} numbers"))),
    }
}

fn nested(from: &Source<'_>, state: &State) -> Result<Option<(usize, Nested)>> {
    let Some(offset) = state.nested_offset else { return Ok(None) };
    let size = state.nested_blocksize.filter(|n| *n > 0);
    let size = size.ok_or_else(|| from.bad("has nested scales without a block size"))?;
    let map = part(from, "nested_quant_map", 256)?;
    let absmax = from.tensors.find(from.path, &format!("{}.nested_absmax", from.name))?;
    let absmax = floats(absmax).ok_or_else(|| from.bad("has nested scales that are no floats"))?;
    Ok(Some((size, Nested { offset, skip: 0, map, absmax })))
}

/// Regroups LLM.int8() codes and row maxima into INT8 rows: the scale is `SCB` / 127.
pub(super) fn llm_int8(from: &Source<'_>) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let module = from.name.strip_suffix(".weight").unwrap_or(from.name);
    let codes = from.tensors.find(from.path, from.name)?;
    let format = from.tensors.get(&format!("{module}.weight_format"));
    if format.is_some_and(|f| f.data.iter().any(|byte| *byte != 0)) {
        return Err(Error::unsupported(
            from.path,
            format!("the column order of tensor `{}`", from.name),
            "save the model again with a current bitsandbytes",
        ));
    }
    let scb = floats(from.tensors.find(from.path, &format!("{module}.SCB"))?);
    let scb = scb.filter(|scb| scb.len() == rows && codes.dtype == Dtype::I8);
    let scb = scb.ok_or_else(|| from.bad("does not have one scale per row of int8 codes"))?;
    let mut data = Vec::with_capacity(rows * (cols + 4));
    for (codes, absmax) in codes.data.chunks_exact(cols.max(1)).zip(scb) {
        data.extend_from_slice(codes);
        data.extend((absmax / 127.0).to_le_bytes());
    }
    from.make("int8", (rows, cols), data, Buf::new())
}

/// Whether bitsandbytes has the format.
pub(super) fn holds(format: &dyn AnyFormat) -> bool {
    format.name() == "int8" || Levels::of(format).is_some()
}

/// The tensors of a weight `[rows, cols]`.
pub(super) fn plan(
    module: &Module<'_>,
    name: &str,
    (rows, cols): (usize, usize),
) -> Option<Vec<Part>> {
    if module.format.name() == "int8" {
        return Some(vec![
            module.part("weight", Dtype::I8, &[rows, cols]),
            module.part("SCB", Dtype::F32, &[rows]),
            module.part("weight_format", Dtype::U8, &[]),
        ]);
    }
    let count = rows.checked_mul(cols)?;
    let blocks = count / BLOCK;
    let levels = Levels::of(module.format)?;
    let double = module.format.name() == levels.formats()[1];
    let scale = if double { Dtype::U8 } else { Dtype::F32 };
    let mut parts = vec![
        module.part("weight", Dtype::U8, &[count / 2, 1]),
        module.part("weight.absmax", scale, &[blocks]),
        module.part("weight.quant_map", Dtype::F32, &[16]),
    ];
    if double {
        let nested = blocks.div_ceil(NESTED_BLOCK);
        parts.push(module.part("weight.nested_absmax", Dtype::F32, &[nested]));
        parts.push(module.part("weight.nested_quant_map", Dtype::F32, &[256]));
    }
    parts.push(Part::text(format!("{name}{STATE}{}", levels.formats()[0])));
    Some(parts)
}

/// A weight's parts in the order of [`plan`], and the JSON that describes them; `dtype` is what
/// they are decoded to.
pub(super) fn split(blocks: &Blocks, dtype: &str) -> Option<(Vec<Vec<u8>>, Option<String>)> {
    if blocks.format.name() == "int8" {
        return Some((split_int8(blocks), None));
    }
    let levels = Levels::of(blocks.format)?;
    let nested = (!blocks.side.is_empty()).then(|| Nested::of(blocks));
    let scale = if nested.is_some() { 1 } else { 4 };
    let (mut absmax, mut codes) = (Vec::new(), Vec::with_capacity(blocks.data.len()));
    for block in blocks.data.chunks_exact(scale + BLOCK / 2) {
        absmax.extend_from_slice(&block[..scale]);
        codes.extend_from_slice(&block[scale..]);
    }
    let mut parts = vec![codes, absmax, bytes(&levels.table())];
    let shape = format!("[{}, {}]", blocks.rows, blocks.cols);
    let mut state = format!(
        "{{\"quant_type\": \"{}\", \"blocksize\": {BLOCK}, \"dtype\": \"{dtype}\", \"shape\": {shape}",
        levels.formats()[0]
    );
    if let Some(nested) = nested {
        state += &format!(
            ", \"nested_blocksize\": {NESTED_BLOCK}, \"nested_dtype\": \"float32\", \
             \"nested_offset\": {}",
            json!(f64::from(nested.offset))
        );
        parts.extend([bytes(&nested.absmax), bytes(&nested.map)]);
    }
    Some((parts, Some(state + "}")))
}

fn split_int8(blocks: &Blocks) -> Vec<Vec<u8>> {
    let (mut codes, mut absmax) = (Vec::with_capacity(blocks.data.len()), Vec::new());
    for row in 0..blocks.rows {
        let (row, scale) = Int8::row(blocks, row);
        codes.extend(row.iter().map(|code| *code as u8));
        absmax.extend(absmax_of(scale).to_le_bytes());
    }
    // Row-major: the only order that bitsandbytes writes today.
    vec![codes, absmax, vec![0]]
}

/// The absmax whose 127th part is `scale`, so that reading gives the same scale again.
fn absmax_of(scale: f32) -> f32 {
    let near = scale * 127.0;
    let candidates = [near, near.next_down(), near.next_up()];
    candidates.into_iter().find(|absmax| absmax / 127.0 == scale).unwrap_or(near)
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The `quantization_config` under which transformers loads such a folder; `dense` are the linear
/// modules that are not quantized.
pub(super) fn config(groups: &[Group], dtype: &str, dense: &[String]) -> Value {
    let has = |name: &str| groups.iter().any(|(format, _)| format.name() == name);
    let eight = has("int8");
    let levels = groups.iter().find_map(|(format, _)| Levels::of(*format)).unwrap_or(Levels::Fp4);
    json!({
        "_load_in_4bit": !eight,
        "_load_in_8bit": eight,
        "bnb_4bit_compute_dtype": if eight { "float32" } else { dtype },
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": levels.formats()[0],
        "bnb_4bit_use_double_quant": !eight && has(levels.formats()[1]),
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": dense,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": !eight,
        "load_in_8bit": eight,
        "quant_method": "bitsandbytes",
    })
}
