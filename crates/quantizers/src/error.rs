use std::path::PathBuf;

use lathe_base::{Bytes, Cancelled};

/// Why a checkpoint could not be planned or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No weight at all can be coded as asked.
    #[error(
        "no matrix of this model can be coded in {format}: its columns would have to be a multiple \
         of {block}, and they are {cols}; {instead}"
    )]
    NothingFits { format: &'static str, block: usize, cols: String, instead: String },
    /// The container has no place for the format.
    #[error("{container} files cannot hold {format}; {instead}")]
    Container { container: &'static str, format: &'static str, instead: String },
    /// From this source, this target cannot be made.
    #[error("{what} is not supported; {instead}")]
    Unsupported { what: String, instead: String },
    /// A rule that names tensors cannot be read.
    #[error("`{pattern}` cannot be used as a rule for tensors: {why}")]
    Pattern { pattern: String, why: String },
    /// A rule names a tensor that the model does not have.
    #[error("no matrix of this model is called anything like `{pattern}`; it has {has}, ...")]
    NoSuchTensor { pattern: String, has: String },
    /// A mix needs what is not there.
    #[error(
        "{mix} stores `{tensor}` in {format}, which is useless without an importance matrix; \
         give one with --imatrix"
    )]
    NeedsImportance { mix: &'static str, tensor: String, format: &'static str },
    /// The budget is too small.
    #[error(
        "the smallest formats of this model's tensors take {}, and the budget leaves {} for them; \
         raise --budget or --bpw",
        Bytes(*.least), Bytes(*.budget)
    )]
    Budget { budget: u64, least: u64 },
    /// A file of formats by tensor cannot be read or written.
    #[error("{}: it is no assignment of formats to tensors: {why}", path.display())]
    Assignment { path: std::path::PathBuf, why: String },
    /// What was measured could not be kept.
    #[error("{}: measurements cannot be kept there: {source}", path.display())]
    Journal { path: std::path::PathBuf, source: std::io::Error },
    /// Logits that are no numbers: nothing can be measured.
    #[error("the model's logits hold NaN or infinity; see `lathe inspect` for its weights")]
    NotFinite,
    /// A weight could not be coded.
    #[error("tensor `{tensor}`: {source}")]
    Encode { tensor: String, source: lathe_formats::Error },
    /// A matrix could not be coded; without its name, which only callers know.
    #[error(transparent)]
    Format(#[from] lathe_formats::Error),
    /// An importance matrix of another model.
    #[error(
        "the importance matrix has {found} columns for tensor `{tensor}`, which has {expected}; \
         make one of this model with `lathe imatrix`"
    )]
    Imatrix { tensor: String, expected: usize, found: usize },
    /// Nothing to calibrate with.
    #[error("{name} has no text to calibrate with; give --calibration a file with some")]
    NoTexts { name: String },
    /// The model computes nothing usable on a calibration text.
    #[error(
        "layer {layer}, {stage}: token {token} of calibration sample {sample} gives {value}; \
         the model's weights are damaged, or its numbers leave the range of f32 on this text"
    )]
    Input { layer: usize, stage: String, sample: usize, token: usize, value: f32 },
    /// The hidden states of the calibration texts could not be kept.
    #[error("{path}: {source}; calibration keeps hidden states beside its result", path = path.display())]
    States { path: PathBuf, source: std::io::Error },
    /// The cap is lower than what the job needs at its smallest.
    #[error(
        "--max-memory {cap} is too little: this takes {needed} at the least ({parts}); \
         raise it to that, or choose a method that needs less, such as rtn"
    )]
    MaxMemory { cap: Bytes, needed: Bytes, parts: String },
    /// The model could not be run.
    #[error(transparent)]
    Engine(Box<lathe_engine::Error>),
    /// Memory for a calculation is lacking.
    #[error(transparent)]
    Kernel(#[from] lathe_kernels::Error),
    /// The model could not be understood.
    #[error(transparent)]
    Model(Box<lathe_models::Error>),
    /// A file could not be read or written.
    #[error(transparent)]
    File(Box<lathe_files::Error>),
    /// The user asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

// Boxed, because they are much larger than what is usually returned.
impl From<lathe_models::Error> for Error {
    fn from(error: lathe_models::Error) -> Self {
        Self::Model(Box::new(error))
    }
}

impl From<lathe_engine::Error> for Error {
    fn from(error: lathe_engine::Error) -> Self {
        Self::Engine(Box::new(error))
    }
}

impl From<lathe_files::Error> for Error {
    fn from(error: lathe_files::Error) -> Self {
        Self::File(Box::new(error))
    }
}

impl Error {
    /// Says which tensor a matrix that could not be coded was.
    pub(crate) fn of_tensor(self, tensor: &str) -> Self {
        match self {
            Self::Format(source) => Self::Encode { tensor: tensor.to_owned(), source },
            other => other,
        }
    }
}
