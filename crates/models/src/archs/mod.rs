//! The architectures that Lathe knows, one file each.

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod mixtral;
mod names;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;

use crate::Arch;

pub(crate) use names::stacked;

/// Every architecture. Explicit, so that it can be read and searched.
pub static ARCHS: &[&dyn Arch] = &[
    &llama::Llama,
    &mistral::Mistral,
    &qwen2::Qwen2,
    &qwen3::Qwen3,
    &gemma2::Gemma2,
    &gemma3::Gemma3,
    &phi3::Phi3,
    &mixtral::Mixtral,
    &qwen2_moe::Qwen2Moe,
    &qwen3_moe::Qwen3Moe,
    &olmoe::Olmoe,
];
