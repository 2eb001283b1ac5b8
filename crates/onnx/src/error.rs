use std::{io, path::PathBuf};

/// Why a model was not written.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model has what no operator of ONNX Runtime computes, or the graph has no place for.
    #[error("{arch} cannot be written to ONNX: {what}; {instead}")]
    Unsupported { arch: &'static str, what: String, instead: String },

    /// More positions than the graph can rotate rightly.
    #[error(
        "{arch}: beyond {longest} tokens its rope rotates every position anew, which a graph with a cache of rotated keys cannot; use --context {longest} or less"
    )]
    Context { arch: &'static str, longest: usize },

    /// A number that an f16 cannot hold.
    #[error("{role}: a number is beyond what f16 holds; use --dtype f32")]
    Range { role: String },

    #[error("cannot {what} {}: {source}", path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },

    #[error(transparent)]
    Files(#[from] lathe_files::Error),

    #[error(transparent)]
    Models(#[from] lathe_models::Error),

    #[error(transparent)]
    Cancelled(#[from] lathe_base::Cancelled),
}

impl Error {
    pub(crate) fn io(path: &std::path::Path, what: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), what, source }
    }
}
