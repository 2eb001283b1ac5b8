use super::{llama, names};
use crate::{Arch, Biases, Config, Error, Gguf, Part, Role, Spec, TensorRef, WindowKey};

/// Phi-3, 3.5 and 4 mini: a Llama whose projections are fused and whose rope may be stretched by
/// a divisor per frequency.
///
/// **Source** Abdin et al. 2024 (arXiv 2404.14219).
#[derive(Debug)]
pub(super) struct Phi3;

impl Arch for Phi3 {
    fn ids(&self) -> &'static [&'static str] {
        &["Phi3ForCausalLM", "phi3"]
    }

    fn read(&self, config: &Config) -> Result<Spec, Error> {
        let mut attention = llama::attention(config, Biases::default())?;
        attention.window = config.optional_count("sliding_window")?;
        llama::spec(config, self.ids()[0], |_| attention.clone())
    }

    fn name(&self, spec: &Spec, role: Role) -> TensorRef {
        let Role::Layer(index, part) = role else { return names::hugging_face(role) };
        match spec.layers[index].fused_rows(part) {
            None => names::hugging_face(role),
            Some(rows) => {
                let tail = match part {
                    Part::Q | Part::K | Part::V => "self_attn.qkv_proj.weight",
                    _ => "mlp.gate_up_proj.weight",
                };
                TensorRef::rows(format!("model.layers.{index}.{tail}"), rows)
            }
        }
    }

    fn gguf(&self) -> Gguf {
        Gguf {
            fused: true,
            window: WindowKey::Always,
            original_context: true,
            ..Gguf::plain("phi3")
        }
    }
}
