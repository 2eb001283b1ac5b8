use std::ops::Range;

use super::{ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS};
use crate::{Factors, Gguf, Layer, Part, Role, Spec, TensorRef};

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
    let layer = spec.layers.get(index);
    if let Some(stacked) = layer.and_then(|layer| stacked(layer, spec.width, part)) {
        let (tail, rows) = stacked;
        return TensorRef::rows(format!("blk.{index}.{tail}"), rows);
    }
    let rows = layer.and_then(|layer| layer.fused_rows(part));
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

/// A layer's experts are one tensor for each of their matrices \[E, rows, cols\].
fn stacked(layer: &Layer, width: usize, part: Part) -> Option<(&'static str, Range<usize>)> {
    let f = layer.mlp.experts()?.width;
    let of = |expert: usize, rows: usize| expert * rows..(expert + 1) * rows;
    Some(match part {
        Part::ExpertGate(e) => ("ffn_gate_exps.weight", of(e, f)),
        Part::ExpertUp(e) => ("ffn_up_exps.weight", of(e, f)),
        Part::ExpertDown(e) => ("ffn_down_exps.weight", of(e, width)),
        _ => return None,
    })
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
        Part::Router => "ffn_gate_inp.weight",
        Part::ExpertGate(_) => "ffn_gate_exps.weight",
        Part::ExpertUp(_) => "ffn_up_exps.weight",
        Part::ExpertDown(_) => "ffn_down_exps.weight",
        Part::SharedRouter => "ffn_gate_inp_shexp.weight",
        Part::SharedGate => "ffn_gate_shexp.weight",
        Part::SharedUp => "ffn_up_shexp.weight",
        Part::SharedDown => "ffn_down_shexp.weight",
    }
}
