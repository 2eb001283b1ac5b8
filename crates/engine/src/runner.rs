use std::sync::Arc;

use lathe_base::Bytes;
use lathe_formats::Blocks;
use lathe_kernels::{KvType, PAGE_TOKENS, Pool, Precision, Span};
use lathe_models::{Layer, Mlp, Part, Role, Spec, Weight};

use crate::{
    Error, Rounding,
    backend::{Backend, CacheShape, MatMul, Use},
    cpu::{Cpu, CpuCache, CpuWeight},
    layer::{self, Buffers, LOGIT_ROWS, Place, Positions, Steps},
    network::{Down, Loaded, MixerIn, MixerOut, MlpIn, MlpOut, Router},
    runner_experts::Carried,
};

/// Runs a model on whole sequences one stage of one layer at a time, with weights that the caller
/// holds: what calibration is made with.
///
/// A layer has four stages ([`lathe_models::Layer::stages`]). For each, [`LayerRunner::look`]
/// shows what its linears are multiplied with, and [`LayerRunner::advance`] takes the sequences to
/// the next stage. The steps are the executor's own; products are exact (f32 activations times
/// decoded weights, summed in f32), keys and values are kept in f32, and nothing depends on the
/// number of threads nor on which sequences are run together.
pub struct LayerRunner {
    backend: Cpu,
    spec: Spec,
    room: Room,
    buffers: Buffers<Cpu>,
    cache: Option<(CacheShape, CpuCache)>,
}

/// How much is run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Tokens of all sequences together.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
}

/// Sequences on their way through the layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sequences {
    /// Tokens of each.
    pub lengths: Vec<usize>,
    /// The residual stream `[T, D]`, sequence after sequence.
    pub x: Vec<f32>,
    /// Between stages 0 and 1 what attention mixed `[T, H·K]`, between 2 and 3 the gated values
    /// `[T, F]`; empty elsewhere. Where there are experts the latter are what each token's experts
    /// give, and which these are; [`LayerRunner::inner_width`] says how much there is.
    pub inner: Vec<f32>,
}

/// What a stage's inputs are made with: the norm before it, if it has one, and what tells which
/// expert gets which.
pub struct Entry {
    layer: usize,
    stage: usize,
    norm: Option<Vec<f32>>,
    router: Option<Router<Cpu>>,
}

/// The linears of a stage and what belongs to them, ready to be multiplied with.
pub struct Linears(Stage);

// There is one at a time.
#[allow(clippy::large_enum_variant)]
enum Stage {
    MixerIn(MixerIn<Cpu>),
    MixerOut(MixerOut<Cpu>),
    MlpIn(MlpIn<Cpu>),
    MlpOut(MlpOut<Cpu>),
}

/// The final norm and the head.
pub struct Output {
    norm: Vec<f32>,
    head: CpuWeight,
}

/// What linears of a stage are multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct Fed<'a> {
    /// The expert that they are of, unless all tokens go through them.
    pub expert: Option<usize>,
    /// The tokens that go through the expert, by their place among all, ascending.
    pub tokens: &'a [usize],
    /// Their inputs `[T, cols]`.
    pub x: &'a [f32],
}

impl<'a> Fed<'a> {
    fn all(x: &'a [f32]) -> Self {
        Self { expert: None, tokens: &[], x }
    }
}

/// Is shown the inputs of a stage. Experts that no token goes through are left out.
pub type Tap<'a> = dyn FnMut(Fed<'_>) + 'a;

/// Where a runner's weights come from: asked for each weight that it needs.
pub type Source<'a> = dyn FnMut(&Weight) -> Result<Blocks, Error> + 'a;

impl Entry {
    /// Which stage of its layer it is for.
    pub fn stage(&self) -> usize {
        self.stage
    }
}

impl Sequences {
    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

impl LayerRunner {
    /// A runner for the layers of `spec`.
    ///
    /// # Errors
    /// [`Error::Memory`]; numbers that no model can mean.
    pub fn new(spec: &Spec, room: Room, threads: usize) -> Result<Self, Error> {
        spec.check()?;
        let backend = Cpu::new(threads, Precision::Exact, Rounding::None);
        let buffers = Buffers::new(&backend, spec, room.tokens)?;
        Ok(Self { backend, spec: spec.clone(), room, buffers, cache: None })
    }

    /// The same with every matrix decoded to f32 as it is prepared: four bytes a weight, for
    /// weights that are prepared once and then multiplied with thousands of tokens.
    #[must_use]
    pub fn expanded(mut self) -> Self {
        self.backend.expands = true;
        self
    }

    /// The working memory of [`LayerRunner::new`], weights not counted.
    pub fn bytes(spec: &Spec, room: Room) -> Bytes {
        let widest = spec.layers.iter().map(|layer| layer.attention().kv_width()).max();
        let kv = 2 * 4 * widest.unwrap_or(0) as u64;
        let cache = (pages(room) * PAGE_TOKENS) as u64 * kv;
        Bytes(spec.activation_bytes(room.tokens, LOGIT_ROWS).0 + cache)
    }

    /// The model that is run.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// A layer of the model.
    pub fn layer(&self, index: usize) -> &Layer {
        &self.spec.layers[index]
    }

    /// The threads that it works with, for what goes on between its steps.
    pub fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.backend.pool)
    }

    /// Looks up the tokens of whole sequences in the embedding matrix.
    ///
    /// # Errors
    /// [`Error::Token`]; [`Error::Context`] where there are more than the runner has room for.
    pub fn embed(&self, table: &Blocks, sequences: &[&[u32]]) -> Result<Sequences, Error> {
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.len()).collect();
        let tokens = sequences.concat();
        self.check_room(&lengths)?;
        let vocab = self.spec.vocab.min(table.rows);
        if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Token { id: *id, vocab });
        }
        let table = self.backend.weight(table.clone(), Use::Table)?;
        let mut x = vec![0.0; tokens.len() * self.spec.width];
        self.backend.embed(&table, &tokens, self.spec.embed_scale, &mut x);
        Ok(Sequences { lengths, x, inner: Vec::new() })
    }

    /// Prepares what the inputs of a stage are made with.
    ///
    /// # Errors
    /// Those of `source`; a vector that is not finite.
    pub fn entry(
        &self,
        layer: usize,
        stage: usize,
        source: &mut Source<'_>,
    ) -> Result<Entry, Error> {
        let part = match stage {
            0 => Some(Part::MixerNorm),
            2 => Some(Part::MlpNorm),
            _ => None,
        };
        let Some(part) = part else { return Ok(Entry { layer, stage, norm: None, router: None }) };
        let experts = self.spec.layers[layer].mlp.experts().filter(|_| stage == 2);
        let routes = |part| matches!(part, Part::Router | Part::SharedRouter) && experts.is_some();
        let belongs =
            |role| matches!(role, Role::Layer(l, p) if l == layer && (p == part || routes(p)));
        let mut loaded = self.load(belongs, source)?;
        let norm = Some(loaded.required(Role::Layer(layer, part))?);
        let router = experts.map(|experts| loaded.router(layer, experts)).transpose()?;
        Ok(Entry { layer, stage, norm, router })
    }

    /// Prepares the linears of a stage, with their biases and the norms that follow them.
    ///
    /// # Errors
    /// Those of `source`; a vector that is not finite; memory.
    pub fn linears(
        &self,
        layer: usize,
        stage: usize,
        source: &mut Source<'_>,
    ) -> Result<Linears, Error> {
        let norms = [Part::MixerNorm, Part::MlpNorm];
        let belongs = |role| {
            matches!(role, Role::Layer(l, part)
                if l == layer && part.step() == stage && !norms.contains(&part))
        };
        let mut loaded = self.load(belongs, source)?;
        Ok(Linears(match stage {
            0 => Stage::MixerIn(loaded.mixer_in(layer)?),
            1 => Stage::MixerOut(loaded.mixer_out(layer)?),
            2 => Stage::MlpIn(loaded.mlp_in(layer, &self.spec.layers[layer].mlp)?),
            _ => Stage::MlpOut(loaded.mlp_out(layer, &self.spec.layers[layer].mlp)?),
        }))
    }

    /// Numbers per token of [`Sequences::inner`] before a stage of a layer.
    pub fn inner_width(layer: &Layer, stage: usize) -> usize {
        match (stage, &layer.mlp) {
            (1, _) => layer.attention().q_width(),
            (3, Mlp::Gated { width, .. }) => *width,
            (3, Mlp::Experts(experts)) => Carried::of(experts).width(),
            _ => 0,
        }
    }

    /// Shows what the linears of a stage are multiplied with.
    ///
    /// # Errors
    /// Sequences that the runner has no room for.
    pub fn look(
        &mut self,
        entry: &Entry,
        sequences: &mut Sequences,
        tap: &mut Tap<'_>,
    ) -> Result<(), Error> {
        self.check_room(&sequences.lengths)?;
        let Some(norm) = &entry.norm else {
            match self.spec.layers[entry.layer].mlp.experts().filter(|_| entry.stage == 3) {
                Some(experts) => Carried::of(experts).show(&sequences.inner, tap),
                None => tap(Fed::all(&sequences.inner)),
            }
            return Ok(());
        };
        let tokens = sequences.tokens();
        let Self { backend, spec, buffers, .. } = self;
        let steps = Steps { backend, width: spec.width, layer: &spec.layers[entry.layer] };
        std::mem::swap(&mut buffers.x, &mut sequences.x);
        match entry.stage {
            0 => steps.mixer_input(tokens, norm, buffers),
            _ => steps.mlp_input(tokens, norm, buffers),
        }
        std::mem::swap(&mut buffers.x, &mut sequences.x);
        if let (Some(router), Mlp::Experts(experts)) = (&entry.router, &steps.layer.mlp) {
            let routes = steps.route(tokens, experts, router, buffers);
            for (e, routed) in routes.by_expert(experts.count) {
                backend.gather(&routed.rows, spec.width, &buffers.normed, &mut buffers.picked);
                let x = &buffers.picked[..routed.rows.len() * spec.width];
                tap(Fed { expert: Some(e), tokens: &routed.rows, x });
            }
        }
        tap(Fed::all(&buffers.normed[..tokens * spec.width]));
        Ok(())
    }

    /// Takes `sequences` through a stage, after `tap` has seen the stage's inputs.
    ///
    /// # Errors
    /// Sequences that the runner has no room for.
    pub fn advance(
        &mut self,
        (entry, linears): (&Entry, &Linears),
        sequences: &mut Sequences,
        tap: &mut Tap<'_>,
    ) -> Result<(), Error> {
        self.look(entry, sequences, tap)?;
        let tokens = sequences.tokens();
        std::mem::swap(&mut self.buffers.x, &mut sequences.x);
        let done = self.step(entry.layer, linears, tokens, sequences);
        std::mem::swap(&mut self.buffers.x, &mut sequences.x);
        done
    }

    /// Prepares the final norm and the head; `source` is asked for the embedding where the model
    /// has no head of its own.
    ///
    /// # Errors
    /// Those of `source`; a norm that is not finite; memory.
    pub fn output(&self, source: &mut Source<'_>) -> Result<Output, Error> {
        let head = if self.spec.tied_head { Role::Embed } else { Role::Head };
        let mut loaded = self.load(|role| role == Role::FinalNorm, source)?;
        let norm = loaded.required(Role::FinalNorm)?;
        let weights = self.spec.weights();
        let weight = weights.iter().find(|weight| weight.role == head);
        let weight = weight.ok_or_else(|| lathe_models::Error::MissingTensor {
            tensor: head.to_string(),
            role: head.to_string(),
        })?;
        let head = self.backend.weight(source(weight)?, Use::Product)?;
        Ok(Output { norm, head })
    }

    /// What the head is multiplied with, `[T, D]`.
    ///
    /// # Errors
    /// Sequences that the runner has no room for.
    pub fn final_input(
        &mut self,
        output: &Output,
        sequences: &mut Sequences,
    ) -> Result<&[f32], Error> {
        self.check_room(&sequences.lengths)?;
        let tokens = sequences.tokens();
        let norm = layer::norm_of(&self.spec.final_norm, &output.norm);
        self.backend.norm(norm, tokens, &sequences.x, &mut self.buffers.normed);
        Ok(&self.buffers.normed[..tokens * self.spec.width])
    }

    /// Logits `[T, V]` of all tokens.
    ///
    /// # Errors
    /// Sequences that the runner has no room for.
    pub fn logits(
        &mut self,
        output: &Output,
        sequences: &mut Sequences,
    ) -> Result<Vec<f32>, Error> {
        let tokens = sequences.tokens();
        self.final_input(output, sequences)?;
        let Self { backend, spec, buffers, .. } = self;
        let mut logits = backend.buffer(tokens * spec.vocab)?;
        let op = MatMul { tokens, weight: &output.head, bias: None };
        backend.matmul(op, &buffers.normed, &mut logits);
        if let Some(cap) = spec.logit_cap {
            backend.soft_cap(cap, tokens * spec.vocab, &mut logits);
        }
        Ok(logits)
    }

    fn load(
        &self,
        belongs: impl Fn(Role) -> bool,
        source: &mut Source<'_>,
    ) -> Result<Loaded<Cpu>, Error> {
        let mut loaded = Loaded::new();
        for weight in self.spec.weights().into_iter().filter(|weight| belongs(weight.role)) {
            let blocks = source(&weight)?;
            if (blocks.rows, blocks.cols) != (weight.rows, weight.cols) {
                return Err(Error::Model(lathe_models::Error::Shape {
                    tensor: weight.role.to_string(),
                    role: weight.role.to_string(),
                    expected: vec![weight.rows, weight.cols],
                    found: vec![blocks.rows, blocks.cols],
                }));
            }
            loaded.take(&self.backend, &self.spec, &weight, blocks)?;
        }
        Ok(loaded)
    }

    /// One stage on what is in the buffers; `buffers.x` is the sequences' own.
    fn step(
        &mut self,
        layer: usize,
        linears: &Linears,
        tokens: usize,
        sequences: &mut Sequences,
    ) -> Result<(), Error> {
        let inner = &mut sequences.inner;
        match &linears.0 {
            Stage::MixerIn(weights) => return self.attend(layer, weights, sequences),
            Stage::MixerOut(weights) => {
                self.buffers.mixed[..inner.len()].copy_from_slice(inner);
                let (steps, buffers) = self.steps(layer);
                steps.mixer_output(tokens, weights, buffers);
                inner.clear();
            }
            Stage::MlpIn(weights) => {
                let (steps, buffers) = self.steps(layer);
                inner.clear();
                match (weights, &steps.layer.mlp) {
                    (MlpIn::Experts { router, experts: gates, shared }, Mlp::Experts(experts)) => {
                        let weights = (router, gates.as_slice(), shared.as_ref());
                        *inner = steps.carry(tokens, experts, weights, buffers);
                    }
                    (MlpIn::Gated(weights), Mlp::Gated { width, act, .. }) => {
                        let Buffers { normed, gate, up, .. } = buffers;
                        steps.gate(tokens, *act, weights, (normed, gate, up));
                        inner.extend_from_slice(&gate[..tokens * width]);
                    }
                    _ => return Err(mismatch(layer)),
                }
            }
            Stage::MlpOut(weights) => {
                let (steps, buffers) = self.steps(layer);
                match (&weights.down, &steps.layer.mlp) {
                    (Down::Experts { experts: downs, shared }, Mlp::Experts(experts)) => {
                        let downs = (downs.as_slice(), shared.as_ref());
                        steps.deliver(tokens, experts, downs, (inner, buffers));
                    }
                    (Down::Gated(down), _) => {
                        let Buffers { gate, branch, .. } = buffers;
                        gate[..inner.len()].copy_from_slice(inner);
                        steps.linear(tokens, down, gate, branch);
                    }
                    _ => return Err(mismatch(layer)),
                }
                steps.mlp_output(tokens, weights, buffers);
                inner.clear();
            }
        }
        Ok(())
    }

    fn steps(&mut self, layer: usize) -> (Steps<'_, Cpu>, &mut Buffers<Cpu>) {
        let Self { backend, spec, buffers, .. } = self;
        (Steps { backend, width: spec.width, layer: &spec.layers[layer] }, buffers)
    }

    /// Attention of every sequence over itself.
    fn attend(
        &mut self,
        layer: usize,
        weights: &MixerIn<Cpu>,
        sequences: &mut Sequences,
    ) -> Result<(), Error> {
        let attention = self.spec.layers[layer].attention().clone();
        let mut cache = self.cache(attention.kv_heads, attention.head_dim)?;
        let layout = Layout::new(&sequences.lengths);
        let rope = &attention.rope;
        let angles = layer::angles(rope, &rope.frequencies(0), &layout.positions);
        let spans = layout.spans();
        let place = Place { layer: 0, tokens: sequences.tokens(), spans: &spans, angles: &angles };
        let (steps, buffers) = self.steps(layer);
        steps.project(&place, weights, &mut cache.1, buffers);
        steps.attend(&place, &cache.1, buffers);
        let len = sequences.tokens() * attention.q_width();
        sequences.inner.clear();
        sequences.inner.extend_from_slice(&self.buffers.mixed[..len]);
        self.cache = Some(cache);
        Ok(())
    }

    /// A cache of one layer; layers of the same shape share it.
    fn cache(&mut self, kv_heads: usize, head_dim: usize) -> Result<(CacheShape, CpuCache), Error> {
        let kind = KvType::F32;
        let pages = pages(self.room);
        let shape = CacheShape { kind, layers: 1, pages, recent: 0, kv_heads, head_dim };
        match self.cache.take() {
            Some(cache) if cache.0 == shape => Ok(cache),
            _ => Ok((shape, self.backend.cache(shape)?)),
        }
    }

    fn check_room(&self, lengths: &[usize]) -> Result<(), Error> {
        let needed: usize = lengths.iter().sum();
        if needed > self.room.tokens {
            return Err(Error::Context { needed, context: self.room.tokens });
        }
        if lengths.len() > self.room.sequences {
            let (needed, free) = (lengths.len(), self.room.sequences);
            return Err(Error::Pages { needed, free });
        }
        Ok(())
    }
}

/// Linears of another layer than the one that is run.
fn mismatch(layer: usize) -> Error {
    Error::Request(format!("the linears of layer {layer} are not those of its perceptron"))
}

/// Enough for any sequences that fit the room: each may leave its last page almost empty.
fn pages(room: Room) -> usize {
    room.tokens.div_ceil(PAGE_TOKENS) + room.sequences
}

/// Where sequences lie in the cache: one after the other, from its first page on.
struct Layout {
    pages: Vec<Vec<u32>>,
    positions: Vec<Positions>,
}

impl Layout {
    fn new(lengths: &[usize]) -> Self {
        let mut layout = Self { pages: Vec::new(), positions: Vec::new() };
        let mut next = 0;
        for &length in lengths {
            let count = length.div_ceil(PAGE_TOKENS) as u32;
            layout.pages.push((next..next + count).collect());
            layout.positions.push(Positions { range: 0..length, horizon: length });
            next += count;
        }
        layout
    }

    fn spans(&self) -> Vec<Span<'_>> {
        let mut row = 0;
        let runs = self.pages.iter().zip(&self.positions);
        runs.map(|(pages, positions)| {
            let rows = row..row + positions.range.len();
            row = rows.end;
            Span { rows, start: 0, pages, recent: 0 }
        })
        .collect()
    }
}

impl std::fmt::Debug for LayerRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerRunner").field("room", &self.room).finish_non_exhaustive()
    }
}
