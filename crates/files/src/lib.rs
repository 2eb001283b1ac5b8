//! Model files in and out: every container becomes one [`Checkpoint`], and a [`Writer`] turns
//! tensors back into files that other tools load.
//!
//! A reader trusts nothing that a file says: lengths are held against the bytes that are really
//! there before anything is allocated, and what is wrong comes back as an [`Error`] that names the
//! file and says what to do. Tensor data stays in the memory map until somebody asks for it.

mod card;
mod checkpoint;
mod dtype;
mod error;
mod folder;
pub mod gguf;
mod hub;
mod imatrix;
mod layout;
mod llama2c;
mod mapped;
mod near;
mod open;
mod pytorch;
mod safetensors;
mod tensors;
mod write;

pub use card::{Card, Figure, Origin};
pub use checkpoint::{Checkpoint, Container};
pub use dtype::Dtype;
pub use error::Error;
pub use folder::Folder;
pub use hub::{Hub, fetch, locate};
pub use imatrix::{Imatrix, ImatrixKind, Squares};
pub use layout::{Activations, Layout};
pub use mapped::{is_mapped, release};
pub use tensors::{Stored, Tensors};
pub use write::{
    FolderPlan, Planned, Target, Writer, folder_bytes, folder_holds, gguf_bytes, weights_bytes,
    write_folder, write_gguf,
};

/// What everything here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
