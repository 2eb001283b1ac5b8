use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use lathe_kernels::{PAGE_TOKENS, Span};
use lathe_models::{Frequencies, Layer, Rope, Scaling, Spec};

use crate::{
    Error,
    backend::{Angles, Backend, CacheShape},
    layer::{self, Buffers, Head, Place, Positions, Steps},
    network::Network,
    pages::{Copied, PagePool, PageTable},
    prefix::{Entry, Link},
};

/// Walks a [`Spec`] for a flat run of tokens of many sequences.
///
/// A token's results depend on its own sequence alone: not on what else is in the batch, on how
/// the run is cut into chunks, nor on the number of threads.
pub(crate) struct Executor<B: Backend> {
    pub(crate) spec: Spec,
    pub(crate) context: usize,
    /// Tokens of one pass.
    pub(crate) chunk: usize,
    pub(crate) pages: PagePool,
    pub(crate) backend: B,
    pub(crate) network: Network<B>,
    /// Whether the cache codes pages as a whole: see [`Executor::checkable`].
    grouped: bool,
    /// The ropes in use, without repetition, and for each layer which.
    ropes: Vec<(Rope, Frequencies)>,
    rope_of: Vec<usize>,
    state: Mutex<State<B>>,
}

/// One sequence: what it has of the cache.
#[derive(Debug)]
pub(crate) struct Sequence {
    table: PageTable,
    len: usize,
    /// Of what was fed last.
    horizon: usize,
}

/// Tokens to append to a sequence.
pub(crate) struct Feed<'a> {
    pub(crate) sequence: &'a mut Sequence,
    pub(crate) tokens: &'a [u32],
    /// How long the run is that these tokens belong to, from the sequence's beginning: what
    /// length-dependent rope scaling goes by. A token beyond it is its own run's last.
    pub(crate) horizon: usize,
    pub(crate) want: Want,
}

/// After which tokens logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    None,
    Last,
    All,
}

/// Sizes of an executor's working memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) context: usize,
    pub(crate) chunk: usize,
    pub(crate) cache: CacheShape,
}

struct State<B: Backend> {
    cache: B::Cache,
    buffers: Buffers<B>,
}

/// One pass: at most a chunk of tokens.
#[derive(Default)]
struct Pass {
    tokens: Vec<u32>,
    /// For each run of neighbours: which feed, which rows of the pass, first position.
    runs: Vec<(usize, Range<usize>, usize)>,
    /// Rows whose logits are wanted.
    wanted: Vec<usize>,
}

impl Sequence {
    /// Positions in the cache.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets everything and gives the pages back.
    pub(crate) fn clear(&mut self) {
        self.table.clear();
        self.len = 0;
    }

    /// Forgets everything but keeps the pages.
    pub(crate) fn forget(&mut self) {
        self.len = 0;
    }

    /// Whether what it holds was computed for a run of at most `length` tokens, and the run is
    /// now longer.
    pub(crate) fn crosses(&self, length: usize, horizon: usize) -> bool {
        self.len > 0 && self.horizon <= length && horizon > length
    }

    /// Takes over what others have computed of the tokens that it is to be fed next; `entries` are
    /// those from [`Sequence::len`] on, without any that must be computed. Gives the positions
    /// gained.
    pub(crate) fn adopt(&mut self, entries: impl Iterator<Item = Entry>) -> usize {
        if !self.len.is_multiple_of(PAGE_TOKENS)
            || self.table.pages().len() * PAGE_TOKENS != self.len
        {
            return 0;
        }
        let gained = self.table.adopt(entries) * PAGE_TOKENS;
        self.len += gained;
        gained
    }

    /// Lets others use its full pages; `entry` says what a position holds.
    pub(crate) fn publish(&mut self, entry: impl Fn(usize) -> Entry) {
        let from = self.table.known() * PAGE_TOKENS;
        if self.len >= from + PAGE_TOKENS {
            self.table.publish((from..self.len).map(entry));
        }
    }

    /// Of its first positions, how many are known to others, and by what chain.
    pub(crate) fn known(&self) -> (usize, Link) {
        (self.table.known() * PAGE_TOKENS, self.table.link())
    }

    /// Whether its next position is the first of a page.
    pub(crate) fn is_at_page(&self) -> bool {
        self.len.is_multiple_of(PAGE_TOKENS)
    }

    /// Positions that it has pages for.
    pub(crate) fn room(&self) -> usize {
        self.table.pages().len() * PAGE_TOKENS
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.table.pages().len()
    }
}

impl<B: Backend> Executor<B> {
    pub(crate) fn new(
        backend: B,
        spec: Spec,
        network: Network<B>,
        room: Room,
    ) -> Result<Self, Error> {
        let mut ropes: Vec<(Rope, Frequencies)> = Vec::new();
        let mut rope_of = Vec::new();
        for layer in &spec.layers {
            let rope = &layer.attention().rope;
            let known = ropes.iter().position(|(r, _)| r == rope);
            rope_of.push(known.unwrap_or(ropes.len()));
            if known.is_none() {
                ropes.push((rope.clone(), rope.frequencies(0)));
            }
        }
        let cache = backend.cache(room.cache)?;
        let buffers = Buffers::new(&backend, &spec, room.chunk)?;
        let Room { context, chunk, .. } = room;
        // Types that keep nothing for each sequence set no limit.
        let CacheShape { kind, pages, recent, .. } = room.cache;
        let pages = PagePool::new(pages, if kind.is_grouped() { recent } else { pages });
        let state = Mutex::new(State { cache, buffers });
        let grouped = kind.is_grouped();
        Ok(Self { spec, context, chunk, pages, backend, network, grouped, ropes, rope_of, state })
    }

    /// A sequence without tokens.
    pub(crate) fn sequence(&self) -> Sequence {
        Sequence { table: self.pages.table(), len: 0, horizon: 0 }
    }

    /// A sequence that grows past this length must be computed anew: all its positions are
    /// rotated differently from there on. With it, logits are always those of one pass over the
    /// whole sequence.
    pub(crate) fn recompute_beyond(&self) -> Option<usize> {
        let longest = |(rope, _): &(Rope, Frequencies)| match rope.scaling {
            Scaling::LongRope { original, .. } => Some(original),
            _ => None,
        };
        self.ropes.iter().find_map(longest)
    }

    /// How a key is rotated in a sequence of this length: two lengths with one answer rotate all
    /// positions alike.
    pub(crate) fn rotation(&self, horizon: usize) -> u32 {
        let of = |(rope, _): &(Rope, Frequencies)| match rope.scaling {
            Scaling::Dynamic { original, .. } if horizon > original => horizon,
            Scaling::LongRope { original, .. } => usize::from(horizon > original),
            _ => 0,
        };
        // A model has one such scaling. Were there two, the longer answer tells more lengths apart,
        // and the switch of the other is told by it too.
        self.ropes.iter().map(of).max().unwrap_or(0) as u32
    }

    /// Runs of positions that are rotated alike.
    fn positions(&self, range: Range<usize>, horizon: usize) -> Vec<Positions> {
        let beyond = range.end.saturating_sub(horizon.max(range.start));
        if beyond == 0 || !self.ropes.iter().any(|(rope, _)| rope.depends_on_length()) {
            return vec![Positions { range, horizon }];
        }
        let within = range.start..range.end - beyond;
        let each = |at: usize| Positions { range: at..at + 1, horizon: at + 1 };
        let rest = (within.end..range.end).map(each);
        let within = (!within.is_empty()).then_some(Positions { range: within, horizon });
        within.into_iter().chain(rest).collect()
    }

    /// Makes sure that a sequence can grow to `tokens` positions, the next of which are its own.
    ///
    /// # Errors
    /// [`Error::Pages`] and [`Error::Sequences`].
    pub(crate) fn make_room(&self, sequence: &mut Sequence, tokens: usize) -> Result<(), Error> {
        sequence.table.reserve(tokens)?;
        // Only a page that is partly full is written to and may be another's.
        if !sequence.len.is_multiple_of(PAGE_TOKENS)
            && let Some(Copied { from, to }) = sequence.table.own(sequence.len)?
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            self.backend.copy_page(&mut state.cache, from, to);
        }
        Ok(())
    }

    /// Whether there is no way back to a page that is full.
    pub(crate) fn is_grouped(&self) -> bool {
        self.grouped
    }

    /// Of the tokens that may follow a text of `len`, the last of which is to be computed next, how
    /// many can be computed with it and taken back as if they had never been.
    ///
    /// Where pages are coded as a whole, a sequence keeps the page that is not full yet in full
    /// precision, and that page only: there is no way back to the page before it. And where a rope
    /// changes with the length of the text, all of it is computed anew.
    pub(crate) fn checkable(&self, len: usize, horizon: usize) -> usize {
        let page = if self.grouped { len.next_multiple_of(PAGE_TOKENS) } else { usize::MAX };
        let rope = self.recompute_beyond().filter(|switch| horizon <= *switch);
        let end = page.min(rope.unwrap_or(usize::MAX)).min(self.context);
        end.saturating_sub(len)
    }

    /// Takes back all but the first `len` positions, with what [`Executor::checkable`] allows; their
    /// pages are free then, unless they are to be kept.
    pub(crate) fn truncate(&self, sequence: &mut Sequence, len: usize, keep_pages: bool) {
        debug_assert!(len <= sequence.len && sequence.known().0 <= len);
        debug_assert!(
            !self.grouped
                || len.saturating_sub(1) / PAGE_TOKENS
                    == (sequence.len.saturating_sub(1)) / PAGE_TOKENS
        );
        sequence.len = len;
        if !keep_pages {
            sequence.table.truncate(len.div_ceil(PAGE_TOKENS));
        }
    }

    /// Tokens of prompts of which one pass may give all logits: more would take much memory.
    pub(crate) fn visible(&self) -> usize {
        visible(&self.spec)
    }

    /// A second sequence that holds the same and goes on by itself.
    ///
    /// # Errors
    /// [`Error::Sequences`] where too many sequences have pages.
    pub(crate) fn fork(&self, sequence: &Sequence) -> Result<Sequence, Error> {
        let (table, recent) = sequence.table.fork()?;
        if let Some(Copied { from, to }) = recent {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            self.backend.copy_recent(&mut state.cache, from, to);
        }
        Ok(Sequence { table, ..*sequence })
    }

    /// Appends tokens to sequences and appends the wanted rows of logits to `logits`, in order.
    ///
    /// # Errors
    /// Nothing is computed where a token is unknown, a context exceeded, or pages lacking.
    pub(crate) fn forward(
        &self,
        feeds: &mut [Feed<'_>],
        logits: &mut Vec<f32>,
    ) -> Result<(), Error> {
        for feed in feeds.iter_mut() {
            let needed = feed.sequence.len + feed.tokens.len();
            if needed > self.context {
                return Err(Error::Context { needed, context: self.context });
            }
            let vocab = self.spec.vocab;
            if let Some(id) = feed.tokens.iter().find(|id| **id as usize >= vocab) {
                return Err(Error::Token { id: *id, vocab });
            }
            self.make_room(feed.sequence, needed)?;
            feed.sequence.horizon = feed.horizon.max(needed);
        }
        for pass in passes(feeds, self.chunk) {
            self.pass(&pass, feeds, logits);
            for (feed, rows, _) in &pass.runs {
                feeds[*feed].sequence.len += rows.len();
            }
        }
        Ok(())
    }

    fn pass(&self, pass: &Pass, feeds: &[Feed<'_>], logits: &mut Vec<f32>) {
        let table = |feed: usize| &feeds[feed].sequence.table;
        let spans: Vec<Span<'_>> = pass
            .runs
            .iter()
            .map(|(feed, rows, start)| Span {
                rows: rows.clone(),
                start: *start,
                pages: table(*feed).pages(),
                recent: table(*feed).recent(),
            })
            .collect();
        let positions: Vec<Positions> = pass
            .runs
            .iter()
            .flat_map(|(feed, rows, start)| {
                self.positions(*start..start + rows.len(), feeds[*feed].horizon)
            })
            .collect();
        let ropes = self.ropes.iter();
        let angles: Vec<Angles> =
            ropes.map(|(rope, usual)| layer::angles(rope, usual, &positions)).collect();
        let tokens = pass.tokens.len();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { cache, buffers } = &mut *state;
        self.backend.embed(
            &self.network.embed,
            &pass.tokens,
            self.spec.embed_scale,
            &mut buffers.x,
        );
        let head = self.network.head.as_ref().unwrap_or(&self.network.embed);
        for (index, layer) in self.spec.layers.iter().enumerate() {
            let weights = &self.network.layers[index];
            let steps = Steps { backend: &self.backend, width: self.spec.width, layer };
            let last = index + 1 == self.spec.layers.len();
            let angles = &angles[self.rope_of[index]];
            let place = Place { layer: index, tokens, spans: &spans, angles };
            steps.mixer_input(tokens, &weights.before_mixer, buffers);
            self.backend.foresee(tokens, &[&weights.mixer_out.out.weight]);
            steps.project(&place, &weights.mixer_in, cache, buffers);
            if last && pass.wanted.is_empty() {
                continue;
            }
            steps.attend(&place, cache, buffers);
            // What follows the last mixer is for the wanted rows only.
            let rows = if last { self.keep_wanted(pass, layer, buffers) } else { tokens };
            self.backend.foresee(rows, &weights.mlp_in.weights());
            steps.mixer_output(rows, &weights.mixer_out, buffers);
            steps.mlp_input(rows, &weights.before_mlp, buffers);
            let next = self.network.layers.get(index + 1);
            let next = next.map_or(vec![head], |next| next.mixer_in.weights().to_vec());
            steps.mlp(rows, &weights.mlp_in, &weights.mlp_out, &next, buffers);
        }
        let head = Head {
            backend: &self.backend,
            spec: &self.spec,
            norm: &self.network.final_norm,
            weight: head,
        };
        head.logits(pass.wanted.len(), buffers, logits);
    }

    /// Moves the wanted rows of the residual stream and of the mixed values to the front.
    fn keep_wanted(&self, pass: &Pass, layer: &Layer, buffers: &mut Buffers<B>) -> usize {
        let rows = pass.wanted.len();
        if rows < pass.tokens.len() {
            let Buffers { x, branch, q, mixed, .. } = buffers;
            self.backend.gather(&pass.wanted, self.spec.width, x, branch);
            self.backend.gather(&pass.wanted, layer.attention().q_width(), mixed, q);
            std::mem::swap(x, branch);
            std::mem::swap(mixed, q);
        }
        rows
    }
}

/// See [`Executor::visible`].
pub(crate) fn visible(spec: &Spec) -> usize {
    const LOGITS: usize = 2 << 20;
    (LOGITS / spec.vocab.max(1)).max(PAGE_TOKENS)
}

/// Cuts all feeds, one after the other, into passes of at most `chunk` tokens.
fn passes(feeds: &[Feed<'_>], chunk: usize) -> Vec<Pass> {
    let mut passes = Vec::new();
    let mut pass = Pass::default();
    for (index, feed) in feeds.iter().enumerate() {
        let mut fed = 0;
        while fed < feed.tokens.len() {
            if pass.tokens.len() == chunk {
                passes.push(std::mem::take(&mut pass));
            }
            let first = pass.tokens.len();
            let count = (feed.tokens.len() - fed).min(chunk - first);
            pass.tokens.extend_from_slice(&feed.tokens[fed..fed + count]);
            pass.runs.push((index, first..first + count, feed.sequence.len + fed));
            fed += count;
            match feed.want {
                Want::All => pass.wanted.extend(first..first + count),
                Want::Last if fed == feed.tokens.len() => pass.wanted.push(first + count - 1),
                Want::Last | Want::None => {}
            }
        }
    }
    passes.push(pass);
    passes.retain(|pass| !pass.tokens.is_empty());
    passes
}

#[cfg(test)]
mod tests {
    use lathe_kernels::{KvType, Precision};
    use lathe_models::{Config, read_config};
    use serde_json::{Value, json};

    use super::*;
    use crate::{Options, Rounding, cpu::Cpu, layer::LOGIT_ROWS};

    fn spec(arch: &str) -> Spec {
        let config = json!({
            "architectures": [arch], "vocab_size": 96, "hidden_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
            "intermediate_size": 112, "max_position_embeddings": 64, "num_local_experts": 6,
            "num_experts_per_tok": 2,
        });
        let Value::Object(map) = config else { unreachable!() };
        read_config(&Config::new(map)).unwrap().1
    }

    #[test]
    fn working_memory_is_what_the_spec_says() {
        for arch in ["LlamaForCausalLM", "Gemma3ForCausalLM", "MixtralForCausalLM"] {
            let spec = spec(arch);
            let cpu = Cpu::new(1, Precision::Exact, Rounding::None);
            let b = Buffers::new(&cpu, &spec, 24).unwrap();
            let all = [
                &b.x, &b.normed, &b.branch, &b.q, &b.mixed, &b.k, &b.v, &b.gate, &b.up, &b.scores,
                &b.picked, &b.routed,
            ];
            let numbers: usize = all.iter().map(|buffer| buffer.len()).sum();
            let bytes = 4 * (numbers + b.logits.len()) as u64;
            assert_eq!(bytes, spec.activation_bytes(24, LOGIT_ROWS).0, "{arch}");
        }
    }

    #[test]
    fn the_cache_is_what_the_spec_says() {
        for kind in KvType::ALL {
            let spec = spec("LlamaForCausalLM");
            let (context, batch) = (50, 3);
            let options = Options { kv: kind, context: Some(context), batch, ..Options::default() };
            let room = crate::native::room(&spec, &options).unwrap();
            let cpu = Cpu::new(1, Precision::Exact, Rounding::None);
            let bytes = cpu.cache(room.cache).unwrap().bytes() as u64;
            assert_eq!(bytes, spec.cache_bytes(context, batch, kind).0, "{kind:?}");
        }
    }

    #[test]
    fn feeds_are_cut_into_passes_that_keep_their_order() {
        let pool = PagePool::new(8, 2);
        let sequence = |len| Sequence { table: pool.table(), len, horizon: len };
        let (mut a, mut b) = (sequence(5), sequence(0));
        let feeds = [
            Feed { sequence: &mut a, tokens: &[1, 2, 3], horizon: 8, want: Want::Last },
            Feed { sequence: &mut b, tokens: &[4, 5], horizon: 2, want: Want::All },
        ];
        let passes = passes(&feeds, 2);
        let tokens: Vec<_> = passes.iter().map(|pass| pass.tokens.clone()).collect();
        assert_eq!(tokens, [vec![1, 2], vec![3, 4], vec![5]]);
        assert_eq!(passes[1].runs, [(0, 0..1, 7), (1, 1..2, 0)]);
        let wanted: Vec<_> = passes.iter().map(|pass| pass.wanted.clone()).collect();
        assert_eq!(wanted, [vec![], vec![0, 1], vec![0]]);
    }
}
