//! Vector code written once and run on the best instruction set of the machine.
//!
//! An algorithm is an [`Op`]: one generic `run` over an [`Isa`], which is a token that only
//! detection can make. [`run`] picks the best one here (or what `LATHE_ISA` says), [`run_all`]
//! runs it on every one for tests.
//!
//! A vector always has [`LANES`] = 16 lanes of 32 bits, or 64 bytes, whatever the machine's
//! registers are: AVX-512 holds it in one register, AVX2 in two, NEON in four. Sums over lanes
//! are taken in one fixed order and every multiply-add is fused, so an algorithm gives the same
//! bits on every instruction set. Only products of bfloat16 may take subnormal numbers for 0 where
//! the machine has an instruction for them, and tiles of them are summed in an order of their own.
//!
//! Instruction sets that differ from another in single operations are parameters of one type
//! ([`Isa::BF16`], [`Isa::MATRIX`], [`Isa::TILES`]); only an [`Op`] that says it takes those operations is compiled
//! for each.

mod dispatch;
mod isa;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

pub use dispatch::{Choice, Op, available, chosen, run, run_all, with_isa};
pub use isa::{HalfRows, HalfSums, HalfTokens, Isa, LANES};
pub use scalar::Scalar;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
