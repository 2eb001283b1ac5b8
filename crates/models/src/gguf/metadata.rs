use lathe_files::gguf::{Metadata, Value};

use crate::{Attention, Gguf, Mlp, Model, Role, Scaling, Spec, WindowKey};

/// The keys that describe the architecture, as llama.cpp's converter writes them.
///
/// `general.file_type`, `general.quantization_version` and the tokenizer's keys are the writer's
/// to add: they are not properties of the architecture.
pub fn metadata(model: &Model, name: &str) -> Metadata {
    let spec = &model.spec;
    let gguf = model.arch.gguf();
    let mut keys = Keys { gguf, metadata: Metadata::new() };
    keys.metadata.set("general.architecture", Value::String(gguf.arch.to_owned()));
    keys.metadata.set("general.type", Value::String("model".to_owned()));
    keys.metadata.set("general.name", Value::String(name.to_owned()));
    keys.metadata.set("general.size_label", Value::String(size_label(spec)));
    keys.sizes(spec);
    if let Some(layer) = spec.layers.first() {
        keys.attention(spec, layer.attention());
    }
    keys.rope(spec);
    keys.metadata
}

struct Keys {
    gguf: Gguf,
    metadata: Metadata,
}

impl Keys {
    fn count(&mut self, key: &str, value: usize) {
        let value = u32::try_from(value).map_or(Value::U64(value as u64), Value::U32);
        self.metadata.set(format!("{}.{key}", self.gguf.arch), value);
    }

    fn number(&mut self, key: &str, value: f64) {
        self.metadata.set(format!("{}.{key}", self.gguf.arch), Value::F32(value as f32));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.metadata.set(format!("{}.{key}", self.gguf.arch), Value::String(value.to_owned()));
    }

    fn sizes(&mut self, spec: &Spec) {
        self.count("block_count", spec.layers.len());
        self.count("context_length", spec.context);
        self.count("embedding_length", spec.width);
        self.count("vocab_size", spec.vocab);
        if let Some(layer) = spec.layers.first() {
            self.feed_forward(&layer.mlp);
        }
        if let Some(cap) = spec.logit_cap {
            self.number("final_logit_softcapping", cap.into());
        }
    }

    fn feed_forward(&mut self, mlp: &Mlp) {
        let experts = match mlp {
            Mlp::Gated { width, .. } => return self.count("feed_forward_length", *width),
            Mlp::Experts(experts) => experts,
        };
        self.count("feed_forward_length", experts.width);
        self.count("expert_count", experts.count);
        self.count("expert_used_count", experts.active);
        self.count("expert_feed_forward_length", experts.width);
        if let Some(width) = experts.shared {
            self.count("expert_shared_feed_forward_length", width);
        }
    }

    fn attention(&mut self, spec: &Spec, attention: &Attention) {
        self.count("attention.head_count", attention.heads);
        self.count("attention.head_count_kv", attention.kv_heads);
        self.count("attention.key_length", attention.head_dim);
        self.count("attention.value_length", attention.head_dim);
        self.number("attention.layer_norm_rms_epsilon", spec.final_norm.eps.into());
        if let Some(cap) = attention.cap {
            self.number("attn_logit_softcapping", cap.into());
        }
        let window = spec.layers.iter().find_map(|layer| layer.attention().window);
        match (self.gguf.window, window) {
            (WindowKey::WhenSliding | WindowKey::Always, Some(window)) => {
                self.count("attention.sliding_window", window);
            }
            (WindowKey::Always, None) => self.count("attention.sliding_window", 0),
            _ => {}
        }
    }

    fn rope(&mut self, spec: &Spec) {
        // Layers that slide may have a base of their own; the others are the model's.
        let full = spec.layers.iter().map(crate::Layer::attention).find(|a| a.window.is_none());
        let local = spec.layers.iter().map(crate::Layer::attention).find(|a| a.window.is_some());
        let Some(rope) = full.or(local).map(|attention| &attention.rope) else { return };
        self.count("rope.dimension_count", rope.dims);
        self.number("rope.freq_base", rope.theta);
        if let Some(local) = local.map(|a| &a.rope).filter(|local| *local != rope) {
            self.number("rope.freq_base_swa", local.theta);
        }
        match &rope.scaling {
            Scaling::Linear { factor } => {
                self.text("rope.scaling.type", "linear");
                self.number("rope.scaling.factor", *factor);
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, magnitude, .. } => {
                self.text("rope.scaling.type", "yarn");
                self.number("rope.scaling.factor", *factor);
                self.count("rope.scaling.original_context_length", *original);
                let usual = 1.0 + 0.1 * factor.max(1.0).ln();
                if (magnitude - usual).abs() > 1e-6 {
                    // llama.cpp multiplies the usual magnitude by this.
                    self.number("rope.scaling.yarn_attn_factor", magnitude / usual);
                }
                if *beta_fast != 32.0 {
                    self.number("rope.scaling.yarn_beta_fast", *beta_fast);
                }
                if *beta_slow != 1.0 {
                    self.number("rope.scaling.yarn_beta_slow", *beta_slow);
                }
            }
            Scaling::LongRope { original, magnitude, .. } => {
                self.count("rope.scaling.original_context_length", *original);
                self.number("rope.scaling.attn_factor", *magnitude);
            }
            _ if self.gguf.original_context => {
                self.count("rope.scaling.original_context_length", spec.context);
            }
            _ => {}
        }
    }
}

/// The count of parameters, such as `1.1B` or `54K`; with experts, how many there are times what
/// a model of one of them would have: `8x7.2B`.
fn size_label(spec: &Spec) -> String {
    let experts = |layer: &crate::Layer| layer.mlp.experts().map(|experts| experts.count);
    let Some(count) = spec.layers.iter().find_map(experts) else {
        return rounded(spec.parameters());
    };
    let is_expert = |weight: &&crate::Weight| match weight.role {
        Role::Layer(_, part) => part.expert().is_some(),
        _ => false,
    };
    let all: u64 = spec.weights().iter().filter(is_expert).map(|w| w.len() as u64).sum();
    format!("{count}x{}", rounded(spec.parameters() - all + all / count as u64))
}

/// A count in at least two digits.
fn rounded(parameters: u64) -> String {
    let n = parameters as f64;
    let (scaled, unit) = match n {
        n if n > 1e12 => (n * 1e-12, "T"),
        n if n > 1e9 => (n * 1e-9, "B"),
        n if n > 1e6 => (n * 1e-6, "M"),
        n => (n * 1e-3, "K"),
    };
    let digits = if scaled.round() < 10.0 { 1 } else { 0 };
    format!("{scaled:.digits$}{unit}")
}
