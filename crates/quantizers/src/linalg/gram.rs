use super::{TILE, Tile, Triangle, add_product, parallel};

/// The sum of x·xᵀ over inputs x, taken in bounded memory: what a Hessian is made of.
///
/// Inputs are collected until there are [`Gram::BATCH`] and then multiplied at once, so that
/// neither the sizes in which they come nor the number of threads changes a bit of the result.
#[derive(Clone, Debug)]
pub struct Gram {
    cols: usize,
    count: u64,
    sums: Triangle,
    /// Inputs not multiplied yet: a tile of columns after another, an input per row.
    waiting: Vec<[f32; TILE]>,
    pending: usize,
}

impl Gram {
    /// Inputs that are multiplied at once.
    pub const BATCH: usize = 4 * TILE;

    /// The sum over no inputs of `cols` numbers.
    pub fn new(cols: usize) -> Self {
        let waiting = vec![[0.0; TILE]; cols.div_ceil(TILE) * Self::BATCH];
        Self { cols, count: 0, sums: Triangle::new(cols, 1, |_, _| 0.0), waiting, pending: 0 }
    }

    /// Bytes of memory that a sum for `cols` columns takes, working space of `threads` threads
    /// included; [`Gram::mean`] takes `cols² · 4` besides.
    pub fn bytes(cols: usize, threads: usize) -> usize {
        let waiting = cols.div_ceil(TILE) * Self::BATCH * TILE * size_of::<f32>();
        Triangle::bytes(cols) + waiting + threads * BATCH_TILES * size_of::<Tile>()
    }

    /// Inputs seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Takes inputs `[T, cols]` in.
    pub fn add(&mut self, inputs: &[f32], threads: usize) {
        debug_assert!(inputs.len().is_multiple_of(self.cols));
        for input in inputs.chunks_exact(self.cols.max(1)) {
            for (block, part) in input.chunks(TILE).enumerate() {
                self.waiting[block * Self::BATCH + self.pending][..part.len()]
                    .copy_from_slice(part);
            }
            self.pending += 1;
            self.count += 1;
            if self.pending == Self::BATCH {
                self.multiply(threads);
            }
        }
    }

    /// The mean of x·xᵀ, \[cols, cols\], both halves filled; zeros if there was no input.
    pub fn mean(mut self, threads: usize) -> Vec<f32> {
        self.multiply(threads);
        let (cols, scale) = (self.cols, 1.0 / self.count.max(1) as f32);
        let mut mean = vec![0.0; cols * cols];
        let rows = mean.chunks_exact_mut(cols.max(1)).enumerate();
        parallel(
            threads,
            rows,
            || (),
            |&mut (), (i, row)| {
                for (j, x) in row.iter_mut().enumerate() {
                    let (high, low) = (i.max(j), i.min(j));
                    *x = scale * self.sums.tile(high / TILE, low / TILE)[high % TILE][low % TILE];
                }
            },
        );
        mean
    }

    /// Adds the products of the inputs that wait.
    fn multiply(&mut self, threads: usize) {
        for column in self.waiting.chunks_exact_mut(Self::BATCH) {
            column[self.pending..].fill([0.0; TILE]);
        }
        let waiting = self.waiting.as_chunks::<TILE>().0;
        let rows = self.sums.rows_mut(0).into_iter().enumerate();
        let turned = || vec![[[0.0; TILE]; TILE]; BATCH_TILES];
        parallel(threads, rows, turned, |turned, (row, tiles)| {
            let own = &waiting[row * BATCH_TILES..][..BATCH_TILES];
            turned.iter_mut().zip(own).for_each(|(to, from)| transpose(from, to));
            for (tile, others) in tiles.iter_mut().zip(waiting.chunks_exact(BATCH_TILES)) {
                for (a, b) in turned.iter().zip(others) {
                    add_product(tile, a, b);
                }
            }
        });
        self.pending = 0;
    }
}

/// Tiles in a column of a batch.
const BATCH_TILES: usize = Gram::BATCH / TILE;

fn transpose(from: &Tile, to: &mut Tile) {
    for (i, row) in from.iter().enumerate() {
        for (j, x) in row.iter().enumerate() {
            to[j][i] = *x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLS: usize = TILE + 45;

    fn inputs(count: usize) -> Vec<f32> {
        (0..count * COLS).map(|i| ((i * 7919) % 1013) as f32 / 506.0 - 1.0).collect()
    }

    #[test]
    fn the_mean_is_the_plain_one() {
        let inputs = inputs(Gram::BATCH + 77);
        let mut gram = Gram::new(COLS);
        gram.add(&inputs, 2);
        let count = inputs.len() / COLS;
        assert_eq!(gram.count(), count as u64);
        let mean = gram.mean(2);
        for i in (0..COLS).step_by(7) {
            for j in 0..COLS {
                let products = inputs.chunks_exact(COLS).map(|x| f64::from(x[i]) * f64::from(x[j]));
                let plain = products.sum::<f64>() / count as f64;
                assert!((f64::from(mean[i * COLS + j]) - plain).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn neither_portions_nor_threads_change_a_bit() {
        let inputs = inputs(2 * Gram::BATCH + 5);
        let whole = {
            let mut gram = Gram::new(COLS);
            gram.add(&inputs, 1);
            gram.mean(1)
        };
        let mut gram = Gram::new(COLS);
        inputs.chunks(31 * COLS).for_each(|portion| gram.add(portion, 3));
        assert!(gram.mean(3) == whole);
    }

    #[test]
    fn no_input_gives_zeros() {
        assert!(Gram::new(COLS).mean(1).iter().all(|x| *x == 0.0));
    }
}
