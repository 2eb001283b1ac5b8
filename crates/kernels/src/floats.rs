//! Products with weights expanded to f32 once: for few weights that are multiplied with many
//! tokens again and again, as calibration and the search for formats do.
//!
//! A panel is [`LANES`] rows side by side, column after column. Each output is summed along the
//! columns in their order, whatever the number of tokens.

use std::sync::Arc;

use lathe_formats::Blocks;
use lathe_simd::{Isa, LANES, Op};

use crate::{Error, Pool, memory::Room, output::Output};

/// Weights as panels of f32. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Floats {
    rows: usize,
    cols: usize,
    data: Arc<Room>,
}

/// Panels that are multiplied together where the registers allow it.
const PANELS: usize = 2;
/// Tokens that are multiplied together there.
const TOKENS: usize = 12;

impl Floats {
    /// Decodes `blocks`.
    ///
    /// **Errors**: not enough memory.
    pub(crate) fn new(pool: &Pool, blocks: &Blocks) -> Result<Self, Error> {
        let (rows, cols) = (blocks.rows, blocks.cols);
        let bytes = Self::panel_bytes(cols).saturating_mul(rows.div_ceil(LANES));
        let format = "f32";
        let mut data = Room::huge(bytes).ok_or(Error::Memory { format, rows, cols, bytes })?;
        let out = Output::new(&mut data[..]);
        pool.run(rows.div_ceil(LANES), &|panel| {
            let mut row = vec![0.0; cols];
            let size = Self::panel_bytes(cols);
            // SAFETY: a panel is one task's alone.
            let to = unsafe { out.part(panel * size, size) };
            for lane in 0..LANES.min(rows - panel * LANES) {
                blocks.decode_row(panel * LANES + lane, &mut row);
                let places = to.as_chunks_mut::<4>().0.iter_mut().skip(lane).step_by(LANES);
                places.zip(&row).for_each(|(to, weight)| *to = weight.to_ne_bytes());
            }
        });
        Ok(Self { rows, cols, data: Arc::new(data) })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }

    /// What is read for each token.
    pub(crate) fn memory(&self) -> &[u8] {
        &self.data
    }

    /// Writes the weights of one row.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let panel = self.panel(row / LANES);
        for (out, column) in out.iter_mut().zip(panel) {
            let (lanes, _) = column.as_chunks::<4>();
            *out = f32::from_ne_bytes(lanes[row % LANES]);
        }
    }

    /// `out = x · wᵀ`; see [`crate::matmul`].
    pub(crate) fn matmul(&self, pool: &Pool, x: &[f32], t: usize, out: &mut [f32]) {
        assert_eq!(x.len(), t * self.cols);
        let out = Output::new(out);
        let panels = self.rows.div_ceil(LANES);
        pool.run(panels.div_ceil(PANELS), &|task| {
            let first = task * PANELS;
            let count = PANELS.min(panels - first);
            lathe_simd::run(Strip { weights: self, x, t, first, count, out });
        });
    }

    fn panel_bytes(cols: usize) -> usize {
        4 * LANES * cols
    }

    /// The columns of a panel.
    #[inline(always)]
    fn panel(&self, at: usize) -> &[[u8; 4 * LANES]] {
        let size = Self::panel_bytes(self.cols);
        self.data[at * size..][..size].as_chunks().0
    }
}

/// `count` neighbouring panels' part of a product.
struct Strip<'a> {
    weights: &'a Floats,
    x: &'a [f32],
    t: usize,
    first: usize,
    count: usize,
    out: Output<'a, f32>,
}

impl Op for Strip<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        if I::REGISTERS >= 32 {
            self.tokens::<I, TOKENS>(isa);
        } else {
            self.tokens::<I, { TOKENS / 3 }>(isa);
        }
    }
}

impl Strip<'_> {
    /// All tokens, `N` at a time.
    #[inline(always)]
    fn tokens<I: Isa, const N: usize>(&self, isa: I) {
        let mut token = 0;
        while token < self.t {
            let n = if self.t - token >= N { N } else { 1 };
            let mut panel = self.first;
            while panel < self.first + self.count {
                let both = I::REGISTERS >= 32 && self.first + self.count - panel == PANELS;
                match (both, n > 1) {
                    (true, true) => self.tile::<I, PANELS, N>(isa, panel, token),
                    (true, false) => self.tile::<I, PANELS, 1>(isa, panel, token),
                    (false, true) => self.tile::<I, 1, N>(isa, panel, token),
                    (false, false) => self.tile::<I, 1, 1>(isa, panel, token),
                }
                panel += if both { PANELS } else { 1 };
            }
            token += n;
        }
    }

    /// `P` panels times `N` tokens.
    #[inline(always)]
    fn tile<I: Isa, const P: usize, const N: usize>(&self, isa: I, panel: usize, token: usize) {
        let cols = self.weights.cols;
        let inputs = &self.x[token * cols..(token + N) * cols];
        let mut panels = [self.weights.panel(panel); P];
        for p in 1..P {
            panels[p] = self.weights.panel(panel + p);
        }
        let mut sums = [[isa.splat(0.0); N]; P];
        for col in 0..cols {
            let mut weights = [isa.splat(0.0); P];
            for p in 0..P {
                // SAFETY: a panel has as many columns as the matrix.
                weights[p] = isa.load_f32(unsafe { panels[p].get_unchecked(col) });
            }
            for n in 0..N {
                // SAFETY: col < cols, and `inputs` are N rows of cols.
                let x = isa.splat(unsafe { *inputs.get_unchecked(n * cols + col) });
                for p in 0..P {
                    sums[p][n] = isa.fma(weights[p], x, sums[p][n]);
                }
            }
        }
        for p in 0..P {
            for n in 0..N {
                self.store(isa, sums[p][n], panel + p, token + n);
            }
        }
    }

    #[inline(always)]
    fn store<I: Isa>(&self, isa: I, sums: I::F, panel: usize, token: usize) {
        let rows = self.weights.rows;
        let count = LANES.min(rows - panel * LANES);
        // SAFETY: a panel's rows are one task's alone.
        let out = unsafe { self.out.part(token * rows + panel * LANES, count) };
        if let Ok(out) = out.try_into() {
            isa.store(sums, out);
        } else {
            let mut lanes = [0.0; LANES];
            isa.store(sums, &mut lanes);
            out.copy_from_slice(&lanes[..count]);
        }
    }
}

#[cfg(test)]
mod tests {
    use lathe_formats::by_name;

    use super::*;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| (((i + seed) * 7919) % 1013) as f32 / 506.0 - 1.0).collect()
    }

    #[test]
    fn products_are_sums_in_the_order_of_columns_however_many_tokens_and_threads() {
        for (rows, cols) in [(1, 1), (16, 32), (35, 47), (96, 33)] {
            let weights = numbers(rows * cols, 5);
            let f32s = by_name("f32").unwrap();
            let blocks = f32s.encode(rows, cols, &weights, 1).unwrap();
            let floats = Floats::new(&Pool::new(2), &blocks).unwrap();
            let mut row = vec![0.0; cols];
            floats.decode_row(rows - 1, &mut row);
            assert_eq!(row, weights[(rows - 1) * cols..]);
            for t in [1, 5, 12, 29] {
                let x = numbers(t * cols, 11);
                let mut plain = vec![0.0f32; t * rows];
                for (out, x) in plain.chunks_mut(rows).zip(x.chunks(cols)) {
                    for (out, w) in out.iter_mut().zip(weights.chunks(cols)) {
                        w.iter().zip(x).for_each(|(w, x)| *out = w.mul_add(*x, *out));
                    }
                }
                for isa in lathe_simd::available() {
                    for threads in [1, 3] {
                        let mut out = vec![0.0; t * rows];
                        let product = || floats.matmul(&Pool::new(threads), &x, t, &mut out);
                        lathe_simd::with_isa(isa, product).unwrap();
                        assert_eq!(out, plain, "{isa}, {rows} x {cols}, {t} tokens");
                    }
                }
            }
        }
    }
}
