use crate::{Arch, Gguf, Model, Scaling, arch::WindowKey};

/// What llama.cpp's files have no place for: a model written as GGUF computes without it.
///
/// Empty for most models. Known cases: Mistral's sliding window (the `llama` family has no key for
/// it), attention scales other than one over the root of the head's width (Gemma's
/// `query_pre_attn_scalar`), dynamic rope scaling, and layers of different kinds (Qwen's
/// `mlp_only_layers`) or chosen experts' weights that are not as the family has them.
pub fn lost(model: &Model) -> Vec<String> {
    let gguf: Gguf = Arch::gguf(model.arch);
    let layers = || model.spec.layers.iter().map(crate::Layer::attention);
    let mut list = Vec::new();
    let mut add = |what: String| {
        list.push(format!("GGUF has no place for {what}: the file's model computes without it"))
    };
    let window = layers().find_map(|attention| attention.window);
    if let Some(window) = window.filter(|_| matches!(gguf.window, WindowKey::Never)) {
        add(format!("the sliding window of {window} tokens"));
    }
    let usual = |a: &crate::Attention| (a.scale * (a.head_dim as f32).sqrt() - 1.0).abs() < 1e-4;
    if let Some(attention) = layers().find(|attention| !usual(attention)) {
        add(format!("the attention scale of {:.4}", attention.scale));
    }
    let experts: Vec<_> = model.spec.layers.iter().map(|layer| layer.mlp.experts()).collect();
    if experts.iter().any(Option::is_some) && experts.iter().any(Option::is_none) {
        add("layers without experts among those that have them, and llama.cpp refuses it"
            .to_owned());
    }
    let differs = |experts: &&crate::Experts| match gguf.normalised_experts {
        Some(normalised) => experts.normalised != normalised,
        None => false,
    };
    if let Some(experts) = experts.iter().flatten().copied().find(differs) {
        let sums = if experts.normalised { "sum to 1" } else { "do not sum to 1" };
        add(format!("weights of the chosen experts that {sums}"));
    }
    if layers().any(|attention| matches!(attention.rope.scaling, Scaling::Dynamic { .. })) {
        add("dynamic rope scaling".to_owned());
    }
    list
}
