use crate::{Matrix, Pool};

/// `out[t, row] = Σ x[t, col] · w[row, col]`, for `t` tokens.
///
/// **Shapes**: `x` `[T, cols]`, `out` `[T, rows]`. See [`crate::Precision`] for the numbers.
pub fn matmul(pool: &Pool, x: &[f32], t: usize, w: &Matrix, out: &mut [f32]) {
    matmuls(pool, x, t, &mut [(w, out)]);
}

/// [`matmul`] of the same inputs with several matrices of as many columns, to the same bits. Where
/// these are of one kind it is one operation for the threads, which then wait for each other once.
pub fn matmuls(pool: &Pool, x: &[f32], t: usize, of: &mut [(&Matrix, &mut [f32])]) {
    let mut empty = t == 0;
    for (w, out) in of.iter() {
        assert_eq!(x.len(), t * w.cols(), "x is not [{t}, {}]", w.cols());
        assert_eq!(out.len(), t * w.rows(), "out is not [{t}, {}]", w.rows());
        empty |= w.rows() == 0 || w.cols() == 0;
    }
    if !empty {
        return Matrix::products(pool, x, t, of);
    }
    for (w, out) in of {
        if t == 0 || w.rows() == 0 || w.cols() == 0 {
            out.fill(0.0);
        } else {
            w.product(pool, x, t, out);
        }
    }
}

/// Says which matrices will be multiplied with `t` tokens by the call after the next that the
/// threads share: as they wait for it they ask for those weights' memory, which is idle meanwhile.
/// Nothing but time depends on it.
pub fn foresee(pool: &Pool, t: usize, of: &[&Matrix]) {
    if t > 0 && of.iter().all(|w| w.rows() > 0 && w.cols() > 0) {
        pool.foresee(|thread| Matrix::begin(pool, of, t, thread).unwrap_or(std::ptr::null()));
    }
}
