//! INT4 in groups along a row, as compressed-tensors' `pack-quantized` numbers have it.

use bytemuck::{Pod, Zeroable};
use half::bf16;

use crate::{
    Affine, Effort, Erased, Format, Grid, Levels, Scaled, grid,
    round::{absmax, half_even},
    search,
};

/// A symmetric group of `N` weights; `H` is N / 2.
///
/// The scale is absmax / 7.5 (half of the 15 steps between −8 and 7) rounded to bfloat16, a code
/// is weight / scale rounded half to even and clamped to −8..=7.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Int4<const N: usize, const H: usize> {
    /// bf16, little-endian.
    pub scale: [u8; 2],
    /// code + 8; the even weight in the low nibble, the odd one after it in the high nibble.
    pub codes: [u8; H],
}

/// An asymmetric group of `N` weights; `H` is N / 2.
///
/// The range of the group is widened to hold 0, the scale is a fifteenth of it, the zero point
/// −8 − min / scale rounded half to even and clamped to −8..=7; the scale is then rounded to
/// bfloat16, and a code is weight / scale + zero point, rounded and clamped likewise.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Int4Asym<const N: usize, const H: usize> {
    /// bf16, little-endian.
    pub scale: [u8; 2],
    /// zero point + 8.
    pub zero: u8,
    /// code + 8; the even weight in the low nibble, the odd one after it in the high nibble.
    pub codes: [u8; H],
}

pub type Int4G32 = Int4<32, 16>;
pub type Int4G64 = Int4<64, 32>;
pub type Int4G128 = Int4<128, 64>;
pub type Int4AsymG32 = Int4Asym<32, 16>;
pub type Int4AsymG64 = Int4Asym<64, 32>;
pub type Int4AsymG128 = Int4Asym<128, 64>;

// SAFETY: byte arrays only, so that all zeros is a value.
unsafe impl<const N: usize, const H: usize> Zeroable for Int4<N, H> {}
// SAFETY: `repr(C)` over byte arrays has alignment 1, no padding, and takes every bit pattern.
unsafe impl<const N: usize, const H: usize> Pod for Int4<N, H> {}
// SAFETY: bytes only, so that all zeros is a value.
unsafe impl<const N: usize, const H: usize> Zeroable for Int4Asym<N, H> {}
// SAFETY: `repr(C)` over bytes has alignment 1, no padding, and takes every bit pattern.
unsafe impl<const N: usize, const H: usize> Pod for Int4Asym<N, H> {}

const SOURCE: &str = "compressed-tensors calculate_qparams and pack-quantized, scales in bf16";

/// The largest input: the widest asymmetric range must still be a finite f32.
const LIMIT: f32 = f32::MAX / 2.0;

/// Packs `weight / scale + zero`, rounded and clamped to four bits, two codes a byte.
#[inline(always)]
fn pack<const H: usize>(src: &[f32], scale: f32, zero: f32) -> [u8; H] {
    let code = |x: f32| (half_even((x / scale + zero).clamp(-8.0, 7.0)) + 8) as u8;
    let mut codes = [0; H];
    for (byte, pair) in codes.iter_mut().zip(src.chunks_exact(2)) {
        *byte = code(pair[0]) & 15 | code(pair[1]) << 4;
    }
    codes
}

#[inline(always)]
fn unpack(codes: &[u8], scale: [u8; 2], zero: i32, out: &mut [f32]) {
    let scale = bf16::from_le_bytes(scale).to_f32();
    for (byte, pair) in codes.iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = (i32::from(byte & 15) - zero) as f32 * scale;
        pair[1] = (i32::from(byte >> 4) - zero) as f32 * scale;
    }
}

/// The scale as stored. As in the reference, one that is 0 (a group of zeros, or of numbers below
/// what bf16 holds) becomes bf16's machine epsilon, so that nobody divides by it.
#[inline(always)]
fn stored(scale: f32) -> bf16 {
    let scale = bf16::from_f32(scale);
    if scale == bf16::ZERO { bf16::EPSILON } else { scale }
}

/// The scale and the zero point (−8..=7) of an asymmetric group. The zero point is of the scale
/// before it is rounded, the codes will be of the one after.
fn range(src: &[f32]) -> (f32, i32) {
    let low = src.iter().fold(0.0, |low: f32, x| if *x < low { *x } else { low });
    let high = src.iter().fold(0.0, |high: f32, x| if *x > high { *x } else { high });
    let scale = (high - low) / 15.0;
    let zero = if scale > 0.0 { (-8.0 - low / scale).clamp(-8.0, 7.0) } else { 0.0 };
    (scale, half_even(zero))
}

/// What rounding a scale to bf16 loses: relative for normal numbers, absolute below.
fn scale_error(scale: f32) -> f32 {
    (scale * 2f32.powi(-8)).max(f32::MIN_POSITIVE * 2f32.powi(-8))
}

impl<const N: usize, const H: usize> Format for Int4<N, H> {
    const NAME: &'static str = match N {
        32 => "int4_g32",
        64 => "int4_g64",
        _ => "int4_g128",
    };
    const LAYOUT: &'static str = match N {
        32 => "per 32 weights: bf16 scale, 16 bytes of nibbles; w = scale · (code − 8)",
        64 => "per 64 weights: bf16 scale, 32 bytes of nibbles; w = scale · (code − 8)",
        _ => "per 128 weights: bf16 scale, 64 bytes of nibbles; w = scale · (code − 8)",
    };
    const SOURCE: &'static str = SOURCE;
    const BLOCK: usize = N;
    const LIMIT: f32 = LIMIT;

    fn encode(src: &[f32]) -> Self {
        let scale = stored(absmax(src) / 7.5);
        Self { scale: scale.to_le_bytes(), codes: pack(src, scale.to_f32(), 0.0) }
    }

    fn decode(&self, out: &mut [f32]) {
        unpack(&self.codes, self.scale, 8, out);
    }

    fn grid() -> Option<&'static dyn Grid> {
        Some(Erased::<Self>::REF)
    }

    fn error_bound(absmax: f32) -> f32 {
        // Half a step; the positive end lies 7.5 steps up and is clamped to 7: half a step too.
        let scale = absmax / 7.5;
        0.5001 * scale + 8.0 * scale_error(scale)
    }
}

impl<const N: usize, const H: usize> Format for Int4Asym<N, H> {
    const NAME: &'static str = match N {
        32 => "int4_asym_g32",
        64 => "int4_asym_g64",
        _ => "int4_asym_g128",
    };
    const LAYOUT: &'static str = match N {
        32 => "per 32 weights: bf16 scale, u8 zero, 16 bytes of nibbles; w = scale · (code − zero)",
        64 => "per 64 weights: bf16 scale, u8 zero, 32 bytes of nibbles; w = scale · (code − zero)",
        _ => "per 128 weights: bf16 scale, u8 zero, 64 bytes of nibbles; w = scale · (code − zero)",
    };
    const SOURCE: &'static str = SOURCE;
    const BLOCK: usize = N;
    const LIMIT: f32 = LIMIT;

    fn encode(src: &[f32]) -> Self {
        let (scale, zero) = range(src);
        let scale_stored = stored(scale);
        let codes = pack(src, scale_stored.to_f32(), zero as f32);
        Self { scale: scale_stored.to_le_bytes(), zero: (zero + 8) as u8, codes }
    }

    fn decode(&self, out: &mut [f32]) {
        unpack(&self.codes, self.scale, i32::from(self.zero), out);
    }

    fn grid() -> Option<&'static dyn Grid> {
        Some(Erased::<Self>::REF)
    }

    fn error_bound(absmax: f32) -> f32 {
        // The range is at most twice absmax. A rounded zero point shifts the grid by up to half a
        // step against the range, so that an end is clamped by no more than rounding moves it.
        let scale = 2.0 * (absmax / 15.0);
        0.5001 * scale + 15.0 * scale_error(scale)
    }
}

/// Two codes a byte, the first in the low nibble.
fn nibbles<const H: usize>(codes: &[u8]) -> [u8; H] {
    let mut nibbles = [0; H];
    for (byte, pair) in nibbles.iter_mut().zip(codes.chunks_exact(2)) {
        *byte = pair[0] & 15 | pair[1] << 4;
    }
    nibbles
}

impl<const N: usize, const H: usize> Scaled for Int4<N, H> {
    const LEVELS: Levels = Levels::Integers { low: -8, high: 7 };

    fn fit(weights: &[f32], importance: Option<&[f32]>, effort: Effort) -> Self {
        let scale = grid::scale(Self::LEVELS, absmax(weights) / 7.5, weights, importance, effort);
        Self { scale: stored(scale).to_le_bytes(), codes: [0; H] }
    }

    fn affine(&self) -> Affine {
        Affine { scale: bf16::from_le_bytes(self.scale).to_f32(), offset: 0.0 }
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.codes = nibbles(codes);
    }
}

impl<const N: usize, const H: usize> Scaled for Int4Asym<N, H> {
    const LEVELS: Levels = Levels::Integers { low: 0, high: 15 };

    fn fit(weights: &[f32], importance: Option<&[f32]>, effort: Effort) -> Self {
        let (mut scale, mut zero) = range(weights);
        if effort == Effort::Search {
            (scale, zero) = search::scale_and_zero(0..=15, (scale, zero + 8), weights, importance);
            zero -= 8;
        }
        Self { scale: stored(scale).to_le_bytes(), zero: (zero + 8) as u8, codes: [0; H] }
    }

    fn affine(&self) -> Affine {
        let scale = bf16::from_le_bytes(self.scale).to_f32();
        Affine { scale, offset: -scale * f32::from(self.zero) }
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.codes = nibbles(codes);
    }
}
