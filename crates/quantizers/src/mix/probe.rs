use lathe_formats::AnyFormat;
use lathe_models::Role;
use serde::{Deserialize, Serialize};

use crate::Error;

/// What gets one format: a matrix, or several that an engine runs as one.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it is called in tables and records: the name of its first tensor.
    pub name: String,
    /// The tensors of the result that it stands for.
    pub tensors: Vec<String>,
    /// The weights of the model that are in them.
    pub roles: Vec<Role>,
    /// Numbers in all of them.
    pub weights: u64,
    /// What it may be stored in.
    pub options: Vec<Candidate>,
}

/// A way to store an [`Item`].
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub format: &'static dyn AnyFormat,
    /// What all of the item's tensors take in the file, padding included.
    pub bytes: u64,
}

/// Measures what formats do to a model.
///
/// The search for the best formats knows nothing else of models and engines.
pub trait Probe {
    /// What coding an item alone does to its outputs: Σ (ΔW·x)² over Σ (W·x)² for the inputs of
    /// calibration, or the nearest thing to it that is known.
    fn error(&mut self, item: usize, option: usize) -> Result<f64, Error>;

    /// The KL divergence of the model from the original, with each item stored as its option says
    /// and left alone where there is none.
    fn divergence(&mut self, state: &[Option<usize>]) -> Result<Divergence, Error>;
}

/// A mean KL divergence from the original, in nats per token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    pub mean: f64,
    /// Its standard error over the texts; 0 where there is only one.
    pub error: f64,
}
