use lathe_simd::{Isa, LANES, Op};

use crate::{Pool, rowwise};

/// Root mean square normalisation (Zhang & Sennrich 2019).
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// One factor per column.
    pub weight: &'a [f32],
    /// Added to every weight: 1 where a checkpoint stores `w − 1` (Gemma), else 0.
    pub offset: f32,
    /// Added to the mean square.
    pub eps: f32,
}

/// `out = x / rms(x) · (weight + offset)`, for every row of `weight.len()` columns.
pub fn rms_norm(pool: &Pool, norm: &Norm<'_>, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    rowwise::strips(pool, out, norm.weight.len(), &|start, out| {
        out.copy_from_slice(&x[start..][..out.len()]);
        lathe_simd::run(RmsNorm(norm, out));
    });
}

/// [`rms_norm`] that overwrites its input: queries and keys, a row per head.
pub fn rms_norm_in_place(pool: &Pool, norm: &Norm<'_>, x: &mut [f32]) {
    rowwise::strips(pool, x, norm.weight.len(), &|_, x| lathe_simd::run(RmsNorm(norm, x)));
}

struct RmsNorm<'a>(&'a Norm<'a>, &'a mut [f32]);

impl Op for RmsNorm<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self(norm, rows) = self;
        let width = norm.weight.len();
        assert!(width > 0 && rows.len().is_multiple_of(width), "rows of {width}");
        for row in rows.chunks_exact_mut(width) {
            let mean = sum_of_squares(isa, row) / width as f32;
            let by = 1.0 / (mean + norm.eps).sqrt();
            for (x, w) in row.iter_mut().zip(norm.weight) {
                *x = *x * by * (w + norm.offset);
            }
        }
    }
}

/// Four chains of sixteen lanes, joined in a fixed order.
#[inline(always)]
fn sum_of_squares<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let mut total = [isa.splat(0.0); 4];
    let (fours, rest) = x.as_chunks::<{ 4 * LANES }>();
    for four in fours {
        for (total, x) in total.iter_mut().zip(four.as_chunks::<LANES>().0) {
            let x = isa.load(x);
            *total = isa.fma(x, x, *total);
        }
    }
    let mut last = [0.0; 4 * LANES];
    last[..rest.len()].copy_from_slice(rest);
    for (total, x) in total.iter_mut().zip(last.as_chunks::<LANES>().0) {
        let x = isa.load(x);
        *total = isa.fma(x, x, *total);
    }
    isa.sum(isa.add(isa.add(total[0], total[1]), isa.add(total[2], total[3])))
}
