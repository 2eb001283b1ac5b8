//! Products with weights that are bfloat16, or exactly become it: bf16 where they lie, FP8 and f16
//! on their way into the registers. Inputs are rounded to bfloat16 once per operation, so that machines with
//! a dot product for it multiply two columns at a time.
//!
//! Thirty-two columns make a step: a lane has two neighbours of them. Machines without the
//! instruction hold inputs as f32, the low neighbours of a step before the high ones, and compute
//! the same sums in the same order.
//!
//! That order: a row's pairs of columns go in turn to four sums, of pairs 0, 4, 8 … and so on,
//! and then the first is added to the third, the second to the fourth, and both to each other.
//! It suits both ways of computing: for few tokens, rows as they lie (a vector is four pairs of
//! four rows, see [`rows`]); for many, panels of sixteen rows that are packed strip by strip (a
//! vector is one pair of all, see [`panels`]). Machines with tile registers have an order of their
//! own, the same for one token and for many (see [`tiled`]).

mod panels;
mod rows;
mod tiled;

use std::{
    cell::RefCell,
    marker::PhantomData,
    sync::atomic::{AtomicBool, Ordering},
};

use lathe_base::Buf;
use lathe_formats::Blocks;
use lathe_simd::{Isa, LANES, Op};

use crate::{
    Pool,
    memory::Room,
    output::Output,
    tasks::Tasks,
    tiles::{ROWS, TASK_BYTES, task_rows},
};

/// Columns of a step.
const STEP: usize = 2 * LANES;

/// Tokens whose inputs one task rounds.
const ROUNDED: usize = 8;

/// How weights are stored.
trait Weight {
    const BYTES: usize;
    /// Whether they are pairs of bfloat16 already.
    const AS_IT_LIES: bool = false;
    /// Where a row's scale is, by its columns.
    const SCALE: Option<fn(usize) -> usize>;
    /// A step of them as pairs of bfloat16.
    ///
    /// # Safety
    /// `STEP * BYTES` bytes at `from` can be read.
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::B;
}

struct Bf16;
struct F16;
struct E4m3;
/// Others made bf16, with a scale behind each row.
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
    const AS_IT_LIES: bool = true;
    const SCALE: Option<fn(usize) -> usize> = None;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::B {
        // SAFETY: the caller vouches for the bytes; byte arrays have no alignment.
        isa.load_bytes(unsafe { &*from.cast() })
    }
}

impl Weight for F16 {
    const BYTES: usize = 2;
    const SCALE: Option<fn(usize) -> usize> = None;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::B {
        // SAFETY: as above.
        isa.load_f16_pairs(unsafe { &*from.cast() })
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

/// Whether these weights can be multiplied here: those of some formats always, those of f16 where
/// each is a bfloat16 too, as in the files of models that were trained in it.
pub(crate) fn takes(pool: &Pool, w: &Blocks) -> bool {
    match w.format.name() {
        "bf16" | "fp8_row" | "fp8_tensor" => true,
        "f16" => {
            let differs = AtomicBool::new(false);
            let parts = w.data.len().div_ceil(LOOKED_AT);
            pool.run(parts, &|part| {
                if !differs.load(Ordering::Relaxed) {
                    let part = part * LOOKED_AT..w.data.len().min((part + 1) * LOOKED_AT);
                    if !are_bf16(&w.data[part]) {
                        differs.store(true, Ordering::Relaxed);
                    }
                }
            });
            !differs.into_inner()
        }
        _ => false,
    }
}

/// Weights in f16 as bfloat16, for machines that multiply those by tiles as they lie; `None` where
/// that is no gain, changes a weight, or finds no memory.
pub(crate) fn copied(pool: &Pool, w: &Blocks) -> Option<Blocks> {
    if w.format.name() != "f16" || !lathe_simd::run(tiled::Here) || !takes(pool, w) {
        return None;
    }
    let mut room = Room::huge(w.data.len())?;
    let to = Output::new(&mut room[..]);
    pool.run(w.data.len().div_ceil(LOOKED_AT), &|part| {
        let from = w.data.chunks(LOOKED_AT).nth(part).expect("a part of the weights");
        // SAFETY: a part is one task's alone.
        let to = unsafe { to.part(part * LOOKED_AT, from.len()) };
        lathe_simd::run(Copy { from, to });
    });
    let format = lathe_formats::by_name("bf16").expect("a format of that name");
    Blocks::new(format, w.rows, w.cols, Buf::from_owner(room), Buf::new()).ok()
}

/// Makes bfloat16 of f16 that can be.
struct Copy<'a> {
    from: &'a [u8],
    to: &'a mut [u8],
}

impl Op for Copy<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (whole, rest) = self.from.as_chunks::<{ 2 * STEP }>();
        let (to, end) = self.to.as_chunks_mut::<{ 2 * STEP }>();
        for (from, to) in whole.iter().zip(to) {
            isa.store_bytes(isa.load_f16_pairs(from), to);
        }
        let (mut last, mut made) = ([0; 2 * STEP], [0; 2 * STEP]);
        last[..rest.len()].copy_from_slice(rest);
        isa.store_bytes(isa.load_f16_pairs(&last), &mut made);
        end.copy_from_slice(&made[..end.len()]);
    }
}

/// Bytes of weights that one task looks at.
const LOOKED_AT: usize = 1 << 20;

/// Whether each of these halves is a number that bfloat16 can hold.
fn are_bf16(halves: &[u8]) -> bool {
    let inexact = |half: &[u8; 2]| {
        let half = u16::from_le_bytes(*half);
        let (exponent, fraction) = (half >> 10 & 31, half & 0x3ff);
        // Eight significant bits: the leading one is written only where numbers are subnormal.
        let normal = fraction & 7 != 0;
        let small = fraction > 255 && (fraction > 511 || fraction & 1 != 0) && fraction & 3 != 0;
        let lost = if exponent == 0 { small } else { normal };
        lost || exponent == 31
    };
    // No early end within a row of them, so that it becomes vectors.
    halves
        .chunks(1 << 12)
        .all(|part| !part.as_chunks::<2>().0.iter().fold(false, |any, half| any | inexact(half)))
}

/// A matrix and where its product goes.
pub(crate) type Product<'a, 'b> = (&'a Blocks, &'b mut [f32]);

/// The products with some matrices of as many columns, in one of the formats that [`takes`] names.
pub(crate) fn matmul(pool: &Pool, x: Scaled<'_>, t: usize, of: &mut [Product<'_, '_>]) {
    thread_local! {
        static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    // Taken out of its cell meanwhile: a task may call in again on this thread.
    let mut room = ROOM.take();
    let cols = of.first().map_or(0, |(w, _)| w.cols);
    let stride = stride(cols);
    if room.len() < t * stride {
        room.resize(t * stride, 0);
    }
    let rounded = Output::new(&mut room[..t * stride]);
    pool.run(t.div_ceil(ROUNDED), &|task| {
        for token in task * ROUNDED..t.min((task + 1) * ROUNDED) {
            let from = &x.0[token * cols..][..cols];
            let scale = x.1.map(|scales| scales[token]);
            // SAFETY: a token is one task's alone.
            let to = unsafe { rounded.part(token * stride, stride) };
            lathe_simd::run(Round { from, scale, to });
        }
    });
    let inputs = Inputs { bytes: &room[..t * stride], stride, scales: x.1, t };
    if lathe_simd::run(tiled::Here) {
        tiled::matmul(pool, inputs, of);
    } else if t > FEW && lathe_simd::run(Wide) {
        of.iter_mut().for_each(|(w, out)| panels::matmul(pool, inputs, w, out));
    } else {
        in_strips(pool, inputs, of, ROWS, &|format, strip| match format {
            "bf16" => lathe_simd::run(rows::Product::<Bf16>::new(strip)),
            "f16" if t <= FEW => lathe_simd::run(rows::Product::<F16>::new(strip)),
            "f16" => strip.widened::<F16>(),
            _ if t <= FEW => lathe_simd::run(rows::Product::<E4m3>::new(strip)),
            _ => strip.widened::<E4m3>(),
        });
    }
    ROOM.set(room);
}

/// Runs the products strip by strip, of a multiple of so many rows; `product` gets the format too.
fn in_strips(
    pool: &Pool,
    inputs: Inputs<'_>,
    of: &mut [Product<'_, '_>],
    multiple: usize,
    product: &(dyn Fn(&str, Strip<'_>) + Sync),
) {
    let rows: Vec<_> = of.iter().map(|(w, _)| strip_rows(w, pool, multiple)).collect();
    let of: Vec<_> = of.iter_mut().map(|(w, out)| (*w, Output::new(out))).collect();
    tasks(of.iter().map(|(w, _)| *w), &rows).run(pool, &|matrix, task| {
        let ((w, out), per_task) = (of[matrix], rows[matrix]);
        let row_bytes = w.format.row_bytes(w.cols);
        let first = task * per_task;
        let count = per_task.min(w.rows - first);
        let weights = &w.data[first * row_bytes..][..count * row_bytes];
        let side = w.side.first_chunk().map(|scale| f32::from_le_bytes(*scale));
        let place = (first, count, w.rows);
        product(
            w.format.name(),
            Strip { weights, row_bytes, side, cols: w.cols, inputs, place, out },
        );
    });
}

/// Where a thread begins to read in the products of these matrices, few tokens given.
pub(crate) fn begin(pool: &Pool, of: &[&Blocks], thread: usize) -> Option<*const u8> {
    let multiple = if lathe_simd::run(tiled::Here) { tiled::ROWS } else { ROWS };
    let rows: Vec<_> = of.iter().map(|w| strip_rows(w, pool, multiple)).collect();
    let (matrix, task) = tasks(of.iter().copied(), &rows).first_of(pool, thread)?;
    let w = of[matrix];
    Some(w.data[task * rows[matrix] * w.format.row_bytes(w.cols)..].as_ptr())
}

fn tasks<'a>(of: impl Iterator<Item = &'a Blocks>, rows_per_task: &[usize]) -> Tasks {
    Tasks::new(of.zip(rows_per_task).map(|(w, rows)| w.rows.div_ceil(*rows)))
}

/// Rows of a strip.
fn strip_rows(w: &Blocks, pool: &Pool, multiple: usize) -> usize {
    task_rows(w.rows, w.format.row_bytes(w.cols), pool.threads()).next_multiple_of(multiple)
}

/// Inputs that are rounded already.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    bytes: &'a [u8],
    /// Bytes of a token's.
    stride: usize,
    /// Of tokens.
    scales: Option<&'a [f32]>,
    t: usize,
}

/// Bytes from one token's inputs to the next: an odd number of cache lines, since those of a tile
/// are read together and would else fall into the same few places of the first-level cache.
fn stride(cols: usize) -> usize {
    const LINE: usize = 64;
    let lines = lathe_simd::run(Number) * cols.next_multiple_of(STEP) / LINE;
    (lines | 1) * LINE
}

/// Up to so many tokens rows are read where they lie, and FP8 and f16 widened on their way into the
/// registers. More are worth packing or, where there are fewer registers, widening beforehand.
const FEW: usize = 8;

/// Whether there are registers for tiles of panels.
struct Wide;

impl Op for Wide {
    const BF16: bool = true;
    type Out = bool;
    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> bool {
        I::REGISTERS >= 32
    }
}

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
        let steps = self.from.len().div_ceil(STEP);
        for (at, to) in self.to.chunks_exact_mut(step).take(steps).enumerate() {
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
    inputs: Inputs<'a>,
    /// The first row, how many, and of how many.
    place: (usize, usize, usize),
    out: Output<'a, f32>,
}

impl Strip<'_> {
    /// The product with weights made bf16 first, once for all tokens.
    fn widened<W: Weight>(self) {
        thread_local! {
            static WIDE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        WIDE.with_borrow_mut(|wide| {
            let row_bytes = 2 * self.cols.next_multiple_of(STEP) + size_of::<f32>();
            wide.resize(self.place.1 * row_bytes, 0);
            lathe_simd::run(Widen::<W> { strip: self, row_bytes, to: wide, kind: PhantomData });
            let strip = Strip { weights: wide, row_bytes, ..self };
            lathe_simd::run(rows::Product::<Widened>::new(strip));
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

/// Makes bf16 of rows, with their scales behind them.
struct Widen<'a, W> {
    strip: Strip<'a>,
    row_bytes: usize,
    to: &'a mut [u8],
    kind: PhantomData<W>,
}

impl<W: Weight> Op for Widen<'_, W> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Strip { weights, row_bytes, cols, .. } = self.strip;
        let rows = weights.chunks_exact(row_bytes).zip(self.to.chunks_exact_mut(self.row_bytes));
        for (from, to) in rows {
            let (codes, own) = from.split_at(cols * W::BYTES);
            let (to, scale) = to.split_at_mut(self.row_bytes - size_of::<f32>());
            // Without scales, what is written here counts for nothing only if it is 1.
            let own = own.first_chunk().copied().unwrap_or(1f32.to_le_bytes());
            scale.copy_from_slice(&own);
            let mut to = to.as_chunks_mut::<{ 2 * STEP }>().0.iter_mut();
            let steps = codes.chunks_exact(STEP * W::BYTES);
            let mut rest = [0; 2 * STEP];
            rest[..steps.remainder().len()].copy_from_slice(steps.remainder());
            for (codes, to) in steps.zip(&mut to) {
                // SAFETY: a whole step.
                isa.store_bytes(unsafe { W::load(isa, codes.as_ptr()) }, to);
            }
            if let Some(to) = to.next() {
                // SAFETY: `rest` has room for a step of the widest weights.
                isa.store_bytes(unsafe { W::load(isa, rest.as_ptr()) }, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lathe_base::{bf16, f16};

    use super::are_bf16;

    #[test]
    fn every_half_is_known_to_be_a_bfloat16_or_not() {
        for bits in 0..=u16::MAX {
            let number = f16::from_bits(bits).to_f32();
            let same = number.is_finite() && bf16::from_f32(number).to_f32() == number;
            assert_eq!(are_bf16(&bits.to_le_bytes()), same, "{bits:#06x}");
        }
    }
}
