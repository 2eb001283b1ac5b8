//! The reference's search for a scale and a minimum of a group, and the blocks that have both.

use super::importance::Weighing;
use super::lanes::{F, LANES, Number, side_by_side};
use super::superblock::{self, Super, WEIGHTS};
use crate::round::nearest_wrapped;

/// How [`search`] goes about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tries {
    /// The highest code; the lowest is 0.
    pub(crate) top: i32,
    /// The range of the weights is taken for `top + first + step · i` steps, `i` in `0..=last`.
    pub(crate) first: f32,
    pub(crate) step: f32,
    pub(crate) last: i32,
    /// Errors count by magnitude and not by their square.
    pub(crate) absolute: bool,
}

impl Tries {
    /// What the reference tries where columns have an importance.
    pub(crate) const fn by_importance(top: i32) -> Self {
        Self { top, first: -0.9, step: 0.05, last: 36, absolute: false }
    }
}

/// What was found: a weight is about `scale · code − min`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<T> {
    pub(crate) scale: T,
    /// Not negative.
    pub(crate) min: T,
    /// The codes came of these: the nearest integer to `inverse · (weight − low)`.
    pub(crate) inverse: T,
    pub(crate) low: T,
}

/// ggml's make_qkx2_quants and make_qkx3_quants: from the plain range on, codes of several ranges,
/// and for each the scale and minimum of least error.
#[inline(always)]
pub(crate) fn search<T: Number, const N: usize>(
    x: &[T; N],
    weights: &[T; N],
    tries: Tries,
) -> Found<T> {
    let zero = T::all(0.0);
    let (mut low, mut high) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for i in 1..N {
        low = low.least(x[i]);
        high = high.most(x[i]);
        sum_w = sum_w + weights[i];
        sum_x = sum_x + weights[i] * x[i];
    }
    low = T::pick(zero, low, zero, low);
    let top = T::all(tries.top as f32);
    let plain_low = low;
    let mut found = Found { scale: zero, min: low, inverse: top / (high - low), low };
    found.scale = T::all(1.0) / found.inverse;
    let distance = |difference: T| match tries.absolute {
        true => difference.map(f32::abs),
        false => difference * difference,
    };
    let mut best = zero;
    for i in 0..N {
        let code = (found.inverse * (x[i] - low)).code(0, tries.top);
        best = best + weights[i] * distance(found.scale * code + low - x[i]);
    }
    let mut codes = [zero; N];
    for i in 0..=tries.last {
        let steps = tries.first + tries.step * i as f32 + tries.top as f32;
        // The minimum moves with what is found, and with it the range.
        let low = found.min;
        let inverse = T::all(steps) / (high - low);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for i in 0..N {
            let code = (inverse * (x[i] - low)).code(0, tries.top);
            codes[i] = code;
            let weighted = weights[i] * code;
            sum_l = sum_l + weighted;
            sum_l2 = sum_l2 + weighted * code;
            sum_xl = sum_xl + weighted * x[i];
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        let scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        let scale = T::pick(zero, min, sum_xl / sum_l2, scale);
        let min = T::pick(zero, min, zero, min);
        let mut error = zero;
        for i in 0..N {
            error = error + weights[i] * distance(scale * codes[i] + min - x[i]);
        }
        let error = T::pick(zero, determinant, error, T::all(f32::INFINITY));
        found = Found {
            scale: T::pick(error, best, scale, found.scale),
            min: T::pick(error, best, min, found.min),
            inverse: T::pick(error, best, inverse, found.inverse),
            low: T::pick(error, best, low, found.low),
        };
        best = T::pick(error, best, error, best);
    }
    // Groups without a range.
    Found {
        scale: T::pick(plain_low, high, found.scale, zero),
        min: T::pick(plain_low, high, found.min, plain_low).map(|x| -x),
        inverse: T::pick(plain_low, high, found.inverse, zero),
        low: T::pick(plain_low, high, found.low, zero),
    }
}

/// The codes that [`search`] kept for the group in lane `lane`.
#[inline(always)]
pub(crate) fn kept(found: &Found<F>, lane: usize, top: i32, weights: &[f32], codes: &mut [u8]) {
    let (inverse, low) = (found.inverse.0[lane], found.low.0[lane]);
    for (code, x) in codes.iter_mut().zip(weights) {
        *code = nearest_wrapped(inverse * (x - low)).max(0).min(top) as u8;
    }
}

/// See [`Minima::CUTS`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cuts {
    pub(crate) plain: bool,
    pub(crate) weighted: bool,
}

/// A superblock whose groups of `N` weights have scales and minima, coded against the largest.
pub(crate) trait Minima<const N: usize>: Super {
    /// The search without importance.
    const TRIES: Tries;
    /// The highest code of a scale and of a minimum.
    const SCALE_TOP: i32;

    /// Whether codes of scales and minima are cut to [`Minima::SCALE_TOP`]. They exceed it where
    /// a search found something negative, and the reference cuts them here and not there.
    const CUTS: Cuts;

    /// What an error weighs where columns have no importance of their own.
    fn own_weights(x: &[F; N]) -> [F; N];
    /// Σ w² of a superblock times this, beside w² in the weight of an error: see [`weights`].
    const SPREAD: f32;

    /// A block with these scales and any codes.
    fn with_scales(scale: f32, min: f32, scales: &[u8], minima: &[u8]) -> Self;
}

/// Codes up to 16 groups, the whole of `dst`.
#[inline(always)]
fn encode_batch<B: Minima<N>, const N: usize>(src: &[f32], weighing: Weighing<'_>, dst: &mut [B]) {
    let x = side_by_side::<N>(src);
    let by_importance = Tries::by_importance(B::TRIES.top);
    let (weights, tries) = match weighing {
        Weighing::Own => (B::own_weights(&x), B::TRIES),
        Weighing::Importance(all) => (superblock::weights(&x, src, all, B::SPREAD), by_importance),
        Weighing::Exact(all) => (side_by_side(all), by_importance),
    };
    let found = search(&x, &weights, tries);
    let groups = WEIGHTS / N;
    for (i, (block, src)) in dst.iter_mut().zip(src.chunks_exact(WEIGHTS)).enumerate() {
        let first = i * groups;
        let (scales, minima) = (&found.scale.0[first..][..groups], &found.min.0[first..][..groups]);
        *block = if matches!(weighing, Weighing::Own) {
            against_largest::<B, N>(scales, minima)
        } else {
            let total = weights.iter().skip(1).fold(weights[0], |sum, w| sum + *w);
            by_weight::<B, N>(scales, minima, &total.0[first..][..groups])
        };
        let mut codes = [0; WEIGHTS];
        let parts = src.chunks_exact(N).zip(codes.chunks_exact_mut(N));
        for (group, (src, codes)) in parts.enumerate() {
            if !superblock::nearest(block, group, src, codes) {
                kept(&found, first + group, tries.top, src, codes);
            }
        }
        block.set_codes(&codes);
    }
}

/// Codes a row as the reference does.
#[inline(always)]
pub(crate) fn encode_row<B: Minima<N>, const N: usize>(
    src: &[f32],
    weighing: Weighing<'_>,
    dst: &mut [B],
) {
    superblock::batches::<B, N>(src, weighing, dst, encode_batch::<B, N>);
}

/// Scales and minima as parts of the largest of each.
#[inline(always)]
fn against_largest<B: Minima<N>, const N: usize>(scales: &[f32], minima: &[f32]) -> B {
    let top = B::SCALE_TOP as f32;
    let code = |values: &[f32]| {
        let largest = values.iter().fold(0.0, |most: f32, x| if *x > most { *x } else { most });
        let inverse = if largest > 0.0 { top / largest } else { 0.0 };
        let mut codes = [0; LANES];
        for (code, x) in codes.iter_mut().zip(values) {
            *code = nearest_wrapped(inverse * x) as u8;
        }
        (largest / top, codes)
    };
    let ((scale, mut scales), (min, mut minima)) = (code(scales), code(minima));
    if B::CUTS.plain {
        cut(&mut scales, B::SCALE_TOP);
        cut(&mut minima, B::SCALE_TOP);
    }
    B::with_scales(scale, min, &scales, &minima)
}

/// Scales and minima as multiples of what leaves the least error.
fn by_weight<B: Minima<N>, const N: usize>(scales: &[f32], minima: &[f32], weights: &[f32]) -> B {
    let (mut scale_codes, mut minimum_codes) = ([0; LANES], [0; LANES]);
    let scale = positive(B::SCALE_TOP, scales, weights, &mut scale_codes);
    let min = positive(B::SCALE_TOP, minima, weights, &mut minimum_codes);
    if B::CUTS.weighted {
        cut(&mut scale_codes, B::SCALE_TOP);
        cut(&mut minimum_codes, B::SCALE_TOP);
    }
    B::with_scales(scale, min, &scale_codes, &minimum_codes)
}

fn cut(codes: &mut [u8], top: i32) {
    codes.iter_mut().for_each(|code| *code = (*code).min(top as u8));
}

/// Below this, ggml takes a group for zeros.
pub(crate) const NOTHING: f32 = 1e-15;

/// ggml's make_qp_quants: a scale for numbers that are not negative, and their codes `0..=top`.
fn positive(top: i32, x: &[f32], weights: &[f32], codes: &mut [u8]) -> f32 {
    let largest = x.iter().fold(0.0, |most: f32, x| if most > *x { most } else { *x });
    if largest < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let numbers = || x.iter().zip(weights);
    let mut inverse = top as f32 / largest;
    let error = |inverse: f32, cut: i32| {
        let scale = 1.0 / inverse;
        numbers().fold(0.0, |sum, (x, w)| {
            let code = nearest_wrapped(inverse * x).min(cut);
            // The first codes are bytes already, whatever they were.
            let difference =
                x - scale * if cut == i32::MAX { f32::from(code as u8) } else { code as f32 };
            sum + w * difference * difference
        })
    };
    let mut best = error(inverse, i32::MAX);
    for step in (-4i8..=4).filter(|step| *step != 0) {
        let tried = (0.1 * f32::from(step) + top as f32) / largest;
        let error = error(tried, top);
        if error < best {
            (best, inverse) = (error, tried);
        }
    }
    let (mut product, mut square) = (0.0, 0.0);
    for ((x, w), code) in numbers().zip(&mut *codes) {
        let level = nearest_wrapped(inverse * x).min(top);
        *code = level as u8;
        let level = level as f32;
        product += w * x * level;
        square += w * level * level;
    }
    refine(top, x, weights, codes, (product, square))
}

/// Moves one code at a time while that leaves less error; the scale of what is left.
fn refine(
    top: i32,
    x: &[f32],
    weights: &[f32],
    codes: &mut [u8],
    (mut product, mut square): (f32, f32),
) -> f32 {
    for _ in 0..5 {
        let mut moved = false;
        for ((x, w), code) in x.iter().zip(weights).zip(&mut *codes) {
            let level = f32::from(*code);
            let (mut other_product, mut other_square) =
                (product - w * x * level, square - w * level * level);
            if !(other_product > 0.0 && other_square > 0.0) {
                continue;
            }
            let tried = nearest_wrapped(x * other_square / other_product).min(top);
            if tried == i32::from(*code) {
                continue;
            }
            let level = tried as f32;
            other_product += w * x * level;
            other_square += w * level * level;
            if other_product * other_product * square > product * product * other_square {
                *code = tried as u8;
                (product, square, moved) = (other_product, other_square, true);
            }
        }
        if !moved {
            break;
        }
    }
    if square > 0.0 { product / square } else { 0.0 }
}
