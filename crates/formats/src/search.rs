//! Scales of least squared error, weighted by importance.
//!
//! A group of weights w with importance q and levels l has the error Σ q·(w − s·l)². With the
//! levels fixed the best scale is s = P / S, where P = Σ q·w·l and S = Σ q·l², and it takes P² / S
//! off Σ q·w². So two sums tell the scales worth trying apart: first a wide range of them, coarsely,
//! then finely around the best, at last the fitted one as it would be stored, with the levels
//! nearest under it, as long as that helps.

use lathe_simd::{Isa, LANES, Op};

use crate::{Levels, minifloat::Minifloat};

/// The largest part that is tried of the scale that a format would choose by itself.
const WIDEST: f32 = 1.05;
/// The ratio of one scale to the next at first; [`Rounding::coarse`] says how many there are.
const COARSE: f32 = 0.926;
/// The ratio between scales on either side of the best of those: its fourth root.
const FINE: f32 = 0.981;
/// How many of them on either side.
const FINE_STEPS: usize = 3;
/// How often the fitted scale is rounded, and fitted again to the levels that are nearest then.
const AGAIN: usize = 3;
/// Below this a scale's reciprocal is no longer an f32, and there is nothing to be gained.
const SMALLEST: f32 = 1e-30;

/// Weights and what their errors weigh: one number each, or all alike.
pub(crate) type Weighted<'a> = (&'a [f32], Option<&'a [f32]>);

/// The scale of least error, rounded by `stored` to one that the format can hold, and no worse
/// than `own`, the one that the format would choose by itself. The sign of `own` is kept.
pub(crate) fn scale(
    rounding: Rounding,
    own: f32,
    group: Weighted<'_>,
    stored: impl Fn(f32) -> f32,
) -> f32 {
    best(&rounding, own, group, stored).1
}

/// As [`scale`], for formats whose levels reach farther on one side and whose scales may be
/// negative: both signs are tried.
pub(crate) fn signed_scale(
    rounding: Rounding,
    own: f32,
    group: Weighted<'_>,
    stored: impl Fn(f32) -> f32,
) -> f32 {
    let one = best(&rounding, own, group, &stored);
    let other = best(&rounding, -own, group, &stored);
    if other.0 > one.0 { other.1 } else { one.1 }
}

/// What is taken off the error, in squares of `own`, and the scale.
fn best(
    rounding: &Rounding,
    own: f32,
    group: Weighted<'_>,
    stored: impl Fn(f32) -> f32,
) -> (f32, f32) {
    if own.abs() < SMALLEST {
        return (0.0, stored(own));
    }
    let group = Group::new(group, own);
    let stored = |part: f32| stored(own * part) / own;
    let (gain, part) = lathe_simd::run(Search { group: &group, rounding, stored });
    (gain, own * part)
}

/// What scales of `parts` times `own`, as they are, take off the error: to `gains`, in squares of
/// the weights' unit, for sums over groups.
pub(crate) fn gains(
    rounding: &Rounding,
    own: f32,
    group: Weighted<'_>,
    parts: &[f32],
    gains: &mut [f32],
) {
    if own.abs() < SMALLEST || !own.is_finite() {
        return;
    }
    let most = group.1.map_or(1.0, |all| all.iter().fold(0.0, |a: f32, b| a.max(*b)));
    let group = Group::new(group, own);
    lathe_simd::run(Gains { group: &group, rounding, parts, unit: most, gains });
}

struct Gains<'a> {
    group: &'a Group,
    rounding: &'a Rounding,
    parts: &'a [f32],
    unit: f32,
    gains: &'a mut [f32],
}

impl Op for Gains<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for (gain, part) in self.gains.iter_mut().zip(self.parts) {
            *gain = self.unit * self.group.sums(*part, self.rounding).gain(*part);
        }
    }
}

/// As [`scale`], for codes in `0..=most` that stand for `scale · (code − zero)`: the scale and
/// the zero point.
pub(crate) fn scale_and_zero(
    most: u8,
    (own, zero): (f32, u8),
    group: Weighted<'_>,
    stored: impl Fn(f32) -> f32,
) -> (f32, u8) {
    if own < SMALLEST {
        return (stored(own), zero);
    }
    let group = Group::new(group, own);
    let stored = |part: f32| stored(own * part) / own;
    let most = f32::from(most);
    let search = SearchBoth { group: &group, most, zero: zero.into(), stored };
    let (part, zero) = lathe_simd::run(search);
    (own * part, zero as u8)
}

/// Weights in units of the format's own scale and their importance in units of the largest, padded
/// to whole vectors with what weighs nothing.
struct Group {
    weights: Vec<[f32; LANES]>,
    importance: Vec<[f32; LANES]>,
}

impl Group {
    fn new((weights, importance): Weighted<'_>, own: f32) -> Self {
        let count = weights.len().div_ceil(LANES);
        let mut group =
            Self { weights: vec![[0.0; LANES]; count], importance: vec![[0.0; LANES]; count] };
        let inverse = 1.0 / own;
        for (to, from) in group.weights.as_flattened_mut().iter_mut().zip(weights) {
            *to = from * inverse;
        }
        let places = group.importance.as_flattened_mut()[..weights.len()].iter_mut();
        let most = importance.map_or(0.0, |all| all.iter().fold(0.0, |a: f32, b| a.max(*b)));
        match importance {
            // In two steps: the reciprocal of the largest may be no f32.
            Some(all) if most > 0.0 => places.zip(all).for_each(|(to, from)| *to = from / most),
            _ => places.for_each(|to| *to = 1.0),
        }
        group
    }

    /// Σ q·w·l and Σ q·l² over the levels nearest to the weights over `scale`.
    #[inline(always)]
    fn sums(&self, scale: f32, rounding: &Rounding) -> Sums {
        let inverse = 1.0 / scale;
        let (mut product, mut square) = ([0.0; LANES], [0.0; LANES]);
        for (w, q) in self.weights.iter().zip(&self.importance) {
            let mut x = *w;
            x.iter_mut().for_each(|x| *x *= inverse);
            let level = rounding.levels(&x);
            for i in 0..LANES {
                let weighted = q[i] * level[i];
                product[i] += weighted * w[i];
                square[i] += weighted * level[i];
            }
        }
        Sums { product: total(product), square: total(square) }
    }
}

/// The sum of the lanes, always in the same order.
#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[derive(Clone, Copy)]
struct Sums {
    product: f32,
    square: f32,
}

impl Sums {
    /// The best scale for these levels.
    fn fitted(self) -> f32 {
        self.product / self.square
    }

    /// What that takes off the error.
    fn most(self) -> f32 {
        self.product * self.fitted()
    }

    /// What `scale` takes off the error.
    fn gain(self, scale: f32) -> f32 {
        scale * (2.0 * self.product - scale * self.square)
    }
}

/// Where a number's nearest level is.
pub(crate) enum Rounding {
    Integers {
        low: f32,
        high: f32,
    },
    /// The lowest level, then where each of the others begins and how far it is from the one below.
    Table(f32, Vec<(f32, f32)>),
    Float(Minifloat),
}

/// 1.5 · 2²³: adding and taking it off again rounds to an integer, ties to even.
const MAGIC: f32 = 12_582_912.0;

impl From<Levels> for Rounding {
    fn from(levels: Levels) -> Self {
        match levels {
            Levels::Integers { low, high } => Self::Integers { low: low as f32, high: high as f32 },
            Levels::Table(table) => {
                let steps =
                    table.windows(2).map(|pair| (pair[0].midpoint(pair[1]), pair[1] - pair[0]));
                Self::Table(table[0], steps.collect())
            }
        }
    }
}

impl Rounding {
    /// How many scales are tried coarsely, downwards from [`WIDEST`]: with few levels it pays to
    /// let the largest weights go. The best scale for normal weights in rows of thousands is 0.4
    /// of what the largest asks for with 4 levels and 0.6 with 16; what is far from normal, or of
    /// uneven importance, goes below.
    fn coarse(&self) -> usize {
        let levels = match self {
            Self::Integers { low, high } => (high - low) as usize,
            Self::Table(_, steps) => steps.len(),
            Self::Float(float) => float.count(),
        };
        match levels {
            ..=8 => 20,
            9..=32 => 12,
            _ => 6,
        }
    }

    #[inline(always)]
    fn levels(&self, x: &[f32; LANES]) -> [f32; LANES] {
        let mut levels = *x;
        match self {
            Self::Integers { low, high } => {
                for level in &mut levels {
                    let x = if *level > *low { *level } else { *low };
                    let x = if x < *high { x } else { *high };
                    *level = (x + MAGIC) - MAGIC;
                }
            }
            Self::Table(lowest, steps) => {
                levels = [*lowest; LANES];
                for (begin, step) in steps {
                    for i in 0..LANES {
                        // As a mask, because vector units are made for it.
                        let mask = u32::from(x[i] > *begin).wrapping_neg();
                        levels[i] += f32::from_bits(mask & step.to_bits());
                    }
                }
            }
            Self::Float(float) => levels.iter_mut().for_each(|level| *level = float.round(*level)),
        }
        levels
    }
}

/// The best of the scales tried so far.
struct Best {
    /// What it would take off the error if it were fitted.
    gain: f32,
    fitted: f32,
    /// The scale that was tried, and the zero point.
    part: f32,
    zero: f32,
}

impl Best {
    const NONE: Self = Self { gain: f32::NEG_INFINITY, fitted: 1.0, part: 1.0, zero: 0.0 };

    #[inline(always)]
    fn consider(&mut self, sums: Sums, part: f32, zero: f32) {
        if sums.most() > self.gain {
            *self = Self { gain: sums.most(), fitted: sums.fitted(), part, zero };
        }
    }
}

/// A search over scales, in parts of the format's own.
struct Search<'a, S> {
    group: &'a Group,
    rounding: &'a Rounding,
    stored: S,
}

impl<S: Fn(f32) -> f32> Op for Search<'_, S> {
    type Out = (f32, f32);

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> (f32, f32) {
        let Self { group, rounding, stored } = self;
        let mut best = Best::NONE;
        let mut part = WIDEST;
        for _ in 0..rounding.coarse() {
            best.consider(group.sums(part, rounding), part, 0.0);
            part *= COARSE;
        }
        let (mut up, mut down) = (best.part, best.part);
        for _ in 0..FINE_STEPS {
            (up, down) = (up / FINE, down * FINE);
            best.consider(group.sums(up, rounding), up, 0.0);
            best.consider(group.sums(down, rounding), down, 0.0);
        }
        // From here on with scales that can be stored, beginning with the format's own.
        let (mut part, mut next) = (stored(1.0), best.fitted);
        let mut gain = group.sums(part, rounding).gain(part);
        for _ in 0..AGAIN {
            let rounded = stored(next);
            let sums = group.sums(rounded, rounding);
            // Not `<=`: what is no number helps nobody.
            #[allow(clippy::neg_cmp_op_on_partial_ord)]
            if !(sums.gain(rounded) > gain) {
                break;
            }
            (gain, part, next) = (sums.gain(rounded), rounded, sums.fitted());
        }
        (gain, part)
    }
}

/// A search over scales and zero points.
struct SearchBoth<'a, S> {
    group: &'a Group,
    most: f32,
    zero: f32,
    stored: S,
}

impl<S: Fn(f32) -> f32> SearchBoth<'_, S> {
    #[inline(always)]
    fn sums(&self, part: f32, zero: f32) -> Sums {
        self.group.sums(part, &self.rounding(zero))
    }

    #[inline(always)]
    fn rounding(&self, zero: f32) -> Rounding {
        Rounding::Integers { low: -zero, high: self.most - zero }
    }

    /// Tries a scale with a zero point and its neighbours.
    #[inline(always)]
    fn consider(&self, part: f32, zero: f32, best: &mut Best) {
        for zero in [zero - 1.0, zero, zero + 1.0] {
            if zero >= 0.0 && zero <= self.most {
                best.consider(self.sums(part, zero), part, zero);
            }
        }
    }
}

impl<S: Fn(f32) -> f32> Op for SearchBoth<'_, S> {
    type Out = (f32, f32);

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> (f32, f32) {
        let weights = self.group.weights.as_flattened();
        let (low, high) =
            weights.iter().fold((0.0, 0.0), |(a, b): (f32, f32), x| (a.min(*x), b.max(*x)));
        let middle = low.midpoint(high);
        let mut best = Best::NONE;
        let mut part = WIDEST;
        for _ in 0..self.rounding(self.zero).coarse() {
            // The middle of the codes at the middle of the weights.
            let zero = (self.most / 2.0 - middle / part).clamp(0.0, self.most);
            self.consider(part, (zero + MAGIC) - MAGIC, &mut best);
            part *= COARSE;
        }
        let zero = best.zero;
        let (mut up, mut down) = (best.part, best.part);
        for _ in 0..FINE_STEPS {
            (up, down) = (up / FINE, down * FINE);
            self.consider(up, zero, &mut best);
            self.consider(down, zero, &mut best);
        }
        // From here on with scales that can be stored, beginning with the format's own.
        let mut found = ((self.stored)(1.0), self.zero);
        let mut gain = self.sums(found.0, found.1).gain(found.0);
        let (mut next, zero) = (best.fitted, best.zero);
        for _ in 0..AGAIN {
            let rounded = (self.stored)(next);
            let sums = self.sums(rounded, zero);
            // Not `<=`: what is no number helps nobody.
            #[allow(clippy::neg_cmp_op_on_partial_ord)]
            if !(sums.gain(rounded) > gain) {
                break;
            }
            (gain, found, next) = (sums.gain(rounded), (rounded, zero), sums.fitted());
        }
        found
    }
}
