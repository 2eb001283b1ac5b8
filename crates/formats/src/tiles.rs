use crate::{Effort, Rows, format::map_rows, round::absmax, search, search::Rounding};

/// Scales that rows share: one for each tile of a matrix.
pub(crate) struct Tiles {
    /// Rows and columns of a tile; those at the end may be smaller.
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// What a search tries, as parts of the scale that reaches the largest weight.
const PARTS: [f32; 12] = [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.7, 0.64, 0.58];

impl Tiles {
    /// The tiles that a matrix of `cols` is wide.
    pub(crate) fn across(&self, cols: usize) -> usize {
        cols.div_ceil(self.cols.max(1))
    }

    /// One scale per tile, row-major: `own` of the tile's largest magnitude, or, by a search, the
    /// part of it whose levels leave the least error. Sums are in f64 and in the order of the
    /// rows, so that the number of threads changes nothing.
    pub(crate) fn scales(
        &self,
        source: &dyn Rows,
        rounding: &Rounding,
        own: impl Fn(f32) -> f32,
        (importance, effort): (Option<&[f32]>, Effort),
        threads: usize,
    ) -> Vec<f32> {
        let across = self.across(source.shape().1);
        let most = map_rows(source, across, threads, |_, weights, most| {
            for (most, weights) in most.iter_mut().zip(weights.chunks(self.cols)) {
                *most = absmax(weights);
            }
        });
        let mut scales = self.fold(&most, across, 0.0, |a: f32, b| if b <= a { a } else { b });
        scales.iter_mut().for_each(|scale| *scale = own(*scale));
        if effort == Effort::Nearest {
            return scales;
        }
        let per_row = across * PARTS.len();
        let gains = map_rows(source, per_row, threads, |row, weights, gains| {
            let scales = &scales[row / self.rows * across..];
            let tiles = weights.chunks(self.cols).zip(gains.chunks_mut(PARTS.len()));
            for (i, ((weights, gains), own)) in tiles.zip(scales).enumerate() {
                let importance = importance.map(|all| &all[i * self.cols..][..weights.len()]);
                search::gains(rounding, *own, (weights, importance), &PARTS, gains);
            }
        });
        let gains = self.fold(&gains, per_row, 0.0, |a: f64, b| a + f64::from(b));
        for (scale, gains) in scales.iter_mut().zip(gains.chunks(PARTS.len())) {
            let mut best = 0;
            for (i, gain) in gains.iter().enumerate() {
                if *gain > gains[best] {
                    best = i;
                }
            }
            *scale *= PARTS[best];
        }
        scales
    }

    /// Folds the rows of each row of tiles.
    fn fold<T: Copy>(
        &self,
        rows: &[f32],
        per_row: usize,
        zero: T,
        f: impl Fn(T, f32) -> T,
    ) -> Vec<T> {
        let mut folded = Vec::new();
        for rows in rows.chunks(self.rows.saturating_mul(per_row).max(1)) {
            let first = folded.len();
            folded.resize(first + per_row, zero);
            for row in rows.chunks(per_row) {
                for (sum, x) in folded[first..].iter_mut().zip(row) {
                    *sum = f(*sum, *x);
                }
            }
        }
        folded
    }
}
