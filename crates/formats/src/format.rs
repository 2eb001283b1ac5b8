use std::{fmt, marker::PhantomData};

use bytemuck::Pod;
use lathe_base::Buf;

use crate::{Blocks, Effort, Error, Grid, grid};

/// One block of codes as it lies in memory: the typed side of a format.
///
/// Implementors have alignment 1 and no padding, so that a row of a memory-mapped file is a
/// `&[Self]` wherever it starts; multi-byte fields are little-endian byte arrays.
pub trait Format: Pod + Send + Sync {
    /// The name in [`crate::FORMATS`], on the command line and in reports.
    const NAME: &'static str;
    /// The layout in one line, for the table of formats.
    const LAYOUT: &'static str;
    /// Where the numbers are specified.
    const SOURCE: &'static str;
    /// Weights per block.
    const BLOCK: usize;
    /// The largest magnitude that can be coded.
    const LIMIT: f32;

    /// Codes [`Self::BLOCK`] weights by rounding to nearest.
    fn encode(src: &[f32]) -> Self;

    /// Writes the [`Self::BLOCK`] weights that the codes stand for.
    fn decode(&self, out: &mut [f32]);

    /// An upper bound of |weight − decoded| where no weight exceeds `absmax`.
    fn error_bound(absmax: f32) -> f32;

    /// Its grid, for algorithms that choose codes themselves; see [`AnyFormat::grid`].
    fn grid() -> Option<&'static dyn Grid> {
        None
    }

    /// How rows are coded with this effort where columns have an importance, if there is a way of
    /// its own; see [`AnyFormat::encode_weighted`].
    fn weighted(_effort: Effort) -> Option<Weighted<Self>> {
        None
    }

    /// Codes a row; to be overridden where a row is faster than its blocks.
    fn encode_row(src: &[f32], dst: &mut [Self]) {
        for (src, dst) in src.chunks_exact(Self::BLOCK).zip(dst) {
            *dst = Self::encode(src);
        }
    }

    /// Decodes a row; to be overridden where a row is faster than its blocks.
    fn decode_row(src: &[Self], out: &mut [f32]) {
        for (src, out) in src.iter().zip(out.chunks_exact_mut(Self::BLOCK)) {
            src.decode(out);
        }
    }
}

/// Codes a row of weights, whose columns may have an importance, to blocks.
pub type Weighted<F> = fn(&[f32], Option<&[f32]>, &mut [F]);

/// A source of weights that is read row by row, so that nothing large is ever expanded.
pub trait Rows: Sync {
    /// `(rows, cols)`.
    fn shape(&self) -> (usize, usize);
    /// Writes row `row` to `out`, which has `cols` places.
    fn read(&self, row: usize, out: &mut [f32]);
}

/// A format whose type is not known until a file or a user names it.
pub trait AnyFormat: fmt::Debug + Send + Sync + 'static {
    /// The name in [`crate::FORMATS`], on the command line and in reports.
    fn name(&self) -> &'static str;
    /// The layout in one line, for the table of formats.
    fn layout(&self) -> &'static str;
    /// Where the numbers are specified.
    fn source(&self) -> &'static str;
    /// What it and its siblings, which differ by numbers only, are called together: the pattern of
    /// their names, or its own name.
    fn family(&self) -> &'static str {
        self.name()
    }
    /// The number of columns must be a multiple of this; 1 means any number.
    fn block(&self) -> usize;
    /// Bytes of one coded row; meaningful only for columns that [`AnyFormat::check`] accepts.
    fn row_bytes(&self, cols: usize) -> usize;
    /// The largest magnitude that can be coded.
    fn limit(&self) -> f32;
    /// An upper bound of |weight − decoded| where no weight of the matrix exceeds `absmax`.
    fn error_bound(&self, absmax: f32) -> f32;

    /// Writes the weights of one row to `out`, which has `blocks.cols` places.
    fn decode_row(&self, blocks: &Blocks, row: usize, out: &mut [f32]);

    /// Bytes that belong to the whole matrix and not to one row ([`Blocks::side`]).
    fn side_bytes(&self, _rows: usize, _cols: usize) -> usize {
        0
    }

    /// Whether `side` can belong to a `[rows, cols]` matrix: nothing is read of it before.
    fn side_fits(&self, rows: usize, cols: usize, side: &[u8]) -> bool {
        side.len() == self.side_bytes(rows, cols)
    }

    /// The side bytes of `blocks`' rows from `start` on, for [`Blocks::slice_rows`].
    fn slice_side(&self, blocks: &Blocks, _start: usize, _end: usize) -> Buf {
        blocks.side.clone()
    }

    /// All bytes of a `[rows, cols]` matrix, side bytes included.
    fn bytes(&self, rows: usize, cols: usize) -> usize {
        rows * self.row_bytes(cols) + self.side_bytes(rows, cols)
    }

    /// Stored bits per weight of a `[rows, cols]` matrix, scales and all other overhead included.
    fn bits_per_weight(&self, rows: usize, cols: usize) -> f64 {
        8.0 * self.bytes(rows, cols) as f64 / (rows * cols) as f64
    }

    /// Whether rows of `cols` weights can be coded.
    fn check(&self, cols: usize) -> Result<(), Error> {
        if cols.is_multiple_of(self.block()) {
            Ok(())
        } else {
            Err(Error::Columns { format: self.name(), block: self.block(), cols })
        }
    }

    /// Codes a matrix by rounding to nearest, with the same result for any number of `threads`.
    ///
    /// **Errors**: columns that are no multiple of the block; NaN, infinite or too large weights,
    /// with their place.
    fn encode(
        &'static self,
        rows: usize,
        cols: usize,
        src: &[f32],
        threads: usize,
    ) -> Result<Blocks, Error> {
        self.encode_from(&Slice::new(self.name(), rows, cols, src)?, threads)
    }

    /// As [`AnyFormat::encode`], reading the rows as they are needed: memory stays at the coded
    /// bytes and one expanded row per thread.
    fn encode_from(&'static self, source: &dyn Rows, threads: usize) -> Result<Blocks, Error>;

    /// Its grid, for algorithms that choose codes themselves; `None` where numbers are not
    /// rounded to a grid (dense formats, codebooks of vectors).
    fn grid(&'static self) -> Option<&'static dyn Grid> {
        None
    }

    /// As [`AnyFormat::encode_from`], with a choice of [`Effort`]; `importance` is what an error
    /// in each column weighs, one finite, non-negative number each.
    ///
    /// **Errors**: as for encoding, and an importance that is not one such number per column.
    fn encode_weighted(
        &'static self,
        source: &dyn Rows,
        importance: Option<&[f32]>,
        effort: Effort,
        threads: usize,
    ) -> Result<Blocks, Error> {
        grid::check_importance(importance, source.shape().1)?;
        match (effort, self.grid()) {
            (Effort::Search, Some(grid)) => grid::encode(grid, source, importance, threads),
            _ => self.encode_from(source, threads),
        }
    }
}

/// The erased twin of a [`Format`], for [`crate::FORMATS`].
pub struct Erased<F>(PhantomData<fn() -> F>);

impl<F> Erased<F> {
    /// The one value of this type.
    pub const NEW: Self = Self(PhantomData);
}

impl<F: 'static> Erased<F> {
    /// A reference to it.
    pub const REF: &'static Self = &Self(PhantomData);
}

impl<F: Format> fmt::Debug for Erased<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(F::NAME)
    }
}

impl<F: Format> AnyFormat for Erased<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn layout(&self) -> &'static str {
        F::LAYOUT
    }

    fn source(&self) -> &'static str {
        F::SOURCE
    }

    fn block(&self) -> usize {
        F::BLOCK
    }

    fn row_bytes(&self, cols: usize) -> usize {
        cols.div_ceil(F::BLOCK).saturating_mul(size_of::<F>())
    }

    fn limit(&self) -> f32 {
        F::LIMIT
    }

    fn error_bound(&self, absmax: f32) -> f32 {
        F::error_bound(absmax)
    }

    fn decode_row(&self, blocks: &Blocks, row: usize, out: &mut [f32]) {
        F::decode_row(bytemuck::cast_slice(blocks.row(row)), out);
    }

    fn encode_from(&'static self, source: &dyn Rows, threads: usize) -> Result<Blocks, Error> {
        encode_by_row(self, source, threads, |_, src, dst| {
            F::encode_row(src, bytemuck::cast_slice_mut(dst));
        })
    }

    fn grid(&'static self) -> Option<&'static dyn Grid> {
        F::grid()
    }

    fn encode_weighted(
        &'static self,
        source: &dyn Rows,
        importance: Option<&[f32]>,
        effort: Effort,
        threads: usize,
    ) -> Result<Blocks, Error> {
        grid::check_importance(importance, source.shape().1)?;
        if effort == Effort::Nearest && importance.is_none() {
            return self.encode_from(source, threads);
        }
        match (F::weighted(effort), effort, F::grid()) {
            (Some(encode), _, _) => encode_by_row(self, source, threads, |_, src, dst| {
                encode(src, importance, bytemuck::cast_slice_mut(dst));
            }),
            (None, Effort::Search, Some(grid)) => grid::encode(grid, source, importance, threads),
            _ => self.encode_from(source, threads),
        }
    }
}

/// Weights in memory as a source of rows.
struct Slice<'a> {
    rows: usize,
    cols: usize,
    data: &'a [f32],
}

impl<'a> Slice<'a> {
    fn new(format: &'static str, rows: usize, cols: usize, data: &'a [f32]) -> Result<Self, Error> {
        let expected = rows.checked_mul(cols).ok_or(Error::Shape { rows, cols })?;
        if data.len() == expected {
            Ok(Self { rows, cols, data })
        } else {
            let (expected, found) = (expected.saturating_mul(4), data.len().saturating_mul(4));
            Err(Error::Length { format, rows, cols, part: "weights", expected, found })
        }
    }
}

impl Rows for Slice<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn read(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.data[row * self.cols..][..self.cols]);
    }
}

/// A thread is worth starting for this many weights (some 50 µs of work).
const PER_THREAD: usize = 1 << 15;

/// Codes `source` row by row with `encode_row` (row, weights, bytes) on `threads` threads. Rows do
/// not depend on one another, hence neither does the result on the number of threads.
pub(crate) fn encode_by_row(
    format: &'static dyn AnyFormat,
    source: &dyn Rows,
    threads: usize,
    encode_row: impl Fn(usize, &[f32], &mut [u8]) + Sync,
) -> Result<Blocks, Error> {
    let (rows, cols) = source.shape();
    format.check(cols)?;
    let row_bytes = format.row_bytes(cols);
    let total = rows.checked_mul(row_bytes).ok_or(Error::Shape { rows, cols })?;
    let mut data = vec![0; total];
    let threads = threads.min(rows * cols / PER_THREAD).clamp(1, rows.max(1));
    let share = rows.div_ceil(threads).max(1);
    let work = |first: usize, dst: &mut [u8]| -> Result<(), Error> {
        let mut weights = vec![0.0; cols];
        for (i, dst) in dst.chunks_exact_mut(row_bytes.max(1)).enumerate() {
            source.read(first + i, &mut weights);
            check_row(format, first + i, &weights)?;
            encode_row(first + i, &weights, dst);
        }
        Ok(())
    };
    let work = &work;
    std::thread::scope(|scope| {
        let parts = data.chunks_mut((share * row_bytes).max(1)).enumerate();
        let running: Vec<_> =
            parts.map(|(i, dst)| scope.spawn(move || work(i * share, dst))).collect();
        // Joined in order: of several bad weights the first one is reported.
        running.into_iter().try_for_each(|part| {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let (data, side) = (data.into(), Buf::new());
    Ok(Blocks { format, rows, cols, data, side, order: None, input_scale: None })
}

/// Makes `per_row` numbers of each row with `make` (row, weights, numbers) on `threads` threads.
pub(crate) fn map_rows(
    source: &dyn Rows,
    per_row: usize,
    threads: usize,
    make: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let (rows, cols) = source.shape();
    let mut numbers = vec![0.0; rows.saturating_mul(per_row)];
    let threads = threads.min(rows * cols / PER_THREAD).clamp(1, rows.max(1));
    let share = rows.div_ceil(threads).max(1);
    let make = &make;
    std::thread::scope(|scope| {
        for (i, numbers) in numbers.chunks_mut((share * per_row).max(1)).enumerate() {
            scope.spawn(move || {
                let mut weights = vec![0.0; cols];
                for (j, numbers) in numbers.chunks_mut(per_row).enumerate() {
                    source.read(i * share + j, &mut weights);
                    make(i * share + j, &weights, numbers);
                }
            });
        }
    });
    numbers
}

fn check_row(format: &(impl AnyFormat + ?Sized), row: usize, weights: &[f32]) -> Result<(), Error> {
    let limit = format.limit();
    // `!(a <= b)` and not `a > b`: a NaN must not pass.
    #[allow(clippy::neg_cmp_op_on_partial_ord)]
    let bad = |x: f32| !(x <= limit);
    if !bad(crate::round::absmax(weights)) {
        return Ok(());
    }
    let col = weights.iter().position(|x| bad(x.abs())).unwrap_or(0);
    let value = weights[col];
    if value.is_finite() {
        Err(Error::TooLarge { format: format.name(), row, col, value, limit })
    } else {
        Err(Error::NotFinite { row, col, value })
    }
}
