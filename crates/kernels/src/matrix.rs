use lathe_formats::Blocks;

use crate::{Error, Pool};

/// The arithmetic of a product with coded weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Integer codes are multiplied with activations rounded to 8 bits per 32 columns, as ggml
    /// does: each activation is off by at most 1/254 of the largest of its 32. Dense formats are
    /// computed as in [`Precision::Exact`].
    #[default]
    Fast,
    /// f32 activations times decoded weights, summed in f32.
    Exact,
}

/// Weights `[rows, cols]`, ready to be multiplied with.
#[derive(Clone, Debug)]
pub struct Matrix {
    blocks: Blocks,
    precision: Precision,
}

impl Matrix {
    /// Takes weights in any format. Dense formats are used where they lie, be it in a memory map.
    pub fn new(blocks: Blocks) -> Result<Self, Error> {
        Self::with(blocks, Precision::Fast, &Pool::new(1))
    }

    /// As [`Matrix::new`], with a choice of arithmetic, and prepared by the pool's threads.
    pub fn with(blocks: Blocks, precision: Precision, pool: &Pool) -> Result<Self, Error> {
        let _ = pool;
        Ok(Self { blocks, precision })
    }

    /// Outputs per token.
    pub fn rows(&self) -> usize {
        self.blocks.rows
    }

    /// Inputs per token.
    pub fn cols(&self) -> usize {
        self.blocks.cols
    }

    /// The name of the format of the weights.
    pub fn format(&self) -> &'static str {
        self.blocks.format.name()
    }

    /// The arithmetic of products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes held: those read for each token.
    pub fn bytes(&self) -> usize {
        self.blocks.bytes()
    }

    /// Writes the weights of one row to `out`, which has `cols` places: an embedding's look-up.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        self.blocks.decode_row(row, out);
    }

    pub(crate) fn blocks(&self) -> &Blocks {
        &self.blocks
    }
}
