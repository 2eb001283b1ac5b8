use std::collections::HashMap;

use lathe_formats::Blocks;
use lathe_models::{Experts, Kind, Mlp, Part, Role, Spec, Weight};

use crate::{
    Error,
    backend::{Backend, Use},
};

/// A model's weights, each prepared by a backend for its use.
pub(crate) struct Network<B: Backend> {
    pub(crate) embed: B::Weight,
    /// `None` where the embedding is the head as well.
    pub(crate) head: Option<B::Weight>,
    pub(crate) final_norm: B::Vector,
    pub(crate) layers: Vec<LayerWeights<B>>,
    /// Bytes of all of them.
    pub(crate) bytes: u64,
    /// Bytes of those that are read from their files in every pass.
    pub(crate) streamed: u64,
}

/// The weights of one layer, in the order in which it needs them.
pub(crate) struct LayerWeights<B: Backend> {
    pub(crate) before_mixer: B::Vector,
    pub(crate) mixer_in: MixerIn<B>,
    pub(crate) mixer_out: MixerOut<B>,
    pub(crate) before_mlp: B::Vector,
    pub(crate) mlp_in: MlpIn<B>,
    pub(crate) mlp_out: MlpOut<B>,
}

/// From the normed residual stream to what attention mixes.
pub(crate) struct MixerIn<B: Backend> {
    pub(crate) q: Linear<B>,
    pub(crate) k: Linear<B>,
    pub(crate) v: Linear<B>,
    pub(crate) q_norm: Option<B::Vector>,
    pub(crate) k_norm: Option<B::Vector>,
}

impl<B: Backend> MixerIn<B> {
    /// The matrices, all of which multiply the same inputs.
    pub(crate) fn weights(&self) -> [&B::Weight; 3] {
        [&self.q, &self.k, &self.v].map(|linear| &linear.weight)
    }
}

/// From what attention mixed back to the residual stream.
pub(crate) struct MixerOut<B: Backend> {
    pub(crate) out: Linear<B>,
    pub(crate) after_mixer: Option<B::Vector>,
}

/// From the normed residual stream into the perceptron.
pub(crate) enum MlpIn<B: Backend> {
    Gated(GateUp<B>),
    Experts { router: Router<B>, experts: Vec<GateUp<B>>, shared: Option<GateUp<B>> },
}

impl<B: Backend> MlpIn<B> {
    /// The matrices that multiply every token's inputs, which are those of no expert.
    pub(crate) fn weights(&self) -> Vec<&B::Weight> {
        match self {
            Self::Gated(GateUp { gate, up }) => vec![&gate.weight, &up.weight],
            Self::Experts { .. } => Vec::new(),
        }
    }
}

/// What decides where a token goes.
pub(crate) struct Router<B: Backend> {
    /// Of each expert.
    pub(crate) scores: B::Weight,
    /// Of the shared expert.
    pub(crate) shared: Option<B::Weight>,
}

/// A gated perceptron's first half.
pub(crate) struct GateUp<B: Backend> {
    pub(crate) gate: Linear<B>,
    pub(crate) up: Linear<B>,
}

/// From the perceptron back to the residual stream.
pub(crate) struct MlpOut<B: Backend> {
    pub(crate) down: Down<B>,
    pub(crate) after_mlp: Option<B::Vector>,
}

/// A gated perceptron's other half, or those of all experts.
pub(crate) enum Down<B: Backend> {
    Gated(Linear<B>),
    Experts { experts: Vec<Linear<B>>, shared: Option<Linear<B>> },
}

/// A matrix and its bias.
pub(crate) struct Linear<B: Backend> {
    pub(crate) weight: B::Weight,
    pub(crate) bias: Option<B::Vector>,
}

impl<B: Backend> Network<B> {
    /// Fetches every weight of the spec from `source` and prepares it.
    pub(crate) fn load(
        backend: &B,
        spec: &Spec,
        source: &mut dyn FnMut(&Weight) -> Result<Blocks, Error>,
    ) -> Result<Self, Error> {
        let mut loaded = Loaded::new();
        for weight in spec.weights() {
            loaded.take(backend, spec, &weight, source(&weight)?)?;
        }
        let embed = loaded.matrix(Role::Embed)?;
        let head = (!spec.tied_head).then(|| loaded.matrix(Role::Head)).transpose()?;
        let final_norm = loaded.required(Role::FinalNorm)?;
        let layers =
            (0..spec.layers.len()).map(|index| loaded.layer(index, &spec.layers[index].mlp));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Self { embed, head, final_norm, layers, bytes: loaded.bytes, streamed: loaded.streamed })
    }
}

/// Weights on their way into their places.
pub(crate) struct Loaded<B: Backend> {
    matrices: HashMap<Role, B::Weight>,
    vectors: HashMap<Role, B::Vector>,
    bytes: u64,
    streamed: u64,
}

impl<B: Backend> Loaded<B> {
    pub(crate) fn new() -> Self {
        Self { matrices: HashMap::new(), vectors: HashMap::new(), bytes: 0, streamed: 0 }
    }

    /// Prepares one weight.
    pub(crate) fn take(
        &mut self,
        to: &B,
        spec: &Spec,
        w: &Weight,
        blocks: Blocks,
    ) -> Result<(), Error> {
        let used = match w.kind {
            Kind::Vector => return self.take_vector(to, w, &blocks),
            Kind::Embedding if spec.tied_head => Use::TableAndProduct,
            Kind::Embedding => Use::Table,
            Kind::Head | Kind::Linear => Use::Product,
            Kind::Router => Use::ExactProduct,
        };
        let source = blocks.data.clone();
        let weight = to.weight(blocks, used)?;
        if !to.reads_source(&weight) {
            lathe_files::release(&source);
        }
        let bytes = to.weight_bytes(&weight) as u64;
        self.bytes += bytes;
        if to.is_streamed(&weight) {
            self.streamed += bytes;
        }
        self.matrices.insert(w.role, weight);
        Ok(())
    }

    /// Vectors are small enough to look at each number: one NaN in a norm spoils everything.
    fn take_vector(&mut self, to: &B, w: &Weight, blocks: &Blocks) -> Result<(), Error> {
        let values = blocks.decode();
        if let Some((index, value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
            let tensor = w.role.to_string();
            return Err(Error::NotFinite { tensor, role: w.role, index, value: *value });
        }
        self.bytes += 4 * values.len() as u64;
        self.vectors.insert(w.role, to.vector(values));
        Ok(())
    }

    fn layer(&mut self, index: usize, mlp: &Mlp) -> Result<LayerWeights<B>, Error> {
        Ok(LayerWeights {
            before_mixer: self.required(Role::Layer(index, Part::MixerNorm))?,
            mixer_in: self.mixer_in(index)?,
            mixer_out: self.mixer_out(index)?,
            before_mlp: self.required(Role::Layer(index, Part::MlpNorm))?,
            mlp_in: self.mlp_in(index, mlp)?,
            mlp_out: self.mlp_out(index, mlp)?,
        })
    }

    pub(crate) fn mixer_in(&mut self, index: usize) -> Result<MixerIn<B>, Error> {
        let role = |part| Role::Layer(index, part);
        Ok(MixerIn {
            q: self.linear(role(Part::Q), role(Part::QBias))?,
            k: self.linear(role(Part::K), role(Part::KBias))?,
            v: self.linear(role(Part::V), role(Part::VBias))?,
            q_norm: self.vectors.remove(&role(Part::QNorm)),
            k_norm: self.vectors.remove(&role(Part::KNorm)),
        })
    }

    pub(crate) fn mixer_out(&mut self, index: usize) -> Result<MixerOut<B>, Error> {
        let role = |part| Role::Layer(index, part);
        Ok(MixerOut {
            out: self.linear(role(Part::Out), role(Part::OutBias))?,
            after_mixer: self.vectors.remove(&role(Part::MixerAfterNorm)),
        })
    }

    pub(crate) fn mlp_in(&mut self, index: usize, mlp: &Mlp) -> Result<MlpIn<B>, Error> {
        let Mlp::Experts(experts) = mlp else {
            let role = |part| Role::Layer(index, part);
            return Ok(MlpIn::Gated(GateUp {
                gate: self.linear(role(Part::Gate), role(Part::GateBias))?,
                up: self.linear(role(Part::Up), role(Part::UpBias))?,
            }));
        };
        let shared = experts.shared;
        Ok(MlpIn::Experts {
            router: self.router(index, experts)?,
            experts: (0..experts.count)
                .map(|e| self.gate_up(index, Part::ExpertGate(e), Part::ExpertUp(e)))
                .collect::<Result<_, _>>()?,
            shared: shared
                .map(|_| self.gate_up(index, Part::SharedGate, Part::SharedUp))
                .transpose()?,
        })
    }

    pub(crate) fn mlp_out(&mut self, index: usize, mlp: &Mlp) -> Result<MlpOut<B>, Error> {
        let role = |part| Role::Layer(index, part);
        let down = match mlp {
            Mlp::Gated { .. } => Down::Gated(self.linear(role(Part::Down), role(Part::DownBias))?),
            Mlp::Experts(experts) => Down::Experts {
                experts: (0..experts.count)
                    .map(|e| self.plain(role(Part::ExpertDown(e))))
                    .collect::<Result<_, _>>()?,
                shared: experts.shared.map(|_| self.plain(role(Part::SharedDown))).transpose()?,
            },
        };
        Ok(MlpOut { down, after_mlp: self.vectors.remove(&role(Part::MlpAfterNorm)) })
    }

    pub(crate) fn router(&mut self, index: usize, experts: &Experts) -> Result<Router<B>, Error> {
        let shared = experts.shared.map(|_| self.matrix(Role::Layer(index, Part::SharedRouter)));
        let scores = self.matrix(Role::Layer(index, Part::Router))?;
        Ok(Router { scores, shared: shared.transpose()? })
    }

    fn gate_up(&mut self, index: usize, gate: Part, up: Part) -> Result<GateUp<B>, Error> {
        let (gate, up) = (Role::Layer(index, gate), Role::Layer(index, up));
        Ok(GateUp { gate: self.plain(gate)?, up: self.plain(up)? })
    }

    fn plain(&mut self, weight: Role) -> Result<Linear<B>, Error> {
        Ok(Linear { weight: self.matrix(weight)?, bias: None })
    }

    fn linear(&mut self, weight: Role, bias: Role) -> Result<Linear<B>, Error> {
        Ok(Linear { weight: self.matrix(weight)?, bias: self.vectors.remove(&bias) })
    }

    fn matrix(&mut self, role: Role) -> Result<B::Weight, Error> {
        self.matrices.remove(&role).ok_or_else(|| missing(role))
    }

    pub(crate) fn required(&mut self, role: Role) -> Result<B::Vector, Error> {
        self.vectors.remove(&role).ok_or_else(|| missing(role))
    }
}

/// Only where `Spec::weights` and the layout above disagree.
fn missing(role: Role) -> Error {
    let tensor = role.to_string();
    lathe_models::Error::MissingTensor { tensor: tensor.clone(), role: tensor }.into()
}
