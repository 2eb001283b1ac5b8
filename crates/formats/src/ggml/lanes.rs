//! Sixteen groups of weights at once, each in a lane of its own.
//!
//! The searches for scales are written for one group, over any [`Number`]: one `f32`, or a vector
//! [`F`] that holds the same place of sixteen groups. A lane does exactly what the reference does
//! for its group, in the same order, so that vectors change no bit. Plain arrays: compiled below
//! [`lathe_simd::run`], they become the machine's vectors.

use std::ops::{Add, Div, Mul, Sub};

pub(crate) use lathe_simd::LANES;

use crate::round::nearest_wrapped;

/// What searches compute with: an `f32` or many.
pub(crate) trait Number:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Every lane `x`.
    fn all(x: f32) -> Self;
    /// `f` of every lane.
    fn map(self, f: impl Fn(f32) -> f32) -> Self;
    /// Where `a < b` what `x` has, elsewhere what `y` has.
    fn pick(a: Self, b: Self, x: Self, y: Self) -> Self;
    /// Whether any lane is not 0.
    fn any(self) -> bool;

    /// The nearest integer as ggml computes it, cut to `low..=high`.
    #[inline(always)]
    fn code(self, low: i32, high: i32) -> Self {
        self.map(|x| nearest_wrapped(x).max(low).min(high) as f32)
    }
    /// The smaller; `self` where they are equal.
    #[inline(always)]
    fn least(self, other: Self) -> Self {
        Self::pick(other, self, other, self)
    }
    /// The larger; `self` where they are equal.
    #[inline(always)]
    fn most(self, other: Self) -> Self {
        Self::pick(self, other, other, self)
    }
}

impl Number for f32 {
    #[inline(always)]
    fn all(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        f(self)
    }
    #[inline(always)]
    fn pick(a: Self, b: Self, x: Self, y: Self) -> Self {
        if a < b { x } else { y }
    }
    #[inline(always)]
    fn any(self) -> bool {
        self != 0.0
    }
}

/// One number of each of sixteen groups.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct F(pub(crate) [f32; LANES]);

impl Number for F {
    #[inline(always)]
    fn all(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        let mut out = self;
        for x in &mut out.0 {
            *x = f(*x);
        }
        out
    }
    #[inline(always)]
    fn pick(a: Self, b: Self, x: Self, y: Self) -> Self {
        let mut out = y;
        for i in 0..LANES {
            out.0[i] = if a.0[i] < b.0[i] { x.0[i] } else { y.0[i] };
        }
        out
    }
    #[inline(always)]
    fn any(self) -> bool {
        self.0.iter().any(|x| *x != 0.0)
    }
}

macro_rules! lanewise {
    ($trait:ident, $function:ident, $operator:tt) => {
        impl $trait for F {
            type Output = Self;
            #[inline(always)]
            fn $function(self, other: Self) -> Self {
                let mut out = self;
                for i in 0..LANES {
                    out.0[i] = self.0[i] $operator other.0[i];
                }
                out
            }
        }
    };
}
lanewise!(Add, add, +);
lanewise!(Sub, sub, -);
lanewise!(Mul, mul, *);
lanewise!(Div, div, /);

/// Groups of `N` neighbours side by side: lane `g` of element `i` is weight `i` of group `g`.
/// Lanes without a group are 0.
#[inline(always)]
pub(crate) fn side_by_side<const N: usize>(groups: &[f32]) -> [F; N] {
    let mut out = [F::all(0.0); N];
    for (lane, group) in groups.chunks_exact(N).enumerate() {
        for (out, x) in out.iter_mut().zip(group) {
            out.0[lane] = *x;
        }
    }
    out
}
