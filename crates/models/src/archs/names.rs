use crate::{Factors, Part, Role, TensorRef};

/// What most Hugging Face checkpoints call their tensors, Llama first.
pub(super) fn hugging_face(role: Role) -> TensorRef {
    let name = match role {
        Role::Embed => "model.embed_tokens.weight".to_owned(),
        Role::Head => "lm_head.weight".to_owned(),
        Role::FinalNorm => "model.norm.weight".to_owned(),
        // Never asked of these checkpoints: config.json carries the numbers.
        Role::RopeFactors(Factors::Only) => "model.rope_factors".to_owned(),
        Role::RopeFactors(Factors::Short) => "model.rope_factors_short".to_owned(),
        Role::RopeFactors(Factors::Long) => "model.rope_factors_long".to_owned(),
        Role::Layer(index, part) => format!("model.layers.{index}.{}", within_layer(part)),
    };
    TensorRef::whole(name)
}

/// As [`hugging_face`], where a layer has norms after its blocks as well (Gemma).
pub(super) fn with_norms_after(role: Role) -> TensorRef {
    let Role::Layer(index, part) = role else { return hugging_face(role) };
    let tail = match part {
        Part::MixerAfterNorm => "post_attention_layernorm.weight",
        Part::MlpNorm => "pre_feedforward_layernorm.weight",
        Part::MlpAfterNorm => "post_feedforward_layernorm.weight",
        _ => within_layer(part),
    };
    TensorRef::whole(format!("model.layers.{index}.{tail}"))
}

fn within_layer(part: Part) -> &'static str {
    match part {
        Part::MixerNorm => "input_layernorm.weight",
        Part::Q => "self_attn.q_proj.weight",
        Part::K => "self_attn.k_proj.weight",
        Part::V => "self_attn.v_proj.weight",
        Part::QBias => "self_attn.q_proj.bias",
        Part::KBias => "self_attn.k_proj.bias",
        Part::VBias => "self_attn.v_proj.bias",
        Part::QNorm => "self_attn.q_norm.weight",
        Part::KNorm => "self_attn.k_norm.weight",
        Part::Out => "self_attn.o_proj.weight",
        Part::OutBias => "self_attn.o_proj.bias",
        Part::MixerAfterNorm => "post_mixer_layernorm.weight",
        Part::MlpNorm => "post_attention_layernorm.weight",
        Part::Gate => "mlp.gate_proj.weight",
        Part::Up => "mlp.up_proj.weight",
        Part::GateBias => "mlp.gate_proj.bias",
        Part::UpBias => "mlp.up_proj.bias",
        Part::Down => "mlp.down_proj.weight",
        Part::DownBias => "mlp.down_proj.bias",
        Part::MlpAfterNorm => "post_mlp_layernorm.weight",
    }
}
