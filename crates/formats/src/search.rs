//! Scales of least squared error, weighted by importance.

use std::ops::RangeInclusive;

use crate::Levels;

/// Scales tried, as parts of the one that reaches the largest weight.
const STEPS: usize = 24;
/// The widest and the narrowest of them.
const WIDEST: f32 = 1.05;
const NARROWEST: f32 = 0.55;

/// The scale near `start` whose nearest levels leave the least error. For given codes the best
/// scale is Σ q·w·l / Σ q·l², and what it leaves is Σ q·w² less (Σ q·w·l)² / Σ q·l².
pub(crate) fn scale(
    levels: Levels,
    start: f32,
    weights: &[f32],
    importance: Option<&[f32]>,
) -> f32 {
    let mut best = (f32::NEG_INFINITY, start);
    let mut consider = |scale: f32| {
        let (product, square) = sums(levels, scale, weights, importance);
        let taken = product * product / square;
        let fitted = product / square;
        if taken > best.0 && fitted.is_normal() {
            best = (taken, fitted);
        }
        best.1
    };
    for step in 0..STEPS {
        let part = WIDEST - (WIDEST - NARROWEST) * step as f32 / (STEPS - 1) as f32;
        consider(start * part);
    }
    // With the codes of the fitted scale there may be a better one yet.
    let fitted = consider(start);
    consider(fitted)
}

/// Σ q·w·l and Σ q·l² over the levels nearest to `weights / scale`.
fn sums(levels: Levels, scale: f32, weights: &[f32], importance: Option<&[f32]>) -> (f32, f32) {
    let (mut product, mut square) = (0.0, 0.0);
    for (i, weight) in weights.iter().enumerate() {
        let level = levels.value(levels.nearest(weight / scale));
        let weighted = level * importance.map_or(1.0, |all| all[i]);
        product += weighted * weight;
        square += weighted * level;
    }
    (product, square)
}

/// As [`scale`], for codes in `codes` that stand for `scale · (code − zero)`: the scale and the
/// zero point, tried beside the one that each scale suggests.
pub(crate) fn scale_and_zero(
    codes: RangeInclusive<i32>,
    (own, own_zero): (f32, i32),
    weights: &[f32],
    importance: Option<&[f32]>,
) -> (f32, i32) {
    let low = weights.iter().fold(0.0, |low: f32, x| low.min(*x));
    let mut best = (f32::NEG_INFINITY, own, own_zero);
    let mut consider = |scale: f32, zero: i32| {
        let levels = Levels::Integers { low: codes.start() - zero, high: codes.end() - zero };
        let (product, square) = sums(levels, scale, weights, importance);
        let (taken, fitted) = (product * product / square, product / square);
        if taken > best.0 && fitted.is_normal() {
            best = (taken, fitted, zero);
        }
        (best.1, best.2)
    };
    for step in 0..STEPS {
        let part = WIDEST - (WIDEST - NARROWEST) * step as f32 / (STEPS - 1) as f32;
        let scale = own * part;
        // With the range narrowed at both ends alike.
        let middle = (-low * part / scale).round_ties_even() as i32;
        for zero in [middle - 1, middle, middle + 1] {
            consider(scale, zero.clamp(*codes.start(), *codes.end()));
        }
    }
    let (fitted, zero) = consider(own, own_zero);
    consider(fitted, zero)
}
