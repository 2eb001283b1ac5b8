use bytemuck::{Pod, Zeroable};
use half::f16;

use super::importance::Weighing;
use super::lanes::{F, LANES, side_by_side};
use super::polish::{Parted, Parts};
use super::superblock::{self, Super, WEIGHTS};
use super::table::{self, IQ4_LEVELS};
use crate::{Affine, Levels, round::nearest_wrapped};

/// ggml's IQ4_XS: 256 codes of four bits among uneven levels, in eight groups with signed scales
/// of six bits.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Iq4Xs {
    /// f16, little-endian: what a scale of 1 stands for.
    pub scale: [u8; 2],
    /// Of the scales + 32, the high two bits: those of group g in bits 2 g of a little-endian u16.
    pub scales_high: [u8; 2],
    /// The low four bits of two scales in a byte.
    pub scales_low: [u8; 4],
    /// Of every 32 weights, the first 16 in the low nibbles of 16 bytes, the others in the high.
    pub codes: [u8; 128],
}

/// Weights in a group, and groups in a block.
const GROUP: usize = 32;
const GROUPS: usize = WEIGHTS / GROUP;
/// Half of the scales.
const SCALE_TOP: i32 = 32;

impl Super for Iq4Xs {
    const GROUP: usize = GROUP;
    const LEVELS: Levels = Levels::Table(&IQ4_LEVELS);

    #[inline(always)]
    fn encode_blocks(src: &[f32], weighing: Weighing<'_>, dst: &mut [Self]) {
        superblock::batches::<Self, GROUP>(src, weighing, dst, |src, weighing, dst| {
            let x = side_by_side::<GROUP>(src);
            let weights = match weighing {
                Weighing::Own => x.map(|x| x * x),
                Weighing::Importance(all) => {
                    superblock::weights(&x, src, all, 2.0 / WEIGHTS as f32)
                }
                Weighing::Exact(all) => side_by_side(all),
            };
            let F(scales) = table::search(&x, &weights);
            let blocks = dst.iter_mut().zip(src.chunks_exact(WEIGHTS));
            for ((block, src), scales) in blocks.zip(scales.chunks_exact(GROUPS)) {
                *block = with_scales(scales, src);
            }
        });
    }

    #[inline(always)]
    fn affine(&self, group: usize) -> Affine {
        let scale = f16::from_le_bytes(self.scale).to_f32() * self.scale_of(group) as f32;
        Affine { scale, offset: 0.0 }
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8; WEIGHTS]) {
        for (bytes, codes) in self.codes.chunks_exact_mut(16).zip(codes.chunks_exact(32)) {
            for (j, byte) in bytes.iter_mut().enumerate() {
                *byte = codes[j] | codes[j + 16] << 4;
            }
        }
    }

    #[inline(always)]
    fn codes(&self) -> [u8; WEIGHTS] {
        let mut codes = [0; WEIGHTS];
        for (bytes, codes) in self.codes.chunks_exact(16).zip(codes.chunks_exact_mut(32)) {
            for (j, byte) in bytes.iter().enumerate() {
                codes[j] = byte & 15;
                codes[j + 16] = byte >> 4;
            }
        }
        codes
    }
}

/// A block with scales as parts of the largest, which becomes −32. The codes come of the block's
/// scale before it is rounded to f16.
#[inline(always)]
fn with_scales(scales: &[f32], src: &[f32]) -> Iq4Xs {
    let mut all = [0.0; LANES];
    all[..GROUPS].copy_from_slice(scales);
    let scale = -super::symmetric::largest(&all) / SCALE_TOP as f32;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (mut chosen, mut codes) = ([0; GROUPS], [0; WEIGHTS]);
    let groups = src.chunks_exact(GROUP).zip(codes.chunks_exact_mut(GROUP));
    for (group, (src, codes)) in groups.enumerate() {
        let code = nearest_wrapped(inverse * scales[group]).clamp(-SCALE_TOP, SCALE_TOP - 1);
        table::nearest_codes(scale * code as f32, src, codes);
        chosen[group] = code;
    }
    let mut block = Iq4Xs::with_codes(scale, &chosen);
    block.set_codes(&codes);
    block
}

impl Iq4Xs {
    /// The signed scale of a group.
    #[inline(always)]
    fn scale_of(&self, group: usize) -> i32 {
        let low = self.scales_low[group / 2] >> (4 * (group % 2)) & 15;
        let high = u16::from_le_bytes(self.scales_high) >> (2 * group) & 3;
        i32::from(low) + (i32::from(high) << 4) - SCALE_TOP
    }

    /// A block with these signed scales and any codes.
    fn with_codes(scale: f32, codes: &[i32]) -> Self {
        let (mut high, mut low) = (0, [0; 4]);
        for (group, code) in codes.iter().enumerate().take(GROUPS) {
            let code = (code + SCALE_TOP) as u8;
            low[group / 2] |= (code & 15) << (4 * (group % 2));
            high |= u16::from(code >> 4) << (2 * group);
        }
        Self {
            scale: f16::from_f32(scale).to_le_bytes(),
            scales_high: high.to_le_bytes(),
            scales_low: low,
            codes: [0; 128],
        }
    }
}

impl Parted for Iq4Xs {
    const SCALES: (i32, i32) = (-SCALE_TOP, SCALE_TOP - 1);
    const MINIMA: i32 = 0;

    fn parts(&self) -> Parts {
        let mut scales = [0; LANES];
        for (group, scale) in scales.iter_mut().enumerate().take(GROUPS) {
            *scale = self.scale_of(group);
        }
        let scale = f16::from_le_bytes(self.scale).to_f32();
        Parts { scale, min: 0.0, scales, minima: [0; LANES] }
    }

    fn of_parts(parts: &Parts) -> Self {
        Self::with_codes(parts.scale, &parts.scales)
    }
}

super_format! {
    Iq4Xs, "iq4_xs", "iq4_xs", limit: 65504.0 * 1024.0, bound: 0.2, reach: 127 * 32,
    "per 256 weights: f16 scale s, 6-bit scales of groups of 32 in 6 bytes, 128 bytes of nibbles; w = s · (scale − 32) · level(code)"
}
