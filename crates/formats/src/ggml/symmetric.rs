//! The reference's searches for a scale alone, and the blocks that have no minimum.

use super::affine::NOTHING;
use super::importance::Weighing;
use super::lanes::{F, LANES, Number, side_by_side};
use super::superblock::{self, Super, WEIGHTS};

/// The weights of largest magnitude and their magnitudes, of equals the first.
#[inline(always)]
fn extremes<T: Number, const N: usize>(x: &[T; N]) -> (T, T) {
    let (mut extreme, mut largest) = (T::all(0.0), T::all(0.0));
    for x in x {
        let magnitude = x.map(f32::abs);
        extreme = T::pick(largest, magnitude, *x, extreme);
        largest = largest.most(magnitude);
    }
    (extreme, largest)
}

/// ggml's make_qx_quants with weights: the scale of least error for codes `−top..top`, of nineteen
/// ranges around the plain one. Also the inverse scale that the codes came of; 0 where there is
/// nothing to code.
#[inline(always)]
pub(crate) fn search<T: Number, const N: usize>(x: &[T; N], weights: &[T; N], top: i32) -> (T, T) {
    let zero = T::all(0.0);
    let (extreme, largest) = extremes(x);
    let sums = |inverse: T| {
        let (mut product, mut square) = (zero, zero);
        for (x, w) in x.iter().zip(weights) {
            let code = (inverse * *x).code(-top, top - 1);
            product = product + *w * *x * code;
            square = square + *w * code * code;
        }
        (product, square)
    };
    let mut kept = T::all(-top as f32) / extreme;
    let (product, square) = sums(kept);
    // Squares are not negative: unequal to 0 is above 0.
    let mut scale = T::pick(zero, square, product / square, zero);
    let mut best = scale * product;
    for step in (-9i8..=9).filter(|step| *step != 0) {
        let steps = top as f32 + 0.1 * f32::from(step);
        let inverse = T::all(-steps) / extreme;
        let (product, square) = sums(inverse);
        let gain = T::pick(zero, square, product * product, T::all(f32::NEG_INFINITY));
        let limit = best * square;
        let fitted = product / square;
        scale = T::pick(limit, gain, fitted, scale);
        best = T::pick(limit, gain, fitted * product, best);
        kept = T::pick(limit, gain, inverse, kept);
    }
    let nothing = T::all(NOTHING);
    (T::pick(largest, nothing, zero, scale), T::pick(largest, nothing, zero, kept))
}

/// ggml's make_q3_quants: from the plain scale on, one code at a time moves to where it leaves
/// less error, an error weighing as much as its weight squared. The scale, and the codes `0..2·top`.
#[inline(always)]
pub(crate) fn descend<T: Number, const N: usize>(x: &[T; N], top: i32) -> (T, [T; N]) {
    let zero = T::all(0.0);
    let (extreme, largest) = extremes(x);
    let inverse = T::all(-top as f32) / extreme;
    let mut codes = [zero; N];
    let (mut product, mut square) = (zero, zero);
    for (x, code) in x.iter().zip(&mut codes) {
        *code = (inverse * *x).code(-top, top - 1);
        let weight = *x * *x;
        product = product + weight * *x * *code;
        square = square + weight * *code * *code;
    }
    for _ in 0..5 {
        let mut moved = zero;
        for (x, code) in x.iter().zip(&mut codes) {
            let weight = *x * *x;
            let without = (product - weight * *x * *code, square - weight * *code * *code);
            let tried = (*x * without.1 / without.0).code(-top, top - 1);
            let with = (without.0 + weight * *x * tried, without.1 + weight * tried * tried);
            let gain = with.0 * with.0 * square;
            let gain = T::pick(zero, without.0, gain, T::all(f32::NEG_INFINITY));
            let gain = T::pick(zero, with.1, gain, T::all(f32::NEG_INFINITY));
            let limit = product * product * with.1;
            let unequal = (tried - *code).map(f32::abs);
            let gain = T::pick(zero, unequal, gain, T::all(f32::NEG_INFINITY));
            product = T::pick(limit, gain, with.0, product);
            square = T::pick(limit, gain, with.1, square);
            *code = T::pick(limit, gain, tried, *code);
            moved = moved + T::pick(limit, gain, unequal, zero);
        }
        if !moved.any() {
            break;
        }
    }
    let nothing = T::all(NOTHING);
    let scale = T::pick(zero, square, product / square, zero);
    for code in &mut codes {
        *code = T::pick(largest, nothing, zero, *code + T::all(top as f32));
    }
    (T::pick(largest, nothing, zero, scale), codes)
}

/// The codes `0..2·top` that [`search`] kept; for zeros the lowest, as ggml leaves them.
#[inline(always)]
pub(crate) fn kept<T: Number, const N: usize>(x: &[T; N], inverse: T, top: i32) -> [T; N] {
    let (zero, shift) = (T::all(0.0), T::all(top as f32));
    let size = inverse.map(f32::abs);
    x.map(|x| T::pick(zero, size, (inverse * x).code(-top, top - 1) + shift, zero))
}

/// Weights in a group of a superblock that has scales only.
pub(crate) const GROUP: usize = 16;

/// A superblock of sixteen groups with signed scales.
pub(crate) trait Signed: Super {
    /// The scales of the groups, whose weights are `x` and, one after the other, `src`.
    fn choose(x: &[F; GROUP], src: &[f32], weighing: Weighing<'_>) -> Chosen;

    /// A block with scales as near to these as can be stored, and any codes; `None` where all is
    /// as good as zero.
    fn with_scales(chosen: &Chosen) -> Option<Self>;
}

/// The scales of a superblock's groups.
pub(crate) struct Chosen {
    pub(crate) scales: [f32; LANES],
    /// What errors of scales weigh, where columns have an importance.
    pub(crate) weights: Option<[f32; LANES]>,
    /// The codes by which the scales were found.
    pub(crate) codes: [F; GROUP],
}

/// Codes a row as the reference does.
#[inline(always)]
pub(crate) fn encode_row<B: Signed>(src: &[f32], weighing: Weighing<'_>, dst: &mut [B]) {
    for (i, (src, block)) in src.chunks_exact(WEIGHTS).zip(dst).enumerate() {
        let weighing = weighing.of(i * WEIGHTS..(i + 1) * WEIGHTS);
        let chosen = B::choose(&side_by_side(src), src, weighing);
        let Some(scaled) = B::with_scales(&chosen) else {
            *block = B::zeroed();
            continue;
        };
        *block = scaled;
        let mut codes = [0; WEIGHTS];
        let parts = src.chunks_exact(GROUP).zip(codes.chunks_exact_mut(GROUP));
        for (group, (src, codes)) in parts.enumerate() {
            if !superblock::nearest(block, group, src, codes) {
                for (code, kept) in codes.iter_mut().zip(&chosen.codes) {
                    *code = kept.0[group] as u8;
                }
            }
        }
        block.set_codes(&codes);
    }
}

/// The scale of largest magnitude, of equals the first; 0 where all are.
#[inline(always)]
pub(crate) fn largest(scales: &[f32; LANES]) -> f32 {
    extremes(scales).0
}
