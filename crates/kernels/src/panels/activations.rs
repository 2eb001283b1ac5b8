use lathe_simd::{Isa, LANES, Op};

use super::{Kind, SUB, Shape};
use crate::{Pool, output::Output};

/// Inputs rounded to eight bits, in tiles of tokens.
///
/// A tile of N tokens is a run of sub-blocks of 40 N bytes: eight times four columns of each
/// token as i8 (for [`Isa::dot_matrix`] four times eight), then each token's f32 scale, then its
/// correction for the zero of the codes: their sum times that zero as i32; where rows have offsets
/// of their own the scaled sum as f32, or the plain one as i32 where there is a zero as well; where
/// sub-blocks have two parts, the plain sum of each as i16.
#[derive(Clone, Copy)]
pub(super) struct Activations<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) subs: usize,
    pub(super) t: usize,
    pub(super) tile: usize,
}

/// What the rounding of inputs depends on: two matrices with the same share their inputs.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Rounding {
    pub(super) subs: usize,
    kind: Kind,
}

impl Rounding {
    pub(super) fn of(shape: &Shape) -> Self {
        Self { subs: shape.subs(), kind: shape.kind }
    }
}

/// How many tokens a tile has at most, and what it is a multiple of where there are as many.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) most: usize,
    pub(super) of: usize,
}

/// Sub-blocks of single tokens that are worth a task of their own.
const TASK: usize = 256;

/// Bytes of one token's sub-block.
pub(super) const TOKEN_SUB: usize = SUB + 8;

impl<'a> Activations<'a> {
    /// Bytes that [`Activations::quantize`] needs.
    pub(super) fn bytes(t: usize, subs: usize) -> usize {
        t * subs * TOKEN_SUB
    }

    /// Rounds `x` `[t, cols]`, perhaps with scales of tokens that it has been rounded to already,
    /// padded with zeros to `subs` sub-blocks, in tiles that are as even as can be.
    pub(super) fn quantize(
        pool: &Pool,
        (x, scales): (&[f32], Option<&[f32]>),
        (t, tiles): (usize, Tiles),
        Rounding { subs, kind }: Rounding,
        room: &'a mut [u8],
    ) -> Self {
        let tile = t.div_ceil(t.div_ceil(tiles.most)).next_multiple_of(tiles.of);
        let token = subs * TOKEN_SUB;
        let cols = x.len() / t;
        let out = Output::new(room);
        // Few tiles are cut by columns, so that every thread has its share.
        let tiles = t.div_ceil(tile);
        let parts = (4 * pool.threads()).div_ceil(tiles);
        let part = subs.div_ceil(parts).max(TASK.div_ceil(tile)).min(subs.max(1));
        let parts = subs.div_ceil(part);
        pool.run(tiles * parts, &|task| {
            let (first, from) = (task / parts * tile, task % parts * part);
            let (tokens, count) = (tile.min(t - first), part.min(subs - from));
            let at = first * token + from * tokens * TOKEN_SUB;
            // SAFETY: neither tiles nor their parts overlap.
            let to = unsafe { out.part(at, count * tokens * TOKEN_SUB) };
            let x = &x[first * cols..(first + tokens) * cols];
            let scales = scales.map(|scales| &scales[first..first + tokens]);
            lathe_simd::run(Quantize { x, from, scales, cols, tokens, kind, to });
        });
        Self { bytes: &room[..t * token], subs, t, tile }
    }

    /// The bytes and the number of tokens of the tile that starts at token `first`.
    pub(super) fn tile(&self, first: usize) -> (&'a [u8], usize) {
        let tokens = self.tile.min(self.t - first);
        let token = self.subs * TOKEN_SUB;
        (&self.bytes[first * token..][..tokens * token], tokens)
    }
}

struct Quantize<'a> {
    x: &'a [f32],
    /// The first sub-block.
    from: usize,
    /// Of each token; by default each 32 columns have one of their own.
    scales: Option<&'a [f32]>,
    cols: usize,
    tokens: usize,
    kind: Kind,
    to: &'a mut [u8],
}

impl Op for Quantize<'_> {
    const BYTES: bool = true;
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { x, from: first, scales: known, cols, tokens, kind, to } = self;
        let (zero, fraction) = (kind.zero::<I>(), kind.fraction());
        let (parts, offsets, biased) = (kind.parts(), kind.has_offsets(), kind.is_biased());
        for (s, sub) in to.chunks_exact_mut(tokens * TOKEN_SUB).enumerate() {
            let (codes, rest) = sub.split_at_mut(tokens * SUB);
            let codes = codes.as_chunks_mut::<4>().0;
            let (scales, corrections) = rest.split_at_mut(tokens * 4);
            let scales = scales.as_chunks_mut::<4>().0.iter_mut();
            let places = scales.zip(corrections.as_chunks_mut::<4>().0).enumerate();
            for (n, (own_scale, own_correction)) in places {
                let from = &x[n * cols..(n + 1) * cols];
                let from = &from[((first + s) * SUB).min(cols)..];
                let mut last = [0.0; SUB];
                let numbers = from.first_chunk::<SUB>().unwrap_or_else(|| {
                    last[..from.len()].copy_from_slice(from);
                    &last
                });
                let (bytes, scale) = round(isa, numbers, known.map(|known| known[n]));
                for (j, four) in bytes.as_chunks::<4>().0.iter().enumerate() {
                    let at =
                        if I::MATRIX { 2 * (j / 2 * tokens + n) + j % 2 } else { j * tokens + n };
                    codes[at] = four.map(i8::cast_unsigned);
                }
                let total: i32 = bytes.iter().map(|b| i32::from(*b)).sum();
                *own_correction = match (parts, offsets, biased) {
                    (2, ..) => halves(&bytes),
                    (_, true, true) => total.to_le_bytes(),
                    (_, true, false) => (-scale * total as f32).to_le_bytes(),
                    (_, false, _) => (-zero * total).to_le_bytes(),
                };
                *own_scale = (scale / fraction).to_le_bytes();
            }
        }
    }
}

/// The sums of both halves: each at most 16 · 127.
#[inline(always)]
fn halves(bytes: &[i8; SUB]) -> [u8; 4] {
    let sum = |half: &[i8]| half.iter().map(|b| i16::from(*b)).sum::<i16>().to_le_bytes();
    let (first, second) = bytes.split_at(SUB / 2);
    let ([a, b], [c, d]) = (sum(first), sum(second));
    [a, b, c, d]
}

/// The nearest multiples of a scale, and that scale: by default a 127th of the largest magnitude.
#[inline(always)]
fn round<I: Isa>(isa: I, x: &[f32; SUB], known: Option<f32>) -> ([i8; SUB], f32) {
    let [a, b] = x.as_chunks::<LANES>().0 else { unreachable!("two vectors") };
    let (a, b) = (isa.load(a), isa.load(b));
    let (scale, inverse) = match known {
        Some(scale) => (scale, if scale > 0.0 { 1.0 / scale } else { 0.0 }),
        None => {
            let most = isa.max_lane(isa.max(isa.abs(a), isa.abs(b)));
            (most / 127.0, if most > 0.0 { 127.0 / most } else { 0.0 })
        }
    };
    let mut bytes = [0; SUB];
    let by = isa.splat(inverse);
    let [low, high] = bytes.as_chunks_mut::<LANES>().0 else { unreachable!("two vectors") };
    isa.store_low_bytes(isa.round(isa.mul(a, by)), low);
    isa.store_low_bytes(isa.round(isa.mul(b, by)), high);
    (bytes, scale)
}
