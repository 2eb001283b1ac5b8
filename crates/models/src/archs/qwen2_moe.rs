use super::{llama, mixtral, names};
use crate::{Arch, Attention, Biases, Config, Error, Experts, Gguf, Mlp, Role, Spec, TensorRef};

/// Qwen 1.5 and 2 with experts: one of them is for all tokens, with a gate of its own.
///
/// **Source** Yang et al. 2024 (arXiv 2407.10671), section 2.2.2.
#[derive(Debug)]
pub(super) struct Qwen2Moe;

impl Arch for Qwen2Moe {
    fn ids(&self) -> &'static [&'static str] {
        &["Qwen2MoeForCausalLM", "qwen2_moe"]
    }

    fn read(&self, config: &Config) -> Result<Spec, Error> {
        let qkv = config.flag_or("qkv_bias", true)?;
        let attention = llama::attention(config, Biases { qkv, out: false })?;
        let windows = windows(config)?;
        let shared = Some(config.count("shared_expert_intermediate_size")?);
        let mlps = mlps(config, Experts { shared, ..mixtral::experts(config)? })?;
        let attention = |index: usize| Attention { window: windows[index], ..attention.clone() };
        llama::with_mlp(config, self.ids()[0], attention, |index| mlps[index].clone())
    }

    fn name(&self, _: &Spec, role: Role) -> TensorRef {
        names::hugging_face(role)
    }

    fn gguf(&self) -> Gguf {
        Gguf { normalised_experts: Some(false), ..Gguf::plain("qwen2moe") }
    }
}

/// Each layer's window: every other layer below `max_window_layers` slides, if any may.
fn windows(config: &Config) -> Result<Vec<Option<usize>>, Error> {
    let layers = config.layers()?;
    if !config.flag_or("use_sliding_window", false)? {
        return Ok(vec![None; layers]);
    }
    let window = config.optional_count("sliding_window")?;
    let beyond = config.count_or("max_window_layers", 28)?;
    let sliding = config.sliding(layers, |index| index % 2 == 0 && index < beyond)?;
    Ok(sliding.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

/// Each layer's perceptron: experts in every `decoder_sparse_step`th layer but those of
/// `mlp_only_layers`.
pub(super) fn mlps(config: &Config, experts: Experts) -> Result<Vec<Mlp>, Error> {
    let experts = Experts { width: config.count("moe_intermediate_size")?, ..experts };
    let step = config.count_or("decoder_sparse_step", 1)?;
    let dense = config.counts("mlp_only_layers")?;
    let mlp = |index: usize| {
        let sparse = step > 0 && (index + 1).is_multiple_of(step) && !dense.contains(&index);
        if sparse { Ok(Mlp::Experts(experts)) } else { llama::mlp(config) }
    };
    (0..config.layers()?).map(mlp).collect()
}
