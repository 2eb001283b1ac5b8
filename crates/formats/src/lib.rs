//! Grids and layouts: how the numbers of a row-major `[rows, cols]` matrix are coded in bytes.
//!
//! A format knows neither the container that its bytes are stored in (`lathe-files`) nor the
//! algorithm that chooses the codes (`lathe-quantizers`); [`AnyFormat::encode`] is plain rounding
//! to nearest. Each format is one module that implements [`Format`] (or, where a row is not a
//! run of equal blocks, [`AnyFormat`] itself) and one line of [`FORMATS`].

// A block type is plain bytes; saying so to `bytemuck` for a generic type needs `unsafe impl`.
#![allow(unsafe_code)]

mod blocks;
mod dense;
mod error;
mod format;
mod ggml;
mod grid;
mod int;
mod int8;
mod kv;
mod nf4;
mod nf4_dq;
mod q4_0;
mod q5_0;
mod q8_0;
mod round;
mod search;
mod table;

pub use blocks::Blocks;
pub use dense::{BF16, F16, F32};
pub use error::Error;
pub use format::{AnyFormat, Erased, Format, Rows, Weighted};
pub use ggml::{IQ4_LEVELS, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_1, Q4K, Q5_1, Q5K, Q6K, Sixes};
pub use grid::{Affine, Effort, Grid, Levels, Scaled, Scales, Span};
pub use int::{INTS, Int, ScaleType};
pub use int8::Int8;
pub use kv::KvType;
pub use nf4::{NF4_LEVELS, Nf4};
pub use nf4_dq::{Nested, Nf4Dq, Nf4DqBlock, dynamic_map};
pub use q4_0::Q4_0;
pub use q5_0::Q5_0;
pub use q8_0::Q8_0;
pub use table::{FORMATS, by_name, families};
