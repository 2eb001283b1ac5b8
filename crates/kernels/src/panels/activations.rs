use lathe_simd::{Isa, LANES, Op};

use super::{Kind, SUB};
use crate::{Pool, output::Output};

/// Inputs rounded to eight bits, in tiles of tokens.
///
/// A tile of N tokens is a run of sub-blocks of 40 N bytes: eight times four columns of each
/// token as i8 (for [`Isa::dot_matrix`] four times eight), then each token's f32 scale, then its
/// correction for the zero of the codes: their sum times that zero as i32; where rows have offsets
/// of their own the scaled sum as f32, or the plain one as i32 where there is a zero as well; where
/// sub-blocks have two parts, the plain sum of each as i16.
pub(super) struct Activations<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) subs: usize,
    pub(super) t: usize,
    pub(super) tile: usize,
}

/// How many tokens a tile has at most, and what it is a multiple of where there are as many.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) most: usize,
    pub(super) of: usize,
}

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
        (t, subs, tiles): (usize, usize, Tiles),
        kind: Kind,
        room: &'a mut [u8],
    ) -> Self {
        let tile = t.div_ceil(t.div_ceil(tiles.most)).next_multiple_of(tiles.of);
        let token = subs * TOKEN_SUB;
        let cols = x.len() / t;
        let out = Output::new(room);
        pool.run(t.div_ceil(tile), &|index| {
            let first = index * tile;
            let tokens = tile.min(t - first);
            // SAFETY: tiles do not overlap.
            let to = unsafe { out.part(first * token, tokens * token) };
            let x = &x[first * cols..(first + tokens) * cols];
            let scales = scales.map(|scales| &scales[first..first + tokens]);
            lathe_simd::run(Quantize { x, scales, cols, tokens, kind, to });
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
        let Self { x, scales: known, cols, tokens, kind, to } = self;
        let (zero, fraction) = (kind.zero::<I>(), kind.fraction());
        for (s, sub) in to.chunks_exact_mut(tokens * TOKEN_SUB).enumerate() {
            let (codes, rest) = sub.split_at_mut(tokens * SUB);
            let (scales, corrections) = rest.split_at_mut(tokens * 4);
            for n in 0..tokens {
                let mut numbers = [0.0; SUB];
                let from = &x[n * cols..(n + 1) * cols];
                let from = &from[(s * SUB).min(cols)..(s * SUB + SUB).min(cols)];
                numbers[..from.len()].copy_from_slice(from);
                let (bytes, scale) = round(isa, &numbers, known.map(|known| known[n]));
                for (j, four) in bytes.as_chunks::<4>().0.iter().enumerate() {
                    let at = if I::MATRIX {
                        4 * (2 * (j / 2 * tokens + n) + j % 2)
                    } else {
                        4 * (j * tokens + n)
                    };
                    codes[at..at + 4].copy_from_slice(&four.map(i8::cast_unsigned));
                }
                let total: i32 = bytes.iter().map(|b| i32::from(*b)).sum();
                let correction = match (kind.parts(), kind.has_offsets(), kind.is_biased()) {
                    (2, ..) => halves(&bytes),
                    (_, true, true) => total.to_le_bytes(),
                    (_, true, false) => (-scale * total as f32).to_le_bytes(),
                    (_, false, _) => (-zero * total).to_le_bytes(),
                };
                scales[4 * n..4 * n + 4].copy_from_slice(&(scale / fraction).to_le_bytes());
                corrections[4 * n..4 * n + 4].copy_from_slice(&correction);
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
