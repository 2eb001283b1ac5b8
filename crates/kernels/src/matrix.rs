use std::sync::Arc;

use lathe_formats::{AnyFormat, Blocks};

use lathe_simd::LANES;

use crate::{Error, Inputs, Pool, dense, floats::Floats, halves, memory, panels::Panels};

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
        /// They are repacked for each product, strip by strip, and not once for all.
        packs: bool,
        /// They are a copy in another format.
        copied: bool,
    },
    /// Repacked.
    Panels(Panels),
    /// Decoded to f32.
    Floats(Floats),
}

impl Store {
    fn rows(blocks: Blocks, pool: &Pool) -> Self {
        let packs = Panels::take(&blocks);
        Self::Rows { halves: halves::takes(pool, &blocks), packs, copied: false, blocks }
    }

    /// The product with inputs in f32.
    fn exact(&self, pool: &Pool, x: &[f32], t: usize, out: &mut [f32]) {
        match self {
            Self::Rows { blocks, packs: true, .. } => {
                in_strips(pool, blocks, t, out, |panels, out| {
                    panels.matmul(pool, x, t, Precision::Exact, out);
                });
            }
            Self::Rows { blocks, .. } => dense::matmul(pool, x, t, blocks, out),
            Self::Panels(panels) => panels.matmul(pool, x, t, Precision::Exact, out),
            Self::Floats(floats) => floats.matmul(pool, x, t, out),
        }
    }
}

/// Bytes of weights that are repacked at a time where they are not kept so.
const STRIP_BYTES: usize = 8 << 20;

/// The product with rows that are repacked strip by strip: `product` computes that of a strip,
/// `[T, strip]`.
fn in_strips(
    pool: &Pool,
    blocks: &Blocks,
    t: usize,
    out: &mut [f32],
    product: impl Fn(&Panels, &mut [f32]),
) {
    let row_bytes = blocks.format.row_bytes(blocks.cols);
    let most = (STRIP_BYTES / row_bytes.max(1)).next_multiple_of(LANES).max(LANES);
    let mut part = Vec::new();
    for first in (0..blocks.rows).step_by(most) {
        let rows = most.min(blocks.rows - first);
        let strip = blocks.slice_rows(first..first + rows).expect("rows that there are");
        let panels = Panels::pack(pool, &strip).expect("a format with panels");
        // As when a vector cannot grow: there is no way on without a few megabytes.
        let panels = panels.expect("memory for a strip of weights");
        part.resize(t * rows, 0.0);
        product(&panels, &mut part);
        for (out, part) in out.chunks_exact_mut(blocks.rows).zip(part.chunks_exact(rows)) {
            out[first..first + rows].copy_from_slice(part);
        }
    }
}

impl Matrix {
    /// Takes weights in any format: dense ones are used where they lie, be it in a memory map
    /// (f16 that tile registers can multiply as bfloat16 is copied), integer codes are repacked into
    /// as many bytes, and formats that no kernel knows are decoded as they are needed.
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
        let store = match (Panels::pack(pool, &blocks), halves::copied(pool, &blocks)) {
            (Some(panels), _) => Store::Panels(panels?),
            (None, Some(blocks)) => {
                Store::Rows { blocks, halves: true, packs: false, copied: true }
            }
            (None, None) => Store::rows(blocks, pool),
        };
        Ok(Self { rows, cols, format, precision, inputs: Inputs::Own, store, order })
    }

    /// As [`Matrix::with`], but leaves the weights where they lie, as for a model that is larger
    /// than memory: products give the same bits, and take longer by a repacking.
    pub fn in_place(blocks: Blocks, precision: Precision, pool: &Pool) -> Self {
        let (rows, cols, format) = (blocks.rows, blocks.cols, blocks.format);
        let order = blocks.order.clone();
        let store = Store::rows(Blocks { order: None, ..blocks }, pool);
        Self { rows, cols, format, precision, inputs: Inputs::Own, store, order }
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
        matches!(self.store, Store::Rows { copied: false, .. })
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

    /// Makes them resident and keeps them from being paged out.
    ///
    /// **Errors**: [`Error::Lock`].
    pub fn lock(&self) -> Result<(), Error> {
        memory::lock(match &self.store {
            Store::Rows { blocks, .. } => &blocks.data,
            Store::Panels(panels) => panels.memory(),
            Store::Floats(floats) => floats.memory(),
        })
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
        if self.precision == Precision::Exact {
            return self.store.exact(pool, x, t, out);
        }
        match &self.store {
            Store::Rows { blocks, packs: true, .. } => {
                in_strips(pool, blocks, t, out, |panels, out| {
                    panels.matmul(pool, x, t, Precision::Fast, out);
                });
            }
            Store::Rows { blocks, halves: true, .. } => {
                halves::matmul(pool, (x, None), t, &mut [(blocks, out)]);
            }
            Store::Panels(panels) => panels.matmul(pool, x, t, Precision::Fast, out),
            store => store.exact(pool, x, t, out),
        }
    }

    /// The products of the same inputs with several matrices: together where they are alike, which
    /// spares roundings and waits.
    pub(crate) fn products(pool: &Pool, x: &[f32], t: usize, of: &mut [(&Self, &mut [f32])]) {
        let panels = of.iter_mut().map(|(w, out)| Some((w.plain_panels()?, &mut **out)));
        if let Some(mut panels) = panels.collect::<Option<Vec<_>>>() {
            return Panels::matmuls(pool, x, t, &mut panels);
        }
        let format = of.first().map(|(w, _)| w.format());
        let halves = of.iter_mut().map(|(w, out)| {
            let alike = w.plain_halves().filter(|_| Some(w.format()) == format);
            Some((alike?, &mut **out))
        });
        if let Some(mut halves) = halves.collect::<Option<Vec<_>>>() {
            return halves::matmul(pool, (x, None), t, &mut halves);
        }
        for (w, out) in of {
            w.product(pool, x, t, out);
        }
    }

    /// Where a thread begins to read in [`Matrix::products`] with `t` tokens, where that is known.
    pub(crate) fn begin(pool: &Pool, of: &[&Self], t: usize, thread: usize) -> Option<*const u8> {
        let panels = of.iter().map(|w| w.plain_panels()).collect::<Option<Vec<_>>>();
        if let Some(panels) = panels {
            return Panels::begin(pool, &panels, t, thread);
        }
        let halves = of.iter().map(|w| w.plain_halves()).collect::<Option<Vec<_>>>();
        halves::begin(pool, &halves?, thread)
    }

    /// Panels that are multiplied with inputs as they come.
    fn plain_panels(&self) -> Option<&Panels> {
        match &self.store {
            Store::Panels(panels) if self.is_plain() => Some(panels),
            _ => None,
        }
    }

    /// Weights of sixteen bits or fewer, as they lie, that are multiplied with inputs as they come.
    fn plain_halves(&self) -> Option<&Blocks> {
        match &self.store {
            Store::Rows { blocks, halves: true, packs: false, .. } if self.is_plain() => {
                Some(blocks)
            }
            _ => None,
        }
    }

    fn is_plain(&self) -> bool {
        let fast = self.precision == Precision::Fast;
        fast && self.inputs == Inputs::Own && self.order.is_none()
    }

    /// A product whose inputs have a scheme: on the codes where both are integers.
    fn rounded_product(&self, pool: &Pool, x: &[f32], t: usize, out: &mut [f32]) {
        let rounded = self.inputs.round(pool, x, self.cols);
        if self.precision == Precision::Fast && self.inputs.is_integer() {
            match &self.store {
                Store::Panels(panels) => return panels.matmul_integers(pool, &rounded, t, out),
                Store::Rows { blocks, packs: true, .. } => {
                    return in_strips(pool, blocks, t, out, |panels, out| {
                        panels.matmul_integers(pool, &rounded, t, out);
                    });
                }
                Store::Rows { .. } | Store::Floats(_) => {}
            }
        }
        match &self.store {
            Store::Rows { blocks, halves: true, .. }
                if self.precision == Precision::Fast && self.inputs.is_scaled() =>
            {
                let x = (&rounded.x[..], Some(&rounded.scales[..]));
                halves::matmul(pool, x, t, &mut [(blocks, out)]);
            }
            store => store.exact(pool, &rounded.whole(self.cols), t, out),
        }
    }
}

/// The inputs of every token in the order of the codes.
fn gather(x: &[f32], order: &[u32]) -> Vec<f32> {
    x.chunks_exact(order.len()).flat_map(|x| order.iter().map(|col| x[*col as usize])).collect()
}
