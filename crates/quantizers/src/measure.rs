use std::thread;

use lathe_formats::{Blocks, Rows};

/// What coding did to a matrix: the mean squares of its error and of its weights, and how many of
/// the coded weights are zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Deviation {
    pub(crate) error: f64,
    pub(crate) power: f64,
    pub(crate) zeros: u64,
}

/// A thread is worth starting for this many weights.
const PER_THREAD: usize = 1 << 15;

/// Compares what `coded` decodes to with the weights it was made of.
///
/// Each row is summed in f64 by itself and the rows in order, so that the number of `threads`
/// changes nothing.
pub(crate) fn deviation(weights: &dyn Rows, coded: &Blocks, threads: usize) -> Deviation {
    let (rows, cols) = weights.shape();
    let mut sums = vec![Deviation { error: 0.0, power: 0.0, zeros: 0 }; rows];
    let threads = threads.clamp(1, (rows * cols / PER_THREAD).max(1));
    let share = rows.div_ceil(threads).max(1);
    thread::scope(|scope| {
        for (i, sums) in sums.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                let (mut before, mut after) = (vec![0.0; cols], vec![0.0; cols]);
                for (j, sum) in sums.iter_mut().enumerate() {
                    weights.read(i * share + j, &mut before);
                    coded.decode_row(i * share + j, &mut after);
                    let (error, power) = squares(&before, &after);
                    let zeros = after.iter().filter(|x| **x == 0.0).count() as u64;
                    *sum = Deviation { error, power, zeros };
                }
            });
        }
    });
    let count = (rows * cols).max(1) as f64;
    let sum = |of: fn(&Deviation) -> f64| sums.iter().map(of).sum::<f64>();
    let zeros = sums.iter().map(|row| row.zeros).sum();
    Deviation { error: sum(|row| row.error) / count, power: sum(|row| row.power) / count, zeros }
}

/// Sums of (before − after)² and before², in f64 over eight interleaved lanes.
fn squares(before: &[f32], after: &[f32]) -> (f64, f64) {
    const LANES: usize = 8;
    let (mut error, mut power) = ([0.0f64; LANES], [0.0f64; LANES]);
    for (before, after) in before.chunks(LANES).zip(after.chunks(LANES)) {
        for (lane, (x, y)) in before.iter().zip(after).enumerate() {
            let (x, y) = (f64::from(*x), f64::from(*y));
            error[lane] += (x - y) * (x - y);
            power[lane] += x * x;
        }
    }
    (error.iter().sum(), power.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deviation_is_what_a_plain_sum_says_at_any_thread_count() {
        let weights: Vec<f32> = (0..1500 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
        let f32s = lathe_formats::by_name("f32").unwrap().encode(1500, 64, &weights, 1).unwrap();
        let coded = f32s.convert(lathe_formats::by_name("q4_0").unwrap(), 1).unwrap();
        let decoded = coded.decode();
        let plain: f64 = weights
            .iter()
            .zip(&decoded)
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
            .sum::<f64>()
            / weights.len() as f64;
        let one = deviation(&f32s, &coded, 1);
        assert!((one.error / plain - 1.0).abs() < 1e-9);
        assert_eq!(one.zeros, decoded.iter().filter(|x| **x == 0.0).count() as u64);
        assert!((one.power - 0.5).abs() < 1e-4, "a sine's mean square is a half");
        for threads in [2, 3, 16] {
            assert_eq!(deviation(&f32s, &coded, threads), one);
        }
    }
}
