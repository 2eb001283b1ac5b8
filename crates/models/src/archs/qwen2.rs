use super::{llama, names};
use crate::{Arch, Attention, Biases, Config, Error, Gguf, Role, Spec, TensorRef};

/// Qwen 2 and 2.5: a Llama with biases on queries, keys and values.
///
/// **Source** Yang et al. 2024 (arXiv 2407.10671, 2412.15115).
#[derive(Debug)]
pub(super) struct Qwen2;

impl Arch for Qwen2 {
    fn ids(&self) -> &'static [&'static str] {
        &["Qwen2ForCausalLM", "qwen2"]
    }

    fn read(&self, config: &Config) -> Result<Spec, Error> {
        let attention = llama::attention(config, Biases { qkv: true, out: false })?;
        let windows = windows(config)?;
        llama::spec(config, self.ids()[0], |index| Attention {
            window: windows[index],
            ..attention.clone()
        })
    }

    fn name(&self, _: &Spec, role: Role) -> TensorRef {
        names::hugging_face(role)
    }

    fn gguf(&self) -> Gguf {
        Gguf::plain("qwen2")
    }
}

/// Each layer's window: layers from `max_window_layers` on slide, if any may.
pub(super) fn windows(config: &Config) -> Result<Vec<Option<usize>>, Error> {
    let layers = config.layers()?;
    if !config.flag_or("use_sliding_window", false)? {
        return Ok(vec![None; layers]);
    }
    let window = config.optional_count("sliding_window")?;
    let first = config.count_or("max_window_layers", 28)?;
    let sliding = config.sliding(layers, |index| index >= first)?;
    Ok(sliding.into_iter().map(|slides| window.filter(|_| slides)).collect())
}
