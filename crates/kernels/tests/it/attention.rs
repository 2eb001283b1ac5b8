//! Paged attention against a naive one in f64.

use half::{bf16, f16};
use lathe_base::e4m3;
use lathe_kernels::{Attention, KvPages, KvShape, KvType, PAGE_TOKENS, Pool, Span, attention};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const LAYERS: usize = 2;
const LAYER: usize = 1;

/// One sequence with all its queries, keys and values.
struct Sequence {
    len: usize,
    /// `[T, H, K]`
    q: Vec<f32>,
    /// `[T, G, K]`
    k: Vec<f32>,
    v: Vec<f32>,
    pages: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

fn uniform(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random::<f32>() * 4.0 - 2.0).collect()
}

/// Sequences of these lengths in a cache whose other pages hold NaN, pages taken from the back.
fn setup(lens: &[usize], shape: Shape, kind: KvType, seed: u64) -> (KvPages, Vec<Sequence>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let pages: usize = lens.iter().map(|len| len.div_ceil(PAGE_TOKENS)).sum::<usize>() + 1;
    let mut cache = KvPages::new(kv_shape(kind, pages, shape)).unwrap();
    let (pool, width) = (Pool::new(1), shape.kv_heads * shape.dim);
    let nan = vec![f32::NAN; pages * PAGE_TOKENS * width];
    let mut free: Vec<u32> = (0..pages as u32).collect();
    let all = Span { rows: 0..pages * PAGE_TOKENS, start: 0, pages: &free, recent: 0 };
    cache.write(&pool, LAYER, &[all], &nan, &nan);
    let mut sequences = Vec::new();
    for &len in lens {
        let pages: Vec<u32> = (0..len.div_ceil(PAGE_TOKENS)).map(|_| free.pop().unwrap()).collect();
        let (k, v) = (uniform(&mut rng, len * width), uniform(&mut rng, len * width));
        let span = Span { rows: 0..len, start: 0, pages: &pages, recent: 0 };
        cache.write(&pool, LAYER, &[span], &k, &v);
        let q = uniform(&mut rng, len * shape.heads * shape.dim);
        sequences.push(Sequence { len, q, k, v, pages });
    }
    (cache, sequences)
}

fn kv_shape(kind: KvType, pages: usize, shape: Shape) -> KvShape {
    let Shape { kv_heads, dim: head_dim, .. } = shape;
    KvShape { kind, layers: LAYERS, pages, recent: 1, kv_heads, head_dim }
}

fn kept(kind: KvType, x: f32) -> f64 {
    match kind {
        KvType::F16 => f64::from(f16::from_f32(x)),
        KvType::Bf16 => f64::from(bf16::from_f32(x)),
        KvType::Fp8 => f64::from(e4m3::from_f32(x).to_f32()),
        _ => f64::from(x),
    }
}

/// The outputs of one token, head by head.
fn naive(s: &Sequence, shape: Shape, what: &Attention, kind: KvType, token: usize) -> Vec<f64> {
    let Shape { heads, kv_heads, dim } = shape;
    let first = what.window.map_or(0, |window| (token + 1).saturating_sub(window));
    let mut out = Vec::new();
    for head in 0..heads {
        let q = &s.q[(token * heads + head) * dim..][..dim];
        let group = head / (heads / kv_heads);
        let row = |x: &[f32], j: usize| -> Vec<f64> {
            x[(j * kv_heads + group) * dim..][..dim].iter().map(|x| kept(kind, *x)).collect()
        };
        let score = |j: usize| {
            let dot: f64 = row(&s.k, j).iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum();
            let score = dot * f64::from(what.scale);
            what.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let weights: Vec<f64> = (first..=token).map(|j| score(j).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut sums = vec![0.0; dim];
        for (w, j) in weights.iter().zip(first..) {
            for (sum, v) in sums.iter_mut().zip(row(&s.v, j)) {
                *sum += w / total * v;
            }
        }
        out.extend(sums);
    }
    out
}

/// Runs the last `take[i]` tokens of each sequence as one batch.
fn run(
    cache: &KvPages,
    all: &[Sequence],
    take: &[usize],
    what: &Attention,
    threads: usize,
) -> Vec<f32> {
    let width = all[0].q.len() / all[0].len;
    let (mut q, mut spans) = (Vec::new(), Vec::new());
    for (s, take) in all.iter().zip(take) {
        let (start, row) = (s.len - take, q.len() / width);
        q.extend(&s.q[start * width..]);
        spans.push(Span { rows: row..row + take, start, pages: &s.pages, recent: 0 });
    }
    let mut out = vec![f32::NAN; q.len()];
    attention(&Pool::new(threads), what, cache, &spans, &q, &mut out);
    out
}

fn check(lens: &[usize], take: &[usize], shape: Shape, what: &Attention) {
    // Scores are rounded in proportion to their size, and that goes into an exponent.
    let tolerance = 1e-5 * f64::from(what.scale.max(1.0));
    for kind in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Fp8] {
        let (cache, all) = setup(lens, shape, kind, 7);
        let mut expected = Vec::new();
        for (s, take) in all.iter().zip(take) {
            for token in s.len - take..s.len {
                expected.extend(naive(s, shape, what, kind, token));
            }
        }
        let mut first: Option<Vec<f32>> = None;
        for isa in lathe_simd::available() {
            let found = lathe_simd::with_isa(isa, || run(&cache, &all, take, what, 1)).unwrap();
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = (f64::from(*found) - expected).abs();
                assert!(
                    error < tolerance,
                    "{kind:?} {isa} {lens:?}: {i} is {found}, not {expected}"
                );
            }
            let first = first.get_or_insert_with(|| found.clone());
            assert_eq!(*first, found, "{isa} differs from scalar");
        }
    }
}

fn plain(shape: Shape) -> Attention {
    let scale = 1.0 / (shape.dim as f32).sqrt();
    Attention { layer: LAYER, heads: shape.heads, scale, window: None, soft_cap: None }
}

#[test]
fn equals_naive_attention_for_prompts_and_single_tokens() {
    for (heads, kv_heads, dim) in [(4, 4, 16), (8, 2, 64), (3, 1, 80), (6, 2, 128)] {
        let shape = Shape { heads, kv_heads, dim };
        check(&[1], &[1], shape, &plain(shape));
        check(&[33, 70, 32], &[33, 1, 5], shape, &plain(shape));
    }
}

#[test]
fn a_window_hides_what_lies_before_it() {
    let shape = Shape { heads: 4, kv_heads: 2, dim: 32 };
    for window in [1, 2, 31, 32, 33, 64, 1000] {
        let what = Attention { window: Some(window), ..plain(shape) };
        check(&[131, 40], &[131, 1], shape, &what);
    }
}

#[test]
fn a_soft_cap_bounds_the_scores() {
    let shape = Shape { heads: 4, kv_heads: 2, dim: 32 };
    let what = Attention { soft_cap: Some(1.5), scale: 1.0, ..plain(shape) };
    check(&[50, 3], &[20, 3], shape, &what);
}

#[test]
fn scores_of_any_size_do_not_overflow() {
    let shape = Shape { heads: 2, kv_heads: 1, dim: 16 };
    // Naive f64 exponentials reach e^700: scores here stay below 16 · 4 · 10.
    let what = Attention { scale: 10.0, ..plain(shape) };
    check(&[90], &[90], shape, &what);
}

#[test]
fn a_token_gets_the_same_bits_alone_and_in_any_company() {
    let shape = Shape { heads: 8, kv_heads: 2, dim: 64 };
    let what = Attention { window: Some(45), ..plain(shape) };
    let (cache, all) = setup(&[100, 57], shape, KvType::F16, 8);
    let width = shape.heads * shape.dim;
    let together = run(&cache, &all, &[100, 57], &what, 1);
    for threads in [2, 3] {
        assert_eq!(run(&cache, &all, &[100, 57], &what, threads), together);
    }
    for take in [1, 2, 9, 40] {
        let alone = run(&cache, &all[..1], &[take], &what, 2);
        assert_eq!(alone, together[(100 - take) * width..100 * width]);
    }
}

#[test]
fn a_copied_page_reads_like_the_first() {
    let shape = Shape { heads: 2, kv_heads: 2, dim: 16 };
    let (mut cache, mut all) = setup(&[20], shape, KvType::F32, 9);
    let before = run(&cache, &all, &[20], &plain(shape), 1);
    let (from, to) = (all[0].pages[0], 0);
    assert_ne!(from, to);
    cache.copy_page(from, to);
    all[0].pages[0] = to;
    assert_eq!(run(&cache, &all, &[20], &plain(shape), 1), before);
}

#[test]
fn rejects_a_cache_that_cannot_be() {
    let shape =
        KvShape { kind: KvType::F16, layers: 1, pages: 1, recent: 1, kv_heads: 1, head_dim: 64 };
    assert!(KvPages::new(KvShape { head_dim: 20, ..shape }).is_err());
    assert!(KvPages::new(KvShape { layers: usize::MAX, pages: 2, ..shape }).is_err());
    let large = KvShape { layers: 1 << 20, pages: 1 << 30, ..shape };
    let error = KvPages::new(large).unwrap_err();
    assert!(error.to_string().contains("context"), "{error}");
}
