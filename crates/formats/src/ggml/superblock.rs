//! Blocks of 256 weights in groups that have scales of their own, as ggml's K-quants are.

use lathe_simd::{Isa, Op};

use super::importance::Weighing;
use super::lanes::{F, LANES, Number, side_by_side};
use crate::{Affine, Format, Levels, Scales, Span, round::nearest_wrapped};

/// ggml's QK_K: weights per superblock.
pub(crate) const WEIGHTS: usize = 256;

/// A block of [`WEIGHTS`] weights in groups.
pub(crate) trait Super: Format {
    /// Weights that share a scale.
    const GROUP: usize;
    const LEVELS: Levels;

    /// Codes a row as the reference does; to be called through [`encode_row`].
    fn encode_blocks(src: &[f32], weighing: Weighing<'_>, dst: &mut [Self]);
    /// The map that decoding applies to a group.
    fn affine(&self, group: usize) -> Affine;
    /// Takes one code per weight.
    fn set_codes(&mut self, codes: &[u8; WEIGHTS]);
    /// One code per weight.
    fn codes(&self) -> [u8; WEIGHTS];
}

/// A row to be coded with the best instructions of the machine.
struct Encode<'a, B> {
    src: &'a [f32],
    weighing: Weighing<'a>,
    dst: &'a mut [B],
}

impl<B: Super> Op for Encode<'_, B> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        B::encode_blocks(self.src, self.weighing, self.dst);
    }
}

/// Codes a row as the reference does, without or with an importance of columns.
pub(crate) fn encode_row<B: Super>(src: &[f32], importance: Option<&[f32]>, dst: &mut [B]) {
    lathe_simd::run(Encode { src, weighing: importance.into(), dst });
}

/// Codes one block.
pub(crate) fn encode<B: Super>(src: &[f32], importance: Option<&[f32]>) -> B {
    let mut block = B::zeroed();
    encode_row(src, importance, std::slice::from_mut(&mut block));
    block
}

/// What the codes of a block stand for.
#[inline(always)]
pub(crate) fn decode<B: Super>(block: &B, out: &mut [f32]) {
    let codes = block.codes();
    let groups = out.chunks_exact_mut(B::GROUP).zip(codes.chunks_exact(B::GROUP));
    for (group, (out, codes)) in groups.enumerate() {
        let Affine { scale, offset } = block.affine(group);
        for (out, code) in out.iter_mut().zip(codes) {
            *out = scale * B::LEVELS.value(*code) + offset;
        }
    }
}

/// The nearest codes of a group, or false where its scale is 0 and says nothing of them.
#[inline(always)]
pub(crate) fn nearest<B: Super>(block: &B, group: usize, src: &[f32], codes: &mut [u8]) -> bool {
    let Affine { scale, offset } = block.affine(group);
    let Levels::Integers { low, high } = B::LEVELS else { return false };
    if scale == 0.0 {
        return false;
    }
    for (code, x) in codes.iter_mut().zip(src) {
        *code = (nearest_wrapped((x - offset) / scale).max(low).min(high) - low) as u8;
    }
    true
}

/// Cuts a row into runs of blocks that have [`LANES`] groups together, the last perhaps fewer.
#[inline(always)]
pub(crate) fn batches<B: Super, const N: usize>(
    src: &[f32],
    weighing: Weighing<'_>,
    dst: &mut [B],
    mut encode: impl FnMut(&[f32], Weighing<'_>, &mut [B]),
) {
    let blocks = (LANES * N / B::BLOCK).max(1);
    for (i, dst) in dst.chunks_mut(blocks).enumerate() {
        let range = i * blocks * B::BLOCK..(i * blocks + dst.len()) * B::BLOCK;
        encode(&src[range.clone()], weighing.of(range), dst);
    }
}

/// What an error in each weight counts where its column has an importance `q`:
/// `q · sqrt(spread · Σ w² + w²)`, the sum over the superblock.
#[inline(always)]
pub(crate) fn weights<const N: usize>(
    x: &[F; N],
    src: &[f32],
    importance: &[f32],
    spread: f32,
) -> [F; N] {
    let mut squares = [0.0; LANES];
    for (block, squares) in src.chunks_exact(WEIGHTS).zip(squares.chunks_exact_mut(WEIGHTS / N)) {
        squares.fill(block.iter().fold(0.0, |sum, x| sum + x * x) * spread);
    }
    by_spread(x, F(squares), importance)
}

/// As [`weights`], where the spread of each group is known.
#[inline(always)]
pub(crate) fn by_spread<const N: usize>(x: &[F; N], spread: F, importance: &[f32]) -> [F; N] {
    let mut out = side_by_side::<N>(importance);
    for (out, x) in out.iter_mut().zip(x) {
        *out = *out * (spread + *x * *x).map(f32::sqrt);
    }
    out
}

/// The scales of one block, for [`crate::Grid::fit`].
pub(crate) fn fit<B: Super>(span: Span<'_>, scales: &mut Scales) {
    let mut block = B::zeroed();
    if let Some(encode) = B::weighted(span.effort) {
        encode(span.weights, span.importance, std::slice::from_mut(&mut block));
    }
    scales.affine.clear();
    scales.affine.extend((0..WEIGHTS / B::GROUP).map(|group| block.affine(group)));
    scales.stored.clear();
    scales.stored.extend_from_slice(bytemuck::bytes_of(&block));
}

/// Puts codes beside the scales of [`fit`].
pub(crate) fn pack<B: Super>(scales: &Scales, codes: &[u8], out: &mut [u8]) {
    let mut block: B = bytemuck::pod_read_unaligned(&scales.stored);
    let mut all = [0; WEIGHTS];
    all.copy_from_slice(codes);
    block.set_codes(&all);
    out.copy_from_slice(bytemuck::bytes_of(&block));
}

/// The low two bits of every code: of each 128, those of the first 32 in the lowest two bits of 32
/// bytes, those of the next 32 above them, and so on.
#[inline(always)]
pub(crate) fn pack_twos(codes: &[u8; WEIGHTS]) -> [u8; 64] {
    let mut out = [0; 64];
    for (bytes, codes) in out.chunks_exact_mut(32).zip(codes.chunks_exact(128)) {
        for (j, byte) in bytes.iter_mut().enumerate() {
            let bits = |k: usize| (codes[j + 32 * k] & 3) << (2 * k);
            *byte = bits(0) | bits(1) | bits(2) | bits(3);
        }
    }
    out
}

/// What [`pack_twos`] has packed.
#[inline(always)]
pub(crate) fn unpack_twos(bytes: &[u8; 64]) -> [u8; WEIGHTS] {
    let mut codes = [0; WEIGHTS];
    for (bytes, codes) in bytes.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
        for (k, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = byte >> (2 * k) & 3;
            }
        }
    }
    codes
}
