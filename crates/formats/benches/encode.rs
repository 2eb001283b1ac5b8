//! Encoding speed per format, in bytes of f32 read per second on one thread.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lathe_formats::FORMATS;

const ROWS: usize = 256;
const COLS: usize = 4096;

fn encode(c: &mut Criterion) {
    let weights: Vec<f32> = (0..ROWS * COLS).map(|i| ((i * 7919) as f32).sin() * 0.02).collect();
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Bytes(4 * weights.len() as u64)).sample_size(20);
    for &format in FORMATS {
        group.bench_function(format.name(), |b| b.iter(|| format.encode(ROWS, COLS, &weights, 1)));
    }
    group.finish();
}

fn decode(c: &mut Criterion) {
    let weights: Vec<f32> = (0..ROWS * COLS).map(|i| ((i * 7919) as f32).sin() * 0.02).collect();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(4 * weights.len() as u64)).sample_size(20);
    let mut row = vec![0.0; COLS];
    for &format in FORMATS {
        let Ok(blocks) = format.encode(ROWS, COLS, &weights, 1) else { continue };
        group.bench_function(format.name(), |b| {
            b.iter(|| (0..ROWS).for_each(|i| blocks.decode_row(i, &mut row)));
        });
    }
    group.finish();
}

criterion_group!(benches, encode, decode);
criterion_main!(benches);
