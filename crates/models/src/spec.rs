use std::ops::Range;

use crate::{Error, Experts, Part, Rope};

/// Everything that must be known of a decoder to run it, size it or write it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The architecture's first id, such as `LlamaForCausalLM`.
    pub arch: &'static str,
    /// Vocabulary size V.
    pub vocab: usize,
    /// Model width D.
    pub width: usize,
    /// The longest sequence that the model was made for, in tokens.
    pub context: usize,
    /// What token embeddings are multiplied by.
    pub embed_scale: f32,
    pub layers: Vec<Layer>,
    pub final_norm: Norm,
    /// The head is the embedding matrix; no tensor of its own is stored.
    pub tied_head: bool,
    /// Logits become `cap * tanh(logits / cap)`.
    pub logit_cap: Option<f32>,
}

/// One layer: a mixer over positions, then a multi-layer perceptron, each with a residual.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub mixer: Mixer,
    pub mlp: Mlp,
    pub norms: Norms,
}

/// What mixes information between positions.
#[derive(Clone, Debug, PartialEq)]
pub enum Mixer {
    Attention(Attention),
}

/// Causal attention with grouped heads.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads G; H is a multiple of it.
    pub kv_heads: usize,
    /// Width K of a head.
    pub head_dim: usize,
    pub biases: Biases,
    /// Norm of queries and keys, before rope.
    pub qk_norm: Option<QkNorm>,
    pub rope: Rope,
    /// Positions seen, the query's own included: with a window w, position t sees t-w+1 ..= t.
    pub window: Option<usize>,
    /// What scores are multiplied by, usually 1/√K.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)` before the softmax.
    pub cap: Option<f32>,
}

/// A norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QkNorm {
    /// Over each head, all of them with the same weights.
    Head(Norm),
    /// Over all heads together.
    Whole(Norm),
}

/// Which projections of an attention add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    pub qkv: bool,
    pub out: bool,
}

/// What follows the mixer, position by position.
#[derive(Clone, Debug, PartialEq)]
pub enum Mlp {
    /// `down(act(gate(x)) * up(x))`, gate and up \[F, D\].
    Gated { width: usize, act: Act, bias: bool },
    /// Many of these, of which each token goes through some.
    Experts(Experts),
}

/// A gate's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// Root-mean-square norm: `x / sqrt(mean(x²) + eps) * (weight + offset)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub eps: f32,
    /// 1 where the checkpoint stores weight − 1 (Gemma), otherwise 0.
    pub offset: f32,
}

/// Where a layer normalises. Norms "after" sit inside the residual branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norms {
    pub before_mixer: Norm,
    pub after_mixer: Option<Norm>,
    pub before_mlp: Norm,
    pub after_mlp: Option<Norm>,
}

/// No published decoder has a quarter of these; a configuration beyond them is a mistake or an
/// attack. Their products stay far below 2^63, so sizes need no checked arithmetic afterwards.
pub(crate) const MOST_LAYERS: usize = 1 << 10;
const MOST_WIDTH: usize = 1 << 18;
pub(crate) const MOST_FEED_FORWARD: usize = 1 << 20;
const MOST_VOCABULARY: usize = 1 << 22;
const MOST_HEADS: usize = 1 << 12;
const MOST_HEAD_DIM: usize = 1 << 12;
const MOST_CONTEXT: usize = 1 << 28;

impl Norm {
    /// A plain norm.
    pub fn new(eps: f32) -> Self {
        Self { eps, offset: 0.0 }
    }
}

impl QkNorm {
    /// The norm, whatever it goes over.
    pub fn norm(&self) -> &Norm {
        let (Self::Head(norm) | Self::Whole(norm)) = self;
        norm
    }

    /// The same, to be changed.
    pub fn norm_mut(&mut self) -> &mut Norm {
        let (Self::Head(norm) | Self::Whole(norm)) = self;
        norm
    }
}

impl Mlp {
    /// The widest feed-forward width F in it: what working memory is sized by.
    pub fn widest(&self) -> usize {
        match self {
            Self::Gated { width, .. } => *width,
            Self::Experts(experts) => experts.widest(),
        }
    }

    /// The experts, where it has some.
    pub fn experts(&self) -> Option<&Experts> {
        match self {
            Self::Gated { .. } => None,
            Self::Experts(experts) => Some(experts),
        }
    }
}

impl Norms {
    /// Norms before mixer and perceptron only, as in Llama.
    pub fn before(norm: Norm) -> Self {
        Self { before_mixer: norm, after_mixer: None, before_mlp: norm, after_mlp: None }
    }
}

impl Attention {
    /// Width of all queries together, H·K.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all keys (or all values) together, G·K.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

impl Layer {
    /// The layer's attention.
    pub fn attention(&self) -> &Attention {
        let Mixer::Attention(attention) = &self.mixer;
        attention
    }

    /// The rows of a part where queries, keys and values are one tensor, and gate and up another;
    /// `None` for parts that are never fused.
    pub fn fused_rows(&self, part: Part) -> Option<Range<usize>> {
        let (q, kv) = (self.attention().q_width(), self.attention().kv_width());
        match (part, &self.mlp) {
            (Part::Q, _) => Some(0..q),
            (Part::K, _) => Some(q..q + kv),
            (Part::V, _) => Some(q + kv..q + 2 * kv),
            (Part::Gate, Mlp::Gated { width: f, .. }) => Some(0..*f),
            (Part::Up, Mlp::Gated { width: f, .. }) => Some(*f..2 * f),
            _ => None,
        }
    }
}

impl Spec {
    /// Refuses numbers that no model can mean.
    ///
    /// # Errors
    /// [`Error::BadKey`] that names the number, by its usual key in `config.json`.
    pub fn check(&self) -> Result<(), Error> {
        within("vocab_size", self.vocab, MOST_VOCABULARY)?;
        within("hidden_size", self.width, MOST_WIDTH)?;
        within("max_position_embeddings", self.context, MOST_CONTEXT)?;
        within("num_hidden_layers", self.layers.len(), MOST_LAYERS)?;
        self.final_norm.check()?;
        positive("final_logit_softcapping", self.logit_cap)?;
        self.layers.iter().try_for_each(Layer::check)
    }
}

impl Layer {
    fn check(&self) -> Result<(), Error> {
        let Mixer::Attention(attention) = &self.mixer;
        attention.check()?;
        match &self.mlp {
            Mlp::Gated { width, .. } => within("intermediate_size", *width, MOST_FEED_FORWARD)?,
            Mlp::Experts(experts) => experts.check()?,
        }
        let norms = &self.norms;
        [Some(norms.before_mixer), norms.after_mixer, Some(norms.before_mlp), norms.after_mlp]
            .iter()
            .flatten()
            .try_for_each(Norm::check)
    }
}

impl Attention {
    fn check(&self) -> Result<(), Error> {
        within("num_attention_heads", self.heads, MOST_HEADS)?;
        within("num_key_value_heads", self.kv_heads, MOST_HEADS)?;
        within("head_dim", self.head_dim, MOST_HEAD_DIM)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(bad(
                "num_key_value_heads",
                self.kv_heads,
                format!("a divisor of the {} attention heads", self.heads),
            ));
        }
        if self.window == Some(0) {
            return Err(bad("sliding_window", 0, "at least 1, or null"));
        }
        if !(self.scale.is_finite() && self.scale > 0.0) {
            return Err(bad("query_pre_attn_scalar", self.scale, "a positive number"));
        }
        positive("attn_logit_softcapping", self.cap)?;
        self.qk_norm.iter().map(QkNorm::norm).try_for_each(Norm::check)?;
        self.rope.check(self.head_dim)
    }
}

impl Norm {
    fn check(&self) -> Result<(), Error> {
        if self.eps.is_finite() && self.eps >= 0.0 {
            return Ok(());
        }
        Err(bad("rms_norm_eps", self.eps, "a small positive number"))
    }
}

pub(crate) fn within(key: &'static str, value: usize, most: usize) -> Result<(), Error> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(bad(key, value, format!("between 1 and {most}")))
}

fn positive(key: &'static str, value: Option<f32>) -> Result<(), Error> {
    match value {
        Some(v) if !(v.is_finite() && v > 0.0) => Err(bad(key, v, "a positive number, or null")),
        _ => Ok(()),
    }
}

pub(crate) fn bad(
    key: &'static str,
    found: impl std::fmt::Display,
    expected: impl Into<String>,
) -> Error {
    Error::BadKey { key, found: found.to_string(), expected: expected.into() }
}
