use std::path::Path;

use lathe_base::{Buf, bf16, f16};
use lathe_formats::Blocks;

use crate::{Dtype, Error, Result, Stored};

/// Blocks of a tensor that is stored in one of Lathe's own formats: mapped, not copied, unless its
/// bytes are not contiguous or not aligned to their element type.
pub(crate) fn blocks(path: &Path, name: &str, tensor: &Stored) -> Result<Blocks> {
    let (format, data) = match tensor.dtype {
        Dtype::F32 => ("f32", aligned(contiguous(tensor), 4)),
        Dtype::F16 => ("f16", aligned(contiguous(tensor), 2)),
        Dtype::Bf16 => ("bf16", aligned(contiguous(tensor), 2)),
        Dtype::F64 => ("f32", narrowed(&contiguous(tensor))),
        Dtype::Ggml(t) => (t.name, tensor.data.clone()),
        other => {
            return Err(Error::unsupported(
                path,
                format!("a weight of type {other} (`{name}`)"),
                "Lathe computes with floating-point and block-quantized weights",
            ));
        }
    };
    let format = lathe_formats::readable(format).map_err(|_| {
        Error::unsupported(
            path,
            format!("the format {format} of tensor `{name}`"),
            "convert the model to one of the formats that `lathe quantize --help` lists",
        )
    })?;
    let (rows, cols) = tensor.matrix();
    Blocks::new(format, rows, cols, data, Buf::new()).map_err(|source| Error::Format {
        path: path.to_owned(),
        tensor: name.to_owned(),
        source,
    })
}

/// The bytes in row-major order without gaps.
pub(crate) fn contiguous(tensor: &Stored) -> Buf {
    let Some(strides) = &tensor.strides else { return tensor.data.clone() };
    let (_, size) = tensor.dtype.block();
    let mut out = Vec::with_capacity(tensor.count() * size);
    gather(&tensor.data, &tensor.shape, strides, size, 0, &mut out);
    out.into()
}

fn gather(
    data: &[u8],
    shape: &[usize],
    strides: &[usize],
    size: usize,
    at: usize,
    out: &mut Vec<u8>,
) {
    match (shape, strides) {
        ([n, shape @ ..], [step, strides @ ..]) => {
            for i in 0..*n {
                gather(data, shape, strides, size, at + i * step, out);
            }
        }
        _ => out.extend_from_slice(&data[at * size..(at + 1) * size]),
    }
}

/// A file may place a tensor anywhere; kernels read whole elements.
fn aligned(data: Buf, to: usize) -> Buf {
    if (data.as_ptr() as usize).is_multiple_of(to) { data } else { data.to_vec().into() }
}

fn narrowed(data: &[u8]) -> Buf {
    let (doubles, _) = data.as_chunks::<8>();
    doubles.iter().flat_map(|b| (f64::from_le_bytes(*b) as f32).to_le_bytes()).collect()
}

/// The numbers of a small floating-point tensor, such as scales; `None` for other types.
pub(super) fn floats(tensor: &Stored) -> Option<Vec<f32>> {
    let data = contiguous(tensor);
    Some(match tensor.dtype {
        Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::Bf16 => {
            data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
        }
        _ => return None,
    })
}

/// Appends a number in a floating-point type (f32 where it is none).
pub(super) fn encoded(x: f32, dtype: Dtype, out: &mut Vec<u8>) {
    match dtype {
        Dtype::F16 => out.extend(f16::from_f32(x).to_le_bytes()),
        Dtype::Bf16 => out.extend(bf16::from_f32(x).to_le_bytes()),
        _ => out.extend(x.to_le_bytes()),
    }
}
