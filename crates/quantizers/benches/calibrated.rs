//! What calibrated quantizers take on one matrix, in operations per second: criterion's "elements"
//! are multiplications and additions of the algorithm as published sizes count them.
//!
//!     cargo bench -p lathe-quantizers --bench calibrated

use std::{thread, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lathe_formats::{Effort, by_name};
use lathe_quantizers::{Dense, Gptq, Order, Quantizer, Stats};

/// A square matrix and the statistics of correlated inputs.
struct Layer {
    weights: Dense,
    stats: Stats,
    threads: usize,
}

/// Numbers in −1..1.
fn noise(i: usize) -> f32 {
    let mixed = (i as u64 ^ 0x9e37_79b9).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 40) as f32 / 8388608.0 - 1.0
}

impl Layer {
    fn new(size: usize) -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        // Columns that resemble their neighbours, of uneven size.
        let of = |i: usize, j: usize| {
            (1.0 + noise(i).abs()) * (1.0 + noise(j).abs()) * 0.9f32.powi(i.abs_diff(j) as i32)
        };
        let hessian = Some((0..size * size).map(|at| of(at / size, at % size)).collect());
        let data = (0..size * size).map(|i| 0.05 * noise(7 * i)).collect();
        let weights = Dense { rows: size, cols: size, data };
        Self { weights, stats: Stats { hessian, ..Stats::default() }, threads }
    }
}

/// GPTQ of a square matrix: n³/3 for the factor, n³ for the feedback, 2·n³ for each pass over it.
fn gptq(c: &mut Criterion) {
    let mut group = c.benchmark_group("gptq");
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    let published = Gptq { effort: Effort::Nearest, passes: 0, ..Gptq::default() };
    let ordered = Gptq { order: Order::Importance, ..published };
    for size in [1024, 2048, 4096] {
        let layer = Layer::new(size);
        let cases = [("published", published), ("act-order", ordered), ("ours", Gptq::default())];
        for (name, gptq) in cases {
            let passes = 2.0 * gptq.passes as f64;
            let flops = (size as f64).powi(3) * (1.0 / 3.0 + 1.0 + passes);
            group.throughput(Throughput::Elements(flops as u64));
            group.bench_function(BenchmarkId::new(name, size), |b| {
                let to = by_name("int4_g128").expect("it is in the table");
                let stats = Some(&layer.stats);
                b.iter(|| gptq.quantize(&layer.weights, stats, to, layer.threads));
            });
        }
    }
}

criterion_group!(benches, gptq);
criterion_main!(benches);
