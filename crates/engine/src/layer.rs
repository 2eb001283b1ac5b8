use std::ops::Range;

use lathe_kernels::Span;
use lathe_models::{Act, Attention, Experts, Frequencies, Layer, Mlp, Norm, QkNorm, Rope, Spec};

use crate::{
    Error,
    backend::{Angles, Attend, Backend, MatMul, NormOf},
    network::{Down, GateUp, Linear, MixerIn, MixerOut, MlpIn, MlpOut, Router},
    routing::{Routed, Routes, logistic},
};

/// One layer, step by step, on the tokens of a pass: what the executor and the runner of single
/// layers are written in.
pub(crate) struct Steps<'a, B: Backend> {
    pub(crate) backend: &'a B,
    /// Of the residual stream.
    pub(crate) width: usize,
    pub(crate) layer: &'a Layer,
}

/// What makes logits of the residual stream.
pub(crate) struct Head<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) spec: &'a Spec,
    pub(crate) norm: &'a B::Vector,
    pub(crate) weight: &'a B::Weight,
}

/// Rows of logits computed at a time, so that scoring a long text needs little memory.
pub(crate) const LOGIT_ROWS: usize = 16;

/// Working memory of a pass.
pub(crate) struct Buffers<B: Backend> {
    pub(crate) x: B::Buffer,
    pub(crate) normed: B::Buffer,
    pub(crate) branch: B::Buffer,
    pub(crate) q: B::Buffer,
    pub(crate) mixed: B::Buffer,
    pub(crate) k: B::Buffer,
    pub(crate) v: B::Buffer,
    pub(crate) gate: B::Buffer,
    pub(crate) up: B::Buffer,
    /// Of the experts, for each token.
    pub(crate) scores: B::Buffer,
    /// The inputs of one expert.
    pub(crate) picked: B::Buffer,
    /// Its outputs.
    pub(crate) routed: B::Buffer,
    pub(crate) logits: B::Buffer,
}

/// Where the tokens of a pass are in their sequences.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Of the cache.
    pub(crate) layer: usize,
    pub(crate) tokens: usize,
    pub(crate) spans: &'a [Span<'a>],
    pub(crate) angles: &'a Angles,
}

/// Neighbouring tokens of one sequence in a pass.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Positions {
    pub(crate) range: Range<usize>,
    /// The length of the whole sequence: what length-dependent rope scaling goes by.
    pub(crate) horizon: usize,
}

impl<B: Backend> Steps<'_, B> {
    /// From the residual stream to what attention's projections are fed, in `normed`.
    pub(crate) fn mixer_input(&self, rows: usize, weight: &B::Vector, buffers: &mut Buffers<B>) {
        let norm = norm_of(&self.layer.norms.before_mixer, weight);
        self.backend.norm(norm, rows, &buffers.x, &mut buffers.normed);
    }

    /// Keys, values and queries; the former go to the cache.
    pub(crate) fn project(
        &self,
        place: &Place<'_>,
        weights: &MixerIn<B>,
        cache: &mut B::Cache,
        buffers: &mut Buffers<B>,
    ) {
        let backend = self.backend;
        let Buffers { normed, q, k, v, .. } = buffers;
        let attention = self.layer.attention();
        let &Attention { heads, kv_heads, head_dim, .. } = attention;
        let tokens = place.tokens;
        let linears = [(&weights.q, &mut *q), (&weights.k, &mut *k), (&weights.v, &mut *v)];
        self.linears(tokens, linears, normed);
        if let Some(norm) = &attention.qk_norm {
            let (norm, q_runs, k_runs) = match norm {
                QkNorm::Head(norm) => (norm, heads, kv_heads),
                QkNorm::Whole(norm) => (norm, 1, 1),
            };
            if let Some(weight) = &weights.q_norm {
                backend.norm_in_place(norm_of(norm, weight), tokens * q_runs, q);
            }
            if let Some(weight) = &weights.k_norm {
                backend.norm_in_place(norm_of(norm, weight), tokens * k_runs, k);
            }
        }
        backend.rope(place.angles, heads, head_dim, q);
        backend.rope(place.angles, kv_heads, head_dim, k);
        backend.store(cache, place.layer, place.spans, k, v);
    }

    /// What the queries find in the cache, in `mixed`.
    pub(crate) fn attend(&self, place: &Place<'_>, cache: &B::Cache, buffers: &mut Buffers<B>) {
        let attention = self.layer.attention();
        let op = Attend {
            layer: place.layer,
            heads: attention.heads,
            head_dim: attention.head_dim,
            scale: attention.scale,
            window: attention.window,
            cap: attention.cap,
            spans: place.spans,
        };
        self.backend.attention(&op, cache, &buffers.q, &mut buffers.mixed);
    }

    /// From the mixed values back to the residual stream.
    pub(crate) fn mixer_output(
        &self,
        rows: usize,
        weights: &MixerOut<B>,
        buffers: &mut Buffers<B>,
    ) {
        let Buffers { x, branch, mixed, .. } = buffers;
        self.linear(rows, &weights.out, mixed, branch);
        let norms = &self.layer.norms;
        if let (Some(norm), Some(weight)) = (&norms.after_mixer, &weights.after_mixer) {
            self.backend.norm_in_place(norm_of(norm, weight), rows, branch);
        }
        self.backend.add(rows * self.width, x, branch);
    }

    /// From the residual stream to what gate and up are fed, in `normed`.
    pub(crate) fn mlp_input(&self, rows: usize, weight: &B::Vector, buffers: &mut Buffers<B>) {
        let norm = norm_of(&self.layer.norms.before_mlp, weight);
        self.backend.norm(norm, rows, &buffers.x, &mut buffers.normed);
    }

    /// From what `mlp_input` gave through the perceptron, or the experts that each token is sent
    /// to, back to the residual stream. `next` is multiplied with after that, with as many tokens.
    pub(crate) fn mlp(
        &self,
        rows: usize,
        input: &MlpIn<B>,
        output: &MlpOut<B>,
        next: &[&B::Weight],
        buffers: &mut Buffers<B>,
    ) {
        match (&self.layer.mlp, input, &output.down) {
            (Mlp::Gated { act, .. }, MlpIn::Gated(weights), Down::Gated(down)) => {
                let Buffers { normed, gate, up, branch, .. } = buffers;
                self.backend.foresee(rows, &[&down.weight]);
                self.gate(rows, *act, weights, (normed, gate, up));
                self.backend.foresee(rows, next);
                self.linear(rows, down, gate, branch);
            }
            (
                Mlp::Experts(experts),
                MlpIn::Experts { router, experts: inputs, shared },
                Down::Experts { experts: outputs, shared: shared_down },
            ) => {
                let routes = self.route(rows, experts, router, buffers);
                self.backend.clear(rows * self.width, &mut buffers.branch);
                for (e, routed) in routes.by_expert(experts.count) {
                    self.expert_gate(experts, &inputs[e], &routed.rows, buffers);
                    self.expert_output(&outputs[e], &routed, buffers);
                }
                if let (Some(shared), Some(down)) = (shared, shared_down) {
                    let routed = self.to_shared(rows, router, buffers);
                    self.shared_gate(rows, experts, shared, buffers);
                    self.expert_output(down, &routed, buffers);
                }
            }
            _ => unreachable!("the network is loaded by the same spec"),
        }
        self.mlp_output(rows, output, buffers);
    }

    /// `gate = act(gate(x)) · up(x)`
    pub(crate) fn gate(
        &self,
        rows: usize,
        act: Act,
        weights: &GateUp<B>,
        (x, gate, up): (&B::Buffer, &mut B::Buffer, &mut B::Buffer),
    ) {
        self.linears(rows, [(&weights.gate, &mut *gate), (&weights.up, &mut *up)], x);
        let width = self.backend.rows(&weights.gate.weight);
        self.backend.gated(act, rows * width, gate, up);
    }

    /// Which experts the rows of `normed` go to.
    pub(crate) fn route(
        &self,
        rows: usize,
        experts: &Experts,
        router: &Router<B>,
        buffers: &mut Buffers<B>,
    ) -> Routes {
        let Buffers { normed, scores, .. } = buffers;
        let op = MatMul { tokens: rows, weight: &router.scores, bias: None };
        self.backend.matmul(op, normed, scores);
        let mut values = Vec::with_capacity(rows * experts.count);
        self.backend.read(scores, 0..rows * experts.count, &mut values);
        Routes::choose(experts, &values)
    }

    /// All rows go to the shared expert, each as far as its score says.
    pub(crate) fn to_shared(
        &self,
        rows: usize,
        router: &Router<B>,
        buffers: &mut Buffers<B>,
    ) -> Routed {
        let Buffers { normed, scores, .. } = buffers;
        let mut weights = Vec::with_capacity(rows);
        if let Some(weight) = &router.shared {
            self.backend.matmul(MatMul { tokens: rows, weight, bias: None }, normed, scores);
            self.backend.read(scores, 0..rows, &mut weights);
        }
        weights.iter_mut().for_each(|score| *score = logistic(*score));
        Routed { rows: (0..rows).collect(), slots: Vec::new(), weights }
    }

    /// What an expert's down projection is fed by some rows of `normed`, in `gate`.
    pub(crate) fn expert_gate(
        &self,
        experts: &Experts,
        weights: &GateUp<B>,
        rows: &[usize],
        buffers: &mut Buffers<B>,
    ) {
        let Buffers { normed, picked, gate, up, .. } = buffers;
        self.backend.gather(rows, self.width, normed, picked);
        self.gate(rows.len(), experts.act, weights, (picked, gate, up));
    }

    /// What the shared expert's down projection is fed, in `gate`.
    pub(crate) fn shared_gate(
        &self,
        rows: usize,
        experts: &Experts,
        weights: &GateUp<B>,
        buffers: &mut Buffers<B>,
    ) {
        let Buffers { normed, gate, up, .. } = buffers;
        self.gate(rows, experts.act, weights, (normed, gate, up));
    }

    /// Adds what an expert makes of `gate` to its tokens' rows of `branch`.
    pub(crate) fn expert_output(
        &self,
        down: &Linear<B>,
        routed: &Routed,
        buffers: &mut Buffers<B>,
    ) {
        let Buffers { gate, routed: output, branch, .. } = buffers;
        self.linear(routed.rows.len(), down, gate, output);
        self.backend.scatter_add(&routed.rows, &routed.weights, self.width, output, branch);
    }

    /// From a perceptron's output, in `branch`, back to the residual stream.
    pub(crate) fn mlp_output(&self, rows: usize, weights: &MlpOut<B>, buffers: &mut Buffers<B>) {
        let Buffers { x, branch, .. } = buffers;
        if let (Some(norm), Some(weight)) = (&self.layer.norms.after_mlp, &weights.after_mlp) {
            self.backend.norm_in_place(norm_of(norm, weight), rows, branch);
        }
        self.backend.add(rows * self.width, x, branch);
    }

    pub(crate) fn linear(
        &self,
        tokens: usize,
        linear: &Linear<B>,
        x: &B::Buffer,
        out: &mut B::Buffer,
    ) {
        self.linears(tokens, [(linear, out)], x);
    }

    /// Several, all of the same inputs.
    fn linears<const N: usize>(
        &self,
        tokens: usize,
        of: [(&Linear<B>, &mut B::Buffer); N],
        x: &B::Buffer,
    ) {
        let mut of = of.map(|(Linear { weight, bias }, out)| {
            (MatMul { tokens, weight, bias: bias.as_ref() }, out)
        });
        self.backend.matmuls(&mut of, x);
    }
}

impl<B: Backend> Head<'_, B> {
    /// Appends the logits of the first `rows` rows of the residual stream to `out`.
    pub(crate) fn logits(&self, rows: usize, buffers: &mut Buffers<B>, out: &mut Vec<f32>) {
        if rows == 0 {
            return;
        }
        let Self { backend, spec, norm, weight } = *self;
        let Buffers { x, normed, branch, logits, .. } = buffers;
        backend.norm(norm_of(&spec.final_norm, norm), rows, x, normed);
        out.reserve(rows * spec.vocab);
        for start in (0..rows).step_by(LOGIT_ROWS) {
            let block: Vec<usize> = (start..rows.min(start + LOGIT_ROWS)).collect();
            let len = block.len() * spec.vocab;
            backend.gather(&block, spec.width, normed, branch);
            backend.matmul(MatMul { tokens: block.len(), weight, bias: None }, branch, logits);
            if let Some(cap) = spec.logit_cap {
                backend.soft_cap(cap, len, logits);
            }
            backend.read(logits, 0..len, out);
        }
    }
}

impl<B: Backend> Buffers<B> {
    /// Exactly the bytes of [`Spec::activation_bytes`].
    pub(crate) fn new(backend: &B, spec: &Spec, chunk: usize) -> Result<Self, Error> {
        let widest = |of: fn(&Layer) -> usize| spec.layers.iter().map(of).max().unwrap_or(0);
        let rows = |width: usize| backend.buffer(chunk * width);
        let q = widest(|layer| layer.attention().q_width());
        let kv = widest(|layer| layer.attention().kv_width());
        let feed_forward = widest(|layer| layer.mlp.widest());
        let experts = widest(|layer| layer.mlp.experts().map_or(0, |experts| experts.count));
        let routed = if experts > 0 { spec.width } else { 0 };
        Ok(Self {
            x: rows(spec.width)?,
            normed: rows(spec.width)?,
            branch: rows(spec.width)?,
            q: rows(q)?,
            mixed: rows(q)?,
            k: rows(kv)?,
            v: rows(kv)?,
            gate: rows(feed_forward)?,
            up: rows(feed_forward)?,
            scores: rows(experts)?,
            picked: rows(routed)?,
            routed: rows(routed)?,
            logits: backend.buffer(LOGIT_ROWS * spec.vocab)?,
        })
    }
}

/// A norm and its numbers, as backends want them.
pub(crate) fn norm_of<'a, B: Backend>(norm: &Norm, weight: &'a B::Vector) -> NormOf<'a, B> {
    NormOf { weight, offset: norm.offset, eps: norm.eps }
}

/// The angles of all tokens of a pass. `usual` are the rope's frequencies where they do not depend
/// on the length.
pub(crate) fn angles(rope: &Rope, usual: &Frequencies, tokens: &[Positions]) -> Angles {
    let pairs = rope.dims / 2;
    let len = pairs * tokens.iter().map(|run| run.range.len()).sum::<usize>();
    let (mut cos, mut sin) = (Vec::with_capacity(len), Vec::with_capacity(len));
    for Positions { range, horizon } in tokens {
        let of_length = rope.depends_on_length().then(|| rope.frequencies(*horizon));
        let Frequencies { inverse, magnitude } = of_length.as_ref().unwrap_or(usual);
        for position in range.clone() {
            for frequency in inverse {
                // In f32, as the references compute it: at large positions the rounding of
                // the product is part of what the model was trained with.
                let (s, c) = (position as f32 * frequency).sin_cos();
                cos.push(c * magnitude);
                sin.push(s * magnitude);
            }
        }
    }
    Angles { layout: rope.layout, pairs, cos, sin }
}
