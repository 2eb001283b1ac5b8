use std::{cell::RefCell, ops::Range};

use lathe_simd::{Isa, LANES, Op};

use crate::{KvPages, KvType, PAGE_TOKENS, Pool, output::Output, rowwise::tanh};

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

/// Neighbouring tokens of one sequence within a run of tokens.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// Which rows of the queries.
    pub rows: Range<usize>,
    /// Position of the first of them in its sequence.
    pub start: usize,
    /// The sequence's pages: positions `32 i .. 32 i + 32` lie in `pages[i]`.
    pub pages: &'a [u32],
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
    let dim = cache.head_dim();
    let group = what.heads / cache.kv_heads();
    assert_eq!(group * cache.kv_heads(), what.heads, "query heads in equal groups");
    assert_eq!(q.len(), out.len());
    let tokens = q.len() / (what.heads * dim);
    for span in spans {
        let end = span.start + span.rows.len();
        assert!(span.rows.end <= tokens && end <= span.pages.len() * PAGE_TOKENS, "{span:?}");
    }
    let tile = TASK_ROWS.div_ceil(group);
    let tiles = |span: &Span<'_>| span.rows.len().div_ceil(tile);
    let total: usize = spans.iter().map(tiles).sum();
    let out = Output::new(out);
    pool.run(total * cache.kv_heads(), &|task| {
        let (mut index, head) = (task / cache.kv_heads(), task % cache.kv_heads());
        let mut spans = spans.iter();
        // The last tiles of a long prompt see most, and start first.
        index = total - 1 - index;
        let span = loop {
            let span = spans.next().expect("as many tasks as tiles");
            if index < tiles(span) {
                break span;
            }
            index -= tiles(span);
        };
        let first = index * tile;
        let count = tile.min(span.rows.len() - first);
        SCRATCH.with_borrow_mut(|scratch| {
            let (row, start) = (span.rows.start + first, span.start + first);
            let tile = Tile { what, cache, head, group, pages: span.pages, row, start, count };
            lathe_simd::run(Run { tile, q, out, scratch });
        });
    });
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

/// `[K, PAGE_TOKENS]` and `[PAGE_TOKENS, K]` of each page of a step, widened.
#[derive(Default)]
struct Wide {
    keys: Vec<f32>,
    values: Vec<f32>,
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

/// `count` tokens of one sequence, and the query heads of one KV head.
struct Tile<'a> {
    what: &'a Attention,
    cache: &'a KvPages,
    head: usize,
    group: usize,
    pages: &'a [u32],
    row: usize,
    start: usize,
    count: usize,
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
        let last = tile.start + tile.count - 1;
        let first = (tile.start + 1).saturating_sub(tile.window());
        for step in first / STEP_TOKENS..=last / STEP_TOKENS {
            let pages = (step * STEP).max(first / PAGE_TOKENS)
                ..(step * STEP + STEP).min(last / PAGE_TOKENS + 1);
            if tile.rows() <= DIRECT_ROWS {
                match tile.cache.kind() {
                    KvType::F32 => tile.step::<I, InF32>(isa, step, pages, scratch),
                    KvType::F16 => tile.step::<I, InF16>(isa, step, pages, scratch),
                }
            } else {
                tile.step::<I, Widened>(isa, step, pages, scratch);
            }
        }
        let dim = tile.cache.head_dim();
        for m in 0..tile.rows() {
            let (token, head) = (m / tile.group, tile.head * tile.group + m % tile.group);
            let at = ((tile.row + token) * tile.what.heads + head) * dim;
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
        self.count * self.group
    }

    fn window(&self) -> usize {
        self.what.window.unwrap_or(usize::MAX).max(1)
    }

    /// Puts the scaled queries side by side and resets the sums.
    fn gather(&self, q: &[f32], scratch: &mut Scratch) {
        let (dim, rows) = (self.cache.head_dim(), self.rows());
        let Scratch { wide, rows: scratch } = scratch;
        scratch.queries.clear();
        for m in 0..rows {
            let (token, head) = (m / self.group, self.head * self.group + m % self.group);
            let at = ((self.row + token) * self.what.heads + head) * dim;
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
        let (dim, rows) = (self.cache.head_dim(), self.rows());
        let Scratch { wide, rows: scratch } = scratch;
        let (mut keys, mut values) = ([Page::default(); STEP], [Page::default(); STEP]);
        let seen_pages = (self.start + self.count).div_ceil(PAGE_TOKENS);
        let stored = |page: usize| self.cache.head(self.what.layer, self.pages[page], self.head);
        // Pages of the step that nobody sees keep an empty place.
        for page in pages {
            let at = page % STEP;
            (keys[at].now, values[at].now) = stored(page);
            if page + STEP < seen_pages {
                (keys[at].ahead, values[at].ahead) = stored(page + STEP);
            }
        }
        if E::WIDENED {
            widen_all(self.cache.kind(), &mut keys, &mut wide.keys);
            widen_all(self.cache.kind(), &mut values, &mut wide.values);
        }
        let (queries, scores) = (&scratch.queries, &mut scratch.scores);
        score_all::<I, E>(isa, &keys, queries, &mut scores[..rows], dim);
        if let Some(cap) = self.what.soft_cap {
            cap_scores(isa, &mut scratch.scores[..rows], cap);
        }
        self.mask(step * STEP_TOKENS, &mut scratch.scores);
        online(isa, scratch, rows, dim);
        let seen = |at: usize| {
            let first = (step * STEP + at) * PAGE_TOKENS;
            (self.start + self.count).saturating_sub(first).min(PAGE_TOKENS)
        };
        let seen = std::array::from_fn(seen);
        weigh_all::<I, E>(isa, (&values, seen), &scratch.scores[..rows], &mut scratch.sums, dim);
    }

    /// Hides what a row may not see, whatever the cache holds there.
    fn mask(&self, first: usize, scores: &mut [Scores]) {
        for m in 0..self.rows() {
            let position = self.start + m / self.group;
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

/// Keys or values of a page and head.
#[derive(Clone, Copy, Default)]
struct Page<'a> {
    now: &'a [u8],
    /// Those that the next step will read: pages lie too far apart for the machine to foresee.
    ahead: &'a [u8],
}

impl Page<'_> {
    /// Asks for `len` bytes of what comes, from `at` on.
    #[inline(always)]
    fn prefetch<I: Isa>(&self, isa: I, at: usize, len: usize) {
        if !self.ahead.is_empty() {
            for line in (at..at + len).step_by(64) {
                isa.prefetch(self.ahead.as_ptr().wrapping_add(line));
            }
        }
    }
}

/// How keys and values are read.
trait Element {
    const BYTES: usize;
    const WIDENED: bool = false;
    /// Vector `index` of a page.
    ///
    /// # Safety
    /// The page holds that vector.
    unsafe fn load<I: Isa>(isa: I, page: &[u8], index: usize) -> I::F;
}

struct InF32;
struct InF16;
/// f32 that has been widened from whatever the cache holds.
struct Widened;

impl Element for InF32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, page: &[u8], index: usize) -> I::F {
        // SAFETY: the caller vouches for the vector.
        isa.load_f32(unsafe { &*page.as_ptr().add(index * 4 * LANES).cast() })
    }
}

impl Element for InF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, page: &[u8], index: usize) -> I::F {
        // SAFETY: the caller vouches for the vector.
        isa.load_f16(unsafe { &*page.as_ptr().add(index * 2 * LANES).cast() })
    }
}

impl Element for Widened {
    const BYTES: usize = 4;
    const WIDENED: bool = true;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, page: &[u8], index: usize) -> I::F {
        // SAFETY: the caller vouches for the vector.
        unsafe { InF32::load(isa, page, index) }
    }
}

fn bytes_of(x: &[f32]) -> &[u8] {
    // SAFETY: any f32 is four bytes, and bytes have no alignment.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}

/// Widens pages into `wide` and reads them from there.
fn widen_all<'a>(kind: KvType, pages: &mut [Page<'a>; STEP], wide: &'a mut [f32]) {
    let part = wide.len() / STEP;
    for (page, to) in pages.iter_mut().zip(wide.chunks_exact_mut(part)) {
        if !page.now.is_empty() {
            lathe_simd::run(Widen { kind, from: page.now, to });
            *page = Page { now: bytes_of(to), ahead: &[] };
        }
    }
}

/// Stored numbers as f32.
struct Widen<'a> {
    kind: KvType,
    from: &'a [u8],
    to: &'a mut [f32],
}

impl Op for Widen<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let to = self.to.as_chunks_mut::<LANES>().0;
        match self.kind {
            KvType::F32 => {
                for (from, to) in self.from.as_chunks().0.iter().zip(to) {
                    isa.store(isa.load_f32(from), to);
                }
            }
            KvType::F16 => {
                for (from, to) in self.from.as_chunks().0.iter().zip(to) {
                    isa.store(isa.load_f16(from), to);
                }
            }
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
        assert_eq!(keys.now.len(), PAGE_TOKENS * dim * E::BYTES);
        let mut m = 0;
        while m < scores.len() {
            let left = scores.len() - m;
            let queries = &queries[m * dim..];
            // Once is enough.
            let keys = if m == 0 { *keys } else { Page { ahead: &[], ..*keys } };
            let scores = &mut scores[m..];
            m += if I::REGISTERS >= 32 && left >= 8 {
                score_rows::<I, E, 8>(isa, at, keys, queries, scores, dim)
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
        keys.prefetch(isa, d * PAGE_TOKENS * E::BYTES, PAGE_TOKENS * E::BYTES);
        let mut loaded = [isa.splat(0.0); PAGE_VECTORS];
        for v in 0..PAGE_VECTORS {
            // SAFETY: a page has `dim` times PAGE_VECTORS vectors of keys.
            loaded[v] = unsafe { E::load(isa, keys.now, d * PAGE_VECTORS + v) };
        }
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
        assert_eq!(values.now.len(), PAGE_TOKENS * dim * E::BYTES);
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
    let vectors = dim / LANES;
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
                values.prefetch(isa, j * dim * E::BYTES, dim * E::BYTES);
            }
            let mut loaded = [isa.splat(0.0); V];
            for i in 0..V {
                // SAFETY: a page has PAGE_TOKENS times `vectors` vectors of values.
                loaded[i] = unsafe { E::load(isa, values.now, j * vectors + v + i) };
            }
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
