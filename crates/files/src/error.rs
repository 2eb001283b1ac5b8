use std::{
    io,
    path::{Path, PathBuf},
};

use lathe_base::Cancelled;

/// What can go wrong between a model's files and its tensors. Every message names the file and
/// says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { path: PathBuf, doing: &'static str, source: io::Error },

    /// The disk is full; what was there before is untouched.
    #[error("no space left on the disk while writing {}; free some space and run the same command again (what was there before is untouched)", path.display())]
    FullDisk { path: PathBuf },

    /// Something that must be there is not.
    #[error("{}: {hint}", path.display())]
    Missing { path: PathBuf, hint: String },

    /// The bytes contradict the container's format, or themselves.
    #[error("{} is damaged or incomplete: {problem}; fetch or make the file again", path.display())]
    Malformed { path: PathBuf, problem: String },

    /// A count or length beyond what any real model has; nothing was allocated for it.
    #[error("{}: {what} is {found}, more than the {cap} that Lathe accepts; the file is damaged or hostile", path.display())]
    OverCap { path: PathBuf, what: String, found: u64, cap: u64 },

    /// A pickle that wants to call something other than tensor building.
    #[error("{} wants to run `{global}` while it is read; Lathe runs no code from model files: convert it to safetensors where you trust it", path.display())]
    RefusedCode { path: PathBuf, global: String },

    /// No tensor of that name.
    #[error("{} has no tensor `{name}`{}", path.display(), near_clause(near))]
    NoTensor { path: PathBuf, name: String, near: Option<String> },

    /// Well-formed, but not something that Lathe reads or writes.
    #[error("{}: {what} is not supported; {instead}", path.display())]
    Unsupported { path: PathBuf, what: String, instead: String },

    /// The format refused the tensor's shape or bytes.
    #[error("{}, tensor `{tensor}`: {source}", path.display())]
    Format { path: PathBuf, tensor: String, source: lathe_formats::Error },

    /// The target is there already, and is not to be replaced or not only a model.
    #[error("{} is there already; choose another name or remove it first", path.display())]
    Exists { path: PathBuf },

    /// A writer was given something else than the next tensor of its plan.
    #[error("{}: expected {expected}, was given {found}", path.display())]
    OutOfPlan { path: PathBuf, expected: String, found: String },

    /// No answer from the hub.
    #[error(
        "cannot reach the hub at {endpoint} ({reason}); if you have the model's files, pass their folder"
    )]
    Unreachable { endpoint: String, reason: String },

    /// The hub answered, but not with the model.
    #[error("the hub has not given `{id}`: {problem}")]
    Hub { id: String, problem: String },

    /// The user asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Error {
    pub(crate) fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::StorageFull {
            return Self::FullDisk { path: path.to_owned() };
        }
        Self::Io { path: path.to_owned(), doing, source }
    }

    pub(crate) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn missing(path: &Path, hint: impl Into<String>) -> Self {
        Self::Missing { path: path.to_owned(), hint: hint.into() }
    }

    pub(crate) fn unsupported(
        path: &Path,
        what: impl Into<String>,
        instead: impl Into<String>,
    ) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.into(), instead: instead.into() }
    }
}

fn near_clause(near: &Option<String>) -> String {
    near.as_ref().map_or_else(String::new, |n| format!("; the nearest name is `{n}`"))
}
