//! What an error in a matrix does to its outputs.

use std::ops::Range;

use lathe_simd::{Isa, LANES, Op};

use crate::{Dense, Stats, linalg::parallel};

/// The mean square that an error adds to the outputs of a matrix, summed over all outputs.
///
/// `delta` is the error, \[rows, cols\]. With the inputs' second moments H = mean x xᵀ this is
/// tr(Δ H Δᵀ), which is exact whatever the number of inputs that H was made of; where `stats` has
/// no H, its diagonal stands for it. The same for any number of `threads`.
pub fn output_error(delta: &Dense, stats: &Stats, threads: usize) -> f64 {
    let whole = delta.cols.max(1);
    group_errors(delta, stats, whole, threads).iter().map(|rows| rows.iter().sum::<f64>()).sum()
}

/// As [`output_error`], for each group of `group` columns by itself, as if the inputs of different
/// groups had nothing to do with one another: for each group the error of each row.
pub(crate) fn group_errors(
    delta: &Dense,
    stats: &Stats,
    group: usize,
    threads: usize,
) -> Vec<Vec<f64>> {
    let groups = (0..delta.cols).step_by(group).map(|from| from..delta.cols.min(from + group));
    let Some(hessian) = &stats.hessian else {
        let groups: Vec<_> = groups.collect();
        return spread(groups.len(), threads, |i| diagonal(delta, &stats.importance, &groups[i]));
    };
    // Panels of all groups, of which the wide ones of one group may be many.
    let panels: Vec<(usize, Range<usize>, usize)> = groups
        .enumerate()
        .flat_map(|(i, columns)| {
            columns.clone().step_by(WIDTH).map(move |from| (i, columns.clone(), from))
        })
        .collect();
    let errors = spread(panels.len(), threads, |i| {
        let (_, columns, from) = &panels[i];
        panel(delta, hessian, columns, *from)
    });
    let mut sums = vec![vec![0.0; delta.rows]; delta.cols.div_ceil(group)];
    for ((group, ..), errors) in panels.iter().zip(errors) {
        sums[*group].iter_mut().zip(errors).for_each(|(sum, error)| *sum += error);
    }
    sums
}

/// `work` for each of `0..count` on `threads` threads, with the results in order.
pub(crate) fn spread<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    parallel(threads, results.iter_mut().enumerate(), || (), |(), (i, r)| *r = Some(work(i)));
    results.into_iter().flatten().collect()
}

fn diagonal(delta: &Dense, importance: &[f32], columns: &Range<usize>) -> Vec<f64> {
    let weights = &importance[columns.clone()];
    let error = |row| {
        let delta = &delta.row(row)[columns.clone()];
        delta.iter().zip(weights).map(|(d, w)| f64::from(d * d * w)).sum()
    };
    (0..delta.rows).map(error).collect()
}

/// Columns of H that are multiplied together.
const WIDTH: usize = 2 * LANES;

/// The share of each row's Σ d_k H_kj d_j that has j in `from..from + WIDTH` and k no later
/// than there, counted twice where k is before: H is symmetric.
fn panel(delta: &Dense, hessian: &[f32], columns: &Range<usize>, from: usize) -> Vec<f64> {
    let width = WIDTH.min(columns.end - from);
    let mut moments = vec![[[0.0; LANES]; 2]; from + width - columns.start];
    for (row, k) in moments.iter_mut().zip(columns.start..) {
        let source = &hessian[k * delta.cols + from..][..width];
        row.as_flattened_mut()[..width].copy_from_slice(source);
    }
    let mut errors = vec![0.0; delta.rows];
    let (first, before) = (columns.start, from - columns.start);
    lathe_simd::run(Panel { delta, first, before, width, moments: &moments, errors: &mut errors });
    errors
}

struct Panel<'a> {
    delta: &'a Dense,
    /// The first column of the group.
    first: usize,
    /// Columns of the group before the panel.
    before: usize,
    /// Columns of the panel.
    width: usize,
    /// H by column up to the panel's end, against the panel's columns.
    moments: &'a [[[f32; LANES]; 2]],
    errors: &'a mut [f64],
}

impl Op for Panel<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let rows = self.delta.rows;
        let whole = rows - rows % 4;
        // Loops, since a closure would be compiled without the instruction set.
        for row in (0..whole).step_by(4) {
            self.rows::<I, 4>(isa, row);
        }
        for row in whole..rows {
            self.rows::<I, 1>(isa, row);
        }
    }
}

impl Panel<'_> {
    /// The errors of `R` rows from `row` on.
    #[inline(always)]
    fn rows<I: Isa, const R: usize>(&mut self, isa: I, row: usize) {
        let end = self.before + self.width;
        let rows: [&[f32]; R] =
            std::array::from_fn(|r| &self.delta.row(row + r)[self.first..][..end]);
        let mut sums = [[isa.splat(0.0); 2]; R];
        let (before, within) = self.moments.split_at(self.before);
        for (k, moments) in before.iter().enumerate() {
            accumulate(isa, &rows, k, moments, &mut sums);
        }
        for sum in sums.as_flattened_mut() {
            *sum = isa.add(*sum, *sum);
        }
        for (k, moments) in within.iter().enumerate() {
            accumulate(isa, &rows, self.before + k, moments, &mut sums);
        }
        for (r, sums) in sums.iter().enumerate() {
            let mut own = [[0.0; LANES]; 2];
            own.as_flattened_mut()[..self.width].copy_from_slice(&rows[r][self.before..]);
            let low = isa.mul(sums[0], isa.load(&own[0]));
            self.errors[row + r] = f64::from(isa.sum(isa.fma(sums[1], isa.load(&own[1]), low)));
        }
    }
}

#[inline(always)]
fn accumulate<I: Isa, const R: usize>(
    isa: I,
    rows: &[&[f32]; R],
    k: usize,
    moments: &[[f32; LANES]; 2],
    sums: &mut [[I::F; 2]; R],
) {
    let (low, high) = (isa.load(&moments[0]), isa.load(&moments[1]));
    for (row, sums) in rows.iter().zip(sums) {
        let x = isa.splat(row[k]);
        sums[0] = isa.fma(x, low, sums[0]);
        sums[1] = isa.fma(x, high, sums[1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 101) as f32 * 0.43).sin()).collect()
    }

    /// Mean x xᵀ over some inputs.
    fn moments(cols: usize) -> (Vec<Vec<f32>>, Stats) {
        let inputs: Vec<_> = (0..3 * cols).map(|token| numbers(cols, token + 9)).collect();
        let mean = |f: &dyn Fn(&[f32]) -> f32| {
            inputs.iter().map(|x| f(x)).sum::<f32>() / inputs.len() as f32
        };
        let hessian = (0..cols * cols).map(|at| mean(&|x| x[at / cols] * x[at % cols])).collect();
        let importance = (0..cols).map(|at| mean(&|x| x[at] * x[at])).collect();
        (inputs.clone(), Stats { hessian: Some(hessian), importance, ..Stats::default() })
    }

    #[test]
    fn the_error_is_the_mean_square_of_the_change_in_the_outputs() {
        for (rows, cols) in [(1, 1), (5, 31), (4, 32), (7, 33), (9, 100)] {
            let delta = Dense { rows, cols, data: numbers(rows * cols, 1) };
            let (inputs, stats) = moments(cols);
            let output = |row: usize, x: &[f32]| -> f64 {
                delta.row(row).iter().zip(x).map(|(d, x)| f64::from(d * x)).sum()
            };
            let squares = |x: &Vec<f32>| (0..rows).map(|row| output(row, x).powi(2)).sum::<f64>();
            let plain = inputs.iter().map(squares).sum::<f64>() / inputs.len() as f64;
            for isa in lathe_simd::available() {
                let found = lathe_simd::with_isa(isa, || output_error(&delta, &stats, 1)).unwrap();
                assert!((found / plain - 1.0).abs() < 1e-4, "{rows} by {cols}: {found}, {plain}");
            }
            let one = output_error(&delta, &stats, 1);
            assert_eq!(output_error(&delta, &stats, 5), one);
        }
    }

    #[test]
    fn groups_are_measured_by_themselves() {
        let (rows, cols, group) = (3, 96, 40);
        let delta = Dense { rows, cols, data: numbers(rows * cols, 2) };
        let (_, stats) = moments(cols);
        let groups = group_errors(&delta, &stats, group, 2);
        assert_eq!(groups.len(), 3);
        for (nth, errors) in groups.iter().enumerate() {
            let mut only = delta.clone();
            for row in 0..rows {
                for (col, d) in only.row_mut(row).iter_mut().enumerate() {
                    *d *= f32::from(u8::from(col / group == nth));
                }
            }
            let whole = output_error(&only, &stats, 1);
            assert!((errors.iter().sum::<f64>() / whole - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn without_a_hessian_its_diagonal_counts() {
        let delta = Dense { rows: 1, cols: 2, data: vec![1.0, 2.0] };
        let stats = Stats { importance: vec![3.0, 0.5], ..Stats::default() };
        assert_eq!(output_error(&delta, &stats, 1), 5.0);
    }
}
