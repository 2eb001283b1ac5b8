use super::{Tile, Triangle, cholesky::NotPositive, parallel};

/// What errors made in columns coded earlier ask of those coded later.
///
/// With the columns in the order in which they are coded, a symmetric positive definite H splits
/// uniquely into `H = (I + Mᵀ)·D·(I + M)` for a strictly lower triangular M and a diagonal D. For
/// errors e of one row of weights, `eᵀ·H·e = Σ_t D_t·(e_t + Σ_{s<t} M_ts·e_s)²`: the best that
/// column t can do for the errors before it is to code `w_t + Σ_{s<t} M_ts·e_s` instead of `w_t`,
/// and D_t is what its own rounding costs then.
///
/// **Source**: GPTQ (arXiv 2210.17323) takes the same update from a factor of the inverse of H;
/// QuIP (arXiv 2307.13304, section 3) shows that this factor of H itself serves as well, which
/// saves the inverse and its rounding errors.
#[derive(Debug)]
pub(crate) struct Feedback {
    /// The Cholesky factor of H with rows and columns in reverse, its tiles turned in place.
    triangle: Triangle,
    variance: Vec<f32>,
}

impl Feedback {
    /// Splits H of `size` columns, `hessian(s, t)` being its number for the columns coded as the
    /// s-th and t-th. The error names the first such column in reverse whose variance given
    /// the others before it is not positive.
    pub(crate) fn new(
        size: usize,
        threads: usize,
        hessian: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Result<Self, NotPositive> {
        let padded = size.next_multiple_of(super::TILE);
        // What fills the last tile comes last in the order of coding and touches nothing.
        let number = |i: usize, j: usize| match (padded - 1 - i, padded - 1 - j) {
            (s, t) if s < size && t < size => hessian(s, t),
            (s, t) => f32::from(s == t),
        };
        let mut triangle = Triangle::new(padded, threads, number);
        triangle.cholesky(threads).map_err(|at| NotPositive { row: padded - 1 - at.row })?;
        let blocks = triangle.blocks();
        let diagonal: Vec<Vec<f32>> = (0..blocks)
            .map(|b| triangle.tile(b, b).iter().enumerate().map(|(i, row)| row[i]).collect())
            .collect();
        parallel(
            threads,
            triangle.rows_mut(0).into_iter(),
            || (),
            |&mut (), row| {
                for (tile, diagonal) in row.iter_mut().zip(&diagonal) {
                    turn(tile, diagonal);
                }
            },
        );
        let pivots = diagonal.iter().flatten().rev().take(size);
        let variance = pivots.map(|pivot| pivot * pivot).collect();
        Ok(Self { triangle, variance })
    }

    /// Memory that [`Feedback::new`] takes for `size` columns: half a matrix and a column of tiles.
    pub(crate) fn bytes(size: usize) -> usize {
        Triangle::bytes(size) + size.div_ceil(super::TILE) * size_of::<Tile>()
    }

    /// Tiles in a column of M.
    pub(crate) fn blocks(&self) -> usize {
        self.triangle.blocks()
    }

    /// M_ts for the steps t of tile `later` and s of tile `earlier <= later`. On the diagonal only
    /// what is below it counts.
    pub(crate) fn tile(&self, later: usize, earlier: usize) -> &Tile {
        let last = self.blocks() - 1;
        self.triangle.tile(last - earlier, last - later)
    }

    /// D by step.
    pub(crate) fn variance(&self) -> &[f32] {
        &self.variance
    }
}

/// Exchanges the rows and columns of a tile, reverses both, and divides the resulting rows by the
/// reversed `diagonal`.
fn turn(tile: &mut Tile, diagonal: &[f32]) {
    let from = *tile;
    let last = super::TILE - 1;
    for (t, row) in tile.iter_mut().enumerate() {
        for (s, x) in row.iter_mut().enumerate() {
            *x = from[last - s][last - t] / diagonal[last - t];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TILE;
    use super::*;

    #[test]
    fn the_split_gives_the_quadratic_form_back() {
        let size = 2 * TILE + 37;
        let wave = |i: usize, k: usize| ((i * (k + 3) + 7 * k) as f32 * 0.37).sin();
        let hessian = |i: usize, j: usize| {
            let ridge = if i == j { 0.5 } else { 0.0 };
            (0..40).map(|k| wave(i, k) * wave(j, k)).sum::<f32>() + ridge
        };
        let feedback = Feedback::new(size, 2, hessian).unwrap();
        let e: Vec<f64> = (0..size).map(|i| ((i * i) as f64 * 0.01).cos()).collect();
        let mut plain = 0.0;
        for i in 0..size {
            for j in 0..size {
                plain += e[i] * f64::from(hessian(i, j)) * e[j];
            }
        }
        let m =
            |t: usize, s: usize| f64::from(feedback.tile(t / TILE, s / TILE)[t % TILE][s % TILE]);
        let split: f64 = (0..size)
            .map(|t| {
                let conditional = e[t] + (0..t).map(|s| m(t, s) * e[s]).sum::<f64>();
                f64::from(feedback.variance()[t]) * conditional * conditional
            })
            .sum();
        assert!((split / plain - 1.0).abs() < 1e-5, "{split} and {plain}");
    }
}
