//! Every kernel on the shapes of a 1.1 B Llama. Throughputs are bytes of weights (or of keys and
//! values) per second for one token, where memory is the limit, and multiplications and additions
//! per second for many, where arithmetic is; `examples/roofline.rs` sets them against the machine.
//!
//! `cargo bench -p lathe-kernels -- q4_0`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lathe_formats::{AnyFormat, FORMATS};
use lathe_kernels::{
    Activation, Attention, Gram, KvPages, KvShape, KvType, Matrix, Norm, PAGE_TOKENS, Pool,
    Precision, Rope, RopeStyle, Span, attention, gated, matmul, rms_norm, rope, softmax,
};

const WIDTH: usize = 2048;
const HIDDEN: usize = 5632;

fn pool() -> Pool {
    Pool::new(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect()
}

fn matrix(pool: &Pool, format: &'static dyn AnyFormat, precision: Precision) -> Matrix {
    let weights = numbers(HIDDEN * WIDTH);
    let blocks = format.encode(HIDDEN, WIDTH, &weights, pool.threads()).expect("finite weights");
    Matrix::with(blocks, precision, pool).expect("enough memory")
}

fn products(c: &mut Criterion) {
    let pool = pool();
    for precision in [Precision::Fast, Precision::Exact] {
        let mut group = c.benchmark_group(format!("matmul {precision:?}"));
        group.sample_size(10);
        for format in FORMATS {
            let w = matrix(&pool, *format, precision);
            for t in [1, 8, 512] {
                group.throughput(if t == 1 {
                    Throughput::BytesDecimal(w.bytes() as u64)
                } else {
                    Throughput::Elements((2 * t * HIDDEN * WIDTH) as u64)
                });
                let (x, mut out) = (numbers(t * WIDTH), vec![0.0; t * HIDDEN]);
                group.bench_function(BenchmarkId::new(format.name(), t), |b| {
                    b.iter(|| matmul(&pool, black_box(&x), t, &w, black_box(&mut out)));
                });
            }
        }
    }
}

/// Sums of x xᵀ, counted as the multiplications and additions of one triangle.
fn hessian(c: &mut Criterion) {
    let pool = pool();
    let mut group = c.benchmark_group("gram");
    group.sample_size(10);
    for cols in [WIDTH, HIDDEN] {
        let t = 1024;
        group.throughput(Throughput::Elements((t * cols * (cols + 1)) as u64));
        let x = numbers(t * cols);
        let mut gram = Gram::new(cols).expect("enough memory");
        group.bench_function(BenchmarkId::new("f32", cols), |b| {
            b.iter(|| gram.add(&pool, black_box(&x)));
        });
    }
}

fn repacking(c: &mut Criterion) {
    let pool = pool();
    let mut group = c.benchmark_group("repack");
    group.sample_size(10);
    for format in FORMATS {
        let weights = numbers(HIDDEN * WIDTH);
        let blocks = format.encode(HIDDEN, WIDTH, &weights, 2).expect("finite weights");
        group.throughput(Throughput::BytesDecimal(blocks.bytes() as u64));
        group.bench_function(format.name(), |b| {
            b.iter(|| Matrix::with(blocks.clone(), Precision::Fast, &pool).expect("enough memory"));
        });
    }
}

fn attending(c: &mut Criterion) {
    let pool = pool();
    let (heads, kv_heads, dim, context) = (32, 4, 64, 16_384);
    let mut group = c.benchmark_group("attention");
    group.sample_size(10);
    for kind in KvType::ALL {
        let pages: Vec<u32> = (0..(context / PAGE_TOKENS) as u32).collect();
        let shape =
            KvShape { kind, layers: 1, pages: pages.len(), recent: 1, kv_heads, head_dim: dim };
        let mut cache = KvPages::new(shape).expect("enough memory");
        let run = numbers(context * kv_heads * dim);
        let all = Span { rows: 0..context, start: 0, pages: &pages, recent: 0 };
        cache.write(&pool, 0, &[all], &run, &run);
        for (t, start) in [(512, 0), (1, 4095), (1, 16_383)] {
            let end = start + t;
            group.throughput(if t == 1 {
                Throughput::BytesDecimal((end * kv_heads * kind.token_bytes(dim)) as u64)
            } else {
                Throughput::Elements((4 * (t * (t + 1) / 2) * heads * dim) as u64)
            });
            let what = Attention { layer: 0, heads, scale: 0.125, window: None, soft_cap: None };
            let spans = [Span { rows: 0..t, start, pages: &pages, recent: 0 }];
            // Grouped types keep what a run lies in for the attention that follows.
            cache.write(&pool, 0, &spans, &run[..t * kv_heads * dim], &run[..t * kv_heads * dim]);
            let (q, mut out) = (numbers(t * heads * dim), vec![0.0; t * heads * dim]);
            group.bench_function(BenchmarkId::new(format!("{kind:?} {t} at"), start), |b| {
                b.iter(|| attention(&pool, &what, &cache, &spans, black_box(&q), &mut out));
            });
        }
    }
}

fn rowwise(c: &mut Criterion) {
    let pool = pool();
    let mut group = c.benchmark_group("rows");
    for t in [1, 512] {
        let mut x = numbers(t * HIDDEN);
        let y = numbers(t * HIDDEN);
        group.throughput(Throughput::Elements((t * HIDDEN) as u64));
        group.bench_function(BenchmarkId::new("silu", t), |b| {
            b.iter(|| gated(&pool, Activation::Silu, black_box(&mut x), &y));
        });
        group.bench_function(BenchmarkId::new("softmax", t), |b| {
            b.iter(|| softmax(&pool, black_box(&mut x), HIDDEN));
        });
        let norm = Norm { weight: &y[..HIDDEN], offset: 0.0, eps: 1e-5 };
        let mut out = vec![0.0; t * HIDDEN];
        group.bench_function(BenchmarkId::new("rms_norm", t), |b| {
            b.iter(|| rms_norm(&pool, &norm, black_box(&x), &mut out));
        });
        let (cos, sin) = (vec![0.6; t * 32], vec![0.8; t * 32]);
        let turn = Rope { style: RopeStyle::Half, pairs: 32, cos: &cos, sin: &sin };
        group.bench_function(BenchmarkId::new("rope", t), |b| {
            b.iter(|| rope(&pool, &turn, 64, black_box(&mut x)));
        });
    }
    group.finish();
    c.bench_function("pool: an empty task for each thread", |b| {
        b.iter(|| {
            pool.run(pool.threads(), &|i| {
                black_box(i);
            })
        });
    });
}

criterion_group!(benches, products, hessian, repacking, attending, rowwise);
criterion_main!(benches);
