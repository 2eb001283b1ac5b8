//! The walk of a product over tiles of rows × tokens, whatever a tile's arithmetic is.

use lathe_simd::Isa;

/// Rows that are multiplied together; tasks begin at multiples of it.
pub(crate) const ROWS: usize = 4;

/// Bytes of weights that one task works through, token tile after token tile: they stay in the
/// second-level cache meanwhile.
pub(crate) const TASK_BYTES: usize = 256 << 10;

/// Rows of a task, for rows of so many bytes.
pub(crate) fn task_rows(rows: usize, row_bytes: usize, threads: usize) -> usize {
    let most = (TASK_BYTES / row_bytes.max(1)).clamp(ROWS, 512) / ROWS * ROWS;
    // Small matrices are cut finer, so that every thread has its share.
    most.min(rows.div_ceil(4 * threads).next_multiple_of(ROWS))
}

/// What multiplies `R` rows from `row` on with `N` tokens from `token` on.
pub(crate) trait Tile {
    fn tile<I: Isa, const R: usize, const N: usize>(&self, isa: I, row: usize, token: usize);
}

/// Covers `rows` × `tokens` with tiles whose accumulators, one column's weights and one token's
/// inputs fit in the registers.
#[inline(always)]
pub(crate) fn walk<I: Isa>(isa: I, product: &impl Tile, rows: usize, tokens: usize) {
    let widest = if I::REGISTERS >= 32 { 6 } else { 2 };
    let mut token = 0;
    while token < tokens {
        // As even as can be: a tile of few tokens waits for its weights.
        let n = (tokens - token).div_ceil((tokens - token).div_ceil(widest));
        let most = if I::REGISTERS >= 32 || n == 1 { ROWS } else { 2 };
        let mut row = 0;
        while row < rows {
            let r = if rows - row >= most { most } else { 1 };
            one(isa, product, (r, row), (n, token));
            row += r;
        }
        token += n;
    }
}

#[inline(always)]
fn one<I: Isa>(
    isa: I,
    product: &impl Tile,
    (rows, row): (usize, usize),
    (tokens, token): (usize, usize),
) {
    match (rows, tokens) {
        (4, 1) => product.tile::<I, 4, 1>(isa, row, token),
        (4, 2) => product.tile::<I, 4, 2>(isa, row, token),
        (4, 3) => product.tile::<I, 4, 3>(isa, row, token),
        (4, 4) => product.tile::<I, 4, 4>(isa, row, token),
        (4, 5) => product.tile::<I, 4, 5>(isa, row, token),
        (4, 6) => product.tile::<I, 4, 6>(isa, row, token),
        (2, 1) => product.tile::<I, 2, 1>(isa, row, token),
        (2, 2) => product.tile::<I, 2, 2>(isa, row, token),
        (1, _) => {
            for i in 0..tokens {
                product.tile::<I, 1, 1>(isa, row, token + i);
            }
        }
        _ => unreachable!("no tile of {rows} × {tokens}"),
    }
}

/// The lanes of each row's sum for one token, added up.
#[inline(always)]
pub(crate) fn sums<I: Isa, const R: usize, const N: usize>(
    isa: I,
    lanes: &[[I::F; N]; R],
    n: usize,
) -> [f32; R] {
    let mut sums = [0.0; R];
    if R == 4 {
        let four = isa.sums([lanes[0][n], lanes[1][n], lanes[2][n], lanes[3][n]]);
        sums.copy_from_slice(&four);
    } else {
        for r in 0..R {
            sums[r] = isa.sum(lanes[r][n]);
        }
    }
    sums
}
