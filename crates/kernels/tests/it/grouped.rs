//! Attention over keys and values that are coded page by page, against a naive one in f64 that
//! codes them on its own, and every promise of sameness.

use half::f16;
use lathe_kernels::{Attention, KvPages, KvShape, KvType, PAGE_TOKENS, Pool, Span, attention};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const LAYERS: usize = 2;
const KINDS: [(KvType, f32); 2] = [(KvType::Int8, 255.0), (KvType::Int4, 15.0)];

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

impl Shape {
    fn what(self, layer: usize) -> Attention {
        let scale = 1.0 / (self.dim as f32).sqrt();
        Attention { layer, heads: self.heads, scale, window: None, soft_cap: None }
    }
}

/// A sequence's queries `[T, H, K]`, keys and values `[T, G, K]`.
struct Tokens {
    len: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn tokens(len: usize, shape: Shape, seed: u64) -> Tokens {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = |n: usize| -> Vec<f32> {
        // Channels of different sizes and offsets, as keys have them.
        (0..n).map(|i| (rng.random::<f32>() - 0.4) * (1 + i % 5) as f32).collect()
    };
    let (wide, narrow) = (len * shape.heads * shape.dim, len * shape.kv_heads * shape.dim);
    Tokens { len, q: uniform(wide), k: uniform(narrow), v: uniform(narrow) }
}

fn cache(kind: KvType, pages: usize, recent: usize, shape: Shape) -> KvPages {
    let (kv_heads, head_dim) = (shape.kv_heads, shape.dim);
    KvPages::new(KvShape { kind, layers: LAYERS, pages, recent, kv_heads, head_dim }).unwrap()
}

/// A sequence that is fed run by run.
struct Feed<'a> {
    tokens: &'a Tokens,
    pages: Vec<u32>,
    recent: u32,
    fed: usize,
}

impl<'a> Feed<'a> {
    fn new(tokens: &'a Tokens, first_page: u32, recent: u32) -> Self {
        let count = tokens.len.div_ceil(PAGE_TOKENS) as u32;
        // In no order.
        let pages = (first_page..first_page + count).rev().collect();
        Self { tokens, pages, recent, fed: 0 }
    }
}

/// Feeds the next `counts[i]` tokens of each sequence in one pass through all layers and gives the
/// last layer's outputs.
fn pass(
    cache: &mut KvPages,
    feeds: &mut [Feed<'_>],
    counts: &[usize],
    shape: Shape,
    threads: usize,
) -> Vec<f32> {
    let pool = Pool::new(threads);
    let (mut q, mut k, mut v, mut spans) = (vec![], vec![], vec![], vec![]);
    let (wide, narrow) = (shape.heads * shape.dim, shape.kv_heads * shape.dim);
    let mut row = 0;
    for (feed, count) in feeds.iter().zip(counts) {
        let Tokens { q: all_q, k: all_k, v: all_v, .. } = feed.tokens;
        q.extend(&all_q[feed.fed * wide..(feed.fed + count) * wide]);
        k.extend(&all_k[feed.fed * narrow..(feed.fed + count) * narrow]);
        v.extend(&all_v[feed.fed * narrow..(feed.fed + count) * narrow]);
        let (rows, recent) = (row..row + count, feed.recent);
        spans.push(Span { rows, start: feed.fed, pages: &feed.pages, recent });
        row += count;
    }
    let mut out = vec![f32::NAN; q.len()];
    for layer in 0..LAYERS {
        cache.write(&pool, layer, &spans, &k, &v);
        attention(&pool, &shape.what(layer), cache, &spans, &q, &mut out);
    }
    drop(spans);
    for (feed, count) in feeds.iter_mut().zip(counts) {
        feed.fed += count;
    }
    out
}

/// All outputs of one sequence that is fed in runs of these lengths, over and over.
fn outputs(kind: KvType, all: &Tokens, runs: &[usize], shape: Shape, threads: usize) -> Vec<f32> {
    let mut cache = cache(kind, all.len.div_ceil(PAGE_TOKENS), 1, shape);
    let mut feed = [Feed::new(all, 0, 0)];
    let mut out = Vec::new();
    for run in runs.iter().cycle() {
        let count = (*run).min(all.len - feed[0].fed);
        if count == 0 {
            return out;
        }
        out.extend(pass(&mut cache, &mut feed, &[count], shape, threads));
    }
    out
}

fn half(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// A group coded with `top + 1` levels and read again.
fn coded(group: &[f32], top: f32) -> Vec<f64> {
    let low = group.iter().copied().fold(f32::INFINITY, f32::min);
    let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let least = (high - low) / top;
    let mut scale = f16::from_f32(least);
    if scale.to_f32() < least {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    let scale = scale.to_f32();
    let code =
        |x: f32| if scale > 0.0 { ((x - low) * (1.0 / scale)).round_ties_even() } else { 0.0 };
    group.iter().map(|x| f64::from(code(*x).clamp(0.0, top) * scale + low)).collect()
}

/// The keys and values `[T, G, K]` that a token of page `own` sees.
fn seen(all: &Tokens, own: usize, top: f32, shape: Shape) -> (Vec<f64>, Vec<f64>) {
    let Shape { kv_heads, dim, .. } = shape;
    let width = kv_heads * dim;
    let (k, v): (Vec<f32>, Vec<f32>) =
        (all.k.iter().copied().map(half).collect(), all.v.iter().copied().map(half).collect());
    let mut wide = (
        k.iter().copied().map(f64::from).collect::<Vec<_>>(),
        v.iter().copied().map(f64::from).collect::<Vec<_>>(),
    );
    for page in 0..own {
        let first = page * PAGE_TOKENS;
        for channel in 0..width {
            let at = |j: usize| (first + j) * width + channel;
            let group: Vec<f32> = (0..PAGE_TOKENS).map(|j| k[at(j)]).collect();
            for (j, x) in coded(&group, top).into_iter().enumerate() {
                wide.0[at(j)] = x;
            }
        }
        for row in first * kv_heads..(first + PAGE_TOKENS) * kv_heads {
            let group = row * dim..(row + 1) * dim;
            wide.1[group.clone()].copy_from_slice(&coded(&v[group], top));
        }
    }
    wide
}

fn naive(all: &Tokens, top: f32, shape: Shape) -> Vec<f64> {
    let Shape { heads, kv_heads, dim } = shape;
    let scale = f64::from(shape.what(0).scale);
    let mut out = Vec::new();
    for own in 0..all.len.div_ceil(PAGE_TOKENS) {
        let (k, v) = seen(all, own, top, shape);
        for token in own * PAGE_TOKENS..all.len.min((own + 1) * PAGE_TOKENS) {
            for head in 0..heads {
                let q = &all.q[(token * heads + head) * dim..][..dim];
                let at = |j: usize| (j * kv_heads + head / (heads / kv_heads)) * dim;
                let score = |j: usize| -> f64 {
                    let dot: f64 =
                        k[at(j)..][..dim].iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum();
                    (dot * scale).exp()
                };
                let weights: Vec<f64> = (0..=token).map(score).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..dim {
                    out.push((0..=token).map(|j| weights[j] / total * v[at(j) + d]).sum());
                }
            }
        }
    }
    out
}

#[test]
fn equals_naive_attention_over_codes_on_every_instruction_set() {
    for (heads, kv_heads, dim) in [(4, 4, 16), (8, 2, 64), (3, 1, 80), (6, 2, 128)] {
        let shape = Shape { heads, kv_heads, dim };
        let all = tokens(131, shape, 1);
        for (kind, top) in KINDS {
            let expected = naive(&all, top, shape);
            let mut first: Option<Vec<f32>> = None;
            for isa in lathe_simd::available() {
                for runs in [&[131][..], &[1]] {
                    let found =
                        lathe_simd::with_isa(isa, || outputs(kind, &all, runs, shape, 1)).unwrap();
                    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        let error = (f64::from(*found) - expected).abs();
                        assert!(
                            error < 2e-5,
                            "{kind:?} {isa} {dim}: {i} is {found}, not {expected}"
                        );
                    }
                    let first = first.get_or_insert_with(|| found.clone());
                    assert_eq!(*first, found, "{kind:?} {isa} {runs:?} differs from scalar");
                }
            }
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_however_its_sequence_is_cut() {
    let shape = Shape { heads: 6, kv_heads: 2, dim: 48 };
    let all = tokens(170, shape, 2);
    for (kind, _) in KINDS {
        let whole = outputs(kind, &all, &[170], shape, 1);
        for runs in [&[1][..], &[7], &[32], &[33], &[31, 1, 65], &[64, 40], &[100, 1]] {
            for threads in [1, 3] {
                assert_eq!(outputs(kind, &all, runs, shape, threads), whole, "{kind:?} {runs:?}");
            }
        }
    }
}

#[test]
fn a_sequence_gets_the_same_bits_alone_and_in_company() {
    let shape = Shape { heads: 4, kv_heads: 2, dim: 32 };
    let all: Vec<Tokens> =
        [90, 70, 90].iter().map(|len| tokens(*len, shape, *len as u64)).collect();
    let width = shape.heads * shape.dim;
    for (kind, _) in KINDS {
        let alone: Vec<Vec<f32>> =
            all.iter().map(|all| outputs(kind, all, &[90], shape, 1)).collect();
        let mut cache = cache(kind, 9, 3, shape);
        let mut feeds: Vec<Feed<'_>> =
            all.iter().enumerate().map(|(i, all)| Feed::new(all, 3 * i as u32, i as u32)).collect();
        for counts in [[30, 1, 45], [1, 69, 0], [40, 0, 30], [19, 0, 15]] {
            let before: Vec<usize> = feeds.iter().map(|feed| feed.fed).collect();
            let out = pass(&mut cache, &mut feeds, &counts, shape, 2);
            let mut row = 0;
            for (i, count) in counts.iter().enumerate() {
                let expected = &alone[i][before[i] * width..(before[i] + count) * width];
                assert_eq!(out[row * width..(row + count) * width], *expected, "{kind:?} {i}");
                row += count;
            }
        }
    }
}

#[test]
fn a_sequence_goes_on_from_copied_pages_as_from_its_own() {
    let shape = Shape { heads: 2, kv_heads: 2, dim: 16 };
    let all = tokens(80, shape, 5);
    for (kind, _) in KINDS {
        let expected = outputs(kind, &all, &[40], shape, 1);
        let mut cache = cache(kind, 6, 2, shape);
        let mut first = [Feed::new(&all, 0, 0)];
        pass(&mut cache, &mut first, &[40], shape, 1);
        let mut second = [Feed { fed: 40, ..Feed::new(&all, 3, 1) }];
        for (from, to) in first[0].pages.iter().zip(&second[0].pages) {
            cache.copy_page(*from, *to);
        }
        cache.copy_recent(0, 1);
        let out = pass(&mut cache, &mut second, &[40], shape, 1);
        assert_eq!(out, expected[40 * shape.heads * shape.dim..]);
    }
}

#[test]
fn numbers_that_are_not_finite_are_not_hidden_by_codes() {
    let shape = Shape { heads: 1, kv_heads: 1, dim: 16 };
    for bad in [f32::NAN, f32::INFINITY, 1e6] {
        let mut all = tokens(40, shape, 6);
        all.v[5] = bad;
        for (kind, _) in KINDS {
            let out = outputs(kind, &all, &[40], shape, 1);
            // The last token sees the page in codes, and the whole group is NaN.
            assert!(
                out[39 * 16..].iter().all(|x| x.is_nan()),
                "{kind:?} {bad}: {:?}",
                &out[39 * 16..]
            );
        }
    }
}

#[test]
fn groups_of_equal_numbers_are_kept_exactly() {
    let shape = Shape { heads: 1, kv_heads: 1, dim: 32 };
    let mut all = tokens(64, shape, 7);
    all.v.fill(-0.375);
    for (kind, _) in KINDS {
        let out = outputs(kind, &all, &[64], shape, 1);
        assert!(out.iter().all(|x| (x + 0.375).abs() < 1e-6), "{kind:?}");
    }
}

#[test]
fn coded_pages_take_the_bytes_that_the_type_says() {
    let shape = Shape { heads: 4, kv_heads: 2, dim: 128 };
    for (kind, _) in KINDS {
        let (pages, recent) = (64, 1);
        let bytes = cache(kind, pages, recent, shape).bytes();
        let tokens = |kind: KvType, pages: usize| {
            LAYERS * shape.kv_heads * pages * PAGE_TOKENS * kind.token_bytes(shape.dim)
        };
        assert_eq!(bytes, tokens(kind, pages) + tokens(KvType::F16, recent), "{kind:?}");
    }
}
