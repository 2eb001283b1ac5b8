use super::{ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS};
use crate::{Factors, Gguf, Part, Role, Spec, TensorRef};

/// What a GGUF file calls the tensor of a role.
pub fn name(gguf: Gguf, spec: &Spec, role: Role) -> TensorRef {
    let (index, part) = match role {
        Role::Embed => return TensorRef::whole("token_embd.weight"),
        Role::Head => return TensorRef::whole("output.weight"),
        Role::FinalNorm => return TensorRef::whole("output_norm.weight"),
        Role::RopeFactors(Factors::Only) => return TensorRef::whole(ROPE_FREQS),
        Role::RopeFactors(Factors::Short) => return TensorRef::whole(ROPE_FACTORS_SHORT),
        Role::RopeFactors(Factors::Long) => return TensorRef::whole(ROPE_FACTORS_LONG),
        Role::Layer(index, part) => (index, part),
    };
    let rows = spec.layers.get(index).and_then(|layer| layer.fused_rows(part));
    match rows.filter(|_| gguf.fused) {
        None => TensorRef::whole(format!("blk.{index}.{}", within_layer(part))),
        Some(rows) => {
            let tail = match part {
                Part::Q | Part::K | Part::V => "attn_qkv.weight",
                _ => "ffn_up.weight",
            };
            TensorRef::rows(format!("blk.{index}.{tail}"), rows)
        }
    }
}

fn within_layer(part: Part) -> &'static str {
    match part {
        Part::MixerNorm => "attn_norm.weight",
        Part::Q => "attn_q.weight",
        Part::K => "attn_k.weight",
        Part::V => "attn_v.weight",
        Part::QBias => "attn_q.bias",
        Part::KBias => "attn_k.bias",
        Part::VBias => "attn_v.bias",
        Part::QNorm => "attn_q_norm.weight",
        Part::KNorm => "attn_k_norm.weight",
        Part::Out => "attn_output.weight",
        Part::OutBias => "attn_output.bias",
        Part::MixerAfterNorm => "post_attention_norm.weight",
        Part::MlpNorm => "ffn_norm.weight",
        Part::Gate => "ffn_gate.weight",
        Part::Up => "ffn_up.weight",
        Part::GateBias => "ffn_gate.bias",
        Part::UpBias => "ffn_up.bias",
        Part::Down => "ffn_down.weight",
        Part::DownBias => "ffn_down.bias",
        Part::MlpAfterNorm => "post_ffw_norm.weight",
    }
}
