//! How near the kernels come to what this machine can do: reads per second against its memory
//! bandwidth for one token, operations per second against its arithmetic for many.
//!
//! `cargo run --release -p lathe-kernels --example roofline [-- THREADS [FORMAT …]]`

use std::{hint::black_box, time::Instant};

use lathe_formats::{AnyFormat, Blocks, FORMATS};
use lathe_kernels::{
    Attention, KvPages, KvShape, KvType, Matrix, PAGE_TOKENS, Peaks, Pool, Span, attention, matmul,
};

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
    let peaks = Peaks::measure(&pool);
    let (bandwidth, ints) = (peaks.read / 1e9, peaks.int8 / 1e9);
    let (floats, halves) = (peaks.f32 / 1e9, peaks.bf16 / 1e9);
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
