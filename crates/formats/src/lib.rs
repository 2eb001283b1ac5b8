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
mod double;
mod error;
mod format;
mod four_bit;
mod fp8;
mod ggml;
mod grid;
mod int;
mod int8;
mod kv;
mod microscaled;
mod minifloat;
mod q4_0;
mod q5_0;
mod q8_0;
mod round;
mod search;
mod table;
mod tiles;

pub use blocks::Blocks;
pub use dense::{BF16, F16, F32};
pub use double::{Double, DoubleBlock, Fp4Dq, Nested, Nf4Dq, dynamic_map};
pub use error::Error;
pub use format::{AnyFormat, Erased, Format, Rows, Weighted};
pub use four_bit::{Float4, FourBit, Fp4, NF4_LEVELS, Nf4, NormalFloat, Table};
pub use fp8::{Fp8Block, Fp8Row, Fp8Tensor};
pub use ggml::{
    IQ4_LEVELS, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_1, Q4K, Q5_1, Q5K, Q6K, READ_ONLY, ReadOnly, Sixes,
};
pub use grid::{Affine, Effort, Grid, Levels, Scaled, Scales, Span};
pub use int::{INTS, Int, ScaleType};
pub use int8::{Int8, Int8Tensor};
pub use kv::KvType;
pub use microscaled::{MxFp4, NvFp4};
pub use q4_0::Q4_0;
pub use q5_0::Q5_0;
pub use q8_0::Q8_0;
pub use table::{FORMATS, by_name, families, readable};
