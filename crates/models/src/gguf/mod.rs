//! A model as llama.cpp's GGUF files hold it: tensor names, what is done to the weights on the
//! way, and the metadata keys.
//!
//! **Source** the GGUF specification (ggml, `docs/gguf.md`) and the names of `gguf-py`.

mod lost;
mod metadata;
mod names;
mod tensors;

pub use lost::lost;
pub use metadata::metadata;
pub use names::name;
pub use tensors::{Edit, Source, Tensor, tensors};

/// Divisors of the rope frequencies (Llama 3).
pub const ROPE_FREQS: &str = "rope_freqs.weight";
/// Divisors of the rope frequencies beyond the original context (Phi-3).
pub const ROPE_FACTORS_LONG: &str = "rope_factors_long.weight";
/// Divisors of the rope frequencies within the original context (Phi-3).
pub const ROPE_FACTORS_SHORT: &str = "rope_factors_short.weight";
