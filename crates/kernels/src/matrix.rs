use std::sync::Arc;

use lathe_formats::{AnyFormat, Blocks};

use crate::{Error, Inputs, Pool, dense, floats::Floats, halves, panels::Panels};

/// The arithmetic of a product with coded weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Integer codes are multiplied with activations rounded to 8 bits per 32 columns, as ggml
    /// does: each activation is off by at most 1/254 of the largest of its 32. bf16, FP8
    /// and f16 whose weights are all bfloat16 as well are multiplied with activations rounded to bf16, each off by at most 1/512 of itself, where
    /// subnormal numbers may count as 0. Other formats are computed as in [`Precision::Exact`].
    #[default]
    Fast,
    /// f32 activations times decoded weights, summed in f32.
    Exact,
}

/// Weights `[rows, cols]`, ready to be multiplied with.
#[derive(Clone, Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    format: &'static dyn AnyFormat,
    precision: Precision,
    inputs: Inputs,
    store: Store,
    /// The input that each coded column is multiplied with, where they are not in order.
    order: Option<Arc<[u32]>>,
}

/// How the weights are held.
#[derive(Clone, Debug)]
enum Store {
    /// As they came, be it in a memory map.
    Rows {
        blocks: Blocks,
        /// Each weight is a number that bfloat16 holds.
        halves: bool,
    },
    /// Repacked.
    Panels(Panels),
    /// Decoded to f32.
    Floats(Floats),
}

impl Matrix {
    /// Takes weights in any format: dense ones are used where they lie, be it in a memory map,
    /// integer codes are repacked into as many bytes, and formats that no kernel knows are
    /// decoded as they are needed.
    ///
    /// **Errors**: not enough memory for the repacked weights.
    pub fn new(blocks: Blocks) -> Result<Self, Error> {
        Self::with(blocks, Precision::Fast, &Pool::new(1))
    }

    /// As [`Matrix::new`], with a choice of arithmetic, and prepared by the pool's threads.
    pub fn with(blocks: Blocks, precision: Precision, pool: &Pool) -> Result<Self, Error> {
        let (rows, cols, format) = (blocks.rows, blocks.cols, blocks.format);
        let order = blocks.order.clone();
        // What is held is in the order of the codes; the inputs are gathered to match.
        let blocks = Blocks { order: None, ..blocks };
        let store = match Panels::pack(pool, &blocks) {
            Some(panels) => Store::Panels(panels?),
            None => Store::Rows { halves: halves::takes(pool, &blocks), blocks },
        };
        Ok(Self { rows, cols, format, precision, inputs: Inputs::Own, store, order })
    }

    /// Takes weights in any format and decodes them to f32 as a whole: four bytes a weight, for
    /// what is multiplied with many tokens again and again. Products are exact.
    ///
    /// **Errors**: not enough memory.
    pub fn expanded(blocks: Blocks, pool: &Pool) -> Result<Self, Error> {
        let (rows, cols, format) = (blocks.rows, blocks.cols, blocks.format);
        let order = blocks.order.clone();
        let store = Store::Floats(Floats::new(pool, &Blocks { order: None, ..blocks })?);
        let (precision, inputs) = (Precision::Exact, Inputs::Own);
        Ok(Self { rows, cols, format, precision, inputs, store, order })
    }

    /// Whether it reads the bytes that it was made from, as opposed to a repacked copy.
    pub fn reads_source(&self) -> bool {
        matches!(self.store, Store::Rows { .. })
    }

    /// The same weights with another arithmetic.
    #[must_use]
    pub fn precise(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// The same weights with another scheme for what they are multiplied with.
    #[must_use]
    pub fn with_inputs(mut self, inputs: Inputs) -> Self {
        self.inputs = inputs;
        self
    }

    /// Outputs per token.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs per token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The name of the format of the weights.
    pub fn format(&self) -> &'static str {
        self.format.name()
    }

    /// The arithmetic of products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes held: all of them are read for each token.
    pub fn bytes(&self) -> usize {
        match &self.store {
            Store::Rows { blocks, .. } => blocks.bytes(),
            Store::Panels(panels) => panels.bytes(),
            Store::Floats(floats) => floats.bytes(),
        }
    }

    /// Whether the weights are a copy of their own, so that what they came from can be let go.
    pub fn is_repacked(&self) -> bool {
        !self.reads_source()
    }

    /// Writes the weights of one row to `out`, which has `cols` places: an embedding's look-up.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let Some(order) = &self.order else { return self.decode_coded(row, out) };
        let mut coded = vec![0.0; self.cols];
        self.decode_coded(row, &mut coded);
        for (col, weight) in order.iter().zip(coded) {
            out[*col as usize] = weight;
        }
    }

    /// One row in the order of the codes.
    fn decode_coded(&self, row: usize, out: &mut [f32]) {
        match &self.store {
            Store::Rows { blocks, .. } => blocks.decode_row(row, out),
            Store::Panels(panels) => panels.decode_row(row, out),
            Store::Floats(floats) => floats.decode_row(row, out),
        }
    }

    pub(crate) fn product(&self, pool: &Pool, x: &[f32], t: usize, out: &mut [f32]) {
        let gathered = self.order.as_ref().map(|order| gather(x, order));
        let x = gathered.as_deref().unwrap_or(x);
        if self.inputs != Inputs::Own {
            return self.rounded_product(pool, x, t, out);
        }
        match &self.store {
            Store::Rows { blocks, halves: true } if self.precision == Precision::Fast => {
                halves::matmul(pool, (x, None), t, blocks, out);
            }
            Store::Rows { blocks, .. } => dense::matmul(pool, x, t, blocks, out),
            Store::Panels(panels) => panels.matmul(pool, x, t, self.precision, out),
            Store::Floats(floats) => floats.matmul(pool, x, t, out),
        }
    }

    /// A product whose inputs have a scheme: on the codes where both are integers.
    fn rounded_product(&self, pool: &Pool, x: &[f32], t: usize, out: &mut [f32]) {
        let rounded = self.inputs.round(pool, x, self.cols);
        match &self.store {
            Store::Panels(panels)
                if self.precision == Precision::Fast && self.inputs.is_integer() =>
            {
                panels.matmul_integers(pool, &rounded, t, out);
            }
            Store::Panels(panels) => {
                panels.matmul(pool, &rounded.whole(self.cols), t, Precision::Exact, out);
            }
            Store::Rows { blocks, halves: true }
                if self.precision == Precision::Fast && self.inputs.is_scaled() =>
            {
                halves::matmul(pool, (&rounded.x, Some(&rounded.scales)), t, blocks, out);
            }
            Store::Rows { blocks, .. } => {
                dense::matmul(pool, &rounded.whole(self.cols), t, blocks, out)
            }
            Store::Floats(floats) => floats.matmul(pool, &rounded.whole(self.cols), t, out),
        }
    }
}

/// The inputs of every token in the order of the codes.
fn gather(x: &[f32], order: &[u32]) -> Vec<f32> {
    x.chunks_exact(order.len()).flat_map(|x| order.iter().map(|col| x[*col as usize])).collect()
}
