//! Formats without blocks: one number, one code.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::Format;

/// IEEE 754 binary32, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub struct F32(pub [u8; 4]);

/// IEEE 754 binary16, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub struct F16(pub [u8; 2]);

/// bfloat16, little-endian: the upper half of an f32.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub struct BF16(pub [u8; 2]);

impl Format for F32 {
    const NAME: &'static str = "f32";
    const LAYOUT: &'static str = "one little-endian binary32 per weight";
    const SOURCE: &'static str = "IEEE 754-2019";
    const BLOCK: usize = 1;
    const LIMIT: f32 = f32::MAX;

    #[inline(always)]
    fn encode(src: &[f32]) -> Self {
        Self(src[0].to_le_bytes())
    }

    #[inline(always)]
    fn decode(&self, out: &mut [f32]) {
        out[0] = f32::from_le_bytes(self.0);
    }

    fn error_bound(_: f32) -> f32 {
        0.0
    }
}

impl Format for F16 {
    const NAME: &'static str = "f16";
    const LAYOUT: &'static str = "one little-endian binary16 per weight";
    const SOURCE: &'static str = "IEEE 754-2019, rounding to nearest even";
    const BLOCK: usize = 1;
    // From 65520 on, rounding to nearest gives infinity.
    const LIMIT: f32 = 65519.996;

    fn encode(src: &[f32]) -> Self {
        Self(f16::from_f32(src[0]).to_le_bytes())
    }

    fn decode(&self, out: &mut [f32]) {
        out[0] = f16::from_le_bytes(self.0).to_f32();
    }

    fn error_bound(absmax: f32) -> f32 {
        // Half a unit in the last place: relative above 2⁻¹⁴, absolute below.
        (absmax * 2f32.powi(-11)).max(2f32.powi(-25))
    }

    // In runs: the conversion instruction is looked for once per run and not once per number.
    fn encode_row(src: &[f32], dst: &mut [Self]) {
        let mut run = [f16::ZERO; RUN];
        for (src, dst) in src.chunks(RUN).zip(dst.chunks_mut(RUN)) {
            let run = &mut run[..src.len()];
            run.convert_from_f32_slice(src);
            for (from, to) in run.iter().zip(dst) {
                to.0 = from.to_le_bytes();
            }
        }
    }

    fn decode_row(src: &[Self], out: &mut [f32]) {
        let mut run = [f16::ZERO; RUN];
        for (src, out) in src.chunks(RUN).zip(out.chunks_mut(RUN)) {
            for (from, to) in src.iter().zip(&mut run) {
                *to = f16::from_le_bytes(from.0);
            }
            run[..out.len()].convert_to_f32_slice(out);
        }
    }
}

/// Numbers converted at once: small enough for the stack and the first-level cache.
const RUN: usize = 256;

impl Format for BF16 {
    const NAME: &'static str = "bf16";
    const LAYOUT: &'static str = "one little-endian bfloat16 per weight";
    const SOURCE: &'static str = "upper half of binary32, rounding to nearest even";
    const BLOCK: usize = 1;
    // The midpoint above the largest bfloat16 rounds to infinity; this is the number before it.
    const LIMIT: f32 = f32::from_bits(0x7f7f_7fff);

    #[inline(always)]
    fn encode(src: &[f32]) -> Self {
        let bits = src[0].to_bits();
        // A NaN whose payload is all in the lower half must not become an infinity.
        let quiet = u32::from(src[0].is_nan()) << 22;
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let bits = if quiet != 0 { bits | quiet } else { rounded };
        Self(((bits >> 16) as u16).to_le_bytes())
    }

    #[inline(always)]
    fn decode(&self, out: &mut [f32]) {
        out[0] = bf16::from_le_bytes(self.0).to_f32();
    }

    fn error_bound(absmax: f32) -> f32 {
        (absmax * 2f32.powi(-8)).max(f32::MIN_POSITIVE * 2f32.powi(-8))
    }

    fn decode_row(src: &[Self], out: &mut [f32]) {
        for (src, out) in src.iter().zip(out) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes(src.0)) << 16);
        }
    }
}
