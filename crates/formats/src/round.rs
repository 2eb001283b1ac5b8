//! Rounding that every vector unit can do: no library calls, no branches.

use half::f16;

/// 1.5 · 2²³: adding it leaves a small number's nearest integer (ties to even) in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even; for |x| < 2²².
#[inline(always)]
pub(crate) fn half_even(x: f32) -> i32 {
    (x + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32
}

/// The nearest integer, ties to even, in ggml's way: 23 bits of it, where it is too large as well.
#[inline(always)]
pub(crate) fn nearest_wrapped(x: f32) -> i32 {
    ((x + MAGIC).to_bits() & 0x7f_ffff) as i32 - 0x40_0000
}

/// The nearest integer, ties away from zero; for |x| < 2²².
#[inline(always)]
pub(crate) fn half_away(x: f32) -> i32 {
    let a = x.abs();
    let even = (a + MAGIC) - MAGIC;
    let away = even + if a - even == 0.5 { 1.0 } else { 0.0 };
    half_even(away.copysign(x))
}

/// The largest magnitude, 0 for an empty slice; NaN counts as larger than infinity.
#[inline(always)]
pub(crate) fn absmax(values: &[f32]) -> f32 {
    // Magnitudes of IEEE numbers are ordered like their bits, and integer maxima vectorise.
    let bits = values.iter().fold(0, |most: i32, x| most.max((x.to_bits() & 0x7fff_ffff) as i32));
    f32::from_bits(bits as u32)
}

/// The smallest and the largest weight; of equals, which zeros of two signs are, the first.
#[inline(always)]
pub(crate) fn range(values: &[f32]) -> (f32, f32) {
    // Negative numbers are ordered against their bits; turned over, integer extremes vectorise.
    let turn = |bits: i32| bits ^ ((bits >> 31) as u32 >> 1) as i32;
    let (least, most) = values.iter().fold((i32::MAX, i32::MIN), |(least, most), x| {
        let key = turn(x.to_bits() as i32);
        (least.min(key), most.max(key))
    });
    let first = |key: i32| {
        let value = f32::from_bits(turn(key) as u32);
        let zero = |x: &&f32| **x == 0.0;
        if value == 0.0 { values.iter().find(zero).copied().unwrap_or(0.0) } else { value }
    };
    (first(least), first(most))
}

/// The weight of largest magnitude with its sign, of equals the first; 0 for an empty slice.
#[inline(always)]
pub(crate) fn extreme(values: &[f32]) -> f32 {
    let most = absmax(values);
    values.iter().copied().find(|x| x.abs() == most).unwrap_or(0.0)
}

/// 1 / `x`, or 0 where that is not a finite number.
#[inline(always)]
pub(crate) fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The factor and the summand that turn a weight into a code of gguf-py before truncation.
///
/// A scale so small that its reciprocal overflows codes every weight as 0 (as NumPy casts what
/// comes of it); the scale itself is then 0 in f16, and so is every decoded weight.
#[inline(always)]
pub(crate) fn shifted_inverse(scale: f32, shift: f32) -> (f32, f32) {
    let inverse = 1.0 / scale;
    match (scale == 0.0, inverse.is_finite()) {
        (true, _) => (0.0, shift),
        (_, true) => (inverse, shift),
        (_, false) => (0.0, 0.0),
    }
}

/// What is left of a number in binary16.
#[inline(always)]
pub(crate) fn through_f16(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_the_standard_library() {
        let near_half = f32::from_bits(0.5f32.to_bits() - 1);
        for x in (-1200..1200).map(|i| i as f32 / 8.0).chain([near_half, -near_half]) {
            assert_eq!(half_away(x), x.round() as i32, "{x}");
            assert_eq!(half_even(x), x.round_ties_even() as i32, "{x}");
        }
    }

    #[test]
    fn a_nan_is_the_largest_magnitude() {
        assert_eq!(absmax(&[]), 0.0);
        assert_eq!(absmax(&[-3.0, 2.0]), 3.0);
        assert!(absmax(&[1.0, f32::NAN, f32::INFINITY]).is_nan());
    }
}
