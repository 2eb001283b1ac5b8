//! The arithmetic of a transformer on the CPU, on weights as they are coded.
//!
//! Every operation takes a flat run of tokens `[T, …]`, splits it over a [`Pool`] and gives the
//! same bits for any number of threads, for any `T` that a token is part of, and on every
//! instruction set (see `lathe-simd`): each output is computed by one thread in an order that
//! depends on the shapes of weights alone.

mod attention;
mod dense;
mod error;
mod floats;
mod gate;
mod gram;
mod halves;
mod inputs;
mod kv;
mod matmul;
mod matrix;
mod memory;
mod norm;
mod output;
mod panels;
mod peaks;
mod pool;
mod rope;
mod rowwise;
mod tasks;
mod tiles;

pub use attention::{Attention, attention};
pub use error::Error;
pub use gate::{Activation, gated};
pub use gram::Gram;
pub use inputs::Inputs;
pub use kv::{KvPages, KvShape, PAGE_TOKENS, Span};
pub use lathe_formats::KvType;
pub use matmul::{foresee, matmul, matmuls};
pub use matrix::{Matrix, Precision};
pub use memory::use_huge_pages;
pub use norm::{Norm, rms_norm, rms_norm_in_place};
pub use peaks::Peaks;
pub use pool::Pool;
pub use rope::{Rope, RopeStyle, rope};
pub use rowwise::{add, scale, soft_cap, softmax};

/// The instruction set in use, such as `avx512`.
pub fn isa_name() -> &'static str {
    lathe_simd::chosen().name
}
