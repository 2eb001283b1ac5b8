use std::{ops::Range, sync::Arc};

use lathe_base::Buf;

use crate::{AnyFormat, Error, Format, Rows};

/// A row-major `[rows, cols]` matrix in some format.
///
/// `data` holds `rows` runs of `format.row_bytes(cols)` bytes, so that a range of rows is a range
/// of bytes; `side` holds what belongs to the whole matrix (empty for almost every format).
/// Cloning is cheap: the bytes are shared, be they a vector's or a memory map's.
#[derive(Clone, Debug)]
pub struct Blocks {
    pub format: &'static dyn AnyFormat,
    pub rows: usize,
    pub cols: usize,
    pub data: Buf,
    pub side: Buf,
    /// Where coded columns lie in the matrix, if not in order (GPTQ's act-order): coded column `j`
    /// is column `order[j]` of the matrix. See [`Blocks::with_order`].
    pub order: Option<Arc<[u32]>>,
    /// What engines that round inputs to FP8 with a scale known beforehand divide them by; a part
    /// of some checkpoints, and of no product that a format defines.
    pub input_scale: Option<f32>,
}

impl Blocks {
    /// Takes bytes as a matrix, after a check of every length.
    pub fn new(
        format: &'static dyn AnyFormat,
        rows: usize,
        cols: usize,
        data: Buf,
        side: Buf,
    ) -> Result<Self, Error> {
        format.check(cols)?;
        let shape = || Error::Shape { rows, cols };
        rows.checked_mul(cols).ok_or_else(shape)?;
        let expected = rows.checked_mul(format.row_bytes(cols)).ok_or_else(shape)?;
        let wrong = |part, expected, found| {
            let format = format.name();
            Err(Error::Length { format, rows, cols, part, expected, found })
        };
        if data.len() != expected {
            return wrong("codes", expected, data.len());
        }
        if !format.side_fits(rows, cols, &side) {
            return wrong("side data", format.side_bytes(rows, cols), side.len());
        }
        Ok(Self { format, rows, cols, data, side, order: None, input_scale: None })
    }

    /// The same codes with their columns elsewhere: coded column `j` is column `order[j]`. An
    /// order that moves nothing is dropped.
    ///
    /// **Errors**: an order that does not name each column once.
    pub fn with_order(self, order: Arc<[u32]>) -> Result<Self, Error> {
        let mut seen = vec![false; self.cols];
        let fresh = |&col: &u32| match seen.get_mut(col as usize) {
            Some(seen) => !std::mem::replace(seen, true),
            None => false,
        };
        if order.len() != self.cols || !order.iter().all(fresh) {
            return Err(Error::Order { cols: self.cols });
        }
        let moves = order.iter().enumerate().any(|(j, col)| j != *col as usize);
        Ok(Self { order: moves.then_some(order), ..self })
    }

    /// The coded bytes of one row, in the order of the codes.
    pub fn row(&self, row: usize) -> &[u8] {
        let bytes = self.format.row_bytes(self.cols);
        &self.data[row * bytes..][..bytes]
    }

    /// The same matrix's rows `range`, sharing the bytes.
    pub fn slice_rows(&self, range: Range<usize>) -> Result<Self, Error> {
        let Range { start, end } = range;
        if start > end || end > self.rows {
            return Err(Error::Rows { start, end, rows: self.rows });
        }
        let bytes = self.format.row_bytes(self.cols);
        Ok(Self {
            format: self.format,
            rows: end - start,
            cols: self.cols,
            data: self.data.slice(start * bytes..end * bytes),
            side: self.format.slice_side(self, start, end),
            order: self.order.clone(),
            input_scale: self.input_scale,
        })
    }

    /// The codes as typed blocks, if they are of format `F`: the way in for kernels.
    pub fn typed<F: Format>(&self) -> Option<&[F]> {
        (self.format.name() == F::NAME).then(|| bytemuck::cast_slice(&self.data))
    }

    /// Writes the weights of one row to `out`, which has `cols` places.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let Some(order) = &self.order else { return self.format.decode_row(self, row, out) };
        let mut coded = vec![0.0; self.cols];
        self.format.decode_row(self, row, &mut coded);
        for (col, weight) in order.iter().zip(coded) {
            out[*col as usize] = weight;
        }
    }

    /// All weights: for small matrices and tests.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (row, out) in out.chunks_exact_mut(self.cols.max(1)).enumerate() {
            self.decode_row(row, out);
        }
        out
    }

    /// Codes the same weights in another format by rounding to nearest, a row at a time.
    pub fn convert(&self, to: &'static dyn AnyFormat, threads: usize) -> Result<Self, Error> {
        if to.name() == self.format.name() {
            return Ok(self.clone());
        }
        to.encode_from(self, threads)
    }

    /// Stored bytes, side bytes included.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.side.len()
    }
}

impl Rows for Blocks {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn read(&self, row: usize, out: &mut [f32]) {
        self.decode_row(row, out);
    }
}
