//! GGUF, version 2 and 3: the file format of ggml and llama.cpp.
//!
//! **Source**: `docs/gguf.md` in the ggml repository.

mod types;
mod value;

pub use types::GgmlType;
pub use value::{Array, Metadata, Value};
