use lathe_simd::{Isa, LANES, Op};

use super::{Kind, SUB};
use crate::{Pool, output::Output};

/// Inputs rounded to eight bits, in tiles of tokens.
///
/// A tile of N tokens is a run of sub-blocks of 40 N bytes: eight times four columns of each
/// token as i8, then each token's f32 scale, then its correction for the zero of the codes (i32,
/// or f32 where every row has its own zero point; the plain sum as i32 where there are both).
pub(super) struct Activations<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) subs: usize,
    pub(super) t: usize,
    pub(super) tile: usize,
}

/// Bytes of one token's sub-block.
pub(super) const TOKEN_SUB: usize = SUB + 8;

impl<'a> Activations<'a> {
    /// Bytes that [`Activations::quantize`] needs.
    pub(super) fn bytes(t: usize, subs: usize) -> usize {
        t * subs * TOKEN_SUB
    }

    /// Rounds `x` `[t, cols]`, padded with zeros to `subs` sub-blocks, in tiles of at most `most`
    /// tokens that are as even as can be.
    pub(super) fn quantize(
        pool: &Pool,
        x: &[f32],
        (t, subs, most): (usize, usize, usize),
        kind: Kind,
        room: &'a mut [u8],
    ) -> Self {
        let tile = t.div_ceil(t.div_ceil(most));
        let token = subs * TOKEN_SUB;
        let cols = x.len() / t;
        let out = Output::new(room);
        pool.run(t.div_ceil(tile), &|index| {
            let first = index * tile;
            let tokens = tile.min(t - first);
            // SAFETY: tiles do not overlap.
            let to = unsafe { out.part(first * token, tokens * token) };
            let x = &x[first * cols..(first + tokens) * cols];
            lathe_simd::run(Quantize { x, cols, tokens, kind, to });
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
    cols: usize,
    tokens: usize,
    kind: Kind,
    to: &'a mut [u8],
}

impl Op for Quantize<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { x, cols, tokens, kind, to } = self;
        let (zero, fraction) = (kind.zero::<I>(), kind.fraction());
        for (s, sub) in to.chunks_exact_mut(tokens * TOKEN_SUB).enumerate() {
            let (codes, rest) = sub.split_at_mut(tokens * SUB);
            let (scales, corrections) = rest.split_at_mut(tokens * 4);
            for n in 0..tokens {
                let mut numbers = [0.0; SUB];
                let from = &x[n * cols..(n + 1) * cols];
                let from = &from[(s * SUB).min(cols)..(s * SUB + SUB).min(cols)];
                numbers[..from.len()].copy_from_slice(from);
                let (bytes, scale) = round(isa, &numbers);
                for (j, four) in bytes.as_chunks::<4>().0.iter().enumerate() {
                    let at = 4 * (j * tokens + n);
                    codes[at..at + 4].copy_from_slice(&four.map(i8::cast_unsigned));
                }
                let total: i32 = bytes.iter().map(|b| i32::from(*b)).sum();
                let correction = match (kind.has_zeros(), kind.is_biased()) {
                    (true, true) => total.to_le_bytes(),
                    (true, false) => (-scale * total as f32).to_le_bytes(),
                    (false, _) => (-zero * total).to_le_bytes(),
                };
                scales[4 * n..4 * n + 4].copy_from_slice(&(scale / fraction).to_le_bytes());
                corrections[4 * n..4 * n + 4].copy_from_slice(&correction);
            }
        }
    }
}

/// The nearest multiples of a 127th of the largest magnitude, and that 127th.
#[inline(always)]
fn round<I: Isa>(isa: I, x: &[f32; SUB]) -> ([i8; SUB], f32) {
    let [a, b] = x.as_chunks::<LANES>().0 else { unreachable!("two vectors") };
    let (a, b) = (isa.load(a), isa.load(b));
    let most = isa.max_lane(isa.max(isa.abs(a), isa.abs(b)));
    let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
    let mut bytes = [0; SUB];
    let by = isa.splat(inverse);
    let [low, high] = bytes.as_chunks_mut::<LANES>().0 else { unreachable!("two vectors") };
    isa.store_low_bytes(isa.round(isa.mul(a, by)), low);
    isa.store_low_bytes(isa.round(isa.mul(b, by)), high);
    (bytes, most / 127.0)
}
