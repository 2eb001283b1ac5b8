mod element;

use std::{cell::RefCell, ops::Range};

use lathe_formats::KvType;
use lathe_simd::{Isa, LANES, Op};

use crate::{KvPages, PAGE_TOKENS, Pool, Span, output::Output, rowwise::tanh};
use element::{Affine, Element, Number, Page, WideF32, Widen, with_element};

/// Pages of a step of the running softmax; steps start at multiples of it, whoever asks.
const STEP: usize = 2;
/// Vectors of scores per row and page, and per row and step.
const PAGE_VECTORS: usize = PAGE_TOKENS / LANES;
const VECTORS: usize = STEP * PAGE_VECTORS;
/// Positions of a step.
const STEP_TOKENS: usize = STEP * PAGE_TOKENS;
/// Query rows of one task: enough to pay for the widening of a page.
const TASK_ROWS: usize = 64;
/// Up to so many query rows keys and values are widened on their way, not beforehand.
const DIRECT_ROWS: usize = 8;

/// Attention of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Which layer of the cache.
    pub layer: usize,
    /// Query heads; a multiple of the cache's KV heads.
    pub heads: usize,
    /// Applied to the scores, mostly 1 / sqrt(K).
    pub scale: f32,
    /// Each token sees itself and `window − 1` tokens before it (Mistral, Gemma).
    pub window: Option<usize>,
    /// Scores become `cap · tanh(score / cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
}

/// Causal attention of queries `[T, H, K]` over a paged cache that holds all positions up to and
/// including the queries' own; `out` is `[T, H, K]`.
///
/// **Source**: the running softmax of Milakov & Gimelshein 2018, over pages; grouped heads
/// (Ainslie et al. 2023) share what is read.
pub fn attention(
    pool: &Pool,
    what: &Attention,
    cache: &KvPages,
    spans: &[Span<'_>],
    q: &[f32],
    out: &mut [f32],
) {
    let (dim, kv_heads) = (cache.shape().head_dim, cache.shape().kv_heads);
    let group = what.heads / kv_heads;
    assert_eq!(group * kv_heads, what.heads, "query heads in equal groups");
    assert_eq!(q.len(), out.len());
    let tokens = q.len() / (what.heads * dim);
    for span in spans {
        assert!(span.rows.end <= tokens && span.touched().end <= span.pages.len(), "{span:?}");
    }
    let tiles = Tiles { tokens: tile_tokens(cache.kind(), group), spans };
    let total = tiles.count();
    let out = Output::new(out);
    pool.run(total * kv_heads, &|task| {
        // The last tiles of a long prompt see most, and start first.
        let place = tiles.get(total - 1 - task / kv_heads);
        let tile = Tile { what, cache, head: task % kv_heads, group, place };
        SCRATCH.with_borrow_mut(|scratch| {
            lathe_simd::run(Run { tile, q, out, scratch });
        });
    });
}

/// Tokens of a tile: a divisor of the page where no tile may reach over the end of one.
fn tile_tokens(kind: KvType, group: usize) -> usize {
    let most = TASK_ROWS.div_ceil(group);
    if kind.is_grouped() { (most.min(PAGE_TOKENS) + 1).next_power_of_two() / 2 } else { most }
}

/// All spans cut at multiples of so many positions.
struct Tiles<'a> {
    tokens: usize,
    spans: &'a [Span<'a>],
}

/// Neighbouring tokens that one task works through.
struct Place<'a> {
    span: &'a Span<'a>,
    /// The span's first fresh page.
    fresh: usize,
    /// Which rows of the queries.
    rows: Range<usize>,
    /// Position of the first.
    start: usize,
}

impl<'a> Tiles<'a> {
    fn count(&self) -> usize {
        self.spans.iter().map(|span| span.cut(self.tokens).len()).sum()
    }

    fn get(&self, mut index: usize) -> Place<'a> {
        let mut fresh = 0;
        for span in self.spans {
            let tiles = span.cut(self.tokens);
            if index < tiles.len() {
                let tile = tiles.start + index;
                let start = span.start.max(tile * self.tokens);
                let count = span.end().min((tile + 1) * self.tokens) - start;
                let row = span.rows.start + start - span.start;
                return Place { span, fresh, rows: row..row + count, start };
            }
            index -= tiles.len();
            fresh += span.fresh();
        }
        unreachable!("as many tasks as tiles")
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Kept from call to call.
#[derive(Default)]
struct Scratch {
    wide: Wide,
    rows: Rows,
}

/// `[K, PAGE_TOKENS]` and `[PAGE_TOKENS, K]` of each page of a step, widened, and the scales and
/// minima of coded ones.
#[derive(Default)]
struct Wide {
    keys: Vec<f32>,
    values: Vec<f32>,
    key_affine: Vec<Affine>,
    value_affine: Vec<Affine>,
}

/// What is known of each query row.
#[derive(Default)]
struct Rows {
    /// Scaled queries `[M, K]`, where M is tokens × group.
    queries: Vec<f32>,
    /// `[M, K]`
    sums: Vec<f32>,
    /// `[M, STEP_TOKENS]`
    scores: Vec<Scores>,
    /// Running maximum of each row, in whole vectors.
    tops: Vec<f32>,
    /// The factors that bring older sums down to a new maximum.
    shrinks: Vec<f32>,
    /// Running total of each row, lane by lane.
    totals: Vec<[f32; LANES]>,
}

type Scores = [[f32; LANES]; VECTORS];

/// Some tokens of one sequence, and the query heads of one KV head.
struct Tile<'a> {
    what: &'a Attention,
    cache: &'a KvPages,
    head: usize,
    group: usize,
    place: Place<'a>,
}

struct Run<'a> {
    tile: Tile<'a>,
    q: &'a [f32],
    out: Output<'a, f32>,
    scratch: &'a mut Scratch,
}

impl Op for Run<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { tile, q, out, scratch } = self;
        tile.gather(q, scratch);
        let last = tile.place.start + tile.place.rows.len() - 1;
        let first = (tile.place.start + 1).saturating_sub(tile.window());
        let own = tile.own_page();
        for step in first / STEP_TOKENS..=last / STEP_TOKENS {
            let pages = (step * STEP).max(first / PAGE_TOKENS)
                ..(step * STEP + STEP).min(last / PAGE_TOKENS + 1);
            // A step with pages of two kinds is widened too.
            let direct = tile.rows() <= DIRECT_ROWS && !own.is_some_and(|own| pages.contains(&own));
            if direct {
                with_element!(tile.cache.kind(), E => tile.step::<I, E>(isa, step, pages, scratch));
            } else {
                tile.step::<I, Number<WideF32>>(isa, step, pages, scratch);
            }
        }
        let dim = tile.cache.shape().head_dim;
        for m in 0..tile.rows() {
            let (token, head) = (m / tile.group, tile.head * tile.group + m % tile.group);
            let at = ((tile.place.rows.start + token) * tile.what.heads + head) * dim;
            // SAFETY: this tile's tokens and heads are this task's alone.
            let out = unsafe { out.part(at, dim) };
            let by = 1.0 / isa.sum(isa.load(&scratch.rows.totals[m]));
            for (out, sum) in out.iter_mut().zip(&scratch.rows.sums[m * dim..][..dim]) {
                *out = sum * by;
            }
        }
    }
}

impl Tile<'_> {
    fn rows(&self) -> usize {
        self.place.rows.len() * self.group
    }

    /// The page that the tile lies in, where it is seen in another type than those before it.
    fn own_page(&self) -> Option<usize> {
        self.cache.kind().is_grouped().then_some(self.place.start / PAGE_TOKENS)
    }

    fn window(&self) -> usize {
        self.what.window.unwrap_or(usize::MAX).max(1)
    }

    /// Puts the scaled queries side by side and resets the sums.
    fn gather(&self, q: &[f32], scratch: &mut Scratch) {
        let (dim, rows) = (self.cache.shape().head_dim, self.rows());
        let Scratch { wide, rows: scratch } = scratch;
        scratch.queries.clear();
        for m in 0..rows {
            let (token, head) = (m / self.group, self.head * self.group + m % self.group);
            let at = ((self.place.rows.start + token) * self.what.heads + head) * dim;
            scratch.queries.extend(q[at..at + dim].iter().map(|q| q * self.what.scale));
        }
        scratch.sums.clear();
        scratch.sums.resize(rows * dim, 0.0);
        let padded = rows.next_multiple_of(LANES);
        scratch.tops.clear();
        scratch.tops.resize(padded, f32::NEG_INFINITY);
        scratch.shrinks.resize(padded, 0.0);
        scratch.totals.clear();
        scratch.totals.resize(rows, [0.0; LANES]);
        scratch.scores.resize(rows, [[0.0; LANES]; VECTORS]);
        wide.keys.resize(STEP_TOKENS * dim, 0.0);
        wide.values.resize(STEP_TOKENS * dim, 0.0);
        wide.key_affine.resize_with(STEP, Affine::default);
        wide.value_affine.resize_with(STEP, Affine::default);
    }

    /// Takes some pages of a step into account.
    #[inline(always)]
    fn step<I: Isa, E: Element>(
        &self,
        isa: I,
        step: usize,
        pages: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (dim, rows) = (self.cache.shape().head_dim, self.rows());
        let Scratch { wide, rows: scratch } = scratch;
        let (keys, values) = self.pages::<I, E>(isa, pages, wide);
        let (queries, scores) = (&scratch.queries, &mut scratch.scores);
        score_all::<I, E>(isa, &keys, queries, &mut scores[..rows], dim);
        if let Some(cap) = self.what.soft_cap {
            cap_scores(isa, &mut scratch.scores[..rows], cap);
        }
        self.mask(step * STEP_TOKENS, &mut scratch.scores);
        online(isa, scratch, rows, dim);
        let seen = |at: usize| {
            let first = (step * STEP + at) * PAGE_TOKENS;
            (self.place.start + self.place.rows.len()).saturating_sub(first).min(PAGE_TOKENS)
        };
        let seen = std::array::from_fn(seen);
        weigh_all::<I, E>(isa, (&values, seen), &scratch.scores[..rows], &mut scratch.sums, dim);
    }

    /// Keys and values of some pages of a step, ready to be read as `E`; pages of the step that
    /// nobody sees keep an empty place.
    #[inline(always)]
    fn pages<'a, I: Isa, E: Element>(
        &'a self,
        isa: I,
        pages: Range<usize>,
        wide: &'a mut Wide,
    ) -> ([Page<'a>; STEP], [Page<'a>; STEP]) {
        let (cache, dim, span) = (self.cache, self.cache.shape().head_dim, self.place.span);
        let coded = |page: usize| cache.head(self.what.layer, span.pages[page], self.head);
        let seen_pages = (self.place.start + self.place.rows.len()).div_ceil(PAGE_TOKENS);
        let (mut keys, mut values) = ([Page::default(); STEP], [Page::default(); STEP]);
        let mut wide_keys = wide.keys.chunks_exact_mut(PAGE_TOKENS * dim);
        let mut wide_values = wide.values.chunks_exact_mut(PAGE_TOKENS * dim);
        let affine = wide.key_affine.iter_mut().zip(&mut wide.value_affine);
        for (page, (key_affine, value_affine)) in pages.zip(affine) {
            let at = page % STEP;
            let own = self.own_page() == Some(page);
            let (kind, (now_keys, now_values)) = if own {
                let fresh = (span, self.place.fresh);
                (KvType::F16, cache.own(self.what.layer, fresh, page, self.head))
            } else {
                (cache.kind(), coded(page))
            };
            keys[at] = Page::keys(isa, kind, now_keys, key_affine, dim);
            values[at] = Page::values(isa, kind, now_values, value_affine);
            if E::WIDENED {
                let (wide_keys, wide_values) = (wide_keys.next(), wide_values.next());
                let (to_keys, to_values) =
                    wide_keys.zip(wide_values).expect("as many as pages of a step");
                let (keys, values) = (&mut keys[at], &mut values[at]);
                lathe_simd::run(Widen { kind, dim, keys, values, to_keys, to_values });
            }
            if page + STEP < seen_pages {
                (keys[at].ahead, values[at].ahead) = coded(page + STEP);
            }
        }
        (keys, values)
    }

    /// Hides what a row may not see, whatever the cache holds there.
    fn mask(&self, first: usize, scores: &mut [Scores]) {
        for m in 0..self.rows() {
            let position = self.place.start + m / self.group;
            let visible = (position + 1).saturating_sub(self.window())..position + 1;
            if visible.start <= first && first + STEP_TOKENS <= visible.end {
                continue;
            }
            let scores = scores[m].as_flattened_mut();
            let start = visible.start.saturating_sub(first).min(STEP_TOKENS);
            let end = visible.end.saturating_sub(first).min(STEP_TOKENS);
            scores[..start].fill(f32::NEG_INFINITY);
            scores[end.max(start)..].fill(f32::NEG_INFINITY);
        }
    }
}

/// `scores[m] = queries[m] · keys`; what has no keys is left, to be hidden.
#[inline(always)]
fn score_all<I: Isa, E: Element>(
    isa: I,
    keys: &[Page<'_>; STEP],
    queries: &[f32],
    scores: &mut [Scores],
    dim: usize,
) {
    for (at, keys) in keys.iter().enumerate() {
        if keys.now.is_empty() {
            continue;
        }
        assert!(E::holds_keys(keys, dim));
        let mut m = 0;
        while m < scores.len() {
            let left = scores.len() - m;
            let queries = &queries[m * dim..];
            // Once is enough.
            let keys = if m == 0 { *keys } else { keys.without_ahead() };
            let scores = &mut scores[m..];
            m += if I::REGISTERS >= 32 && left >= 8 {
                score_rows::<I, E, 8>(isa, at, keys, queries, scores, dim)
            } else if I::REGISTERS >= 32 && left >= 4 {
                score_rows::<I, E, 4>(isa, at, keys, queries, scores, dim)
            } else if left >= 2 {
                score_rows::<I, E, 2>(isa, at, keys, queries, scores, dim)
            } else {
                score_rows::<I, E, 1>(isa, at, keys, queries, scores, dim)
            };
        }
    }
}

/// `R` rows against one page.
#[inline(always)]
fn score_rows<I: Isa, E: Element, const R: usize>(
    isa: I,
    at: usize,
    keys: Page<'_>,
    queries: &[f32],
    scores: &mut [Scores],
    dim: usize,
) -> usize {
    let queries = &queries[..R * dim];
    let mut total = [[isa.splat(0.0); PAGE_VECTORS]; R];
    for d in 0..dim {
        keys.prefetch(isa, d * E::KEY_BYTES, E::KEY_BYTES);
        // SAFETY: the caller has made sure of `dim` channels of keys.
        let loaded = unsafe { E::keys(isa, &keys, d) };
        for r in 0..R {
            // SAFETY: `queries` are R rows of `dim`.
            let q = isa.splat(unsafe { *queries.get_unchecked(r * dim + d) });
            for v in 0..PAGE_VECTORS {
                total[r][v] = isa.fma(q, loaded[v], total[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..PAGE_VECTORS {
            isa.store(total[r][v], &mut scores[r][at * PAGE_VECTORS + v]);
        }
    }
    R
}

#[inline(always)]
fn cap_scores<I: Isa>(isa: I, scores: &mut [Scores], cap: f32) {
    for score in scores.as_flattened_mut() {
        let scaled = isa.mul(isa.load(score), isa.splat(1.0 / cap));
        isa.store(isa.mul(tanh(isa, scaled), isa.splat(cap)), score);
    }
}

/// Turns scores into weights relative to the running maximum, and brings older sums down to it.
#[inline(always)]
fn online<I: Isa>(isa: I, scratch: &mut Rows, rows: usize, dim: usize) {
    let Rows { scores, tops, shrinks, totals, sums, .. } = scratch;
    for m in 0..rows {
        let mut highest = isa.splat(tops[m]);
        for score in &scores[m] {
            highest = isa.max(isa.load(score), highest);
        }
        shrinks[m] = isa.max_lane(highest);
    }
    // What has seen nothing yet has nothing to bring down, and -inf less -inf must not be taken.
    for (shrinks, tops) in
        shrinks.as_chunks_mut::<LANES>().0.iter_mut().zip(tops.as_chunks_mut::<LANES>().0)
    {
        let (new, old) = (isa.load(shrinks), isa.load(tops));
        isa.store(new, tops);
        let lowest = isa.splat(f32::MIN);
        isa.store(isa.exp(isa.sub(isa.max(lowest, old), isa.max(lowest, new))), shrinks);
    }
    for m in 0..rows {
        let top = isa.splat(tops[m].max(f32::MIN));
        let mut total = isa.mul(isa.load(&totals[m]), isa.splat(shrinks[m]));
        for score in &mut scores[m] {
            let weight = isa.exp(isa.sub(isa.load(score), top));
            isa.store(weight, score);
            total = isa.add(total, weight);
        }
        isa.store(total, &mut totals[m]);
        if shrinks[m] != 1.0 {
            let by = isa.splat(shrinks[m]);
            for sum in sums[m * dim..][..dim].as_chunks_mut::<LANES>().0 {
                isa.store(isa.mul(isa.load(sum), by), sum);
            }
        }
    }
}

/// `sums[m] += scores[m] · values`, for the first `seen` tokens of each page.
#[inline(always)]
fn weigh_all<I: Isa, E: Element>(
    isa: I,
    values: (&[Page<'_>; STEP], [usize; STEP]),
    scores: &[Scores],
    sums: &mut [f32],
    dim: usize,
) {
    for values in values.0.iter().filter(|values| !values.now.is_empty()) {
        assert!(E::holds_values(values, dim));
    }
    let mut m = 0;
    while m < scores.len() {
        let left = scores.len() - m;
        let first = m == 0;
        let (scores, sums) = (&scores[m..], &mut sums[m * dim..]);
        m += if I::REGISTERS >= 32 && left >= 4 {
            weigh_rows::<I, E, 4>(isa, values, scores, sums, (dim, first))
        } else {
            weigh_rows::<I, E, 1>(isa, values, scores, sums, (dim, first))
        };
    }
}

/// `R` rows, four vectors of the head at once.
#[inline(always)]
fn weigh_rows<I: Isa, E: Element, const R: usize>(
    isa: I,
    values: (&[Page<'_>; STEP], [usize; STEP]),
    scores: &[Scores],
    sums: &mut [f32],
    (dim, first): (usize, bool),
) -> usize {
    let vectors = dim / LANES;
    let mut v = 0;
    while v < vectors {
        v += if v + 4 <= vectors {
            weigh_tile::<I, E, R, 4>(isa, values, scores, sums, (dim, v, first && v == 0))
        } else {
            weigh_tile::<I, E, R, 1>(isa, values, scores, sums, (dim, v, first && v == 0))
        };
    }
    R
}

/// `R` rows times vectors `v .. v + V` of the head; the `first` tile asks for what comes.
#[inline(always)]
fn weigh_tile<I: Isa, E: Element, const R: usize, const V: usize>(
    isa: I,
    (values, seen): (&[Page<'_>; STEP], [usize; STEP]),
    scores: &[Scores],
    sums: &mut [f32],
    (dim, v, first): (usize, usize, bool),
) -> usize {
    let scores = &scores[..R];
    let mut total = [[isa.splat(0.0); V]; R];
    for r in 0..R {
        let sums = sums[r * dim..].as_chunks::<LANES>().0;
        for i in 0..V {
            total[r][i] = isa.load(&sums[v + i]);
        }
    }
    for (at, values) in values.iter().enumerate() {
        let seen = if values.now.is_empty() { 0 } else { seen[at] };
        for j in 0..seen {
            if first {
                values.prefetch(isa, j * E::value_bytes(dim), E::value_bytes(dim));
            }
            // SAFETY: the caller has made sure of PAGE_TOKENS rows of `dim` values; v is a
            // multiple of V and v + V at most their vectors.
            let loaded = unsafe { E::values::<I, V>(isa, values, (j, v), dim) };
            for r in 0..R {
                let weight = isa.splat(scores[r].as_flattened()[at * PAGE_TOKENS + j]);
                for i in 0..V {
                    total[r][i] = isa.fma(weight, loaded[i], total[r][i]);
                }
            }
        }
    }
    for r in 0..R {
        let sums = sums[r * dim..].as_chunks_mut::<LANES>().0;
        for i in 0..V {
            isa.store(total[r][i], &mut sums[v + i]);
        }
    }
    V
}
