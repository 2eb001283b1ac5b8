//! What every quantizer, transform and pruning takes on one matrix or layer.
//!
//! Criterion's "elements" are weights; of what solves with a Hessian they are multiplications and
//! additions as the algorithm's published size counts them.
//!
//!     cargo bench -p lathe-quantizers                   # all of it: some minutes
//!     cargo bench -p lathe-quantizers -- gptq/ours      # what is named like this

#[path = "../tests/common/mod.rs"]
mod common;

use std::{collections::BTreeMap, thread, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lathe_files::{Activations, Checkpoint};
use lathe_formats::{AnyFormat, Effort, by_name};
use lathe_models::{Kind, Model, Part, Role};
use lathe_quantizers::{
    Awq, Block, Context, Dense, Gptq, Order, Prune, Quantizer, Rtn, Search, Smooth, Stats, Stored,
    Transform,
};

use common::{Sizes, Source};

/// A matrix and the statistics of correlated inputs.
struct Layer {
    weights: Dense,
    stats: Stats,
}

/// Numbers in −1..1.
fn noise(i: usize) -> f32 {
    let mixed = (i as u64 ^ 0x9e37_79b9).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 40) as f32 / 8388608.0 - 1.0
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn format(name: &str) -> &'static dyn AnyFormat {
    by_name(name).expect("it is in the table")
}

/// Statistics of inputs that resemble their neighbours and are of uneven size.
fn stats(cols: usize) -> Stats {
    let size = |i: usize| 1.0 + noise(i).abs();
    let of = |i: usize, j: usize| size(i) * size(j) * 0.9f32.powi(i.abs_diff(j) as i32);
    Stats {
        count: 1000,
        mean_abs: (0..cols).map(|i| 0.8 * size(i)).collect(),
        importance: (0..cols).map(|i| of(i, i)).collect(),
        absmax: (0..cols).map(|i| 4.0 * size(i)).collect(),
        hessian: Some((0..cols * cols).map(|at| of(at / cols, at % cols)).collect()),
        ..Stats::default()
    }
}

impl Layer {
    fn new(rows: usize, cols: usize) -> Self {
        let data = (0..rows * cols).map(|i| 0.05 * noise(7 * i)).collect();
        Self { weights: Dense { rows, cols, data }, stats: stats(cols) }
    }
}

/// Codes from the weights alone, and with the importance of columns.
fn rounding(c: &mut Criterion) {
    let layer = Layer::new(1024, 1024);
    let importance = Stats { hessian: None, ..layer.stats };
    let weighted = Some(&importance);
    let mut group = c.benchmark_group("rounding");
    group.sample_size(10).warm_up_time(Duration::from_millis(300));
    group.throughput(Throughput::Elements(layer.weights.data.len() as u64));
    for name in
        ["int8", "int4_g128", "int4_asym_g128", "nf4", "q8_0", "q4_0", "q4_k", "q6_k", "iq4_xs"]
    {
        let all: [(&str, &dyn Quantizer, Option<&Stats>); 4] = [
            ("rtn", &Rtn, None),
            ("rtn+importance", &Rtn, weighted),
            ("search", &Search, None),
            ("search+importance", &Search, weighted),
        ];
        for (quantizer, choose, stats) in all {
            group.bench_function(BenchmarkId::new(quantizer, name), |b| {
                b.iter(|| choose.quantize(&layer.weights, stats, format(name), threads()));
            });
        }
    }
}

/// GPTQ: cols³/3 for the factor, rows·cols² for the feedback, twice that for each pass over it.
fn gptq(c: &mut Criterion) {
    let mut group = c.benchmark_group("gptq");
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    let published = Gptq { effort: Effort::Nearest, passes: 0, ..Gptq::default() };
    let ordered = Gptq { order: Order::Importance, ..published };
    // The shapes of a model of 1.1 billion parameters.
    for (rows, cols) in [(2048, 2048), (5632, 2048), (2048, 5632)] {
        let layer = Layer::new(rows, cols);
        let cases = [("published", published), ("act-order", ordered), ("ours", Gptq::default())];
        for (name, gptq) in cases {
            let (n, m) = (rows as f64, cols as f64);
            let operations = m.powi(3) / 3.0 + n * m * m * (1.0 + 2.0 * gptq.passes as f64);
            group.throughput(Throughput::Elements(operations as u64));
            group.bench_function(BenchmarkId::new(name, format_args!("{rows}x{cols}")), |b| {
                let stats = Some(&layer.stats);
                b.iter(|| gptq.quantize(&layer.weights, stats, format("int4_g128"), threads()));
            });
        }
    }
}

/// Zeroing half of a matrix.
fn pruning(c: &mut Criterion) {
    let layer = Layer::new(1024, 1024);
    let mut group = c.benchmark_group("pruning");
    group.sample_size(10).warm_up_time(Duration::from_millis(300));
    group.throughput(Throughput::Elements(layer.weights.data.len() as u64));
    for name in ["magnitude", "wanda", "sparsegpt"] {
        for amount in ["50%", "2:4"] {
            let prune: Prune = format!("{name}:{amount}").parse().expect("it is a pruning");
            group.bench_function(BenchmarkId::new(name, amount), |b| {
                b.iter_batched(
                    || layer.weights.clone(),
                    |mut weights| prune.apply_to(&mut weights, &layer.stats, threads()),
                    criterion::BatchSize::LargeInput,
                );
            });
        }
    }
}

/// What changes a whole layer before it is coded.
fn transforms(c: &mut Criterion) {
    let source = Source::sized(&Sizes { width: 512, feed_forward: 1408, layers: 1, tied: true });
    let checkpoint = Checkpoint::open(&source.path()).expect("it was written just now");
    let model = Model::read(&checkpoint).expect("it is a Llama");
    let weights = Stored { model: &model, checkpoint: &checkpoint };
    let block = Block::load(&weights, 0).expect("its files are there");
    let linear = |weight: lathe_models::Weight| match weight.role {
        Role::Layer(0, part) if weight.kind == Kind::Linear => Some((part, weight)),
        _ => None,
    };
    let linears: BTreeMap<Part, _> = model.spec.weights().into_iter().filter_map(linear).collect();
    let formats = linears.keys().map(|part| (*part, format("int4_g128"))).collect();
    let cx = Context {
        formats: &formats,
        quantizer: &Search,
        activations: Activations::Float,
        threads: threads(),
    };
    let stages = model.spec.layers[0].stages();
    let stats: Vec<Stats> = stages.iter().map(|s| stats(linears[&s.linears[0]].cols)).collect();
    let mut group = c.benchmark_group("transforms");
    group.sample_size(10).warm_up_time(Duration::from_millis(300));
    let numbers: usize = linears.values().map(lathe_models::Weight::len).sum();
    group.throughput(Throughput::Elements(numbers as u64));
    let all: [(&str, Box<dyn Transform>); 2] =
        [("awq", Box::new(Awq::default())), ("smoothquant", Box::new(Smooth::default()))];
    for (name, transform) in all {
        group.bench_function(BenchmarkId::new(name, "512x1408"), |b| {
            b.iter_batched(
                || (block.clone(), stats.clone()),
                |(mut block, mut stats)| {
                    for (stage, stats) in stages.iter().zip(&mut stats) {
                        transform.apply(&mut block, stage, stats, &cx).expect("it fits");
                    }
                    block
                },
                criterion::BatchSize::LargeInput,
            );
        });
    }
}

criterion_group!(benches, rounding, gptq, pruning, transforms);
criterion_main!(benches);
