use super::{llama, names, qwen2};
use crate::{Arch, Attention, Biases, Config, Error, Gguf, Norm, QkNorm, Role, Spec, TensorRef};

/// Qwen 3, dense: norms over each head of queries and keys instead of biases.
///
/// **Source** Yang et al. 2025 (arXiv 2505.09388).
#[derive(Debug)]
pub(super) struct Qwen3;

impl Arch for Qwen3 {
    fn ids(&self) -> &'static [&'static str] {
        &["Qwen3ForCausalLM", "qwen3"]
    }

    fn read(&self, config: &Config) -> Result<Spec, Error> {
        let bias = config.flag_or("attention_bias", false)?;
        let mut attention = llama::attention(config, Biases { qkv: bias, out: bias })?;
        attention.qk_norm =
            Some(QkNorm::Head(Norm::new(config.number_or("rms_norm_eps", 1e-6)? as f32)));
        let windows = qwen2::windows(config)?;
        llama::spec(config, self.ids()[0], |index| Attention {
            window: windows[index],
            ..attention.clone()
        })
    }

    fn name(&self, _: &Spec, role: Role) -> TensorRef {
        names::hugging_face(role)
    }

    fn gguf(&self) -> Gguf {
        Gguf::plain("qwen3")
    }
}
