//! Few tokens: rows are read where they lie, four at a time.

use std::{
    array::{from_mut, from_ref},
    marker::PhantomData,
};

use lathe_simd::{Isa, LANES, Op};

use super::{STEP, Strip, Weight, number};

/// Rows of a vector.
const ROWS: usize = 4;

/// Vectors of rows that one token reads side by side: a core keeps more lines on their way from
/// many streams than from few.
const STREAMS: usize = 4;

/// How far ahead of their use rows are asked for, in bytes.
const AHEAD: usize = 512;

/// Rows of a strip times all tokens.
pub(super) struct Product<'a, W> {
    strip: Strip<'a>,
    kind: PhantomData<W>,
}

impl<'a, W: Weight> Product<'a, W> {
    pub(super) fn new(strip: Strip<'a>) -> Self {
        Self { strip, kind: PhantomData }
    }
}

impl<W: Weight> Op for Product<'_, W> {
    const BF16: bool = true;
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (tokens, rows) = (self.strip.inputs.t, self.strip.place.1);
        let wide = I::REGISTERS >= 32;
        let most = if wide { 8 } else { 4 };
        let mut token = 0;
        while token < tokens {
            // As even as can be: a tile of few tokens waits for its weights.
            let n = (tokens - token).div_ceil((tokens - token).div_ceil(most));
            let mut row = 0;
            while row < rows {
                let left = rows - row;
                let two = wide && n > 1 && left >= 2 * ROWS;
                if n == 1 && left >= STREAMS * ROWS {
                    self.tile::<I, STREAMS, 1>(isa, row, token);
                    row += STREAMS * ROWS;
                    continue;
                }
                match (two, n) {
                    (false, 1) => self.tile::<I, 1, 1>(isa, row, token),
                    (false, 2) => self.tile::<I, 1, 2>(isa, row, token),
                    (false, 3) => self.tile::<I, 1, 3>(isa, row, token),
                    (false, 4) => self.tile::<I, 1, 4>(isa, row, token),
                    (false, _) => {
                        for token in token..token + n {
                            self.tile::<I, 1, 1>(isa, row, token);
                        }
                    }
                    (true, 2) => self.tile::<I, 2, 2>(isa, row, token),
                    (true, 3) => self.tile::<I, 2, 3>(isa, row, token),
                    (true, 4) => self.tile::<I, 2, 4>(isa, row, token),
                    (true, 5) => self.tile::<I, 2, 5>(isa, row, token),
                    (true, 6) => self.tile::<I, 2, 6>(isa, row, token),
                    (true, 7) => self.tile::<I, 2, 7>(isa, row, token),
                    (true, 8) => self.tile::<I, 2, 8>(isa, row, token),
                    _ => unreachable!("no tile of {n} tokens"),
                }
                row += if two { 2 * ROWS } else { ROWS };
            }
            token += n;
        }
    }
}

/// Where a tile's weights are: a place for each row, the last ones the same where there are fewer.
type Places<const G: usize> = [[*const u8; ROWS]; G];

impl<W: Weight> Product<'_, W> {
    /// `G` times four rows from `row` on, or as many as there are, with `N` tokens.
    #[inline(always)]
    fn tile<I: Isa, const G: usize, const N: usize>(&self, isa: I, row: usize, token: usize) {
        let strip = &self.strip;
        let (cols, row_bytes, stride) = (strip.cols, strip.row_bytes, strip.inputs.stride);
        let count = (G * ROWS).min(strip.place.1 - row);
        let weights = &strip.weights[row * row_bytes..(row + count) * row_bytes];
        let inputs = &strip.inputs.bytes[token * stride..(token + N) * stride];
        assert!(
            cols * W::BYTES <= row_bytes && cols.div_ceil(STEP) * STEP * number::<I>() <= stride
        );
        let mut places = [[weights.as_ptr(); ROWS]; G];
        for (r, place) in places.as_flattened_mut().iter_mut().enumerate() {
            *place = weights[r.min(count - 1) * row_bytes..].as_ptr();
        }
        // A single pass over the weights waits for memory. Behind its end a row's stream goes on in
        // the next tile's, as many rows further.
        let streams = strip.inputs.t == N;
        let row_end = (cols * W::BYTES).saturating_sub(AHEAD);
        let mut sums = [[isa.splat(0.0); N]; G];
        let whole = cols / STEP * STEP;
        for col in (0..whole).step_by(STEP) {
            if streams {
                let at = col * W::BYTES;
                let next = if at < row_end { 0 } else { (G * ROWS - 1) * row_bytes };
                for place in places.as_flattened() {
                    isa.prefetch(place.wrapping_add(at + AHEAD + next));
                }
            }
            // SAFETY: row r's columns col .. col + 32 lie within its `row_bytes`, and token n's
            // inputs for them within its `stride`, since col + 32 <= cols.
            unsafe {
                let x = inputs.as_ptr().add(col * number::<I>());
                let at = col * W::BYTES;
                if N > 1 {
                    step::<I, W, G, N>(isa, &mut sums, &places, at, (x, stride));
                    continue;
                }
                // The rows of all vectors together would not fit in the registers.
                for (sums, places) in sums.iter_mut().zip(&places) {
                    step::<I, W, 1, N>(isa, from_mut(sums), from_ref(places), at, (x, stride));
                }
            }
        }
        if whole < cols {
            let mut rest = [[[0; 2 * STEP]; ROWS]; G];
            for (r, (to, place)) in
                rest.as_flattened_mut().iter_mut().zip(places.as_flattened_mut()).enumerate()
            {
                let from = &weights[r.min(count - 1) * row_bytes..];
                let from = &from[whole * W::BYTES..cols * W::BYTES];
                to[..from.len()].copy_from_slice(from);
                *place = to.as_ptr();
            }
            // SAFETY: the copies have room for a step of weights, and inputs are padded to one.
            unsafe {
                let x = inputs.as_ptr().add(whole * number::<I>());
                step::<I, W, G, N>(isa, &mut sums, &places, 0, (x, stride));
            }
        }
        let (first, _, rows) = strip.place;
        for n in 0..N {
            let at = (token + n) * rows + first + row;
            // SAFETY: these rows are this task's alone.
            let out = unsafe { strip.out.part(at, count) };
            let scale = strip.inputs.scales.map_or(1.0, |scales| scales[token + n]);
            let mut four = [[0.0; ROWS]; G];
            for g in 0..G {
                four[g] = isa.quarter_sums(sums[g][n]);
            }
            for (r, (out, sum)) in out.iter_mut().zip(four.as_flattened()).enumerate() {
                let own = W::SCALE.map_or(1.0, |behind| strip.scale(weights, r, behind(cols)));
                *out = sum * scale * own;
            }
        }
    }
}

/// A step of a tile. Inputs are a place and the stride from one token's to the next.
///
/// # Safety
/// A step can be read `at` bytes behind each of the weights' places, and at `N` input places.
#[inline(always)]
unsafe fn step<I: Isa, W: Weight, const G: usize, const N: usize>(
    isa: I,
    sums: &mut [[I::F; N]; G],
    places: &Places<G>,
    at: usize,
    x: (*const u8, usize),
) {
    // SAFETY: the caller vouches for the places.
    unsafe {
        let mut weights = [[isa.splat_bytes(&[0; 4]); ROWS]; G];
        for g in 0..G {
            for r in 0..ROWS {
                weights[g][r] = W::load(isa, places[g][r].add(at));
            }
            weights[g] = isa.transpose_quarters(weights[g]);
        }
        for quarter in 0..4 {
            if I::BF16 {
                for n in 0..N {
                    let x = isa.splat_quarter(&*x.0.add(n * x.1 + 16 * quarter).cast());
                    for g in 0..G {
                        sums[g][n] = isa.dot_bf16(sums[g][n], weights[g][quarter], x);
                    }
                }
                continue;
            }
            for g in 0..G {
                let [w_low, w_high] = isa.bf16_pairs(weights[g][quarter]);
                for n in 0..N {
                    let at = x.0.add(n * x.1 + 16 * quarter);
                    let low = isa.splat_quarter_f32(&*at.cast());
                    let high = isa.splat_quarter_f32(&*at.add(4 * LANES).cast());
                    let sum = isa.fma(w_high, high, sums[g][n]);
                    sums[g][n] = isa.fma(w_low, low, sum);
                }
            }
        }
    }
}
