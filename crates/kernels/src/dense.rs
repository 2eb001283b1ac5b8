//! Products with weights that lie as rows of f32, f16 or bf16, used where they are, and with rows
//! of any other format, decoded strip by strip.
//!
//! Sixteen lanes run along the columns and are summed at the end, so that a row is read as a
//! stream and needs no repacking; tiles of rows × tokens share what they load.

use std::cell::RefCell;

use lathe_formats::Blocks;
use lathe_simd::{Isa, LANES, Op};

use crate::{
    Pool,
    output::Output,
    tiles::{Tile, sums, task_rows, walk},
};

/// How a stored number is read.
trait Weight {
    const BYTES: usize;
    /// Sixteen of them.
    ///
    /// # Safety
    /// `16 * BYTES` bytes at `from` can be read.
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::F;
}

struct F32;
struct F16;
struct Bf16;

impl Weight for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::F {
        // SAFETY: the caller vouches for the bytes; byte arrays have no alignment.
        isa.load_f32(unsafe { &*from.cast() })
    }
}

impl Weight for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::F {
        // SAFETY: as above.
        isa.load_f16(unsafe { &*from.cast() })
    }
}

impl Weight for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::F {
        // SAFETY: as above.
        isa.load_bf16(unsafe { &*from.cast() })
    }
}

/// The product with `w`, whatever its format.
pub(crate) fn matmul(pool: &Pool, x: &[f32], t: usize, w: &Blocks, out: &mut [f32]) {
    let name = w.format.name();
    let direct = ["f32", "f16", "bf16"].contains(&name);
    let row_bytes = if direct { w.format.row_bytes(w.cols) } else { 4 * w.cols };
    let per_task = task_rows(w.rows, row_bytes, pool.threads());
    let out = Output::new(out);
    pool.run(w.rows.div_ceil(per_task), &|task| {
        let first = task * per_task;
        let count = per_task.min(w.rows - first);
        let strip = Strip { x, t, cols: w.cols, first, count, rows: w.rows, out };
        if direct {
            let weights = &w.data[first * row_bytes..][..count * row_bytes];
            match name {
                "f32" => lathe_simd::run(Product::<F32>::new(strip, weights)),
                "f16" => lathe_simd::run(Product::<F16>::new(strip, weights)),
                _ => lathe_simd::run(Product::<Bf16>::new(strip, weights)),
            }
        } else {
            decoded(strip, w);
        }
    });
}

/// Decodes the strip's rows to f32 first.
fn decoded(strip: Strip<'_>, w: &Blocks) {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.resize(strip.count * w.cols, 0.0);
        for (i, row) in scratch.chunks_exact_mut(w.cols.max(1)).enumerate() {
            w.decode_row(strip.first + i, row);
        }
        // SAFETY: any f32 is four bytes, and bytes have no alignment.
        let bytes =
            unsafe { std::slice::from_raw_parts(scratch.as_ptr().cast(), 4 * scratch.len()) };
        lathe_simd::run(Product::<F32>::new(strip, bytes));
    });
}

/// Rows `first .. first + count` of a product with a matrix of `rows` rows.
#[derive(Clone, Copy)]
struct Strip<'a> {
    x: &'a [f32],
    t: usize,
    cols: usize,
    first: usize,
    count: usize,
    rows: usize,
    out: Output<'a, f32>,
}

struct Product<'a, W> {
    strip: Strip<'a>,
    weights: &'a [u8],
    kind: std::marker::PhantomData<W>,
}

impl<'a, W: Weight> Product<'a, W> {
    fn new(strip: Strip<'a>, weights: &'a [u8]) -> Self {
        assert_eq!(weights.len(), strip.count * strip.cols * W::BYTES);
        assert_eq!(strip.x.len(), strip.t * strip.cols);
        Self { strip, weights, kind: std::marker::PhantomData }
    }
}

impl<W: Weight> Op for Product<'_, W> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        walk(isa, &self, self.strip.count, self.strip.t);
    }
}

impl<W: Weight> Tile for Product<'_, W> {
    #[inline(always)]
    fn tile<I: Isa, const R: usize, const N: usize>(&self, isa: I, row: usize, token: usize) {
        let cols = self.strip.cols;
        let weights = &self.weights[row * cols * W::BYTES..(row + R) * cols * W::BYTES];
        let inputs = &self.strip.x[token * cols..(token + N) * cols];
        let mut total = [[isa.splat(0.0); N]; R];
        let whole = cols / LANES * LANES;
        let mut col = 0;
        while col < whole {
            // SAFETY: row r's columns col .. col + 16 lie within `weights`, and token n's within
            // `inputs`, since col + 16 <= cols.
            unsafe {
                let w = weights.as_ptr().add(col * W::BYTES);
                let x = inputs.as_ptr().add(col);
                step::<I, W, R, N>(isa, &mut total, (w, cols * W::BYTES), (x, cols));
            }
            col += LANES;
        }
        if whole < cols {
            let (mut w, mut x) = ([[0; 4 * LANES]; R], [[0.0; LANES]; N]);
            for (r, w) in w.iter_mut().enumerate() {
                let from = &weights[(r * cols + whole) * W::BYTES..(r + 1) * cols * W::BYTES];
                w[..from.len()].copy_from_slice(from);
            }
            for (n, x) in x.iter_mut().enumerate() {
                let from = &inputs[n * cols + whole..(n + 1) * cols];
                x[..from.len()].copy_from_slice(from);
            }
            // SAFETY: the copies have room for sixteen numbers each.
            unsafe {
                let (w, x) = ((w.as_ptr().cast(), 4 * LANES), (x.as_ptr().cast(), LANES));
                step::<I, W, R, N>(isa, &mut total, w, x);
            }
        }
        for n in 0..N {
            let at = (token + n) * self.strip.rows + self.strip.first + row;
            // SAFETY: these rows are this task's alone.
            let out = unsafe { self.strip.out.part(at, R) };
            out.copy_from_slice(&sums::<I, R, N>(isa, &total, n));
        }
    }
}

/// Sixteen columns of a tile; weights and inputs are a place and the stride from one to the next.
///
/// # Safety
/// Sixteen numbers can be read at each of `R` weight and `N` input places.
#[inline(always)]
unsafe fn step<I: Isa, W: Weight, const R: usize, const N: usize>(
    isa: I,
    total: &mut [[I::F; N]; R],
    w: (*const u8, usize),
    x: (*const f32, usize),
) {
    // SAFETY: the caller vouches for the places.
    unsafe {
        let mut weights = [isa.splat(0.0); R];
        for r in 0..R {
            weights[r] = W::load(isa, w.0.add(r * w.1));
            if N == 1 {
                // A single token streams through rows too short for the machine to foresee.
                isa.prefetch(w.0.wrapping_add((r + R) * w.1));
            }
        }
        for n in 0..N {
            let x = isa.load(&*x.0.add(n * x.1).cast());
            for r in 0..R {
                total[r][n] = isa.fma(weights[r], x, total[r][n]);
            }
        }
    }
}
