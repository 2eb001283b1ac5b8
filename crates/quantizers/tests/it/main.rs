//! What whole jobs of the quantizers make, and each algorithm against its reference.
//!
//! One program, so that it is linked once; what needs a process of its own lies beside this folder.

#[path = "../common/mod.rs"]
mod common;

mod activations;
mod awq_peer;
mod calibrated;
mod experts;
mod fit;
mod folded;
mod gptq;
mod gptqmodel;
mod job;
mod layer;
mod mixes;
mod pruned;
mod pruning;
mod rotated;
mod rules;
mod search;
mod shortened;
