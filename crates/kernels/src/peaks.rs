use std::{
    hint::black_box,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use lathe_simd::{Isa, LANES, Op};
use serde::{Deserialize, Serialize};

use crate::Pool;

/// What this machine can do at most, measured with the instructions that the kernels use: the
/// roofs that a speed is held against.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peaks {
    /// Bytes read from memory per second, by each thread from several places at once.
    pub read: f64,
    /// Operations per second, a multiplication and an addition being two: of dot products of int8,
    /// of bf16, and of f32.
    pub int8: f64,
    pub bf16: f64,
    pub f32: f64,
}

impl Peaks {
    /// Measures with all threads of `pool`; takes about a second.
    pub fn measure(pool: &Pool) -> Self {
        Self {
            read: bandwidth(pool),
            int8: peak(pool, IntPeak),
            bf16: peak(pool, HalfPeak),
            f32: peak(pool, FloatPeak),
        }
    }
}

/// More than any cache.
const STREAM: usize = 192 << 20;

/// Bytes per second that all threads together read.
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
    (data.len() * 4) as f64 / best.fold(f64::MAX, f64::min)
}

/// Adds up numbers that are read from several places side by side, as kernels read rows: a core
/// keeps more lines on their way so than from one place.
struct Read<'a>(&'a [f32]);

impl Op for Read<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        const STREAMS: usize = 8;
        /// Numbers that one turn reads from each place.
        const TURN: usize = 4 * LANES;
        /// How far ahead of their use they are asked for.
        const AHEAD: usize = 384;
        let streams = self.0.chunks_exact(self.0.len() / STREAMS / TURN * TURN);
        let mut places = [&self.0[..0]; STREAMS];
        places.iter_mut().zip(streams).for_each(|(place, stream)| *place = stream);
        let mut sums = [isa.splat(0.0); 4];
        for at in (0..places[0].len()).step_by(TURN) {
            for place in places {
                let turn = place[at..at + TURN].as_chunks::<LANES>().0;
                for line in 0..4 {
                    let ahead = place.as_ptr().wrapping_add(at + AHEAD + line * LANES);
                    isa.prefetch(ahead.cast());
                    sums[line] = isa.add(sums[line], isa.load(&turn[line]));
                }
            }
        }
        isa.sum(isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3])))
    }
}

/// Operations per second of all threads together: the best of several, as disturbances only slow.
fn peak(pool: &Pool, op: impl Op<Out = f64> + Clone + Sync) -> f64 {
    let best = (0..5).map(|_| {
        let start = Instant::now();
        let operations = Mutex::new(0.0);
        pool.run(pool.threads() * 8, &|_| {
            let done = lathe_simd::run(op.clone());
            *operations.lock().unwrap_or_else(PoisonError::into_inner) += done;
        });
        let all = operations.into_inner().unwrap_or_else(PoisonError::into_inner);
        all / start.elapsed().as_secs_f64()
    });
    best.fold(0.0, f64::max)
}

const ROUNDS: usize = 1 << 19;
const CHAINS: usize = 12;
/// Of products of tiles.
const TILED_ROUNDS: usize = 1 << 16;

#[derive(Clone)]
struct IntPeak;

impl Op for IntPeak {
    const BYTES: bool = true;
    type Out = f64;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f64 {
        let (codes, x) = (isa.load_bytes(black_box(&[3; 64])), isa.splat_bytes(black_box(&[1; 4])));
        let mut sums = [isa.splat_i(0); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = if I::MATRIX {
                    isa.dot_matrix(*sum, codes, x)
                } else {
                    isa.dot_small(*sum, codes, x)
                };
            }
        }
        for sum in sums {
            let mut bytes = [0; LANES];
            isa.store_low_bytes(sum, &mut bytes);
            black_box(bytes);
        }
        let products = if I::MATRIX { 8 } else { 4 };
        (2 * products * LANES * CHAINS * ROUNDS) as f64
    }
}

#[derive(Clone)]
struct HalfPeak;

impl Op for HalfPeak {
    const BF16: bool = true;
    const TILES: bool = true;
    type Out = f64;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f64 {
        if I::TILES {
            return isa.spin_tiles(TILED_ROUNDS) as f64;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_plausible() {
        let peaks = Peaks::measure(&Pool::new(1));
        assert!(peaks.read > 50e6 && peaks.read < 100e12, "{peaks:?}");
        for operations in [peaks.int8, peaks.bf16, peaks.f32] {
            assert!(operations > 10e6 && operations < 1e15, "{peaks:?}");
        }
    }
}
