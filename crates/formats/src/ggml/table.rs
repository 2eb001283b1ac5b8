//! ggml's IQ4 formats: 16 uneven levels, searched scales.

use super::affine::NOTHING;
use super::lanes::{F, Number};

/// ggml's kvalues_iq4nl.
pub const IQ4_LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// From which number on the reference takes level `k + 1`. Its test, `x − below < above − x` in
/// f32, turns a little below the middle.
const FROM: [f32; 15] = {
    let mut from = [0.0; 15];
    let mut k = 0;
    while k < 15 {
        let (below, above) = (IQ4_LEVELS[k], IQ4_LEVELS[k + 1]);
        let mut x = (below + above) / 2.0;
        while x.next_down() - below >= above - x.next_down() {
            x = x.next_down();
        }
        from[k] = x;
        k += 1;
    }
    from
};

/// The code of the level nearest to `x`.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> u8 {
    FROM.iter().fold(0, |code, from| code + u8::from(x >= *from))
}

/// The codes of the levels nearest to `weights / scale`.
#[inline(always)]
pub(crate) fn nearest_codes(scale: f32, weights: &[f32], codes: &mut [u8]) {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    for (code, x) in codes.iter_mut().zip(weights) {
        *code = nearest(inverse * x);
    }
}

/// The level nearest to `x`.
#[inline(always)]
pub(crate) fn level<T: Number>(x: T) -> T {
    let mut level = T::all(IQ4_LEVELS[0]);
    for (k, from) in FROM.iter().enumerate() {
        level = T::pick(x, T::all(*from), level, T::all(IQ4_LEVELS[k + 1]));
    }
    level
}

/// Ranges tried to either side of the plain one.
const TRIES: i8 = 7;

/// The scale of least weighted error, as quantize_row_iq4_nl_impl searches it; 0 for zeros.
#[inline(always)]
pub(crate) fn search<const N: usize>(x: &[F; N], weights: &[F; N]) -> F {
    let zero = F::all(0.0);
    let (mut extreme, mut largest) = (zero, zero);
    for x in x {
        let magnitude = x.map(f32::abs);
        extreme = F::pick(largest, magnitude, *x, extreme);
        largest = largest.most(magnitude);
    }
    let sums = |inverse: F| {
        let (mut product, mut square) = (zero, zero);
        for (x, w) in x.iter().zip(weights) {
            let level = level(inverse * *x);
            let weighted = *w * level;
            product = product + weighted * *x;
            square = square + weighted * level;
        }
        (product, square)
    };
    let plain = F::all(1.0) / (extreme.map(|x| -x) / F::all(IQ4_LEVELS[0]));
    let (product, square) = sums(plain);
    let mut scale = F::pick(zero, square, product / square, zero);
    let mut best = scale * product;
    for step in -TRIES..=TRIES {
        let inverse = F::all(f32::from(step) + IQ4_LEVELS[0]) / extreme;
        let (product, square) = sums(inverse);
        let gain = F::pick(zero, square, product * product, F::all(f32::NEG_INFINITY));
        let limit = best * square;
        let fitted = product / square;
        scale = F::pick(limit, gain, fitted, scale);
        best = F::pick(limit, gain, fitted * product, best);
    }
    F::pick(largest, F::all(NOTHING), zero, scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference's rule, said plainly.
    fn by_distance(x: f32) -> u8 {
        let above = IQ4_LEVELS.partition_point(|level| *level <= x).clamp(1, 15);
        let (low, high) = (IQ4_LEVELS[above - 1], IQ4_LEVELS[above]);
        (above - usize::from(x - low < high - x)) as u8
    }

    #[test]
    fn thresholds_agree_with_the_rule_around_every_middle() {
        for pair in IQ4_LEVELS.windows(2) {
            let mut x = (pair[0] + pair[1]) / 2.0;
            (0..400).for_each(|_| x = x.next_up());
            for _ in 0..800 {
                assert_eq!(nearest(x), by_distance(x), "{x:e}");
                assert_eq!(level(x), IQ4_LEVELS[usize::from(by_distance(x))], "{x:e}");
                x = x.next_down();
            }
        }
        for x in (-3000..3000).map(|i| i as f32 / 20.0) {
            assert_eq!(nearest(x), by_distance(x), "{x}");
        }
    }
}
