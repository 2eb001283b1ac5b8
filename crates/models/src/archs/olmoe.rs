use super::{llama, mixtral, names};
use crate::{Arch, Biases, Config, Error, Experts, Gguf, Mlp, Norm, QkNorm, Role, Spec, TensorRef};

/// OLMoE: many small experts, and norms over all heads of queries and keys together.
///
/// **Source** Muennighoff et al. 2024 (arXiv 2409.02060).
#[derive(Debug)]
pub(super) struct Olmoe;

impl Arch for Olmoe {
    fn ids(&self) -> &'static [&'static str] {
        &["OlmoeForCausalLM", "olmoe"]
    }

    fn read(&self, config: &Config) -> Result<Spec, Error> {
        if let Some(limit) = config.optional_number("clip_qkv")? {
            let what = format!("queries, keys and values clipped at {limit} (clip_qkv)");
            return Err(Error::Unsupported { what });
        }
        let bias = config.flag_or("attention_bias", false)?;
        let mut attention = llama::attention(config, Biases { qkv: bias, out: bias })?;
        let norm = Norm::new(config.number_or("rms_norm_eps", 1e-6)? as f32);
        attention.qk_norm = Some(QkNorm::Whole(norm));
        let width = config.count("intermediate_size")?;
        let mlp = Mlp::Experts(Experts { width, ..mixtral::experts(config)? });
        llama::with_mlp(config, self.ids()[0], |_| attention.clone(), |_| mlp.clone())
    }

    fn name(&self, _: &Spec, role: Role) -> TensorRef {
        names::hugging_face(role)
    }

    fn gguf(&self) -> Gguf {
        Gguf { normalised_experts: Some(false), ..Gguf::plain("olmoe") }
    }
}
