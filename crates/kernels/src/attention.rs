use std::{cell::RefCell, ops::Range};

use lathe_simd::{Isa, LANES, Op};

use crate::{
    KvPages, KvType, PAGE_TOKENS, Pool,
    output::Output,
    rowwise::{sum, tanh},
};

/// Vectors of scores per row and page.
const VECTORS: usize = PAGE_TOKENS / LANES;
/// Query rows of one task: enough to pay for the widening of a page.
const TASK_ROWS: usize = 64;
/// Query rows that share the loads of keys and values.
const ROWS: usize = 4;

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
    /// `[K, PAGE_TOKENS]` and `[PAGE_TOKENS, K]`, widened.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Scaled queries `[M, K]`, where M is tokens × group.
    queries: Vec<f32>,
    /// `[M, K]`
    sums: Vec<f32>,
    /// `[M, PAGE_TOKENS]`
    scores: Vec<[[f32; LANES]; VECTORS]>,
    /// Running maximum and total of each row.
    state: Vec<(f32, f32)>,
}

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
        let dim = tile.cache.head_dim();
        let rows = tile.count * tile.group;
        tile.gather(q, scratch);
        let last = tile.start + tile.count - 1;
        let window = tile.what.window.unwrap_or(usize::MAX).max(1);
        let first = (tile.start + 1).saturating_sub(window);
        for page in first / PAGE_TOKENS..=last / PAGE_TOKENS {
            let (keys, values) = tile.cache.head(tile.what.layer, tile.pages[page], tile.head);
            let seen = PAGE_TOKENS.min(last + 1 - page * PAGE_TOKENS);
            widen(isa, tile.cache.kind(), keys, &mut scratch.keys);
            widen(
                isa,
                tile.cache.kind(),
                &values[..seen * values.len() / PAGE_TOKENS],
                &mut scratch.values,
            );
            scores(isa, scratch, rows, dim);
            if let Some(cap) = tile.what.soft_cap {
                cap_scores(isa, &mut scratch.scores[..rows], cap);
            }
            for m in 0..rows {
                let position = tile.start + m / tile.group;
                let visible = (position + 1).saturating_sub(window)..position + 1;
                mask(&mut scratch.scores[m], page * PAGE_TOKENS, visible);
                let shrink = online(isa, &mut scratch.scores[m], &mut scratch.state[m]);
                rescale(&mut scratch.sums[m * dim..][..dim], shrink);
            }
            weigh(isa, scratch, rows, dim, seen);
        }
        for m in 0..rows {
            let (token, head) = (m / tile.group, tile.head * tile.group + m % tile.group);
            let at = ((tile.row + token) * tile.what.heads + head) * dim;
            // SAFETY: this tile's tokens and heads are this task's alone.
            let out = unsafe { out.part(at, dim) };
            let by = 1.0 / scratch.state[m].1;
            for (out, sum) in out.iter_mut().zip(&scratch.sums[m * dim..][..dim]) {
                *out = sum * by;
            }
        }
    }
}

impl Tile<'_> {
    /// Puts the scaled queries side by side and resets the sums.
    fn gather(&self, q: &[f32], scratch: &mut Scratch) {
        let dim = self.cache.head_dim();
        let rows = self.count * self.group;
        scratch.queries.clear();
        for m in 0..rows {
            let (token, head) = (m / self.group, self.head * self.group + m % self.group);
            let at = ((self.row + token) * self.what.heads + head) * dim;
            scratch.queries.extend(q[at..at + dim].iter().map(|q| q * self.what.scale));
        }
        scratch.sums.clear();
        scratch.sums.resize(rows * dim, 0.0);
        scratch.state.clear();
        scratch.state.resize(rows, (f32::NEG_INFINITY, 0.0));
        scratch.scores.resize(rows, [[0.0; LANES]; VECTORS]);
        scratch.keys.resize(PAGE_TOKENS * dim, 0.0);
        scratch.values.resize(PAGE_TOKENS * dim, 0.0);
    }
}

/// Stored numbers as f32.
#[inline(always)]
fn widen<I: Isa>(isa: I, kind: KvType, from: &[u8], to: &mut [f32]) {
    let to = to.as_chunks_mut::<LANES>().0;
    match kind {
        KvType::F32 => {
            for (from, to) in from.as_chunks().0.iter().zip(to) {
                isa.store(isa.load_f32(from), to);
            }
        }
        KvType::F16 => {
            for (from, to) in from.as_chunks().0.iter().zip(to) {
                isa.store(isa.load_f16(from), to);
            }
        }
    }
}

/// `scores[m] = queries[m] · keys`
#[inline(always)]
fn scores<I: Isa>(isa: I, scratch: &mut Scratch, rows: usize, dim: usize) {
    let mut m = 0;
    while m < rows {
        if m + ROWS <= rows {
            score_rows::<I, ROWS>(isa, scratch, m, dim);
            m += ROWS;
        } else {
            score_rows::<I, 1>(isa, scratch, m, dim);
            m += 1;
        }
    }
}

#[inline(always)]
fn score_rows<I: Isa, const R: usize>(isa: I, scratch: &mut Scratch, m: usize, dim: usize) {
    let keys = scratch.keys.as_chunks::<LANES>().0.as_chunks::<VECTORS>().0;
    let queries = &scratch.queries[m * dim..(m + R) * dim];
    let mut total = [[isa.splat(0.0); VECTORS]; R];
    for (d, keys) in keys.iter().enumerate().take(dim) {
        for r in 0..R {
            let q = isa.splat(queries[r * dim + d]);
            for v in 0..VECTORS {
                total[r][v] = isa.fma(q, isa.load(&keys[v]), total[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..VECTORS {
            isa.store(total[r][v], &mut scratch.scores[m + r][v]);
        }
    }
}

#[inline(always)]
fn cap_scores<I: Isa>(isa: I, scores: &mut [[[f32; LANES]; VECTORS]], cap: f32) {
    for score in scores.as_flattened_mut() {
        let scaled = isa.mul(isa.load(score), isa.splat(1.0 / cap));
        isa.store(isa.mul(tanh(isa, scaled), isa.splat(cap)), score);
    }
}

/// Hides the positions outside of `visible`, whatever their places in the page hold.
#[inline(always)]
fn mask(scores: &mut [[f32; LANES]; VECTORS], first: usize, visible: Range<usize>) {
    if visible.start <= first && first + PAGE_TOKENS <= visible.end {
        return;
    }
    for (i, score) in scores.as_flattened_mut().iter_mut().enumerate() {
        if !visible.contains(&(first + i)) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Turns scores into weights relative to the running maximum; gives the factor for older sums.
#[inline(always)]
fn online<I: Isa>(
    isa: I,
    scores: &mut [[f32; LANES]; VECTORS],
    (top, total): &mut (f32, f32),
) -> f32 {
    let mut highest = isa.splat(f32::NEG_INFINITY);
    for score in scores.iter() {
        highest = isa.max(isa.load(score), highest);
    }
    let highest = isa.max_lane(highest).max(*top);
    if highest == f32::NEG_INFINITY {
        // Nothing of this page is visible.
        *scores = [[0.0; LANES]; VECTORS];
        return 1.0;
    }
    for score in scores.iter_mut() {
        isa.store(isa.exp(isa.sub(isa.load(score), isa.splat(highest))), score);
    }
    let shrink = if *top == f32::NEG_INFINITY { 0.0 } else { one_exp(isa, *top - highest) };
    *total = *total * shrink + sum(isa, scores.as_flattened());
    *top = highest;
    shrink
}

#[inline(always)]
fn one_exp<I: Isa>(isa: I, x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    isa.store(isa.exp(isa.splat(x)), &mut lanes);
    lanes[0]
}

#[inline(always)]
fn rescale(sums: &mut [f32], by: f32) {
    if by != 1.0 {
        sums.iter_mut().for_each(|sum| *sum *= by);
    }
}

/// `sums[m] += scores[m] · values`
#[inline(always)]
fn weigh<I: Isa>(isa: I, scratch: &mut Scratch, rows: usize, dim: usize, seen: usize) {
    let mut m = 0;
    while m < rows {
        if m + ROWS <= rows {
            weigh_rows::<I, ROWS>(isa, scratch, m, dim, seen);
            m += ROWS;
        } else {
            weigh_rows::<I, 1>(isa, scratch, m, dim, seen);
            m += 1;
        }
    }
}

#[inline(always)]
fn weigh_rows<I: Isa, const R: usize>(
    isa: I,
    scratch: &mut Scratch,
    m: usize,
    dim: usize,
    seen: usize,
) {
    let vectors = dim / LANES;
    let values = scratch.values.as_chunks::<LANES>().0;
    for v in 0..vectors {
        let mut total = [isa.splat(0.0); R];
        for r in 0..R {
            let sums = scratch.sums[(m + r) * dim..].as_chunks::<LANES>().0;
            total[r] = isa.load(&sums[v]);
        }
        for j in 0..seen {
            let value = isa.load(&values[j * vectors + v]);
            for r in 0..R {
                let weight = isa.splat(scratch.scores[m + r].as_flattened()[j]);
                total[r] = isa.fma(weight, value, total[r]);
            }
        }
        for r in 0..R {
            let sums = scratch.sums[(m + r) * dim..].as_chunks_mut::<LANES>().0;
            isa.store(total[r], &mut sums[v]);
        }
    }
}
