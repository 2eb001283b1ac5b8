//! From stored tensors to weights: which tensors together make one weight, and its blocks.

mod dense;

use std::path::Path;

use lathe_formats::Blocks;
use serde_json::{Map, Value};

use crate::{Result, Tensors};

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
}

/// Finds the weights among the stored tensors.
pub(crate) fn regroup(
    _path: &Path,
    _config: &Map<String, Value>,
    tensors: &Tensors,
) -> Result<Vec<(String, Weight)>> {
    Ok(tensors
        .iter()
        .map(|(name, tensor)| {
            let weight = Weight {
                shape: tensor.shape.clone(),
                format: tensor.dtype.to_string(),
                layout: Layout::Plain,
            };
            (name.to_owned(), weight)
        })
        .collect())
}

/// The blocks of one weight.
pub(crate) fn blocks(
    path: &Path,
    tensors: &Tensors,
    name: &str,
    weight: &Weight,
) -> Result<Blocks> {
    match weight.layout {
        Layout::Plain => dense::blocks(path, name, tensors.find(path, name)?),
    }
}
