use super::{gemma2, names};
use crate::{Arch, Attention, Config, Error, Gguf, QkNorm, Role, Rope, Spec, TensorRef, WindowKey};

/// Gemma 3, text: five sliding layers for each full one, each kind with its own rope base.
///
/// The text part of a multimodal checkpoint is read from its `text_config`.
///
/// **Source** Gemma Team 2025 (arXiv 2503.19786).
#[derive(Debug)]
pub(super) struct Gemma3;

/// The 27B model scales scores by √(D/H) instead of √K; GGUF files leave it to the layer count.
const LAYERS_OF_27B: usize = 62;

impl Arch for Gemma3 {
    fn ids(&self) -> &'static [&'static str] {
        &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "gemma3_text", "gemma3"]
    }

    fn read(&self, config: &Config) -> Result<Spec, Error> {
        if config.flag_or("use_bidirectional_attention", false)? {
            return Err(Error::Unsupported { what: "bidirectional attention".to_owned() });
        }
        let mut attention = gemma2::attention(config, LAYERS_OF_27B)?;
        attention.qk_norm = Some(QkNorm::Head(gemma2::norm(config)?));
        attention.cap = config.cap("attn_logit_softcapping", None)?;
        let window = config.count_or("sliding_window", 4096)?;
        let period = config.count_or("sliding_window_pattern", 6)?.max(1);
        let sliding = config.sliding(config.layers()?, |index| (index + 1) % period != 0)?;
        let (local, global) = ropes(config, attention.head_dim)?;
        let spec = gemma2::spec(config, self.ids()[0], |index| Attention {
            window: sliding[index].then_some(window),
            rope: if sliding[index] { local.clone() } else { global.clone() },
            ..attention.clone()
        })?;
        Ok(Spec { logit_cap: config.cap("final_logit_softcapping", None)?, ..spec })
    }

    fn name(&self, _: &Spec, role: Role) -> TensorRef {
        names::with_norms_after(role)
    }

    fn gguf(&self) -> Gguf {
        Gguf { norms_with_offset: true, window: WindowKey::WhenSliding, ..Gguf::plain("gemma3") }
    }
}

/// Rope of sliding and of full layers; only the full ones are stretched.
fn ropes(config: &Config, head_dim: usize) -> Result<(Rope, Rope), Error> {
    const LOCAL_THETA: f64 = 10_000.0;
    const GLOBAL_THETA: f64 = 1_000_000.0;
    let local = match config.rope_of_type("sliding_attention", head_dim, LOCAL_THETA)? {
        Some(rope) => rope,
        None => Rope::new(head_dim, config.number_or("rope_local_base_freq", LOCAL_THETA)?),
    };
    let global = match config.rope_of_type("full_attention", head_dim, GLOBAL_THETA)? {
        Some(rope) => rope,
        None => config.rope(head_dim, GLOBAL_THETA)?,
    };
    Ok((local, global))
}
