//! Machines with tile registers: an instruction multiplies a step of sixteen rows with sixteen
//! tokens. Rows are read where they lie; only where they are read several times, or are not bfloat16,
//! are they laid out tile after tile first. The order of the sums is the one of
//! [`lathe_simd::Isa::half_tiles`].
//!
//! Weights that would have to be laid out for a single token meet it in vectors instead, which make
//! the same sums to the same bits.

use std::{cell::RefCell, marker::PhantomData, ops::Range};

use lathe_simd::{HalfRows, HalfSums, HalfTokens, Isa, LANES, Op};

use super::{Bf16, E4m3, F16, Inputs, STEP, Strip, Weight, in_strips};
use crate::{Pool, output::Output};

/// Rows that are multiplied together.
pub(super) const ROWS: usize = 2 * LANES;
/// Bytes of a step of one row, or of sixteen rows' places for sums.
const LINE: usize = 64;
/// Bytes of a step of sixteen rows, or of sixteen tokens.
const TILE: usize = LANES * LINE;
/// Steps that are multiplied at a time: their inputs stay in the first-level cache for all rows of a
/// task.
const STEPS: usize = 16;
/// As many where rows come from memory, and are asked for meanwhile.
const STREAMED: usize = 4;
/// How far ahead of their use rows are asked for that are not tiles as they lie, in bytes.
const AHEAD: usize = 512;

/// Asks whether there are tiles.
pub(super) struct Here;

impl Op for Here {
    const BF16: bool = true;
    const TILES: bool = true;
    type Out = bool;
    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> bool {
        I::TILES
    }
}

/// Inputs in tiles of tokens.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    bytes: &'a [u8],
    /// Whether they are those of a single token, [`spread`] for vectors.
    alone: bool,
    /// Tokens of a tile.
    wide: usize,
    steps: usize,
    t: usize,
}

impl Tokens<'_> {
    /// Bytes of a tile; behind it whole vectors can be written where only the first lanes count.
    fn tile_bytes(wide: usize, steps: usize) -> usize {
        (steps * LINE * wide).next_multiple_of(LINE) + LINE
    }

    /// One tile from a token on, or two where there are more, from a step on.
    #[inline(always)]
    fn from(&self, token: usize, step: usize) -> HalfTokens {
        let bytes = Self::tile_bytes(self.wide, self.steps);
        let next = if token + self.wide < self.t { bytes } else { 0 };
        let at = token / self.wide * bytes + step * LINE * self.wide;
        assert!(at + next + (self.steps - step) * LINE * self.wide <= self.bytes.len());
        let at = self.bytes[at..].as_ptr();
        HalfTokens { at, pair: 4 * self.wide, step: LINE * self.wide, next }
    }
}

/// The products with matrices of one format.
pub(super) fn matmul(pool: &Pool, inputs: Inputs<'_>, of: &mut [super::Product<'_, '_>]) {
    thread_local! {
        static TILES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let Some((w, _)) = of.first() else { return };
    let Inputs { bytes: rounded, stride, t, .. } = inputs;
    let (steps, wide) = (w.cols.div_ceil(STEP), t.min(LANES));
    // Where steps are tiles as they lie, tiles are as fast for a single token, which lies as one does.
    let lies = w.format.name() == "bf16" && w.cols.is_multiple_of(STEP);
    let alone = t == 1 && !lies;
    let tiles = if t == 1 && lies { 0 } else { t.div_ceil(wide) };
    let bytes = if alone { 2 * steps * LINE } else { Tokens::tile_bytes(wide, steps) };
    // Taken out of its cell meanwhile: a task may call in again on this thread.
    let mut room = TILES.take();
    if room.len() < tiles * bytes {
        room.resize(tiles * bytes, 0);
    }
    let places = Output::new(&mut room);
    pool.run(tiles, &|tile| {
        // SAFETY: a tile is one task's alone.
        let to = unsafe { places.part(tile * bytes, bytes) };
        let tokens = wide.min(t - tile * wide);
        let from = &rounded[tile * wide * stride..][..tokens * stride];
        if alone {
            spread(from, to);
        } else {
            lathe_simd::run(Pack { from, stride, wide, steps, to });
        }
    });
    let bytes = if tiles == 0 { rounded } else { &room[..tiles * bytes] };
    let tokens = Tokens { bytes, alone, wide, steps, t };
    in_strips(pool, inputs, of, ROWS, &|format, strip| match format {
        "bf16" => lathe_simd::run(Product::<Bf16>(strip, tokens, PhantomData)),
        "f16" => lathe_simd::run(Product::<F16>(strip, tokens, PhantomData)),
        _ => lathe_simd::run(Product::<E4m3>(strip, tokens, PhantomData)),
    });
    TILES.set(room);
}

/// Lays out a tile's tokens: of each step sixteen times a pair of columns of all tokens.
struct Pack<'a> {
    from: &'a [u8],
    stride: usize,
    wide: usize,
    steps: usize,
    to: &'a mut [u8],
}

impl Op for Pack<'_> {
    const BF16: bool = true;
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { from, stride, wide, steps, to } = self;
        let last = from.len() / stride - 1;
        for step in 0..steps {
            let mut pairs = [isa.splat_bytes(&[0; 4]); LANES];
            for n in 0..LANES {
                // Lanes beyond the tokens count for nothing.
                let from = &from[n.min(last) * stride + step * LINE..];
                pairs[n] = isa.load_bytes(from.first_chunk().expect("whole steps"));
            }
            pairs = isa.transpose(pairs);
            // What is written beyond the tokens is written over by what follows.
            for pair in 0..LANES {
                let to = &mut to[step * LINE * wide + pair * 4 * wide..];
                isa.store_bytes(pairs[pair], to.first_chunk_mut().expect("a line behind a tile"));
            }
        }
    }
}

/// A strip's product with all tokens.
struct Product<'a, W>(Strip<'a>, Tokens<'a>, PhantomData<W>);

/// A step of sixteen rows, or their sums.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tile([u8; TILE]);

/// The sums of 32 rows with two tiles of tokens.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([HalfSums; 4]);

const NONE: Sums = Sums([[[0.0; LANES]; LANES]; 4]);

thread_local! {
    /// Weights laid out in tiles, and sums of a strip.
    static ROOM: RefCell<(Vec<Tile>, Vec<Sums>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl<W: Weight> Op for Product<'_, W> {
    const BF16: bool = true;
    const TILES: bool = true;
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        if !I::TILES {
            unreachable!("asked of a machine without tiles");
        }
        if self.1.alone {
            self.alone(isa);
            return;
        }
        // Taken out of its cell meanwhile, as a closure is compiled without the instruction set.
        let mut room = ROOM.take();
        isa.half_tiles_on(self.1.wide);
        if self.1.t <= 2 * LANES {
            self.once(isa, &mut room.0);
        } else {
            self.again(isa, &mut room);
        }
        isa.tiles_off();
        ROOM.set(room);
    }
}

/// Makes f32 of bfloat16: those are the upper halves.
fn spread(from: &[u8], to: &mut [u8]) {
    for (half, to) in from.as_chunks::<2>().0.iter().zip(to.as_chunks_mut::<4>().0) {
        *to = [0, 0, half[0], half[1]];
    }
}

impl<W: Weight> Product<'_, W> {
    /// One token: sixteen rows at a time, their columns turned into vectors.
    #[inline(always)]
    fn alone<I: Isa>(&self, isa: I) {
        let (strip, inputs) = (&self.0, self.1.bytes.as_chunks::<{ 2 * LINE }>().0);
        let (row_bytes, row_end) = (strip.row_bytes, strip.cols * W::BYTES);
        let whole = strip.cols / STEP;
        assert!(row_end <= row_bytes && inputs.len() >= self.1.steps);
        for row in (0..strip.place.1).step_by(LANES) {
            let count = LANES.min(strip.place.1 - row);
            let weights = &strip.weights[row * row_bytes..(row + count) * row_bytes];
            let mut places = [weights.as_ptr(); LANES];
            for (r, place) in places.iter_mut().enumerate() {
                *place = weights[r.min(count - 1) * row_bytes..].as_ptr();
            }
            let mut sums = isa.splat(0.0);
            for (step, inputs) in inputs[..whole].iter().enumerate() {
                let at = step * STEP * W::BYTES;
                // Behind its end a row's stream goes on sixteen rows further.
                let next = if at + AHEAD < row_end { 0 } else { (LANES - 1) * row_bytes };
                for place in places {
                    isa.prefetch(place.wrapping_add(at + AHEAD + next));
                }
                // SAFETY: whole steps of rows that are `row_bytes` long, which is at least `row_end`.
                sums = unsafe { step_alone::<I, W>(isa, &places, at, inputs, sums) };
            }
            if whole < self.1.steps {
                let mut rest = [[0; 2 * STEP]; LANES];
                for (r, (to, place)) in rest.iter_mut().zip(&mut places).enumerate() {
                    let from = &weights[r.min(count - 1) * row_bytes..][..row_end];
                    let from = &from[whole * STEP * W::BYTES..];
                    to[..from.len()].copy_from_slice(from);
                    *place = to.as_ptr();
                }
                // SAFETY: `rest` has room for a step of the widest weights.
                sums = unsafe { step_alone::<I, W>(isa, &places, 0, &inputs[whole], sums) };
            }
            let mut own = [1.0; LANES];
            if let Some(behind) = W::SCALE {
                for (r, own) in own[..count].iter_mut().enumerate() {
                    *own = strip.scale(weights, r, behind(strip.cols));
                }
            }
            let scale = strip.inputs.scales.map_or(1.0, |scales| scales[0]);
            sums = isa.mul(isa.mul(sums, isa.splat(scale)), isa.load(&own));
            // SAFETY: these rows are this task's alone.
            put(isa, sums, unsafe { strip.out.part(strip.place.0 + row, count) });
        }
    }

    /// Few tokens: weights are read once, from memory.
    #[inline(always)]
    fn once<I: Isa>(&self, isa: I, room: &mut Vec<Tile>) {
        let (strip, tokens) = (&self.0, &self.1);
        let (weights, row_bytes) = (strip.weights, strip.row_bytes);
        room.resize(2 * STREAMED, Tile([0; TILE]));
        for row in (0..strip.place.1).step_by(ROWS) {
            let rows = ROWS.min(strip.place.1 - row);
            // Whole rows of bfloat16 are tiles as they lie.
            let lies = W::AS_IT_LIES && rows == ROWS && strip.cols.is_multiple_of(STEP);
            let mut sums = NONE;
            let most = if lies { tokens.steps } else { STREAMED };
            for step in (0..tokens.steps).step_by(most) {
                let steps = step..tokens.steps.min(step + most);
                let w = if lies {
                    let at = weights[row * row_bytes + step * LINE..].as_ptr();
                    HalfRows { at, row: row_bytes, step: LINE, next: LANES * row_bytes }
                } else {
                    for r in 0..rows {
                        for step in steps.clone() {
                            let at = (row + r) * row_bytes + step * STEP * W::BYTES + AHEAD;
                            isa.prefetch(weights.as_ptr().wrapping_add(at));
                        }
                    }
                    self.lay(isa, row..row + rows, steps.clone(), room);
                    laid(room, steps.len())
                };
                // SAFETY: tiles are on, with the width of the inputs'. Rows that are read where they
                // lie are whole, and so are their steps; others have just been laid out.
                unsafe { isa.half_tiles(w, tokens.from(0, step), steps.len(), &mut sums.0) };
            }
            self.finish(isa, row..row + rows, 0, &sums);
        }
    }

    /// Many: weights are laid out once, and multiplied with two tiles of tokens after the other.
    #[inline(always)]
    fn again<I: Isa>(&self, isa: I, (room, sums): &mut (Vec<Tile>, Vec<Sums>)) {
        let (strip, tokens) = (&self.0, &self.1);
        let (groups, all) = (strip.place.1.div_ceil(ROWS), tokens.steps);
        room.resize(groups * 2 * all, Tile([0; TILE]));
        sums.resize(groups, NONE);
        for (group, room) in room.chunks_exact_mut(2 * all).enumerate() {
            let row = group * ROWS;
            self.lay(isa, row..strip.place.1.min(row + ROWS), 0..all, room);
        }
        for token in (0..tokens.t).step_by(2 * LANES) {
            sums.fill(NONE);
            for step in (0..all).step_by(STEPS) {
                let steps = STEPS.min(all - step);
                for (room, sums) in room.chunks_exact(2 * all).zip(sums.iter_mut()) {
                    let mut w = laid(room, all);
                    w.at = w.at.wrapping_add(step * TILE);
                    // SAFETY: tiles are on; `steps` from `step` on are laid out, of both.
                    unsafe { isa.half_tiles(w, tokens.from(token, step), steps, &mut sums.0) };
                }
            }
            for (group, sums) in sums.iter().enumerate() {
                let row = group * ROWS;
                self.finish(isa, row..strip.place.1.min(row + ROWS), token, sums);
            }
        }
    }

    /// Lays out steps of up to 32 rows as tiles; what is in the places of others does not count.
    #[inline(always)]
    fn lay<I: Isa>(&self, isa: I, rows: Range<usize>, steps: Range<usize>, to: &mut [Tile]) {
        let strip = &self.0;
        let bytes = STEP * W::BYTES;
        for (r, row) in rows.enumerate() {
            let from = &strip.weights[row * strip.row_bytes..][..strip.cols * W::BYTES];
            let to = &mut to[r / LANES * steps.len()..][..steps.len()];
            let mut rest = [0; 2 * STEP];
            for (step, to) in steps.clone().zip(to) {
                let from = &from[step * bytes..];
                let from = if from.len() < bytes {
                    rest[..from.len()].copy_from_slice(from);
                    &rest
                } else {
                    from
                };
                let to = to.0[r % LANES * LINE..].first_chunk_mut().expect("a row of a tile");
                // SAFETY: a whole step.
                isa.store_bytes(unsafe { W::load(isa, from.as_ptr()) }, to);
            }
        }
    }

    /// Writes the outputs of some rows, of the tokens from one on that have sums.
    #[inline(always)]
    fn finish<I: Isa>(&self, isa: I, rows: Range<usize>, token: usize, sums: &Sums) {
        let (strip, wide) = (&self.0, self.1.wide);
        let (first, _, all) = strip.place;
        let mut own = [1.0; ROWS];
        if let Some(behind) = W::SCALE {
            for (own, row) in own.iter_mut().zip(rows.clone()) {
                *own = strip.scale(strip.weights, row, behind(strip.cols));
            }
        }
        for (index, sums) in sums.0.iter().enumerate() {
            let token = token + index % 2 * wide;
            let tokens = wide.min(strip.inputs.t.saturating_sub(token));
            let row = rows.start + index / 2 * LANES;
            let count = LANES.min(rows.end.saturating_sub(row));
            if tokens == 0 || count == 0 {
                continue;
            }
            let own = own[index / 2 * LANES..].first_chunk().expect("sixteen rows");
            let mut columns = [[0; LINE]; LANES];
            if tokens > 1 {
                let mut lanes = [isa.splat_bytes(&[0; 4]); LANES];
                for r in 0..LANES {
                    let row = sums[r].map(f32::to_le_bytes);
                    lanes[r] = isa.load_bytes(row.as_flattened().first_chunk().expect("a line"));
                }
                lanes = isa.transpose(lanes);
                for n in 0..LANES {
                    isa.store_bytes(lanes[n], &mut columns[n]);
                }
            } else {
                for (to, row) in columns[0].as_chunks_mut::<4>().0.iter_mut().zip(sums) {
                    *to = row[0].to_le_bytes();
                }
            }
            for n in 0..tokens {
                let scale = strip.inputs.scales.map_or(1.0, |scales| scales[token + n]);
                let sum = isa.mul(isa.load_f32(&columns[n]), isa.splat(scale));
                let sum = isa.mul(sum, isa.load(own));
                // SAFETY: these rows are this task's alone.
                put(isa, sum, unsafe { strip.out.part((token + n) * all + first + row, count) });
            }
        }
    }
}

/// A step of sixteen rows times one token that was [`spread`]: the sums of even and of odd
/// columns by themselves, in their order, as a tile's are.
///
/// # Safety
/// A step can be read `at` bytes behind each place.
#[inline(always)]
unsafe fn step_alone<I: Isa, W: Weight>(
    isa: I,
    places: &[*const u8; LANES],
    at: usize,
    inputs: &[u8; 2 * LINE],
    sums: I::F,
) -> I::F {
    let mut columns = [isa.splat_bytes(&[0; 4]); LANES];
    for r in 0..LANES {
        // SAFETY: the caller vouches for the places.
        columns[r] = unsafe { W::load(isa, places[r].add(at)) };
    }
    columns = isa.transpose(columns);
    let (mut even, mut odd) = (isa.splat(0.0), isa.splat(0.0));
    let inputs = inputs.as_chunks::<8>().0;
    for pair in 0..LANES {
        let [low, high] = isa.bf16_pairs(columns[pair]);
        let x = inputs[pair].as_chunks::<4>().0;
        even = isa.fma(low, isa.splat(f32::from_le_bytes(x[0])), even);
        odd = isa.fma(high, isa.splat(f32::from_le_bytes(x[1])), odd);
    }
    isa.add(sums, isa.add(even, odd))
}

/// Stores the sums of up to sixteen rows.
#[inline(always)]
fn put<I: Isa>(isa: I, sums: I::F, out: &mut [f32]) {
    if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
        isa.store(sums, out);
    } else {
        let mut lanes = [0.0; LANES];
        isa.store(sums, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

/// 32 rows of so many steps that were laid out.
#[inline(always)]
fn laid(tiles: &[Tile], steps: usize) -> HalfRows {
    assert!(tiles.len() >= 2 * steps);
    let at = tiles.as_ptr().cast();
    HalfRows { at, row: LINE, step: TILE, next: steps * TILE }
}
