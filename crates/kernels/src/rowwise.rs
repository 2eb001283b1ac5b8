use lathe_simd::{Isa, LANES, Op};

use crate::{Pool, output::Output};

/// Numbers that are worth a task of their own.
const STRIP: usize = 1 << 14;

/// Calls `f(start, strip)` for strips of whole rows of `width`, in parallel where there are many.
pub(crate) fn strips(
    pool: &Pool,
    x: &mut [f32],
    width: usize,
    f: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    let strip = (STRIP / width.max(1)).max(1) * width.max(1);
    let len = x.len();
    let tasks = len.div_ceil(strip);
    let out = Output::new(x);
    pool.run(tasks, &|task| {
        let start = task * strip;
        // SAFETY: strips do not overlap.
        f(start, unsafe { out.part(start, strip.min(len - start)) });
    });
}

/// `x += y`
pub fn add(pool: &Pool, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    strips(pool, x, 1, &|start, x| lathe_simd::run(Add(x, &y[start..][..x.len()])));
}

struct Add<'a>(&'a mut [f32], &'a [f32]);

impl Op for Add<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        // Simple enough for the compiler, which sees the instruction set here.
        for (x, y) in self.0.iter_mut().zip(self.1) {
            *x += y;
        }
    }
}

/// `x *= by`
pub fn scale(x: &mut [f32], by: f32) {
    x.iter_mut().for_each(|x| *x *= by);
}

/// `x = cap · tanh(x / cap)`: Gemma 2's bound on scores and logits.
pub fn soft_cap(pool: &Pool, x: &mut [f32], cap: f32) {
    strips(pool, x, 1, &|_, x| lathe_simd::run(SoftCap(x, cap)));
}

struct SoftCap<'a>(&'a mut [f32], f32);

impl Op for SoftCap<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        each(isa, self.0, CapBy(self.1));
    }
}

struct CapBy(f32);

impl Map for CapBy {
    #[inline(always)]
    fn map<I: Isa>(&self, isa: I, x: I::F) -> I::F {
        let scaled = isa.mul(x, isa.splat(1.0 / self.0));
        isa.mul(tanh(isa, scaled), isa.splat(self.0))
    }
}

/// `tanh x` as `1 − 2 / (e^2x + 1)`, within 2^-23 absolute.
#[inline(always)]
pub(crate) fn tanh<I: Isa>(isa: I, x: I::F) -> I::F {
    let one = isa.splat(1.0);
    let e = isa.exp(isa.add(x, x));
    isa.sub(one, isa.div(isa.splat(2.0), isa.add(e, one)))
}

/// A function of one number.
pub(crate) trait Map {
    fn map<I: Isa>(&self, isa: I, x: I::F) -> I::F;
}

/// Applies `f` to every number of `x`.
#[inline(always)]
pub(crate) fn each<I: Isa>(isa: I, x: &mut [f32], f: impl Map) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for x in whole {
        isa.store(f.map(isa, isa.load(x)), x);
    }
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    isa.store(f.map(isa, isa.load(&last)), &mut last);
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Turns scores into probabilities, in place, row by row of `width`.
pub fn softmax(pool: &Pool, x: &mut [f32], width: usize) {
    assert!(width > 0 && x.len().is_multiple_of(width), "rows of {width} in {}", x.len());
    strips(pool, x, width, &|_, rows| {
        for row in rows.chunks_exact_mut(width) {
            lathe_simd::run(Softmax(row));
        }
    });
}

struct Softmax<'a>(&'a mut [f32]);

impl Op for Softmax<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let top = self.0.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        each(isa, self.0, ExpLess(top));
        let total = sum(isa, self.0);
        let by = 1.0 / total;
        self.0.iter_mut().for_each(|x| *x *= by);
    }
}

struct ExpLess(f32);

impl Map for ExpLess {
    #[inline(always)]
    fn map<I: Isa>(&self, isa: I, x: I::F) -> I::F {
        isa.exp(isa.sub(x, isa.splat(self.0)))
    }
}

/// The sum of `x`, in an order that depends on its length alone.
#[inline(always)]
pub(crate) fn sum<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut total = isa.splat(0.0);
    for x in whole {
        total = isa.add(total, isa.load(x));
    }
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    isa.sum(isa.add(total, isa.load(&last)))
}
