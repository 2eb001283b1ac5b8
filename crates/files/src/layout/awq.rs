//! AWQ's parts in the GEMM layout, as AutoAWQ stores them.
//!
//! The matrix lies transposed and is packed along the outputs: `qweight` i32 \[in, out/8\], `qzeros`
//! i32 \[in/group, out/8\], `scales` f16 \[in/group, out\]. The nibbles of a word are outputs 0, 2, 4,
//! 6, 1, 3, 5, 7.
//!
//! **Source**: `WQLinear_GEMM.from_linear` and `dequantize_gemm` of AutoAWQ.

use lathe_formats::{AnyFormat, Blocks, Int, ScaleType};
use serde_json::{Value, json};

use super::{
    Files, Found, Kind, Source, Weight,
    bits::{RUN, put},
    dense::floats,
    ints::{self, Ints, middle},
    parts::{Group, Module, Part},
};
use crate::{Dtype, Error, Result};

const BITS: usize = 4;
/// Numbers in a word.
const WORD: usize = 8;
/// The output within a word that each nibble, from the lowest, belongs to.
const ORDER: [usize; WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

/// What the shapes of a weight's parts say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    groups: usize,
    group: usize,
}

/// The weight of a module whose `qweight`, `qzeros` and `scales` are not shaped as GPTQ's.
pub(super) fn find(files: &Files<'_>, module: &str, parts: &[String; 4]) -> Result<Found> {
    let get = |name: &str| files.tensors.find(files.path, name);
    let (codes, zeros, scales) = (get(&parts[0])?, get(&parts[1])?, get(&parts[2])?);
    let shape = match (codes.shape.as_slice(), scales.shape.as_slice()) {
        (&[cols, words], &[groups, rows])
            if words.checked_mul(WORD) == Some(rows)
                && zeros.shape == [groups, words]
                && groups > 0
                && cols.is_multiple_of(groups) =>
        {
            Some((rows, cols, groups))
        }
        _ => None,
    };
    let Some((rows, cols, groups)) = shape else {
        return Err(Error::unsupported(
            files.path,
            format!(
                "the packing of `{module}` (codes {:?}, zero points {:?}, scales {:?})",
                codes.shape, zeros.shape, scales.shape
            ),
            "Lathe reads AWQ's GEMM layout with 4 bits; pass the model that it was made from",
        ));
    };
    let group = ints::group_of(cols, groups, files.method.group);
    let format = ints::name(BITS, group, cols, true, scales.dtype);
    let kind = Kind::Awq(Packed { groups, group });
    let weight = Weight { shape: vec![rows, cols], format, kind };
    Ok(Found { name: format!("{module}.weight"), weight, parts: parts[..3].to_vec() })
}

/// Regroups the parts into blocks. Zero points are kept even where all are the same.
pub(super) fn blocks(from: &Source<'_>, packed: Packed) -> Result<Blocks> {
    let (rows, cols) = from.matrix()?;
    let get = |part: &str| from.tensors.find(from.path, &from.part(part));
    let (codes, zeros, scale) = (get("qweight")?, get("qzeros")?, get("scales")?);
    if codes.dtype != Dtype::I32 || zeros.dtype != Dtype::I32 {
        return Err(from.bad("has codes or zero points that are not i32"));
    }
    let scales = floats(scale).ok_or_else(|| from.bad("has scales that are no floats"))?;
    Ints {
        bits: BITS,
        rows,
        cols,
        group: packed.group,
        codes: unpack(&codes.data, cols, rows),
        scales: ints::turn(&scales, rows),
        dtype: scale.dtype,
        zeros: Some(unpack(&zeros.data, packed.groups, rows)),
        order: None,
    }
    .blocks(from)
}

/// `[height, width / 8]` of words as `[width, height]` of numbers.
fn unpack(data: &[u8], height: usize, width: usize) -> Vec<u8> {
    let (words, _) = data.as_chunks::<4>();
    let mut out = vec![0; width * height];
    let per_row = width / WORD;
    // Words of a column are taken apart together: their numbers are neighbours in the result.
    for first in (0..height).step_by(RUN) {
        let count = RUN.min(height - first);
        for column in 0..per_row {
            let mut run = [0; RUN];
            for (i, word) in run[..count].iter_mut().enumerate() {
                *word = u32::from_le_bytes(words[(first + i) * per_row + column]);
            }
            for (nibble, within) in ORDER.iter().enumerate() {
                let numbers = run.map(|word| (word >> (4 * nibble) & 15) as u8);
                let at = (column * WORD + within) * height + first;
                put(&numbers, &mut out[at..][..count]);
            }
        }
    }
    out
}

/// The opposite of [`unpack`]: `numbers` are `[width, height]`.
fn pack(numbers: &[u8], height: usize, width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(width * height / 2);
    for row in 0..height {
        for first in (0..width).step_by(WORD) {
            let nibbles = ORDER.iter().enumerate();
            let word = nibbles.fold(0, |word, (nibble, within)| {
                word | u32::from(numbers[(first + within) * height + row]) << (4 * nibble)
            });
            out.extend(word.to_le_bytes());
        }
    }
    out
}

/// Whether an AWQ folder can hold the format: 4 bits with f16 scales.
pub(super) fn holds(format: &dyn AnyFormat) -> bool {
    Int::named(format.name())
        .is_some_and(|int| usize::from(int.bits()) == BITS && int.scale_type() == ScaleType::F16)
}

/// The tensors of a weight `[rows, cols]`; `None` where they would not fill whole words.
pub(super) fn plan(module: &Module<'_>, (rows, cols): (usize, usize)) -> Option<Vec<Part>> {
    let int = Int::named(module.format.name())?;
    let groups = cols.checked_div(int.columns().unwrap_or(cols))?;
    let words = rows.is_multiple_of(WORD).then_some(rows / WORD)?;
    Some(vec![
        module.part("qweight", Dtype::I32, &[cols, words]),
        module.part("qzeros", Dtype::I32, &[groups, words]),
        module.part("scales", Dtype::F16, &[groups, rows]),
    ])
}

/// A weight's parts in the order of [`plan`].
pub(super) fn split(ints: &Ints) -> Vec<Vec<u8>> {
    let Ints { rows, cols, .. } = *ints;
    let zeros = match &ints.zeros {
        Some(zeros) => zeros.clone(),
        None => vec![middle(BITS); rows * ints.groups()],
    };
    vec![pack(&ints.codes, cols, rows), pack(&zeros, ints.groups(), rows), ints.scale_bytes(true)]
}

/// The `quantization_config` under which transformers and vLLM load such a folder.
pub(super) fn config(groups: &[Group], dense: &[String]) -> Value {
    let int = groups.first().and_then(|(format, _)| Int::named(format.name()));
    json!({
        "bits": BITS,
        "group_size": int.and_then(Int::columns).map_or(json!(-1), |n| json!(n)),
        "modules_to_not_convert": dense,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_even_outputs_before_odd_ones() {
        let numbers: Vec<u8> = (0..8).collect();
        assert_eq!(pack(&numbers, 1, 8), 0x7531_6420u32.to_le_bytes());
        for height in [3, 32, 77] {
            let numbers: Vec<u8> = (0..16 * height).map(|i| (i * 7 % 16) as u8).collect();
            assert_eq!(unpack(&pack(&numbers, height, 16), height, 16), numbers);
        }
    }
}
