use std::borrow::Cow;

use crate::{Factors, Part, Role, Spec, TensorRef};

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
        _ => return hugging_face(role),
    };
    TensorRef::whole(format!("model.layers.{index}.{tail}"))
}

/// Where an expert's weight lies in checkpoints that keep each layer's experts in two tensors:
/// gates and ups, expert by expert \[E, 2·F, D\], and downs \[E, D, F\].
pub(crate) fn stacked(spec: &Spec, role: Role) -> Option<TensorRef> {
    let Role::Layer(index, part) = role else { return None };
    let f = spec.layers.get(index)?.mlp.experts()?.width;
    let (tail, rows) = match part {
        Part::ExpertGate(e) => ("gate_up_proj", 2 * e * f..(2 * e + 1) * f),
        Part::ExpertUp(e) => ("gate_up_proj", (2 * e + 1) * f..(2 * e + 2) * f),
        Part::ExpertDown(e) => ("down_proj", e * spec.width..(e + 1) * spec.width),
        // Beside such stacks Mixtral's router has the name that the other families' have.
        Part::Router => return Some(hugging_face(role)),
        _ => return None,
    };
    Some(TensorRef::rows(format!("model.layers.{index}.mlp.experts.{tail}"), rows))
}

/// As [`hugging_face`], with Mixtral's names of routers and experts.
pub(super) fn mixtral(role: Role) -> TensorRef {
    let Role::Layer(index, part) = role else { return hugging_face(role) };
    let (expert, matrix) = match part {
        Part::Router => {
            let name = format!("model.layers.{index}.block_sparse_moe.gate.weight");
            return TensorRef::whole(name);
        }
        Part::ExpertGate(expert) => (expert, "w1"),
        Part::ExpertDown(expert) => (expert, "w2"),
        Part::ExpertUp(expert) => (expert, "w3"),
        _ => return hugging_face(role),
    };
    let experts = format!("model.layers.{index}.block_sparse_moe.experts");
    TensorRef::whole(format!("{experts}.{expert}.{matrix}.weight"))
}

fn within_layer(part: Part) -> Cow<'static, str> {
    let of_expert = |expert, matrix| format!("mlp.experts.{expert}.{matrix}_proj.weight");
    let name = match part {
        Part::ExpertGate(expert) => return of_expert(expert, "gate").into(),
        Part::ExpertUp(expert) => return of_expert(expert, "up").into(),
        Part::ExpertDown(expert) => return of_expert(expert, "down").into(),
        Part::Router => "mlp.gate.weight",
        Part::SharedRouter => "mlp.shared_expert_gate.weight",
        Part::SharedGate => "mlp.shared_expert.gate_proj.weight",
        Part::SharedUp => "mlp.shared_expert.up_proj.weight",
        Part::SharedDown => "mlp.shared_expert.down_proj.weight",
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
    };
    name.into()
}
