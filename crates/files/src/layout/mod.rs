//! From stored tensors to weights and back: which tensors together make one weight.
//!
//! Each layout is one module with three parts: `find` recognizes a weight among stored tensors,
//! `blocks` regroups its parts into a block format, and `parts`, for the writer, takes the blocks
//! apart again.

mod bitsandbytes;
mod compressed;
mod dense;
mod parts;

use std::{collections::HashSet, path::Path};

use lathe_formats::Blocks;
use serde_json::{Map, Value};

use crate::{Error, Result, Tensors};

pub(crate) use bitsandbytes::quantization_config as bitsandbytes_config;
pub(crate) use compressed::{Group, quantization_config as compressed_config};
pub(crate) use parts::{Family, Part, split};

/// One weight: its shape, its format's name, and how its stored parts become blocks.
#[derive(Clone, Debug)]
pub(crate) struct Weight {
    pub(crate) shape: Vec<usize>,
    pub(crate) format: String,
    layout: Layout,
}

#[derive(Clone, Debug)]
enum Layout {
    /// One tensor under the weight's own name.
    Plain,
    Nf4(bitsandbytes::Nf4),
    /// LLM.int8(): codes and, in `SCB`, each row's absmax.
    LlmInt8,
    Packed(compressed::Packed),
    /// Codes and, in `weight_scale`, scales.
    Int8,
}

/// Finds the weights among the stored tensors.
pub(crate) fn regroup(
    path: &Path,
    config: &Map<String, Value>,
    tensors: &Tensors,
) -> Result<Vec<(String, Weight)>> {
    refuse_others(path, config)?;
    let mut parts = HashSet::new();
    let mut weights = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors.iter() {
        let found = match bitsandbytes::find(path, tensors, name)? {
            Some(found) => Some(found),
            None => compressed::find(path, tensors, name)?,
        };
        if let Some(found) = found {
            parts.extend(found.parts);
            weights.push((found.name, found.weight));
        } else {
            let (shape, format) = (tensor.shape.clone(), tensor.dtype.to_string());
            weights.push((name.to_owned(), Weight { shape, format, layout: Layout::Plain }));
        }
    }
    weights.retain(|(name, w)| !matches!(w.layout, Layout::Plain) || !parts.contains(name));
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
    match &weight.layout {
        Layout::Plain => dense::blocks(path, name, tensors.find(path, name)?),
        Layout::Nf4(nf4) => bitsandbytes::blocks(&from, nf4),
        Layout::LlmInt8 => bitsandbytes::llm_int8(&from),
        Layout::Packed(packed) => compressed::packed(&from, packed),
        Layout::Int8 => compressed::int8(&from),
    }
}

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

/// Quantized with a method whose parts Lathe cannot put together: better said at once than as a
/// missing tensor later.
fn refuse_others(path: &Path, config: &Map<String, Value>) -> Result<()> {
    let method = config.get("quantization_config").and_then(|q| q.get("quant_method"));
    match method.and_then(Value::as_str) {
        None | Some("bitsandbytes" | "compressed-tensors") => Ok(()),
        Some(other) => Err(Error::unsupported(
            path,
            format!("a checkpoint quantized by {other}"),
            "pass the model that it was made from, or a GGUF, bitsandbytes or compressed-tensors \
             version of it",
        )),
    }
}
