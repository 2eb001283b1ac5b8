//! How near the kernels come to what this machine can do: reads per second against its memory
//! bandwidth for one token, operations per second against its arithmetic for many.
//!
//! `cargo run --release -p lathe-kernels --example roofline [-- THREADS [FORMAT …]]`

use std::{hint::black_box, time::Instant};

use lathe_formats::{AnyFormat, Blocks, FORMATS};
use lathe_kernels::{
    Attention, KvPages, KvShape, KvType, Matrix, PAGE_TOKENS, Pool, Span, attention, matmul,
};
use lathe_simd::{Isa, LANES, Op};

/// A feed-forward layer of a 1.1 B Llama.
const ROWS: usize = 5632;
const COLS: usize = 2048;
/// More than any cache: what one token has to read from memory.
const STREAM: usize = 192 << 20;

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args
        .next()
        .and_then(|a| a.parse().ok())
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let wanted: Vec<String> = args.collect();
    let pool = Pool::new(threads);
    let bandwidth = bandwidth(&pool);
    let (ints, floats) = (peak(&pool, IntPeak), peak(&pool, FloatPeak));
    let halves = peak(&pool, HalfPeak);
    println!("{threads} threads, {}", lathe_kernels::isa_name());
    println!(
        "peaks: {bandwidth:.1} GB/s, {ints:.0} GOPS of int8, {floats:.0} GFLOPS of f32, {halves:.0} of bf16"
    );
    attend(&pool, bandwidth, floats);
    println!();
    println!(
        "{:14} {:>16} {:>16} {:>16} {:>10}",
        "", "1 token", "8 tokens", "512 tokens", "repack"
    );
    println!(
        "{:14} {:>10} {:>5} {:>10} {:>5} {:>10} {:>5} {:>10}",
        "", "GB/s", "%", "GOPS", "%", "GOPS", "%", "GB/s"
    );
    for format in
        FORMATS.iter().filter(|f| wanted.is_empty() || wanted.iter().any(|w| w == f.name()))
    {
        let peak = match format.name() {
            "f32" | "f16" => floats,
            "bf16" | "fp8_row" | "fp8_tensor" => halves,
            _ => ints,
        };
        let (w, repack) = weights(*format, STREAM, &pool);
        let one = w.bytes() as f64 / seconds(&pool, &w, 1) / 1e9;
        let (w, _) = weights(*format, 1, &pool);
        let operations = |t: usize| 2.0 * (t * ROWS * COLS) as f64 / seconds(&pool, &w, t) / 1e9;
        let (few, many) = (operations(8), operations(512));
        println!(
            "{:14} {one:10.1} {:4.0}% {few:10.0} {:4.0}% {many:10.0} {:4.0}% {repack:10.1}",
            format.name(),
            100.0 * one / bandwidth,
            100.0 * few / peak,
            100.0 * many / peak,
        );
    }
}

/// Attention of a 1.1 B Llama's layer: a prompt in GFLOPS, and one token late in a text in GB/s of
/// keys and values.
fn attend(pool: &Pool, bandwidth: f64, floats: f64) {
    let (heads, kv_heads, dim, context) = (32, 4, 64, 8192);
    for kind in KvType::ALL {
        let pages: Vec<u32> = (0..(context / PAGE_TOKENS) as u32).collect();
        let layers = STREAM / (context * kv_heads * kind.token_bytes(dim));
        let shape =
            KvShape { kind, layers, pages: pages.len(), recent: 1, kv_heads, head_dim: dim };
        let mut cache = KvPages::new(shape).expect("memory");
        let run = vec![0.5; context * kv_heads * dim];
        for layer in 0..layers {
            let all = Span { rows: 0..context, start: 0, pages: &pages, recent: 0 };
            cache.write(pool, layer, &[all], &run, &run);
        }
        let mut time = |t: usize, start: usize| {
            let (q, mut out) = (vec![0.1; t * heads * dim], vec![0.0; t * heads * dim]);
            let spans = [Span { rows: 0..t, start, pages: &pages, recent: 0 }];
            let run = &run[..t * kv_heads * dim];
            let mut seconds = 0.0;
            for layer in 0..layers {
                let what = Attention { layer, heads, scale: 0.1, window: None, soft_cap: None };
                cache.write(pool, layer, &spans, run, run);
                let begin = Instant::now();
                attention(pool, &what, &cache, &spans, black_box(&q), &mut out);
                seconds += begin.elapsed().as_secs_f64();
            }
            seconds / layers as f64
        };
        let bytes = (context * kv_heads * kind.token_bytes(dim)) as f64;
        let one = bytes / time(1, context - 1) / 1e9;
        let many = 4.0 * (512 * 513 / 2 * heads * dim) as f64 / time(512, 0) / 1e9;
        println!(
            "attention {kind:?}: one token after {context}: {one:.1} GB/s ({:.0}%), \
             a prompt of 512: {many:.0} GFLOPS ({:.0}%)",
            100.0 * one / bandwidth,
            100.0 * many / floats,
        );
    }
}

/// At least `bytes` of weights in matrices stacked on one another.
fn weights(format: &'static dyn AnyFormat, bytes: usize, pool: &Pool) -> (Matrix, f64) {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let rows = ROWS * bytes.div_ceil(format.bytes(ROWS, COLS));
    let some: Vec<f32> = (0..ROWS / 8 * COLS).map(|_| next()).collect();
    let blocks = if format.side_bytes(ROWS, COLS) == 0 {
        let some = format.encode(ROWS / 8, COLS, &some, pool.threads()).expect("finite weights");
        let data = some.data.repeat(rows / some.rows);
        Blocks::new(format, rows, COLS, data.into(), some.side).expect("whole rows")
    } else {
        format
            .encode(rows, COLS, &some.repeat(rows / (ROWS / 8)), pool.threads())
            .expect("finite weights")
    };
    let size = blocks.bytes() as f64;
    let start = Instant::now();
    let w = Matrix::with(blocks, Default::default(), pool).expect("enough memory");
    (w, size / start.elapsed().as_secs_f64() / 1e9)
}

/// The median of several products.
fn seconds(pool: &Pool, w: &Matrix, t: usize) -> f64 {
    let x: Vec<f32> = (0..t * COLS).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut out = vec![0.0; t * w.rows()];
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let start = Instant::now();
            matmul(pool, black_box(&x), t, w, &mut out);
            black_box(&mut out);
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Bytes per second in GB that all threads together read.
fn bandwidth(pool: &Pool) -> f64 {
    let data = vec![1.0f32; STREAM / 2];
    let tasks = 64;
    let part = data.len() / tasks;
    let best = (0..5).map(|_| {
        let start = Instant::now();
        pool.run(tasks, &|i| {
            black_box(lathe_simd::run(Read(&data[i * part..][..part])));
        });
        start.elapsed().as_secs_f64()
    });
    (data.len() * 4) as f64 / best.fold(f64::MAX, f64::min) / 1e9
}

struct Read<'a>(&'a [f32]);

impl Op for Read<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let mut sums = [isa.splat(0.0); 4];
        for four in self.0.as_chunks::<{ 4 * LANES }>().0 {
            for (sum, x) in sums.iter_mut().zip(four.as_chunks::<LANES>().0) {
                *sum = isa.add(*sum, isa.load(x));
            }
            isa.prefetch(four.as_ptr().wrapping_add(1024).cast());
        }
        isa.sum(isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3])))
    }
}

/// Operations per second in billions, of all threads together.
fn peak(pool: &Pool, op: impl Op<Out = f64> + Clone + Sync) -> f64 {
    let best = (0..5).map(|_| {
        let start = Instant::now();
        let operations = std::sync::Mutex::new(0.0);
        pool.run(pool.threads() * 8, &|_| {
            let done = lathe_simd::run(op.clone());
            *operations.lock().expect("no panic") += done;
        });
        operations.into_inner().expect("no panic") / start.elapsed().as_secs_f64() / 1e9
    });
    best.fold(0.0, f64::max)
}

const ROUNDS: usize = 1 << 19;
const CHAINS: usize = 12;

#[derive(Clone)]
struct IntPeak;

impl Op for IntPeak {
    type Out = f64;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f64 {
        let (codes, x) = (isa.load_bytes(black_box(&[3; 64])), isa.splat_bytes(black_box(&[1; 4])));
        let mut sums = [isa.splat_i(0); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = isa.dot_small(*sum, codes, x);
            }
        }
        for sum in sums {
            let mut bytes = [0; LANES];
            isa.store_low_bytes(sum, &mut bytes);
            black_box(bytes);
        }
        (2 * 4 * LANES * CHAINS * ROUNDS) as f64
    }
}

#[derive(Clone)]
struct HalfPeak;

impl Op for HalfPeak {
    const BF16: bool = true;
    type Out = f64;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f64 {
        let a = isa.load_bytes(&black_box([0x3f; 64]));
        let mut sums = [isa.splat(0.0); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = isa.dot_bf16(*sum, a, a);
            }
        }
        for sum in sums {
            black_box(isa.sum(sum));
        }
        (4 * LANES * CHAINS * ROUNDS) as f64
    }
}

#[derive(Clone)]
struct FloatPeak;

impl Op for FloatPeak {
    type Out = f64;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f64 {
        let (a, b) = (isa.splat(black_box(0.5)), isa.splat(black_box(0.25)));
        let mut sums = [isa.splat(0.0); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = isa.fma(*sum, a, b);
            }
        }
        for sum in sums {
            black_box(isa.sum(sum));
        }
        (2 * LANES * CHAINS * ROUNDS) as f64
    }
}
