use super::names;
use crate::{
    Act, Arch, Attention, Biases, Config, Error, Gguf, Layer, Mixer, Mlp, Norm, Norms, Role, Spec,
    TensorRef, WindowKey,
};

/// Gemma 2: every other layer slides, soft caps on scores and logits, norms around each block.
///
/// **Source** Gemma Team 2024 (arXiv 2408.00118).
#[derive(Debug)]
pub(super) struct Gemma2;

/// The 27B model scales scores by √(D/H) instead of √K; GGUF files leave it to the layer count.
const LAYERS_OF_27B: usize = 46;

impl Arch for Gemma2 {
    fn ids(&self) -> &'static [&'static str] {
        &["Gemma2ForCausalLM", "gemma2"]
    }

    fn read(&self, config: &Config) -> Result<Spec, Error> {
        let mut attention = attention(config, LAYERS_OF_27B)?;
        attention.cap = config.cap("attn_logit_softcapping", Some(50.0))?;
        let window = config.count_or("sliding_window", 4096)?;
        let sliding = config.sliding(config.layers()?, |index| index % 2 == 0)?;
        let spec = spec(config, self.ids()[0], |index| Attention {
            window: sliding[index].then_some(window),
            ..attention.clone()
        })?;
        Ok(Spec { logit_cap: config.cap("final_logit_softcapping", Some(30.0))?, ..spec })
    }

    fn name(&self, _: &Spec, role: Role) -> TensorRef {
        names::with_norms_after(role)
    }

    fn gguf(&self) -> Gguf {
        Gguf { norms_with_offset: true, window: WindowKey::WhenSliding, ..Gguf::plain("gemma2") }
    }
}

/// Attention with Gemma's scale; `of_27b` is the layer count whose scale is 1/√(D/H).
pub(super) fn attention(config: &Config, of_27b: usize) -> Result<Attention, Error> {
    let heads = config.count_or("num_attention_heads", 8)?;
    let head_dim = config.count_or("head_dim", 256)?;
    let scalar = match config.optional_number("query_pre_attn_scalar")? {
        Some(scalar) => scalar,
        None if config.layers()? == of_27b => {
            config.count("hidden_size")? as f64 / heads.max(1) as f64
        }
        None => head_dim as f64,
    };
    let bias = config.flag_or("attention_bias", false)?;
    Ok(Attention {
        heads,
        kv_heads: config.count_or("num_key_value_heads", 4)?,
        head_dim,
        biases: Biases { qkv: bias, out: bias },
        qk_norm: None,
        rope: config.rope(head_dim, 10_000.0)?,
        window: None,
        scale: (1.0 / scalar.sqrt()) as f32,
        cap: None,
    })
}

/// The rest of a Gemma around an attention per layer index.
pub(super) fn spec(
    config: &Config,
    arch: &'static str,
    attention: impl Fn(usize) -> Attention,
) -> Result<Spec, Error> {
    let width = config.count("hidden_size")?;
    let norm = norm(config)?;
    let mlp = Mlp::Gated {
        width: config.count("intermediate_size")?,
        act: config.act("hidden_activation", Act::GeluTanh)?,
        bias: false,
    };
    let norms = Norms {
        before_mixer: norm,
        after_mixer: Some(norm),
        before_mlp: norm,
        after_mlp: Some(norm),
    };
    let layer =
        |index| Layer { mixer: Mixer::Attention(attention(index)), mlp: mlp.clone(), norms };
    Ok(Spec {
        arch,
        vocab: config.count_or("vocab_size", 262_208)?,
        width,
        context: config.count_or("max_position_embeddings", 131_072)?,
        embed_scale: (width as f32).sqrt(),
        layers: (0..config.layers()?).map(layer).collect(),
        final_norm: norm,
        tied_head: config.flag_or("tie_word_embeddings", true)?,
        logit_cap: None,
    })
}

/// Gemma's norm: the stored weight is one less than what it multiplies by.
pub(super) fn norm(config: &Config) -> Result<Norm, Error> {
    Ok(Norm { eps: config.number_or("rms_norm_eps", 1e-6)? as f32, offset: 1.0 })
}
