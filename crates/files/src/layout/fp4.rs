//! compressed-tensors' floats of four bits: `nvfp4-pack-quantized` and `mxfp4-pack-quantized`.
//!
//! `weight_packed` u8 \[rows, cols/2\], the even column in the low nibble; `weight_scale` \[rows,
//! groups\], E4M3 for groups of 16 and a power of two's exponent (u8) for groups of 32; and, for
//! NVFP4, what all scales are divided by, `weight_global_scale` f32 \[1\].
//!
//! **Source**: `NVFP4PackedCompressor` and `MXFP4PackedCompressor` of compressed-tensors.

use lathe_base::Buf;
use lathe_formats::{AnyFormat, Blocks};
use serde_json::{Value, json};

use super::{
    Files, Found, Kind, Source, Weight,
    dense::floats,
    parts::{Module, Part},
};
use crate::{Dtype, Error, Result};

/// The two formats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Float4 {
    Nv,
    Mx,
}

impl Float4 {
    fn format(self) -> &'static str {
        match self {
            Self::Nv => "nvfp4",
            Self::Mx => "mxfp4",
        }
    }

    fn of(format: &dyn AnyFormat) -> Option<Self> {
        [Self::Nv, Self::Mx].into_iter().find(|four| four.format() == format.name())
    }

    fn group(self) -> usize {
        match self {
            Self::Nv => 16,
            Self::Mx => 32,
        }
    }

    fn scale(self) -> Dtype {
        match self {
            Self::Nv => Dtype::F8E4m3,
            Self::Mx => Dtype::U8,
        }
    }
}

/// The weight whose packed codes `name` is.
pub(super) fn find(files: &Files<'_>, name: &str) -> Result<Option<Found>> {
    let Some(module) = name.strip_suffix(".weight_packed") else { return Ok(None) };
    let packed = files.tensors.find(files.path, name)?;
    let scale = files.tensors.find(files.path, &format!("{module}.weight_scale"))?;
    let four = [Float4::Nv, Float4::Mx].into_iter().find(|four| four.scale() == scale.dtype);
    let shape = match (packed.shape.as_slice(), scale.shape.as_slice(), four) {
        (&[rows, half], &[scaled, groups], Some(four))
            if packed.dtype == Dtype::U8
                && rows == scaled
                && half.checked_mul(2) == groups.checked_mul(four.group()) =>
        {
            Some((vec![rows, 2 * half], four))
        }
        _ => None,
    };
    let Some((shape, four)) = shape else {
        return Err(Error::unsupported(
            files.path,
            format!(
                "the packing of `{module}` ({} {:?} with scales {} {:?})",
                packed.dtype, packed.shape, scale.dtype, scale.shape
            ),
            "Lathe reads NVFP4 and MXFP4; pass the model that it was made from",
        ));
    };
    let parts = [
        "weight_packed",
        "weight_scale",
        "weight_global_scale",
        "input_global_scale",
        "weight_shape",
    ];
    let weight = Weight { shape, format: four.format().to_owned(), kind: Kind::Float4(four) };
    let parts = parts.map(|part| format!("{module}.{part}")).into();
    Ok(Some(Found { name: format!("{module}.weight"), weight, parts }))
}

/// Regroups the parts: each group's scale before its codes.
pub(super) fn blocks(from: &Source<'_>, four: Float4) -> Result<Blocks> {
    let shape = from.matrix()?;
    let get = |part: &str| from.tensors.find(from.path, &from.part(part));
    let (codes, scales) = (get("weight_packed")?, get("weight_scale")?);
    let half = four.group() / 2;
    let mut data = Vec::with_capacity(codes.data.len() + scales.data.len());
    for (scale, codes) in scales.data.iter().zip(codes.data.chunks_exact(half)) {
        data.push(*scale);
        data.extend_from_slice(codes);
    }
    let side = match four {
        Float4::Mx => Buf::new(),
        Float4::Nv => match floats(get("weight_global_scale")?).as_deref() {
            Some([divisor]) => divisor.to_le_bytes().to_vec().into(),
            _ => return Err(from.bad("has a `weight_global_scale` that is not one number")),
        },
    };
    from.make(four.format(), shape, data, side)
}

/// Whether it is one of the two.
pub(super) fn holds(format: &dyn AnyFormat) -> bool {
    Float4::of(format).is_some()
}

/// The tensors of a weight `[rows, cols]`; `None` for another format.
pub(super) fn plan(module: &Module<'_>, (rows, cols): (usize, usize)) -> Option<Vec<Part>> {
    let four = Float4::of(module.format)?;
    let mut parts = vec![
        module.part("weight_packed", Dtype::U8, &[rows, cols / 2]),
        module.part("weight_scale", four.scale(), &[rows, cols / four.group()]),
    ];
    if four == Float4::Nv {
        parts.push(module.part("weight_global_scale", Dtype::F32, &[1]));
    }
    Some(parts)
}

/// A weight's parts in the order of [`plan`].
pub(super) fn split(blocks: &Blocks) -> Option<Vec<Buf>> {
    let four = Float4::of(blocks.format)?;
    let (mut codes, mut scales) = (Vec::with_capacity(blocks.data.len()), Vec::new());
    for group in blocks.data.chunks_exact(1 + four.group() / 2) {
        scales.push(group[0]);
        codes.extend_from_slice(&group[1..]);
    }
    let mut parts = vec![codes.into(), scales.into()];
    if four == Float4::Nv {
        parts.push(blocks.side.clone());
    }
    Some(parts)
}

/// The scheme of compressed-tensors; `None` for another format.
pub(super) fn scheme(format: &dyn AnyFormat) -> Option<Value> {
    let (name, strategy, scale) = match Float4::of(format)? {
        Float4::Nv => ("nvfp4-pack-quantized", "tensor_group", "torch.float8_e4m3fn"),
        Float4::Mx => ("mxfp4-pack-quantized", "group", "torch.uint8"),
    };
    Some(json!({
        "format": name,
        "input_activations": null,
        "output_activations": null,
        "weights": {
            "actorder": null,
            "block_structure": null,
            "dynamic": false,
            "group_size": format.block(),
            "num_bits": 4,
            "observer": "minmax",
            "observer_kwargs": {},
            "scale_dtype": scale,
            "strategy": strategy,
            "symmetric": true,
            "type": "float",
        },
    }))
}
