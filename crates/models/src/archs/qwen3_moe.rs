use super::{llama, mixtral, names, qwen2_moe};
use crate::{Arch, Biases, Config, Error, Gguf, Norm, QkNorm, Role, Spec, TensorRef};

/// Qwen 3 with experts.
///
/// **Source** Yang et al. 2025 (arXiv 2505.09388).
#[derive(Debug)]
pub(super) struct Qwen3Moe;

impl Arch for Qwen3Moe {
    fn ids(&self) -> &'static [&'static str] {
        &["Qwen3MoeForCausalLM", "qwen3_moe"]
    }

    fn read(&self, config: &Config) -> Result<Spec, Error> {
        let bias = config.flag_or("attention_bias", false)?;
        let mut attention = llama::attention(config, Biases { qkv: bias, out: bias })?;
        let norm = Norm::new(config.number_or("rms_norm_eps", 1e-6)? as f32);
        attention.qk_norm = Some(QkNorm::Head(norm));
        let slides = config.flag_or("use_sliding_window", false)?;
        attention.window = config.optional_count("sliding_window")?.filter(|_| slides);
        let mlps = qwen2_moe::mlps(config, mixtral::experts(config)?)?;
        let mlp = |index: usize| mlps[index].clone();
        llama::with_mlp(config, self.ids()[0], |_| attention.clone(), mlp)
    }

    fn name(&self, _: &Spec, role: Role) -> TensorRef {
        names::hugging_face(role)
    }

    fn gguf(&self) -> Gguf {
        Gguf { normalised_experts: Some(true), ..Gguf::plain("qwen3moe") }
    }
}
