//! GGUF, version 2 and 3: the file format of ggml and llama.cpp.
//!
//! **Source**: `docs/gguf.md` in the ggml repository.

mod config;
mod read;
mod types;
mod value;
mod write;

pub(crate) use config::config;
pub use read::ALIGNMENT;
pub(crate) use read::{looks_like, read};
pub use types::GgmlType;
pub use value::{Array, Metadata, Value};
pub(crate) use write::{describe, header};
