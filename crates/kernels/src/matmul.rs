use crate::{Matrix, Pool};

/// `out[t, row] = Σ x[t, col] · w[row, col]`, for `t` tokens.
///
/// **Shapes**: `x` `[T, cols]`, `out` `[T, rows]`. See [`crate::Precision`] for the numbers.
pub fn matmul(pool: &Pool, x: &[f32], t: usize, w: &Matrix, out: &mut [f32]) {
    assert_eq!(x.len(), t * w.cols(), "x is not [{t}, {}]", w.cols());
    assert_eq!(out.len(), t * w.rows(), "out is not [{t}, {}]", w.rows());
    if t == 0 || w.rows() == 0 || w.cols() == 0 {
        out.fill(0.0);
        return;
    }
    w.product(pool, x, t, out);
}
