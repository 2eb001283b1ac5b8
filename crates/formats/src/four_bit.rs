//! bitsandbytes' four-bit formats: codes into a table of sixteen levels, times the largest magnitude
//! of a block of 64.

use std::{fmt, marker::PhantomData};

use bytemuck::{Pod, Zeroable};

use crate::{Affine, Erased, Format, Grid, Levels, Scaled, Span, grid, round::absmax};

/// A table of sixteen levels.
pub trait Table: fmt::Debug + Copy + Send + Sync + 'static {
    /// The names of the format with plain scales, and with scales coded in eight bits.
    const NAMES: [&'static str; 2];
    /// Where the levels are from.
    const SOURCE: &'static str;
    /// The levels in ascending order; 0 may be there twice.
    const LEVELS: &'static [f32; 16];
    /// The code of each.
    const CODES: [u8; 16];
    /// The levels in ascending order, each once, and their codes.
    const DISTINCT: (&'static [f32], &'static [u8]);
    /// Half of the widest gap between neighbouring levels, and a little rounding.
    const HALF_GAP: f32;
}

/// NF4: quantiles of the normal distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormalFloat;

/// FP4: a float of two bits of exponent and one of mantissa, in twelfths; the code is its bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Float4;

impl Table for NormalFloat {
    const NAMES: [&'static str; 2] = ["nf4", "nf4_dq"];
    const SOURCE: &'static str = "bitsandbytes quantize_4bit, block 64; QLoRA, arXiv 2305.14314";
    const LEVELS: &'static [f32; 16] = &NF4_LEVELS;
    const CODES: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    const DISTINCT: (&'static [f32], &'static [u8]) = (&NF4_LEVELS, &Self::CODES);
    // −1 and −0.696.
    const HALF_GAP: f32 = 0.1520;
}

impl Table for Float4 {
    const NAMES: [&'static str; 2] = ["fp4", "fp4_dq"];
    const SOURCE: &'static str = "bitsandbytes quantize_4bit with quant_type fp4, block 64";
    const LEVELS: &'static [f32; 16] = &FP4_LEVELS;
    // The least of positive numbers get the code of −0, as in the reference.
    const CODES: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];
    const DISTINCT: (&'static [f32], &'static [u8]) =
        (&FP4_DISTINCT, &[11, 10, 13, 12, 15, 14, 9, 0, 1, 6, 7, 4, 5, 2, 3]);
    // 1 and 2/3.
    const HALF_GAP: f32 = 0.1668;
}

/// The levels of FP4: eight, four and so on in twelfths.
const FP4_LEVELS: [f32; 16] = {
    let twelfths = [-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -0.0625, 0.0];
    let mut levels = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        levels[i] = twelfths[i] / 12.0;
        levels[15 - i] = -twelfths[i] / 12.0;
        i += 1;
    }
    // Not −0.
    levels[8] = 0.0;
    levels
};

const FP4_DISTINCT: [f32; 15] = {
    let mut levels = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        levels[i] = FP4_LEVELS[if i < 8 { i } else { i + 1 }];
        i += 1;
    }
    levels
};

/// A block of 64 codes and the largest magnitude.
///
/// The numbers are bitsandbytes': a weight is multiplied by the reciprocal of absmax and gets the
/// code of the nearest level, a midpoint belonging to the lower one.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct FourBit<T> {
    /// f32, little-endian.
    pub absmax: [u8; 4],
    /// The even weight in the high nibble, the odd one after it in the low nibble.
    pub codes: [u8; 32],
    table: PhantomData<T>,
}

pub type Nf4 = FourBit<NormalFloat>;
pub type Fp4 = FourBit<Float4>;

// SAFETY: byte arrays and nothing, so that all zeros is a value.
unsafe impl<T> Zeroable for FourBit<T> {}
// SAFETY: `repr(C)` over byte arrays has alignment 1, no padding, and takes every bit pattern.
unsafe impl<T: Copy + 'static> Pod for FourBit<T> {}

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
const fn midpoints(levels: &[f32; 16]) -> [f32; 15] {
    let mut midpoints = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        midpoints[i] = (levels[i] + levels[i + 1]) / 2.0;
        i += 1;
    }
    midpoints
}

/// Where bitsandbytes stops dividing: blocks of smaller numbers are coded as against this.
const SMALLEST: f32 = 1e-38;

pub(crate) const BLOCK: usize = 64;

/// Codes of one block against its absmax.
#[inline(always)]
fn codes<T: Table>(src: &[f32], absmax: f32) -> [u8; BLOCK / 2] {
    let midpoints = const { midpoints(T::LEVELS) };
    let inverse = 1.0 / absmax.max(SMALLEST);
    let mut places = [0u8; BLOCK];
    for (place, x) in places.iter_mut().zip(src) {
        // No clamp: whatever rounding leaves above 1 is above the last midpoint all the same.
        let x = x * inverse;
        *place = midpoints.iter().map(|midpoint| u8::from(x > *midpoint)).sum();
    }
    nibbles(&places, &T::CODES)
}

/// Two codes a byte, the first in the high nibble: those of the levels at `places` of a table.
#[inline(always)]
pub(crate) fn nibbles(places: &[u8], codes: &[u8]) -> [u8; BLOCK / 2] {
    let mut nibbles = [0; BLOCK / 2];
    for (byte, pair) in nibbles.iter_mut().zip(places.as_chunks::<2>().0) {
        *byte = codes[usize::from(pair[0])] << 4 | codes[usize::from(pair[1])];
    }
    nibbles
}

/// The weights that `codes` stand for.
#[inline(always)]
pub(crate) fn levels<T: Table>(codes: &[u8], absmax: f32, out: &mut [f32]) {
    let by_code = const {
        let mut by_code = [0.0; 16];
        let mut i = 0;
        while i < 16 {
            by_code[T::CODES[i] as usize] = T::LEVELS[i];
            i += 1;
        }
        by_code
    };
    for (byte, pair) in codes.iter().zip(out.as_chunks_mut::<2>().0) {
        pair[0] = by_code[usize::from(byte >> 4)] * absmax;
        pair[1] = by_code[usize::from(byte & 15)] * absmax;
    }
}

impl<T: Table> Format for FourBit<T> {
    const NAME: &'static str = T::NAMES[0];
    const LAYOUT: &'static str =
        "per 64 weights: f32 absmax, 32 bytes of nibbles; w = absmax · level(code)";
    const SOURCE: &'static str = T::SOURCE;
    const BLOCK: usize = BLOCK;
    // Half of what an f32 holds, because double quantization takes differences of two absmax.
    const LIMIT: f32 = f32::MAX / 2.0;

    #[inline(always)]
    fn encode(src: &[f32]) -> Self {
        let absmax = absmax(src);
        Self { absmax: absmax.to_le_bytes(), codes: codes::<T>(src, absmax), table: PhantomData }
    }

    #[inline(always)]
    fn decode(&self, out: &mut [f32]) {
        levels::<T>(&self.codes, f32::from_le_bytes(self.absmax), out);
    }

    fn grid() -> Option<&'static dyn Grid> {
        Some(Erased::<Self>::REF)
    }

    fn error_bound(absmax: f32) -> f32 {
        // Below the smallest divisor a block may lose all of its (vanishing) numbers.
        if absmax < SMALLEST { 2.0 * absmax } else { T::HALF_GAP * absmax }
    }
}

impl<T: Table> Scaled for FourBit<T> {
    const LEVELS: Levels = Levels::Table(T::DISTINCT.0);

    fn fit(span: Span<'_>) -> Self {
        let absmax = grid::scale(Self::LEVELS, absmax(span.weights), span, |scale| scale);
        Self { absmax: absmax.to_le_bytes(), codes: [0; BLOCK / 2], table: PhantomData }
    }

    fn affine(&self) -> Affine {
        Affine { scale: f32::from_le_bytes(self.absmax), offset: 0.0 }
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.codes = nibbles(codes, T::DISTINCT.1);
    }
}
