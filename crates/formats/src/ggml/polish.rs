//! Beyond the reference: scales of a superblock that leave less error.
//!
//! For given codes the superblock's scale and minimum of least error are the solution of two linear
//! equations, for a given scale the codes are the nearest, and the small integers by which groups
//! multiply them can be moved one at a time. Done in turn, each step only where it leaves less
//! error, so what comes out is never worse than what went in.

use half::f16;
use lathe_simd::{Isa, Op};

use super::importance::{Weighing, tempered};
use super::lanes::{F, LANES, Number, side_by_side};
use super::superblock::{self, Super, WEIGHTS};
use super::table;
use crate::Levels;

/// A superblock whose scales can be taken apart: a weight of group g is
/// `scale · scales[g] · level − min · minima[g]`.
pub(crate) trait Parted: Super {
    /// The lowest and the highest code of a group's scale.
    const SCALES: (i32, i32);
    /// The highest code of a group's minimum, 0 where there are none.
    const MINIMA: i32;

    fn parts(&self) -> Parts;
    /// The block of these scales, with any codes.
    fn of_parts(parts: &Parts) -> Self;
}

/// The scales of a superblock. There are sixteen groups or fewer; the rest is not looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    pub(crate) scale: f32,
    pub(crate) min: f32,
    pub(crate) scales: [i32; LANES],
    pub(crate) minima: [i32; LANES],
}

/// How often everything is gone through.
const ROUNDS: usize = 3;
/// Moves of a group's scale and minimum that are tried in each of them.
const MOVES: [(f32, f32); 8] = [
    (1.0, 0.0),
    (-1.0, 0.0),
    (0.0, 1.0),
    (0.0, -1.0),
    (1.0, 1.0),
    (-1.0, -1.0),
    (1.0, -1.0),
    (-1.0, 1.0),
];

/// A row to be coded with the best instructions of the machine.
struct Search<'a, B> {
    src: &'a [f32],
    importance: &'a [f32],
    dst: &'a mut [B],
}

/// Codes a row with the least error that the search finds, weighted by importance.
pub(crate) fn search_row<B: Parted, const N: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    dst: &mut [B],
) {
    struct Run<'a, B, const N: usize>(Search<'a, B>);
    impl<B: Parted, const N: usize> Op for Run<'_, B, N> {
        type Out = ();
        #[inline(always)]
        fn run<I: Isa>(self, _: I) {
            let Search { src, importance, dst } = self.0;
            search_blocks::<B, N>(src, importance, dst);
        }
    }
    let importance = importance.and_then(tempered).unwrap_or_else(|| vec![1.0; src.len()]);
    lathe_simd::run(Run::<B, N>(Search { src, importance: &importance, dst }));
}

/// Polishes two starts and keeps the better one of each block: the reference's own choice, and what
/// its search finds for errors that weigh as they shall.
#[inline(always)]
fn search_blocks<B: Parted, const N: usize>(src: &[f32], importance: &[f32], dst: &mut [B]) {
    let exact = Weighing::Exact(importance);
    superblock::batches::<B, N>(src, exact, dst, |src, weighing, dst| {
        let Weighing::Exact(importance) = weighing else { return };
        let (x, weights) = (side_by_side::<N>(src), side_by_side::<N>(importance));
        let mut best = [f32::INFINITY; LANES];
        for start in [Weighing::Own, weighing] {
            let mut blocks = [B::zeroed(); LANES];
            let blocks = &mut blocks[..dst.len()];
            B::encode_blocks(src, start, blocks);
            let errors = polish::<B, N>(&x, &weights, src, blocks);
            for (i, (dst, block)) in dst.iter_mut().zip(blocks).enumerate() {
                if errors[i] < best[i] || best[i] == f32::INFINITY {
                    (*dst, best[i]) = (*block, errors[i]);
                }
            }
        }
    });
}

/// The scales of up to sixteen groups, which are those of one superblock or two.
#[derive(Clone, Copy)]
struct Maps {
    scale: F,
    min: F,
    scales: F,
    minima: F,
}

/// The level nearest to each lane.
#[inline(always)]
fn level<B: Super>(x: F) -> F {
    match B::LEVELS {
        Levels::Integers { low, high } => x.code(low, high),
        Levels::Table(_) => table::level(x),
    }
}

/// Scale and minimum of each lane, and the inverse of the scale, 0 for 0.
#[inline(always)]
fn map_of(maps: &Maps) -> (F, F, F) {
    let (zero, scale) = (F::all(0.0), maps.scale * maps.scales);
    let inverse = F::pick(zero, scale.map(f32::abs), F::all(1.0) / scale, zero);
    (scale, maps.min * maps.minima, inverse)
}

/// The error of each group with its nearest codes.
#[inline(always)]
fn errors<B: Super, const N: usize>(x: &[F; N], weights: &[F; N], maps: &Maps) -> F {
    let (scale, min, inverse) = map_of(maps);
    let mut sum = F::all(0.0);
    for (x, w) in x.iter().zip(weights) {
        let above = *x + min;
        let difference = scale * level::<B>(inverse * above) - above;
        sum = sum + *w * difference * difference;
    }
    sum
}

/// Changes the scales of `blocks` to the better; the error of each.
#[inline(always)]
fn polish<B: Parted, const N: usize>(
    x: &[F; N],
    weights: &[F; N],
    src: &[f32],
    blocks: &mut [B],
) -> [f32; LANES] {
    let groups = WEIGHTS / N;
    let mut maps = take_apart::<B, N>(blocks);
    let mut best = errors::<B, N>(x, weights, &maps);
    for _ in 0..ROUNDS {
        for (scale, min) in MOVES {
            if B::MINIMA > 0 || min == 0.0 {
                step::<B, N>(x, weights, (scale, min), &mut maps, &mut best);
            }
        }
        let fitted = refit::<B, N>(x, weights, &maps);
        let tried = errors::<B, N>(x, weights, &fitted);
        for first in (0..LANES).step_by(groups) {
            let lanes = first..first + groups;
            let (before, after) =
                (best.0[lanes.clone()].iter().sum::<f32>(), tried.0[lanes.clone()].iter().sum());
            if before > after {
                for lane in lanes {
                    maps.scale.0[lane] = fitted.scale.0[lane];
                    maps.min.0[lane] = fitted.min.0[lane];
                    best.0[lane] = tried.0[lane];
                }
            }
        }
    }
    let mut sums = [0.0; LANES];
    for (i, (block, src)) in blocks.iter_mut().zip(src.chunks_exact(WEIGHTS)).enumerate() {
        *block = put_together::<B, N>(&maps, i * groups, src);
        sums[i] = best.0[i * groups..][..groups].iter().sum();
    }
    sums
}

/// Moves the scale and the minimum of every group where that leaves less error.
#[inline(always)]
fn step<B: Parted, const N: usize>(
    x: &[F; N],
    weights: &[F; N],
    (scale, min): (f32, f32),
    maps: &mut Maps,
    best: &mut F,
) {
    let (low, high) = B::SCALES;
    let tried = Maps {
        scales: (maps.scales + F::all(scale)).code(low, high),
        minima: (maps.minima + F::all(min)).code(0, B::MINIMA),
        ..*maps
    };
    let error = errors::<B, N>(x, weights, &tried);
    maps.scales = F::pick(error, *best, tried.scales, maps.scales);
    maps.minima = F::pick(error, *best, tried.minima, maps.minima);
    *best = F::pick(error, *best, error, *best);
}

/// The superblocks' scales and minima of least error for the codes that are nearest now.
#[inline(always)]
fn refit<B: Parted, const N: usize>(x: &[F; N], weights: &[F; N], maps: &Maps) -> Maps {
    let zero = F::all(0.0);
    let (_, min, inverse) = map_of(maps);
    let (mut ll, mut l, mut one, mut xl, mut x1) = (zero, zero, zero, zero, zero);
    for (x, w) in x.iter().zip(weights) {
        let level = level::<B>(inverse * (*x + min));
        let weighted = *w * level;
        ll = ll + weighted * level;
        l = l + weighted;
        one = one + *w;
        xl = xl + weighted * *x;
        x1 = x1 + *w * *x;
    }
    let (scales, minima) = (maps.scales, maps.minima);
    let terms = [
        ll * scales * scales,
        l * scales * minima,
        one * minima * minima,
        xl * scales,
        x1 * minima,
    ];
    let mut fitted = *maps;
    let groups = WEIGHTS / N;
    for first in (0..LANES).step_by(groups) {
        let sum = |of: &F| of.0[first..][..groups].iter().map(|x| f64::from(*x)).sum::<f64>();
        let [a, b, c, p, q] = [0, 1, 2, 3, 4].map(|i| sum(&terms[i]));
        let determinant = a * c - b * b;
        let (scale, min) = if B::MINIMA > 0 && determinant > 0.0 {
            ((p * c - b * q) / determinant, (p * b - a * q) / determinant)
        } else {
            (p / a, 0.0)
        };
        let stored = |x: f64| f16::from_f64(x).to_f32();
        let (scale, min) = (stored(scale), stored(min.max(0.0)));
        if scale.is_finite() && min.is_finite() {
            fitted.scale.0[first..][..groups].fill(scale);
            fitted.min.0[first..][..groups].fill(min);
        }
    }
    fitted
}

fn take_apart<B: Parted, const N: usize>(blocks: &[B]) -> Maps {
    let zero = F::all(0.0);
    let mut maps = Maps { scale: zero, min: zero, scales: zero, minima: zero };
    let groups = WEIGHTS / N;
    for (i, block) in blocks.iter().enumerate() {
        let parts = block.parts();
        for group in 0..groups {
            let lane = i * groups + group;
            maps.scale.0[lane] = parts.scale;
            maps.min.0[lane] = parts.min;
            maps.scales.0[lane] = parts.scales[group] as f32;
            maps.minima.0[lane] = parts.minima[group] as f32;
        }
    }
    maps
}

/// The block of the lanes from `first` on, with the nearest codes.
#[inline(always)]
fn put_together<B: Parted, const N: usize>(maps: &Maps, first: usize, src: &[f32]) -> B {
    let groups = WEIGHTS / N;
    let mut parts = Parts {
        scale: maps.scale.0[first],
        min: maps.min.0[first],
        scales: [0; LANES],
        minima: [0; LANES],
    };
    for group in 0..groups {
        parts.scales[group] = maps.scales.0[first + group] as i32;
        parts.minima[group] = maps.minima.0[first + group] as i32;
    }
    let mut block = B::of_parts(&parts);
    let mut codes = [0; WEIGHTS];
    for (group, (src, codes)) in src.chunks_exact(N).zip(codes.chunks_exact_mut(N)).enumerate() {
        B::LEVELS.codes(block.affine(group), src, codes);
    }
    block.set_codes(&codes);
    block
}
