use super::{llama, names};
use crate::{Arch, Biases, Config, Error, Gguf, Role, Spec, TensorRef};

/// Mistral 7B, Nemo and their kind: a Llama whose window may slide.
///
/// **Source** Jiang et al. 2023 (arXiv 2310.06825).
#[derive(Debug)]
pub(super) struct Mistral;

impl Arch for Mistral {
    fn ids(&self) -> &'static [&'static str] {
        &["MistralForCausalLM", "mistral"]
    }

    fn read(&self, config: &Config) -> Result<Spec, Error> {
        let mut attention = llama::attention(config, Biases::default())?;
        attention.window = config.optional_count("sliding_window")?;
        llama::spec(config, self.ids()[0], |_| attention.clone())
    }

    fn name(&self, _: &Spec, role: Role) -> TensorRef {
        names::hugging_face(role)
    }

    fn gguf(&self) -> Gguf {
        Gguf { interleaved_rope: true, ..Gguf::plain("llama") }
    }
}
