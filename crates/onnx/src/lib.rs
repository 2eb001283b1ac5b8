//! A decoder as a graph that ONNX Runtime runs, with a KV cache.
//!
//! The graph is built from the [`lathe_models::Spec`] that the executor walks and from the weights
//! that it lists. Operators are ONNX's own (opset 23) and ONNX Runtime's (`com.microsoft`), inputs
//! and outputs have the names that optimum and onnxruntime-genai look for, and numbers lie in a
//! file beside the graph, written matrix by matrix.

mod coded;
mod data;
mod decoder;
mod error;
mod export;
mod genai;
mod graph;
mod layer;
pub mod proto;
mod weights;

pub use decoder::{LOGITS_FROM, longest};
pub use error::Error;
pub use export::{DATA, Export, GRAPH, Options, Summary, Tokens, export};
pub use graph::Float;

/// What everything here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
