//! From stored tensors to weights and back: which tensors together make one weight.
//!
//! Each layout is one module with three parts: `find` recognizes a weight among stored tensors,
//! `blocks` regroups its parts into a block format, and `parts`, for the writer, takes the blocks
//! apart again.

mod awq;
mod bits;
mod bitsandbytes;
mod choice;
mod compressed;
mod dense;
mod fp4;
mod fp8;
mod gptq;
mod ints;
mod method;
mod parts;

use std::{collections::HashSet, path::Path};

use lathe_formats::Blocks;

use crate::{Error, Result, Tensors, is_mapped, release};

pub(crate) use choice::is_dense;
pub use choice::{Activations, Layout};
pub(crate) use method::{Method, describes_quantization};
pub(crate) use parts::{Group, Part, Style, config, split};

/// One weight: its shape, its format's name, and how its stored parts become blocks.
#[derive(Clone, Debug)]
pub(crate) struct Weight {
    pub(crate) shape: Vec<usize>,
    pub(crate) format: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// One tensor under the weight's own name.
    Plain,
    /// bitsandbytes' codes into a table of sixteen levels.
    FourBit(bitsandbytes::FourBit),
    /// LLM.int8(): codes and, in `SCB`, each row's absmax.
    LlmInt8,
    Packed(compressed::Packed),
    /// Codes and, in `weight_scale`, scales.
    Int8,
    Gptq(gptq::Packed),
    Awq(awq::Packed),
    Fp8(fp8::Scaled),
    /// NVFP4 and MXFP4.
    Float4(fp4::Float4),
}

/// The stored tensors that weights are looked for in.
struct Files<'a> {
    path: &'a Path,
    tensors: &'a Tensors,
    method: &'a Method,
}

/// Finds the weights among the stored tensors.
pub(crate) fn regroup(
    path: &Path,
    method: &Method,
    tensors: &Tensors,
) -> Result<Vec<(String, Weight)>> {
    let files = Files { path, tensors, method };
    let finders = [bitsandbytes::find, compressed::find, fp8::find, fp4::find, gptq::find];
    let mut parts = HashSet::new();
    let mut weights = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors.iter() {
        let found = finders.iter().find_map(|find| find(&files, name).transpose()).transpose()?;
        if let Some(found) = found {
            parts.extend(found.parts);
            weights.push((found.name, found.weight));
        } else {
            let (shape, format) = (tensor.shape.clone(), tensor.dtype.to_string());
            weights.push((name.to_owned(), Weight { shape, format, kind: Kind::Plain }));
        }
    }
    weights.retain(|(name, w)| !matches!(w.kind, Kind::Plain) || !parts.contains(name));
    Ok(weights)
}

/// A quantized weight, and the stored tensors that it is made of.
struct Found {
    name: String,
    weight: Weight,
    parts: Vec<String>,
}

/// The blocks of one weight.
pub(crate) fn blocks(
    path: &Path,
    tensors: &Tensors,
    name: &str,
    weight: &Weight,
) -> Result<Blocks> {
    let from = Source { path, tensors, name, shape: &weight.shape };
    let blocks = match &weight.kind {
        Kind::Plain => return dense::blocks(path, name, tensors.find(path, name)?),
        Kind::FourBit(four) => bitsandbytes::blocks(&from, four),
        Kind::LlmInt8 => bitsandbytes::llm_int8(&from),
        Kind::Packed(packed) => compressed::packed(&from, packed),
        Kind::Int8 => compressed::int8(&from),
        Kind::Gptq(packed) => gptq::blocks(&from, packed),
        Kind::Awq(packed) => awq::blocks(&from, *packed),
        Kind::Fp8(scaled) => fp8::blocks(&from, *scaled),
        Kind::Float4(four) => fp4::blocks(&from, *four),
    }?;
    // Codes that were copied need not stay in memory beside the copy.
    if !is_mapped(&blocks.data) {
        for part in CODES {
            let stored = tensors.get(&from.part(part));
            stored.into_iter().for_each(|stored| release(&stored.data));
        }
    }
    Ok(blocks)
}

/// What layouts call the part that holds the codes.
const CODES: [&str; 3] = ["weight", "weight_packed", "qweight"];

/// Where the parts of one weight are.
struct Source<'a> {
    path: &'a Path,
    tensors: &'a Tensors,
    name: &'a str,
    shape: &'a [usize],
}

impl Source<'_> {
    fn matrix(&self) -> Result<(usize, usize)> {
        match *self.shape {
            [rows, cols] => Ok((rows, cols)),
            _ => Err(self.bad(format!("has the shape {:?}, not that of a matrix", self.shape))),
        }
    }

    /// The name of a part, such as `weight_scale`, of this weight's module.
    fn part(&self, part: &str) -> String {
        let module = self.name.strip_suffix(".weight").unwrap_or(self.name);
        format!("{module}.{part}")
    }

    fn bad(&self, problem: impl std::fmt::Display) -> Error {
        Error::malformed(self.path, format!("tensor `{}` {problem}", self.name))
    }

    fn make(
        &self,
        format: &str,
        shape: (usize, usize),
        data: impl Into<lathe_base::Buf>,
        side: lathe_base::Buf,
    ) -> Result<Blocks> {
        let fail = |source| Error::Format {
            path: self.path.to_owned(),
            tensor: self.name.to_owned(),
            source,
        };
        let format = lathe_formats::by_name(format).map_err(fail)?;
        Blocks::new(format, shape.0, shape.1, data.into(), side).map_err(fail)
    }
}
