//! From tensors to files: streamed, resumable, and complete or absent.
//!
//! A plan of all tensors comes first, so that every offset is known before any data is: tensors
//! are written where they belong as they come, a journal says which are complete, and the result
//! takes its name when all are. Memory holds one tensor.

mod folder;
mod gguf;
mod journal;
mod target;

use std::{fmt, path::Path};

use lathe_formats::{AnyFormat, Blocks};

use crate::Result;

pub use folder::{FolderPlan, folder_bytes, folder_holds, weights_bytes, write_folder};
pub use gguf::{gguf_bytes, write_gguf};

/// A tensor that will be written.
#[derive(Clone)]
pub struct Planned {
    /// Its name in the file.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// The format of its blocks.
    pub format: &'static dyn AnyFormat,
}

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.name, self.shape, self.format.name())
    }
}

/// Where a model is written to.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The file or folder. Until it is complete it is `PATH.partial`.
    pub path: &'a Path,
    /// Whether an older model of that name may be replaced; it stays until the new one is complete.
    pub replace: bool,
    /// What the tensors' numbers depend on (source, method, options): an interrupted run is taken
    /// up only where this is the same.
    pub fingerprint: &'a str,
}

/// Takes the planned tensors in order and makes a model of them.
pub trait Writer: Send {
    /// How many tensors, from the plan's first on, an interrupted run has left complete: the
    /// caller goes on with the next.
    fn done(&self) -> usize;

    /// Writes the next tensor of the plan.
    ///
    /// **Errors**: a tensor that is not the next one of the plan; a full disk, after which the same
    /// run can be taken up.
    fn add(&mut self, name: &str, shape: &[usize], weight: &Blocks) -> Result<()>;

    /// Completes the files and gives them their name.
    fn finish(self: Box<Self>) -> Result<()>;
}
