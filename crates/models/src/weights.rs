use std::fmt;

use crate::{Mixer, Mlp, Scaling, Spec};

/// What a weight is for, whatever its file calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Embed,
    Head,
    FinalNorm,
    /// Divisors of the rope frequencies. Stored only by GGUF; `config.json` carries them as text.
    RopeFactors(Factors),
    /// A part of the layer of this index.
    Layer(usize, Part),
}

/// Which set of rope divisors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Factors {
    Only,
    Short,
    Long,
}

/// A weight within a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The norm before the mixer.
    MixerNorm,
    Q,
    K,
    V,
    QBias,
    KBias,
    VBias,
    QNorm,
    KNorm,
    /// The mixer's output projection.
    Out,
    OutBias,
    /// The norm after the mixer, inside its residual branch.
    MixerAfterNorm,
    /// The norm before the perceptron.
    MlpNorm,
    Gate,
    Up,
    GateBias,
    UpBias,
    Down,
    DownBias,
    /// The norm after the perceptron, inside its residual branch.
    MlpAfterNorm,
}

/// One weight of a [`Spec`]: a row-major matrix \[rows, cols\]; vectors have one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    pub role: Role,
    pub rows: usize,
    pub cols: usize,
    pub kind: Kind,
}

/// How a weight is used, which decides how it may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Rows are looked up by token. A tied embedding is the head as well.
    Embedding,
    /// The output projection onto the vocabulary.
    Head,
    /// A linear map \[out, in\] inside a layer: what quantizers work on.
    Linear,
    /// A vector: norm, bias.
    Vector,
}

impl Weight {
    /// Numbers in it.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Never true: [`Spec::check`] refuses empty sizes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Spec {
    /// Every weight of the model, in the order in which a forward pass needs them.
    ///
    /// This is the only place where shapes are written down. A tied head is not listed: it is
    /// the embedding.
    pub fn weights(&self) -> Vec<Weight> {
        let (d, v) = (self.width, self.vocab);
        let mut list = vec![Weight { role: Role::Embed, rows: v, cols: d, kind: Kind::Embedding }];
        for index in 0..self.layers.len() {
            self.layer_weights(index, &mut list);
        }
        list.push(Weight { role: Role::FinalNorm, rows: 1, cols: d, kind: Kind::Vector });
        if !self.tied_head {
            list.push(Weight { role: Role::Head, rows: v, cols: d, kind: Kind::Head });
        }
        list
    }

    fn layer_weights(&self, index: usize, list: &mut Vec<Weight>) {
        let layer = &self.layers[index];
        let d = self.width;
        let Mixer::Attention(attention) = &layer.mixer;
        let Mlp::Gated { width: f, bias, .. } = layer.mlp;
        let (q, kv, head) = (attention.q_width(), attention.kv_width(), attention.head_dim);
        let biases = attention.biases;
        let qk_norm = attention.qk_norm.is_some();
        let after_mixer = layer.norms.after_mixer.is_some();
        let after_mlp = layer.norms.after_mlp.is_some();

        let linear = |part, rows, cols| (part, rows, cols, Kind::Linear, true);
        let vector = |part, cols, present| (part, 1, cols, Kind::Vector, present);
        let parts = [
            vector(Part::MixerNorm, d, true),
            linear(Part::Q, q, d),
            linear(Part::K, kv, d),
            linear(Part::V, kv, d),
            vector(Part::QBias, q, biases.qkv),
            vector(Part::KBias, kv, biases.qkv),
            vector(Part::VBias, kv, biases.qkv),
            vector(Part::QNorm, head, qk_norm),
            vector(Part::KNorm, head, qk_norm),
            linear(Part::Out, d, q),
            vector(Part::OutBias, d, biases.out),
            vector(Part::MixerAfterNorm, d, after_mixer),
            vector(Part::MlpNorm, d, true),
            linear(Part::Gate, f, d),
            linear(Part::Up, f, d),
            vector(Part::GateBias, f, bias),
            vector(Part::UpBias, f, bias),
            linear(Part::Down, d, f),
            vector(Part::DownBias, d, bias),
            vector(Part::MlpAfterNorm, d, after_mlp),
        ];
        let present = parts.into_iter().filter(|p| p.4);
        list.extend(present.map(|(part, rows, cols, kind, _)| Weight {
            role: Role::Layer(index, part),
            rows,
            cols,
            kind,
        }));
    }

    /// How many numbers the model has learnt; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.weights().iter().map(|w| w.len() as u64).sum()
    }

    /// The roles of rope divisors that a GGUF file of this model stores as tensors.
    pub fn rope_factors(&self) -> &'static [Role] {
        let scaling = self.layers.first().map(|l| &l.attention().rope.scaling);
        match scaling {
            Some(Scaling::Llama3 { .. } | Scaling::Factors(_)) => {
                &[Role::RopeFactors(Factors::Only)]
            }
            Some(Scaling::LongRope { .. }) => {
                &[Role::RopeFactors(Factors::Long), Role::RopeFactors(Factors::Short)]
            }
            _ => &[],
        }
    }
}

impl fmt::Display for Role {
    /// In words, for messages: `layer 3 down projection`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => f.write_str("token embedding"),
            Self::Head => f.write_str("output head"),
            Self::FinalNorm => f.write_str("final norm"),
            Self::RopeFactors(which) => write!(f, "rope factors ({which:?})"),
            Self::Layer(index, part) => write!(f, "layer {index} {}", part.words()),
        }
    }
}

impl Part {
    fn words(self) -> &'static str {
        match self {
            Self::MixerNorm => "norm before attention",
            Self::Q => "query projection",
            Self::K => "key projection",
            Self::V => "value projection",
            Self::QBias => "query bias",
            Self::KBias => "key bias",
            Self::VBias => "value bias",
            Self::QNorm => "query norm",
            Self::KNorm => "key norm",
            Self::Out => "attention output projection",
            Self::OutBias => "attention output bias",
            Self::MixerAfterNorm => "norm after attention",
            Self::MlpNorm => "norm before the feed-forward block",
            Self::Gate => "gate projection",
            Self::Up => "up projection",
            Self::GateBias => "gate bias",
            Self::UpBias => "up bias",
            Self::Down => "down projection",
            Self::DownBias => "down bias",
            Self::MlpAfterNorm => "norm after the feed-forward block",
        }
    }
}
