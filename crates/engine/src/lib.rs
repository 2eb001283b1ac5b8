//! The native runtime: any decoder that `lathe-models` describes, on any weights that
//! `lathe-formats` codes.
//!
//! A forward pass takes a flat run of tokens of many sequences; prefill, decode, batched decode
//! and scoring are the same call. Results do not depend on the number of threads, on how a prompt
//! is cut, nor on what else is in the batch.

mod ahead;
pub mod backend;
mod cpu;
mod error;
mod executor;
mod layer;
mod native;
mod network;
mod pages;
mod prefix;
mod reader;
mod routing;
mod runner;
mod runner_experts;
mod sampler;
mod scheme;
mod scorer;
pub mod serving;

pub use error::Error;
pub use lathe_kernels::{Inputs, KvType, Precision, use_huge_pages};
pub use native::{Native, Options, Rounding};
pub use runner::{Entry, Fed, LayerRunner, Linears, Output, Room, Sequences, Source, Tap};
