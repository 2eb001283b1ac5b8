use bytemuck::{Pod, Zeroable};

use crate::{Affine, Effort, Erased, Format, Grid, Levels, Scaled, grid, round::absmax};

/// NF4: 64 codes into a table of normal quantiles, times the largest magnitude of the block.
///
/// The numbers are bitsandbytes': a weight is multiplied by the reciprocal of absmax and gets the
/// code of the nearest level, a midpoint belonging to the lower one.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Nf4 {
    /// f32, little-endian.
    pub absmax: [u8; 4],
    /// The even weight in the high nibble, the odd one after it in the low nibble.
    pub codes: [u8; 32],
}

/// The sixteen levels (QLoRA, arXiv 2305.14314, appendix E).
pub const NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// What lies above the midpoint of two neighbouring levels is nearer to the upper one.
const MIDPOINTS: [f32; 15] = {
    let mut midpoints = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        midpoints[i] = (NF4_LEVELS[i] + NF4_LEVELS[i + 1]) / 2.0;
        i += 1;
    }
    midpoints
};

/// Where bitsandbytes stops dividing: blocks of smaller numbers are coded as against this.
const SMALLEST: f32 = 1e-38;

pub(crate) const BLOCK: usize = 64;

/// Codes of one block against its absmax.
#[inline(always)]
pub(crate) fn codes(src: &[f32], absmax: f32) -> [u8; BLOCK / 2] {
    let inverse = 1.0 / absmax.max(SMALLEST);
    let mut levels = [0u8; BLOCK];
    for (level, x) in levels.iter_mut().zip(src) {
        // No clamp: whatever rounding leaves above 1 is above the last midpoint all the same.
        let x = x * inverse;
        *level = MIDPOINTS.iter().map(|midpoint| u8::from(x > *midpoint)).sum();
    }
    nibbles(&levels)
}

/// Two codes a byte, the first in the high nibble.
#[inline(always)]
pub(crate) fn nibbles(codes: &[u8]) -> [u8; BLOCK / 2] {
    let mut nibbles = [0; BLOCK / 2];
    for (byte, pair) in nibbles.iter_mut().zip(codes.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    nibbles
}

/// The weights that `codes` stand for.
#[inline(always)]
pub(crate) fn levels(codes: &[u8], absmax: f32, out: &mut [f32]) {
    for (byte, pair) in codes.iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = NF4_LEVELS[usize::from(byte >> 4)] * absmax;
        pair[1] = NF4_LEVELS[usize::from(byte & 15)] * absmax;
    }
}

/// Half of the widest gap between neighbouring levels (−1 and −0.696), and a little rounding.
pub(crate) const HALF_GAP: f32 = 0.1520;

impl Format for Nf4 {
    const NAME: &'static str = "nf4";
    const LAYOUT: &'static str =
        "per 64 weights: f32 absmax, 32 bytes of nibbles; w = absmax · level(code)";
    const SOURCE: &'static str = "bitsandbytes quantize_4bit, block 64; QLoRA, arXiv 2305.14314";
    const BLOCK: usize = BLOCK;
    // Half of what an f32 holds, because double quantization takes differences of two absmax.
    const LIMIT: f32 = f32::MAX / 2.0;

    #[inline(always)]
    fn encode(src: &[f32]) -> Self {
        let absmax = absmax(src);
        Self { absmax: absmax.to_le_bytes(), codes: codes(src, absmax) }
    }

    #[inline(always)]
    fn decode(&self, out: &mut [f32]) {
        levels(&self.codes, f32::from_le_bytes(self.absmax), out);
    }

    fn grid() -> Option<&'static dyn Grid> {
        Some(Erased::<Self>::REF)
    }

    fn error_bound(absmax: f32) -> f32 {
        // Below the smallest divisor a block may lose all of its (vanishing) numbers.
        if absmax < SMALLEST { 2.0 * absmax } else { HALF_GAP * absmax }
    }
}

impl Scaled for Nf4 {
    const LEVELS: Levels = Levels::Table(&NF4_LEVELS);

    fn fit(weights: &[f32], importance: Option<&[f32]>, effort: Effort) -> Self {
        let absmax = grid::scale(Self::LEVELS, absmax(weights), weights, importance, effort);
        Self { absmax: absmax.to_le_bytes(), codes: [0; BLOCK / 2] }
    }

    fn affine(&self) -> Affine {
        Affine { scale: f32::from_le_bytes(self.absmax), offset: 0.0 }
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.codes = nibbles(codes);
    }
}
