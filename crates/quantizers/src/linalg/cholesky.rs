use super::{TILE, Tile, Triangle, add_product, parallel};

/// A matrix that is not positive definite, as far as 32-bit numbers tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotPositive {
    /// The first row whose pivot is not positive.
    pub(crate) row: usize,
}

impl Triangle {
    /// Replaces a symmetric positive definite matrix A by its Cholesky factor L, lower triangular
    /// with A = L·Lᵀ.
    ///
    /// Column of tiles after column of tiles, each from those left of it; a tile on the diagonal is
    /// factored in f64. Takes size³/3 operations, and memory for one column of tiles beside the
    /// matrix.
    pub(crate) fn cholesky(&mut self, threads: usize) -> Result<(), NotPositive> {
        let mut left = vec![[[0.0; TILE]; TILE]; 0];
        for column in 0..self.blocks() {
            left.resize(column, [[0.0; TILE]; TILE]);
            let turned = left.iter_mut().zip(self.row(column));
            parallel(threads, turned, || (), |&mut (), (to, from)| *to = minus_transposed(from));
            let left = &left;
            let (before, diagonal) = self.row_mut(column).split_at_mut(column);
            let strips = diagonal[0].chunks_mut(STRIP).enumerate();
            parallel(
                threads,
                strips,
                || (),
                |&mut (), (i, strip)| {
                    for (a, b) in before.iter().zip(left) {
                        add_product(strip, &a[i * STRIP..][..strip.len()], b);
                    }
                },
            );
            let inverse =
                factor(&mut diagonal[0]).map_err(|row| NotPositive { row: column * TILE + row })?;
            let below = self.rows_mut(column + 1).into_iter();
            parallel(
                threads,
                below,
                || (),
                |&mut (), row| {
                    let (before, rest) = row.split_at_mut(column);
                    for (a, b) in before.iter().zip(left) {
                        add_product(&mut rest[0], a, b);
                    }
                    let sums = rest[0];
                    rest[0] = [[0.0; TILE]; TILE];
                    add_product(&mut rest[0], &sums, &inverse);
                },
            );
        }
        Ok(())
    }
}

/// Rows of the diagonal's tile that a thread takes at a time.
const STRIP: usize = 8;

/// The negative of a tile, rows and columns exchanged.
fn minus_transposed(tile: &Tile) -> Tile {
    let mut out = [[0.0; TILE]; TILE];
    for (i, row) in tile.iter().enumerate() {
        for (j, x) in row.iter().enumerate() {
            out[j][i] = -x;
        }
    }
    out
}

/// Factors one tile in f64 and gives the inverse of the factor, transposed; the number of the row
/// where that ends if the tile is not positive definite.
fn factor(tile: &mut Tile) -> Result<Box<Tile>, usize> {
    let mut l = vec![[0.0f64; TILE]; TILE];
    for i in 0..TILE {
        let (done, rest) = l.split_at_mut(i);
        let row = &mut rest[0];
        for (j, above) in done.iter().enumerate() {
            row[j] = (f64::from(tile[i][j]) - dot(&row[..j], &above[..j])) / above[j];
        }
        let pivot = f64::from(tile[i][i]) - dot(&row[..i], &row[..i]);
        if !(pivot > 0.0 && pivot.is_finite()) {
            return Err(i);
        }
        row[i] = pivot.sqrt();
    }
    for (to, from) in tile.iter_mut().zip(&l) {
        *to = from.map(|x| x as f32);
    }
    Ok(inverse_transposed(&l))
}

/// The inverse of a lower triangular matrix, transposed.
fn inverse_transposed(l: &[[f64; TILE]]) -> Box<Tile> {
    // Row j of the transposed inverse is the solution x of L·x = e_j, one number after the other.
    let mut out = Box::new([[0.0; TILE]; TILE]);
    for (j, row) in out.iter_mut().enumerate() {
        let mut x = [0.0f64; TILE];
        for (i, l) in l.iter().enumerate().skip(j) {
            let one = if i == j { 1.0 } else { 0.0 };
            x[i] = (one - dot(&l[j..i], &x[j..i])) / l[i];
        }
        *row = x.map(|x| x as f32);
    }
    out
}

/// A dot product over eight interleaved sums, which vectorise.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, rest_a) = a.as_chunks::<8>();
    let (b, rest_b) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A positive definite matrix: correlated columns over a ridge.
    fn spd(i: usize, j: usize) -> f32 {
        let wave = |i: usize, k: usize| ((i * (k + 3) + 7 * k) as f32 * 0.37).sin();
        let sum: f32 = (0..40).map(|k| wave(i, k) * wave(j, k)).sum();
        sum + if i == j { 0.5 } else { 0.0 }
    }

    fn at(triangle: &Triangle, i: usize, j: usize) -> f64 {
        f64::from(triangle.tile(i / TILE, j / TILE)[i % TILE][j % TILE])
    }

    #[test]
    fn the_factor_times_its_transpose_is_the_matrix() {
        let size = 3 * TILE;
        let mut factor = Triangle::new(size, 1, spd);
        factor.cholesky(2).unwrap();
        for i in 0..size {
            for j in 0..=i {
                let product: f64 = (0..=j).map(|k| at(&factor, i, k) * at(&factor, j, k)).sum();
                let error = (product - f64::from(spd(i, j))).abs();
                assert!(error < 5e-5, "({i}, {j}) is off by {error}");
            }
        }
    }

    #[test]
    fn the_factor_is_the_same_bits_at_any_thread_count() {
        let factor = |threads| {
            let mut factor = Triangle::new(5 * TILE, threads, spd);
            factor.cholesky(threads).unwrap();
            factor.numbers
        };
        let one = factor(1);
        assert!([2, 3, 7].into_iter().all(|threads| factor(threads) == one));
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_is_refused_with_its_row() {
        let bad = |i, j| if (i, j) == (200, 200) { -1.0 } else { spd(i, j) };
        let refused = Triangle::new(256, 1, bad).cholesky(1);
        assert_eq!(refused, Err(NotPositive { row: 200 }));
        let nan = |i, j| if (i, j) == (130, 7) { f32::NAN } else { spd(i, j) };
        let refused = Triangle::new(256, 1, nan).cholesky(1);
        assert_eq!(refused, Err(NotPositive { row: 130 }));
    }
}
