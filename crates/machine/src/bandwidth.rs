use std::{
    hint::black_box,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use lathe_base::{Bytes, Seconds};

/// Each thread walks its own buffer of this size: far beyond any last-level cache share.
const BUFFER: usize = 192 << 20;

/// Measures how many bytes per second `threads` threads together read from memory.
///
/// Every thread sums a buffer of its own again and again for about `span`, from several places side
/// by side; the best pass counts, as disturbances only ever slow a pass down. This is the roof for
/// decoding, which reads every weight once per token.
pub fn read_bandwidth(threads: usize, span: Seconds) -> Bytes {
    let threads = threads.max(1);
    let available = crate::Memory::read().available.0 as usize;
    let words = (BUFFER.min(available / 4 / threads).max(1 << 20)) / 8;
    let barrier = Barrier::new(threads);
    let walk = || {
        let buffer = vec![1u64; words];
        let mut best = Duration::MAX;
        let mut spent = Duration::ZERO;
        barrier.wait();
        while spent.as_secs_f64() < span.0 {
            let start = Instant::now();
            black_box(sum(black_box(&buffer)));
            let took = start.elapsed();
            best = best.min(took);
            spent += took;
        }
        words as f64 * 8.0 / best.as_secs_f64()
    };
    let total: f64 = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(walk)).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).sum()
    });
    Bytes(total as u64)
}

/// Places that are read side by side: a core keeps more lines on their way so than from one place.
const STREAMS: usize = 8;

/// Words that are read from each place in turn, each to a sum of its own, so that additions never
/// wait for each other.
const TURN: usize = 32;

fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; TURN];
    let mut streams = words.chunks_exact((words.len() / STREAMS).max(1));
    let mut places: [_; STREAMS] =
        std::array::from_fn(|_| streams.next().unwrap_or_default().chunks_exact(TURN));
    for _ in 0..places[0].len() {
        for chunk in places.iter_mut().filter_map(Iterator::next) {
            for (lane, word) in lanes.iter_mut().zip(chunk) {
                *lane = lane.wrapping_add(*word);
            }
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_measured_and_plausible() {
        let bandwidth = read_bandwidth(1, Seconds(0.01));
        assert!(bandwidth > Bytes(50 << 20), "{bandwidth} per second is slower than any memory");
        assert!(bandwidth < Bytes(100 << 40), "{bandwidth} per second was not read");
    }
}
