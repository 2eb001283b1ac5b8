use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use lathe_api::{Caps, Engine, Event, Finish, Flow, Info, Request, Scorer, Usage};
use lathe_files::Checkpoint;
use lathe_formats::Blocks;
use lathe_grammar::Compiled;
use lathe_kernels::{Inputs, KvType, PAGE_TOKENS, Precision};
use lathe_models::{Kind, Model, Spec, Weight};
use lathe_tokens::Tokenizer;

use crate::{
    Error,
    ahead::Ahead,
    backend::{Backend, CacheShape},
    cpu::Cpu,
    executor::{Executor, Room, visible},
    network::Network,
    scheme::Scheme,
    scorer::NativeScorer,
    serving::{
        Grammars, Learnt, Rules, Scheduler, Served, Snapshot, Speculation, Speculator, Step,
        Submission, Update,
    },
};

/// A model in Lathe's own runtime.
pub struct Native {
    pub(crate) executor: Executor<Cpu>,
    tokenizer: Option<Arc<Tokenizer>>,
    info: Info,
    pub(crate) batch: usize,
    grammars: Grammars,
    speculation: Speculation,
    pub(crate) draft: Option<Box<Native>>,
    learnt: Mutex<Learnt>,
    /// What calls have done so far.
    done: Mutex<Snapshot>,
}

/// How a model is to be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Threads, the caller's included.
    pub threads: usize,
    /// The longest sequence in tokens; by default the model's own, but at most
    /// [`Options::USUAL_CONTEXT`].
    pub context: Option<usize>,
    /// How keys and values are kept.
    pub kv: KvType,
    /// The arithmetic of products with coded weights.
    pub precision: Precision,
    /// What coded weights are multiplied with; by default what the checkpoint is made for, as its
    /// `quantization_config` says (W8A8, LLM.int8(), FP8).
    pub inputs: Option<Inputs>,
    /// What the result of every operation is rounded to.
    pub rounding: Rounding,
    /// Sequences that are decoded together; the cache has room for as many of full length.
    pub batch: usize,
    /// Tokens that the cache has room for, all sequences together; by default what
    /// [`Options::batch`] says.
    pub cache: Option<usize>,
    /// Tokens of one forward pass: what a prompt is cut into, and what bounds working memory.
    pub chunk: usize,
    /// Bytes that weights, cache and working memory may take together. Weights that find no room
    /// stay in their files and are read in every pass, which gives the same texts, slowly.
    pub max_memory: Option<u64>,
    /// Keep weights and cache from being paged out; the whole cache is resident then.
    pub lock: bool,
    /// Who guesses how texts go on, which changes their speed and nothing else.
    pub speculation: Speculation,
}

/// What the result of every operation is rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rounding {
    #[default]
    None,
    /// To bf16, logits included, as an engine does that computes in bf16: what this alone changes
    /// is the noise floor of a comparison.
    Bf16,
}

impl Options {
    /// Longer contexts cost memory and are asked for.
    pub const USUAL_CONTEXT: usize = 4096;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            context: None,
            kv: KvType::F16,
            precision: Precision::Fast,
            inputs: None,
            rounding: Rounding::None,
            batch: 1,
            cache: None,
            chunk: 256,
            max_memory: None,
            lock: false,
            speculation: Speculation::default(),
        }
    }
}

impl Native {
    /// Loads a checkpoint. Weights stay mapped from their files where the kernels use them as
    /// they lie.
    ///
    /// Without a tokenizer the engine takes and gives token ids only.
    ///
    /// # Errors
    /// What is wrong with the model, by tensor; memory that cannot be had.
    pub fn load(
        checkpoint: &Checkpoint,
        tokenizer: impl Into<Option<Arc<Tokenizer>>>,
        options: &Options,
    ) -> Result<Self, Error> {
        let model = Model::read(checkpoint)?;
        let own = || Scheme::of(&checkpoint.config);
        let scheme = options.inputs.map_or_else(own, Scheme::Same);
        let native = thread::scope(|scope| {
            let mut ahead = Ahead::start(scope, &model, checkpoint, options.threads);
            let source = &mut |weight: &Weight| {
                if let Some(next) = ahead.next(weight) {
                    return Ok(next?);
                }
                let found = model.find(weight.role);
                let found = found.ok_or_else(|| lathe_models::Error::MissingTensor {
                    tensor: weight.role.to_string(),
                    role: weight.role.to_string(),
                })?;
                Ok(model.load(checkpoint, found)?)
            };
            Self::with_scheme(model.spec.clone(), source, options, scheme)
        });
        let mut native = native.map_err(|error| match error {
            // The network knows roles only; here their names in the file are known.
            Error::NotFinite { role, index, value, .. } => {
                let tensor =
                    model.find(role).map_or_else(|| role.to_string(), |w| w.tensor.name.clone());
                Error::NotFinite { tensor, role, index, value }
            }
            other => other,
        })?;
        native.tokenizer = tokenizer.into();
        Ok(native)
    }

    /// Has a smaller model guess how texts go on ([`Speculation::Draft`], which is usual from then
    /// on). It works on this model's threads. Load it for as long a context and as many sequences:
    /// what is beyond is not guessed at.
    ///
    /// # Errors
    /// [`Error::Draft`] where it has other tokens, or a cache that cannot take back what was wrong.
    pub fn with_draft(mut self, mut draft: Self) -> Result<Self, Error> {
        self.fits(&draft)?;
        draft.executor.backend.share_threads(&self.executor.backend);
        (self.draft, self.speculation) = (Some(Box::new(draft)), Speculation::Draft);
        Ok(self)
    }

    /// Has others guess how texts go on, or nobody.
    #[must_use]
    pub fn with_speculation(self, speculation: Speculation) -> Self {
        Self { speculation, ..self }
    }

    /// What its own calls have done since it was loaded, as far as they came to an end; what is
    /// under way is not counted. [`crate::serving::Service::snapshot`] counts what a service does.
    pub fn done(&self) -> Snapshot {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a draft's tokens mean the same.
    fn fits(&self, draft: &Self) -> Result<(), Error> {
        if draft.executor.is_grouped() {
            let what = "its KV cache must be of a type that codes each token by itself: f16, bf16, \
                        f32 or fp8";
            return Err(Error::Draft(what.into()));
        }
        let (Some(own), Some(other)) = (&self.tokenizer, &draft.tokenizer) else {
            let (own, other) = (self.spec().vocab, draft.spec().vocab);
            return match own == other {
                true => Ok(()),
                false => Err(Error::Draft(format!("it has {other} tokens, the model {own}"))),
            };
        };
        let count = own.vocab_size().max(other.vocab_size()) as u32;
        let text = |of: &Tokenizer, id| of.token_text(id).unwrap_or("nothing").to_owned();
        let differs = |id: &u32| own.token_text(*id) != other.token_text(*id);
        match (0..count).find(differs) {
            None => Ok(()),
            Some(id) => Err(Error::Draft(format!(
                "its token {id} is `{}`, the model's is `{}`; both must have the same tokenizer",
                text(other, id),
                text(own, id)
            ))),
        }
    }

    /// Loads weights from anywhere: random ones for a benchmark, edited ones for a search.
    ///
    /// `source` is asked for each of [`Spec::weights`] in order.
    ///
    /// # Errors
    /// As [`Native::load`], and where a weight's shape is not the spec's.
    pub fn from_weights(
        spec: Spec,
        source: &mut dyn FnMut(&Weight) -> Result<Blocks, Error>,
        options: &Options,
    ) -> Result<Self, Error> {
        let scheme = Scheme::Same(options.inputs.unwrap_or_default());
        Self::with_scheme(spec, source, options, scheme)
    }

    fn with_scheme(
        spec: Spec,
        source: &mut dyn FnMut(&Weight) -> Result<Blocks, Error>,
        options: &Options,
        scheme: Scheme,
    ) -> Result<Self, Error> {
        spec.check()?;
        let room = room(&spec, options)?;
        let weights = weights_room(&spec, &room, options)?;
        let backend = Cpu::new(options.threads, options.precision, options.rounding)
            .with_scheme(scheme)
            .with_room(weights)
            .with_lock(options.lock);
        let mut checked = |weight: &Weight| {
            let blocks = source(weight)?;
            if (blocks.rows, blocks.cols) == (weight.rows, weight.cols) {
                return Ok(blocks);
            }
            Err(Error::Model(lathe_models::Error::Shape {
                tensor: weight.role.to_string(),
                role: weight.role.to_string(),
                expected: vec![weight.rows, weight.cols],
                found: vec![blocks.rows, blocks.cols],
            }))
        };
        let network = Network::load(&backend, &spec, &mut checked)?;
        let info = Info {
            engine: "native".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: backend.describe(),
            vocab: spec.vocab,
            context: room.context,
            weight_bytes: network.bytes,
            caps: Caps { logits: true, batch: true, seed: true, grammar: true },
            found_running: false,
        };
        let executor = Executor::new(backend, spec, network, room)?;
        Ok(Self {
            executor,
            tokenizer: None,
            info,
            batch: options.batch.max(1),
            grammars: Grammars::default(),
            speculation: options.speculation,
            draft: None,
            learnt: Mutex::default(),
            done: Mutex::default(),
        })
    }

    /// What a request's texts must be, ready for use with this model.
    ///
    /// # Errors
    /// [`Error::Grammar`]; [`Error::Request`] without a tokenizer.
    pub(crate) fn grammar(&self, request: &Request) -> Result<Option<Arc<Compiled>>, Error> {
        let (tokenizer, vocab) = (self.tokenizer.as_deref(), self.executor.spec.vocab);
        let compile = |grammar| self.grammars.compiled(grammar, tokenizer, vocab);
        request.grammar.as_ref().map(compile).transpose()
    }

    /// Bytes of weights that found no room in memory: they are read from their files in every pass.
    pub fn streamed(&self) -> u64 {
        self.executor.network.streamed
    }

    /// Runs a submission of one text on the caller's thread, for what [`Engine::generate`] does not
    /// tell: log probabilities. Its priority and its client mean nothing here.
    ///
    /// # Errors
    /// As [`Engine::generate`]; [`Error::Request`] where more than one text is wanted, for which
    /// there is [`crate::serving::Service`].
    pub fn submit(
        &self,
        submission: Submission,
        on: &mut dyn FnMut(Update) -> Flow,
    ) -> Result<Served, Error> {
        if submission.n != 1 {
            let what = format!("{} texts are wanted, but a call gives one", submission.n);
            return Err(Error::Request(what));
        }
        let mut served = Served::default();
        self.run(vec![submission], 1, &mut |_, update| {
            if let Update::Done(Ok(done)) = &update {
                served = *done;
            }
            on(update)
        })?;
        Ok(served)
    }

    /// Generates from requests, `sequences` at a time.
    fn texts(
        &self,
        requests: &[Request],
        sequences: usize,
        on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
    ) -> Result<Vec<Usage>, Error> {
        let submissions = requests.iter().cloned().map(Submission::from).collect();
        let mut usages = vec![None; requests.len()];
        self.run(submissions, sequences, &mut |index, update| match update {
            Update::Prefilled { tokens, .. } => on(index, Event::Prefilled { tokens }),
            Update::Token { id, piece, .. } => on(index, Event::Token { id, text: &piece }),
            Update::Finished { finish, generated, .. } => {
                usages[index] = Some(usage(&requests[index], finish, generated));
                Flow::Continue
            }
            Update::Done(_) => Flow::Continue,
        })?;
        Ok(usages.into_iter().flatten().collect())
    }

    /// Runs submissions of one text each to their ends on the caller's thread. Nothing is shared
    /// with other calls, so that each computes its whole prompt, and each has all its pages before
    /// it starts.
    fn run(
        &self,
        submissions: Vec<Submission>,
        sequences: usize,
        on: &mut dyn FnMut(usize, Update) -> Flow,
    ) -> Result<(), Error> {
        let rules = Rules {
            sequences,
            step_tokens: self.executor.chunk,
            share_prefixes: false,
            reserve: true,
        };
        let scheduler = Scheduler::new(&self.executor, self.tokenizer.as_deref(), rules);
        let mut scheduler = scheduler.with_speculator(self.speculator());
        for (index, submission) in submissions.into_iter().enumerate() {
            let grammar = self.grammar(&submission.request)?;
            scheduler.submit(index as u64, submission, grammar)?;
        }
        let mut failed = None;
        loop {
            let step = scheduler.step(&mut |id, update| match update {
                Update::Done(Err(error)) => {
                    failed.get_or_insert(error);
                    Flow::Continue
                }
                update => on(id as usize, update),
            });
            if let Some(error) = failed {
                return Err(error);
            }
            match step {
                Step::Worked => {}
                Step::Idle => break,
                Step::Stalled(error) => return Err(error),
            }
        }
        self.done.lock().unwrap_or_else(PoisonError::into_inner).add(&scheduler.snapshot());
        *self.learnt() = scheduler.into_learnt();
        Ok(())
    }

    /// What decides on guesses, with what calls before have learnt of them.
    pub(crate) fn speculator(&self) -> Speculator<'_> {
        Speculator::new(self.speculation, self.draft.as_deref(), self.learnt().clone())
    }

    pub(crate) fn learnt(&self) -> MutexGuard<'_, Learnt> {
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model's numbers.
    pub fn spec(&self) -> &Spec {
        &self.executor.spec
    }

    /// The tokenizer that the engine was loaded with.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }
}

impl Engine for Native {
    fn info(&self) -> &Info {
        &self.info
    }

    fn generate(
        &self,
        request: &Request,
        on: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Usage, lathe_api::Error> {
        let usages = self.texts(std::slice::from_ref(request), 1, &mut |_, event| on(event))?;
        usages.into_iter().next().ok_or_else(|| lathe_api::Error::Failed {
            engine: "native".to_owned(),
            why: "the request ended without a result".to_owned(),
        })
    }

    /// Up to [`Options::batch`] requests are decoded together, the others as places come free. A
    /// request's text is the same as alone; one that cannot be run is refused before any starts.
    fn generate_batch(
        &self,
        requests: &[Request],
        on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
    ) -> Result<Vec<Usage>, lathe_api::Error> {
        Ok(self.texts(requests, self.batch, on)?)
    }

    fn scorer(&self) -> Result<Box<dyn Scorer + '_>, lathe_api::Error> {
        Ok(Box::new(NativeScorer::new(&self.executor)))
    }
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native").field("info", &self.info).finish_non_exhaustive()
    }
}

fn usage(request: &Request, finish: Finish, generated_tokens: usize) -> Usage {
    Usage { prompt_tokens: request.prompt.len(), generated_tokens, finish }
}

/// What an executor is to make room for.
pub(crate) fn room(spec: &Spec, options: &Options) -> Result<Room, Error> {
    let usual = spec.context.min(Options::USUAL_CONTEXT);
    let context = options.context.unwrap_or(usual);
    if context == 0 {
        return Err(Error::Request("a context of 0 tokens holds nothing; raise --context".into()));
    }
    let first = spec.layers.first().map(|layer| layer.attention());
    let Some(first) = first else {
        return Err(Error::Request("a model without layers cannot be run".into()));
    };
    let same = |layer: &lathe_models::Layer| {
        let attention = layer.attention();
        (attention.kv_heads, attention.head_dim) == (first.kv_heads, first.head_dim)
    };
    if let Some(layer) = spec.layers.iter().position(|layer| !same(layer)) {
        return Err(Error::UnevenLayers { layer });
    }
    let full = || options.batch.max(1).saturating_mul(context.div_ceil(PAGE_TOKENS));
    let pages = options.cache.map_or_else(full, |tokens| tokens.div_ceil(PAGE_TOKENS).max(1));
    let cache = CacheShape {
        kind: options.kv,
        layers: spec.layers.len(),
        pages,
        recent: options.kv.recent(options.batch.max(1)),
        kv_heads: first.kv_heads,
        head_dim: first.head_dim,
    };
    Ok(Room { context, chunk: options.chunk.clamp(1, context), cache })
}

/// Bytes that are left for weights: of those allowed, what the cache and a pass do not take.
fn weights_room(spec: &Spec, room: &Room, options: &Options) -> Result<Option<u64>, Error> {
    let Some(allowed) = options.max_memory else { return Ok(None) };
    let needed = Cpu::cache_bytes(room.cache) as u64 + working_bytes(spec, room, options.batch);
    match allowed.checked_sub(needed) {
        None | Some(0) => Err(Error::NothingLeft { needed, allowed }),
        left => Ok(left),
    }
}

/// Bytes that a pass takes beside weights and cache, generously: the activations of a chunk, a row
/// of logits for each sequence as computed and as chosen from, those of prompts that are looked at,
/// and strips of weights on their way.
fn working_bytes(spec: &Spec, room: &Room, sequences: usize) -> u64 {
    const STRIPS: usize = 32 << 20;
    let weights = spec.weights();
    let linears = weights.iter().filter(|weight| weight.kind == Kind::Linear);
    let widest = linears.map(|weight| weight.rows + weight.cols).max().unwrap_or(0);
    let activations = 4 * widest * room.chunk.max(sequences);
    let logits = spec.vocab * (2 * (1 + sequences) + visible(spec));
    (4 * (activations + logits) + STRIPS) as u64
}
