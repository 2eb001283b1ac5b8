//! Products with weights that are bfloat16, or exactly become it: bf16 where they lie, FP8 on its
//! way into the registers. Inputs are rounded to bfloat16 once per operation, so that machines with
//! a dot product for it multiply two columns at a time.
//!
//! Thirty-two columns make a step: a lane has two neighbours of them. Machines without the
//! instruction hold inputs as f32, the low neighbours of a step before the high ones, and compute
//! the same sums in the same order.

use std::{cell::RefCell, marker::PhantomData};

use lathe_formats::Blocks;
use lathe_simd::{Isa, LANES, Op};

use crate::{Pool, output::Output};

/// Columns of a step.
const STEP: usize = 2 * LANES;

/// Bytes of weights that one task works through, token tile after token tile: they stay in the
/// second-level cache meanwhile.
const TASK_BYTES: usize = 256 << 10;

/// Rows that are multiplied together.
const ROWS: usize = 4;

/// Tokens whose inputs one task rounds.
const ROUNDED: usize = 8;

/// How weights are stored.
trait Weight {
    const BYTES: usize;
    /// Where a row's scale is, by its columns.
    const SCALE: Option<fn(usize) -> usize>;
    /// A step of them as pairs of bfloat16.
    ///
    /// # Safety
    /// `STEP * BYTES` bytes at `from` can be read.
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::B;
}

struct Bf16;
struct E4m3;
/// FP8 made bf16.
struct Widened;

impl Weight for Widened {
    const BYTES: usize = 2;
    const SCALE: Option<fn(usize) -> usize> = Some(|cols| 2 * cols.next_multiple_of(STEP));
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::B {
        // SAFETY: as the caller vouches.
        unsafe { Bf16::load(isa, from) }
    }
}

impl Weight for Bf16 {
    const BYTES: usize = 2;
    const SCALE: Option<fn(usize) -> usize> = None;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::B {
        // SAFETY: the caller vouches for the bytes; byte arrays have no alignment.
        isa.load_bytes(unsafe { &*from.cast() })
    }
}

impl Weight for E4m3 {
    const BYTES: usize = 1;
    const SCALE: Option<fn(usize) -> usize> = Some(|cols| cols);
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::B {
        // SAFETY: as above.
        isa.load_e4m3_pairs(unsafe { &*from.cast() })
    }
}

/// Inputs `[T, cols]` and, where tokens are multiples of a scale that is to be multiplied in
/// afterwards, the scales.
pub(crate) type Scaled<'a> = (&'a [f32], Option<&'a [f32]>);

/// Whether weights of a format are multiplied here.
pub(crate) fn takes(format: &str) -> bool {
    ["bf16", "fp8_row", "fp8_tensor"].contains(&format)
}

/// The product with `w`, whose format is one of those that [`takes`] names.
pub(crate) fn matmul(pool: &Pool, x: Scaled<'_>, t: usize, w: &Blocks, out: &mut [f32]) {
    thread_local! {
        static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    // Taken out of its cell meanwhile: a task may call in again on this thread.
    let mut room = ROOM.take();
    let stride = lathe_simd::run(Number) * w.cols.next_multiple_of(STEP);
    if room.len() < t * stride {
        room.resize(t * stride, 0);
    }
    let rounded = Output::new(&mut room[..t * stride]);
    pool.run(t.div_ceil(ROUNDED), &|task| {
        for token in task * ROUNDED..t.min((task + 1) * ROUNDED) {
            let from = &x.0[token * w.cols..][..w.cols];
            let scale = x.1.map(|scales| scales[token]);
            // SAFETY: a token is one task's alone.
            let to = unsafe { rounded.part(token * stride, stride) };
            lathe_simd::run(Round { from, scale, to });
        }
    });
    let inputs = &room[..t * stride];
    let row_bytes = w.format.row_bytes(w.cols);
    let per_task = (TASK_BYTES / row_bytes.max(1)).clamp(ROWS, 512) / ROWS * ROWS;
    // Small matrices are cut finer, so that every thread has its share.
    let per_task = per_task.min(w.rows.div_ceil(4 * pool.threads()).next_multiple_of(ROWS));
    let side = w.side.first_chunk().map(|scale| f32::from_le_bytes(*scale));
    let out = Output::new(out);
    pool.run(w.rows.div_ceil(per_task), &|task| {
        let first = task * per_task;
        let count = per_task.min(w.rows - first);
        let weights = &w.data[first * row_bytes..][..count * row_bytes];
        let strip = Strip {
            weights,
            row_bytes,
            side,
            cols: w.cols,
            inputs,
            stride,
            scales: x.1,
            t,
            place: (first, count, w.rows),
            out,
        };
        if w.format.name() == "bf16" {
            lathe_simd::run(Product::<Bf16>(strip, PhantomData));
        } else if t <= FEW {
            lathe_simd::run(Product::<E4m3>(strip, PhantomData));
        } else {
            strip.widened();
        }
    });
    ROOM.set(room);
}

/// Up to so many tokens FP8 is widened on its way into the registers, not beforehand.
const FEW: usize = 6;

/// Asks for the bytes that an input takes.
struct Number;

impl Op for Number {
    const BF16: bool = true;
    type Out = usize;
    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> usize {
        number::<I>()
    }
}

const fn number<I: Isa>() -> usize {
    if I::BF16 { 2 } else { 4 }
}

/// Rounds a token's inputs, over their scale where they have one.
struct Round<'a> {
    from: &'a [f32],
    scale: Option<f32>,
    to: &'a mut [u8],
}

impl Op for Round<'_> {
    const BF16: bool = true;
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let inverse = self.scale.map(|scale| if scale == 0.0 { 0.0 } else { 1.0 / scale });
        let step = STEP * number::<I>();
        let mut rest = [0.0; STEP];
        for (at, to) in self.to.chunks_exact_mut(step).enumerate() {
            let from = &self.from[at * STEP..];
            let from = match from.first_chunk::<STEP>() {
                Some(whole) => whole,
                None => {
                    rest[..from.len()].copy_from_slice(from);
                    &rest
                }
            };
            let mut halves = [[0; 32]; 2];
            for (from, half) in from.as_chunks::<LANES>().0.iter().zip(&mut halves) {
                let mut x = isa.load(from);
                if let Some(inverse) = inverse {
                    x = isa.mul(x, isa.splat(inverse));
                }
                isa.store_bf16(x, half);
            }
            let halves = halves.as_flattened();
            if I::BF16 {
                to.copy_from_slice(halves);
            } else {
                let (low, high) = to.split_at_mut(step / 2);
                let pairs = halves.as_chunks::<4>().0.iter();
                let places = low.as_chunks_mut::<4>().0.iter_mut().zip(high.as_chunks_mut::<4>().0);
                for (pair, (low, high)) in pairs.zip(places) {
                    // The upper half of an f32 is a bfloat16.
                    *low = [0, 0, pair[0], pair[1]];
                    *high = [0, 0, pair[2], pair[3]];
                }
            }
        }
    }
}

/// Rows of a product.
#[derive(Clone, Copy)]
struct Strip<'a> {
    weights: &'a [u8],
    row_bytes: usize,
    /// The scale of all weights; without it, a row of codes has its own behind it.
    side: Option<f32>,
    cols: usize,
    inputs: &'a [u8],
    /// Bytes of a token's inputs.
    stride: usize,
    scales: Option<&'a [f32]>,
    t: usize,
    /// The first row, how many, and of how many.
    place: (usize, usize, usize),
    out: Output<'a, f32>,
}

impl Strip<'_> {
    /// The product with FP8 widened to bf16 first, once for all tokens.
    fn widened(self) {
        thread_local! {
            static WIDE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        WIDE.with_borrow_mut(|wide| {
            let row_bytes = 2 * self.cols.next_multiple_of(STEP) + size_of::<f32>();
            wide.resize(self.place.1 * row_bytes, 0);
            lathe_simd::run(Widen { strip: self, row_bytes, to: wide });
            let strip = Strip { weights: wide, row_bytes, ..self };
            lathe_simd::run(Product::<Widened>(strip, PhantomData));
        });
    }

    /// What row `r` of `weights` is multiples of; behind a row, where all have no scale together.
    #[inline(always)]
    fn scale(&self, weights: &[u8], r: usize, behind: usize) -> f32 {
        self.side.unwrap_or_else(|| {
            let behind = weights[r * self.row_bytes + behind..].first_chunk();
            behind.map_or(1.0, |scale| f32::from_le_bytes(*scale))
        })
    }
}

/// Makes bf16 of FP8, with the rows' scales behind them.
struct Widen<'a> {
    strip: Strip<'a>,
    row_bytes: usize,
    to: &'a mut [u8],
}

impl Op for Widen<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Strip { weights, row_bytes, cols, .. } = self.strip;
        let rows = weights.chunks_exact(row_bytes).zip(self.to.chunks_exact_mut(self.row_bytes));
        for (from, to) in rows {
            let (codes, own) = from.split_at(cols);
            let (to, scale) = to.split_at_mut(self.row_bytes - size_of::<f32>());
            scale[..own.len()].copy_from_slice(own);
            for (to, codes) in
                to.as_chunks_mut::<{ 2 * STEP }>().0.iter_mut().zip(codes.chunks(STEP))
            {
                let mut step = [0; STEP];
                step[..codes.len()].copy_from_slice(codes);
                isa.store_bytes(isa.load_e4m3_pairs(&step), to);
            }
        }
    }
}

struct Product<'a, W>(Strip<'a>, PhantomData<W>);

impl<W: Weight> Op for Product<'_, W> {
    const BF16: bool = true;
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        // Accumulators, one row's weights and one token's inputs must fit in the registers.
        let wide = if I::REGISTERS >= 32 { 6 } else { 2 };
        let (t, count) = (self.0.t, self.0.place.1);
        let mut token = 0;
        while token < t {
            // As even as can be: a tile of few tokens waits for its weights.
            let n = (t - token).div_ceil((t - token).div_ceil(wide));
            let rows = if I::REGISTERS >= 32 || n == 1 { ROWS } else { 2 };
            let mut row = 0;
            while row < count {
                let r = if count - row >= rows { rows } else { 1 };
                self.tile(isa, row, r, token, n);
                row += r;
            }
            token += n;
        }
    }
}

impl<W: Weight> Product<'_, W> {
    #[inline(always)]
    fn tile<I: Isa>(&self, isa: I, row: usize, rows: usize, token: usize, tokens: usize) {
        match (rows, tokens) {
            (4, 1) => self.dot::<I, 4, 1>(isa, row, token),
            (4, 2) => self.dot::<I, 4, 2>(isa, row, token),
            (4, 3) => self.dot::<I, 4, 3>(isa, row, token),
            (4, 4) => self.dot::<I, 4, 4>(isa, row, token),
            (4, 5) => self.dot::<I, 4, 5>(isa, row, token),
            (4, 6) => self.dot::<I, 4, 6>(isa, row, token),
            (2, 1) => self.dot::<I, 2, 1>(isa, row, token),
            (2, 2) => self.dot::<I, 2, 2>(isa, row, token),
            (1, _) => {
                for i in 0..tokens {
                    self.dot::<I, 1, 1>(isa, row, token + i);
                }
            }
            _ => unreachable!("no tile of {rows} × {tokens}"),
        }
    }

    /// `R` rows from `row` on times `N` tokens from `token` on.
    #[inline(always)]
    fn dot<I: Isa, const R: usize, const N: usize>(&self, isa: I, row: usize, token: usize) {
        let strip = &self.0;
        let (cols, row_bytes, stride) = (strip.cols, strip.row_bytes, strip.stride);
        let weights = &strip.weights[row * row_bytes..(row + R) * row_bytes];
        let inputs = &strip.inputs[token * stride..(token + N) * stride];
        assert!(
            cols * W::BYTES <= row_bytes && cols.div_ceil(STEP) * STEP * number::<I>() == stride
        );
        let mut sums = [[isa.splat(0.0); N]; R];
        let whole = cols / STEP * STEP;
        for col in (0..whole).step_by(STEP) {
            // SAFETY: row r's columns col .. col + 32 lie within its `row_bytes`, and token n's
            // inputs for them within its `stride`, since col + 32 <= cols.
            unsafe {
                let w = weights.as_ptr().add(col * W::BYTES);
                let x = inputs.as_ptr().add(col * number::<I>());
                step::<I, W, R, N>(isa, &mut sums, (w, row_bytes), (x, stride));
            }
        }
        if whole < cols {
            let mut w = [[0; 2 * STEP]; R];
            for (r, w) in w.iter_mut().enumerate() {
                let from = &weights[r * row_bytes..][whole * W::BYTES..cols * W::BYTES];
                w[..from.len()].copy_from_slice(from);
            }
            // SAFETY: the copies have room for a step of weights, and inputs are padded to one.
            unsafe {
                let x = inputs.as_ptr().add(whole * number::<I>());
                step::<I, W, R, N>(isa, &mut sums, (w.as_ptr().cast(), 2 * STEP), (x, stride));
            }
        }
        let (first, _, rows) = strip.place;
        for n in 0..N {
            let at = (token + n) * rows + first + row;
            // SAFETY: these rows are this task's alone.
            let out = unsafe { strip.out.part(at, R) };
            let scale = strip.scales.map_or(1.0, |scales| scales[token + n]);
            for r in 0..R {
                let own = W::SCALE.map_or(1.0, |behind| strip.scale(weights, r, behind(cols)));
                out[r] = isa.sum(sums[r][n]) * scale * own;
            }
        }
    }
}

/// A step of a tile; weights and inputs are a place and the stride from one to the next.
///
/// # Safety
/// A step can be read at each of `R` weight and `N` input places.
#[inline(always)]
unsafe fn step<I: Isa, W: Weight, const R: usize, const N: usize>(
    isa: I,
    sums: &mut [[I::F; N]; R],
    w: (*const u8, usize),
    x: (*const u8, usize),
) {
    // SAFETY: the caller vouches for the places.
    unsafe {
        let mut weights = [W::load(isa, w.0); R];
        for r in 1..R {
            weights[r] = W::load(isa, w.0.add(r * w.1));
        }
        // Rows are too short for the machine to foresee the next.
        for r in 0..R {
            isa.prefetch(w.0.wrapping_add((r + R) * w.1));
        }
        if I::BF16 {
            for n in 0..N {
                let x = isa.load_bytes(&*x.0.add(n * x.1).cast());
                for r in 0..R {
                    sums[r][n] = isa.dot_bf16(sums[r][n], weights[r], x);
                }
            }
            return;
        }
        for n in 0..N {
            let at = x.0.add(n * x.1);
            let (low, high) = (isa.load_f32(&*at.cast()), isa.load_f32(&*at.add(4 * LANES).cast()));
            for r in 0..R {
                let [w_low, w_high] = isa.bf16_pairs(weights[r]);
                let sum = isa.fma(w_high, high, sums[r][n]);
                sums[r][n] = isa.fma(w_low, low, sum);
            }
        }
    }
}
