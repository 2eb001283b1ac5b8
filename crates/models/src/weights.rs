use std::fmt;

use crate::{Experts, Layer, Mixer, Mlp, QkNorm, Scaling, Spec};

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
    /// The scores of the experts, \[E, D\].
    Router,
    /// The gate of the expert of this index, and so on.
    ExpertGate(usize),
    ExpertUp(usize),
    ExpertDown(usize),
    /// The score of the expert that all tokens go through, \[1, D\].
    SharedRouter,
    SharedGate,
    SharedUp,
    SharedDown,
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
    /// A small matrix that decides which experts a token goes through, which one wrong digit can
    /// change: it keeps its precision.
    Router,
    /// A vector: norm, bias.
    Vector,
}

impl Kind {
    /// Whether weights of this kind may be quantized: vectors and routers keep their precision.
    pub fn may_be_coded(self) -> bool {
        !matches!(self, Self::Router | Self::Vector)
    }
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
        let mut parts = Parts { width: self.width, list: Vec::new() };
        parts.mixer(layer);
        parts.mlp(layer);
        list.extend(parts.list.into_iter().map(|(part, rows, cols, kind)| Weight {
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

    /// How many of them a token is multiplied with: of the experts only those that it goes
    /// through, and of the embeddings, unless they are the head as well, one row.
    pub fn active_parameters(&self) -> u64 {
        let used = |w: &Weight| w.len() as f64 * self.use_per_token(w);
        self.weights().iter().map(used).sum::<f64>().round() as u64
    }

    /// The share of a weight's numbers that an average token is multiplied with, 0 to 1, where
    /// experts are chosen equally often.
    pub fn use_per_token(&self, weight: &Weight) -> f64 {
        match weight.role {
            Role::Embed if !self.tied_head => 1.0 / self.vocab as f64,
            Role::Layer(index, part) if part.expert().is_some() => {
                let experts = self.layers.get(index).and_then(|layer| layer.mlp.experts());
                experts.map_or(1.0, |experts| experts.active as f64 / experts.count as f64)
            }
            _ => 1.0,
        }
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

/// The weights of one layer, being listed.
struct Parts {
    /// Model width D.
    width: usize,
    list: Vec<(Part, usize, usize, Kind)>,
}

impl Parts {
    fn linear(&mut self, part: Part, rows: usize, cols: usize) {
        self.list.push((part, rows, cols, Kind::Linear));
    }

    fn vector(&mut self, part: Part, len: usize, present: bool) {
        if present {
            self.list.push((part, 1, len, Kind::Vector));
        }
    }

    fn mixer(&mut self, layer: &Layer) {
        let d = self.width;
        let Mixer::Attention(attention) = &layer.mixer;
        let (q, kv) = (attention.q_width(), attention.kv_width());
        let biases = attention.biases;
        let norms = match attention.qk_norm {
            None => None,
            Some(QkNorm::Head(_)) => Some((attention.head_dim, attention.head_dim)),
            Some(QkNorm::Whole(_)) => Some((q, kv)),
        };
        let (q_norm, k_norm) = norms.unwrap_or_default();
        self.vector(Part::MixerNorm, d, true);
        self.linear(Part::Q, q, d);
        self.linear(Part::K, kv, d);
        self.linear(Part::V, kv, d);
        self.vector(Part::QBias, q, biases.qkv);
        self.vector(Part::KBias, kv, biases.qkv);
        self.vector(Part::VBias, kv, biases.qkv);
        self.vector(Part::QNorm, q_norm, norms.is_some());
        self.vector(Part::KNorm, k_norm, norms.is_some());
        self.linear(Part::Out, d, q);
        self.vector(Part::OutBias, d, biases.out);
        self.vector(Part::MixerAfterNorm, d, layer.norms.after_mixer.is_some());
    }

    fn mlp(&mut self, layer: &Layer) {
        let d = self.width;
        self.vector(Part::MlpNorm, d, true);
        match &layer.mlp {
            Mlp::Gated { width: f, bias, .. } => {
                self.linear(Part::Gate, *f, d);
                self.linear(Part::Up, *f, d);
                self.vector(Part::GateBias, *f, *bias);
                self.vector(Part::UpBias, *f, *bias);
                self.linear(Part::Down, d, *f);
                self.vector(Part::DownBias, d, *bias);
            }
            Mlp::Experts(experts) => self.experts(experts),
        }
        self.vector(Part::MlpAfterNorm, d, layer.norms.after_mlp.is_some());
    }

    fn experts(&mut self, experts: &Experts) {
        let (d, f) = (self.width, experts.width);
        self.list.push((Part::Router, experts.count, d, Kind::Router));
        for e in 0..experts.count {
            self.linear(Part::ExpertGate(e), f, d);
            self.linear(Part::ExpertUp(e), f, d);
            self.linear(Part::ExpertDown(e), d, f);
        }
        if let Some(f) = experts.shared {
            self.list.push((Part::SharedRouter, 1, d, Kind::Router));
            self.linear(Part::SharedGate, f, d);
            self.linear(Part::SharedUp, f, d);
            self.linear(Part::SharedDown, d, f);
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
            Self::Layer(index, part) => {
                write!(f, "layer {index} ")?;
                match part.expert() {
                    Some(expert) => write!(f, "expert {expert} {}", part.words()),
                    None => f.write_str(part.words()),
                }
            }
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
            Self::Gate | Self::ExpertGate(_) => "gate projection",
            Self::Up | Self::ExpertUp(_) => "up projection",
            Self::GateBias => "gate bias",
            Self::UpBias => "up bias",
            Self::Down | Self::ExpertDown(_) => "down projection",
            Self::DownBias => "down bias",
            Self::Router => "router",
            Self::SharedRouter => "shared expert's score",
            Self::SharedGate => "shared expert's gate projection",
            Self::SharedUp => "shared expert's up projection",
            Self::SharedDown => "shared expert's down projection",
            Self::MlpAfterNorm => "norm after the feed-forward block",
        }
    }
}
