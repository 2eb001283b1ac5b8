use super::names;
use crate::{
    Act, Arch, Attention, Biases, Config, Error, Gguf, Layer, Mixer, Mlp, Norm, Norms, Role, Spec,
    TensorRef,
};

/// Llama 1, 2 and 3 and everything built like them (TinyLlama, Vicuna, SmolLM …).
///
/// **Source** Touvron et al. 2023 (arXiv 2302.13971), Grattafiori et al. 2024 (arXiv 2407.21783).
#[derive(Debug)]
pub(super) struct Llama;

impl Arch for Llama {
    fn ids(&self) -> &'static [&'static str] {
        &["LlamaForCausalLM", "LLaMAForCausalLM", "llama"]
    }

    fn read(&self, config: &Config) -> Result<Spec, Error> {
        let bias = config.flag_or("attention_bias", false)?;
        let attention = attention(config, Biases { qkv: bias, out: bias })?;
        spec(config, self.ids()[0], |_| attention.clone())
    }

    fn name(&self, _: &Spec, role: Role) -> TensorRef {
        names::hugging_face(role)
    }

    fn gguf(&self) -> Gguf {
        Gguf { interleaved_rope: true, ..Gguf::plain("llama") }
    }
}

/// Attention as Llama reads it: K defaults to D/H, G to H.
pub(super) fn attention(config: &Config, biases: Biases) -> Result<Attention, Error> {
    let heads = config.count("num_attention_heads")?;
    let head_dim = match config.optional_count("head_dim")? {
        Some(head_dim) => head_dim,
        None => width_per_head(config.count("hidden_size")?, heads)?,
    };
    let partial = config.number_or("partial_rotary_factor", 1.0)?;
    Ok(Attention {
        heads,
        kv_heads: config.count_or("num_key_value_heads", heads)?,
        head_dim,
        biases,
        qk_norm: None,
        rope: config.rope((head_dim as f64 * partial) as usize, 10_000.0)?,
        window: None,
        scale: (head_dim as f32).sqrt().recip(),
        cap: None,
    })
}

/// The rest of a Llama around an attention per layer index.
pub(super) fn spec(
    config: &Config,
    arch: &'static str,
    attention: impl Fn(usize) -> Attention,
) -> Result<Spec, Error> {
    let mlp = mlp(config)?;
    with_mlp(config, arch, attention, |_| mlp.clone())
}

/// A perceptron as Llama reads it.
pub(super) fn mlp(config: &Config) -> Result<Mlp, Error> {
    Ok(Mlp::Gated {
        width: config.count("intermediate_size")?,
        act: config.act("hidden_act", Act::Silu)?,
        bias: config.flag_or("mlp_bias", false)?,
    })
}

/// What a Llama is around an attention and a perceptron per layer index.
pub(super) fn with_mlp(
    config: &Config,
    arch: &'static str,
    attention: impl Fn(usize) -> Attention,
    mlp: impl Fn(usize) -> Mlp,
) -> Result<Spec, Error> {
    let norm = Norm::new(config.number_or("rms_norm_eps", 1e-6)? as f32);
    let layer = |index| Layer {
        mixer: Mixer::Attention(attention(index)),
        mlp: mlp(index),
        norms: Norms::before(norm),
    };
    Ok(Spec {
        arch,
        vocab: config.count("vocab_size")?,
        width: config.count("hidden_size")?,
        context: config.count_or("max_position_embeddings", 2048)?,
        embed_scale: 1.0,
        layers: (0..config.layers()?).map(layer).collect(),
        final_norm: norm,
        tied_head: config.flag_or("tie_word_embeddings", false)?,
        logit_cap: None,
    })
}

fn width_per_head(width: usize, heads: usize) -> Result<usize, Error> {
    if heads == 0 || !width.is_multiple_of(heads) {
        let expected = format!("a divisor of hidden_size {width}");
        let found = heads.to_string();
        return Err(Error::BadKey { key: "num_attention_heads", found, expected });
    }
    Ok(width / heads)
}
