use bytemuck::{Pod, Zeroable};
use half::f16;

use super::affine::{self, Cuts, Minima, Tries};
use super::importance::Weighing;
use super::lanes::F;
use super::polish::{Parted, Parts};
use super::sixes::{Sixes, by_magnitude};
use super::superblock::{Super, WEIGHTS};
use crate::{Affine, Levels};

/// ggml's Q4_K: 256 codes of four bits in eight groups with scales and minima of six bits.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Q4K {
    /// f16, little-endian: what a scale of 1 stands for, and a minimum of 1.
    pub scale: [u8; 2],
    pub min: [u8; 2],
    /// Scales and minima of six bits, see [`Sixes`].
    pub sixes: Sixes,
    /// Of every 64 weights, the first 32 in the low nibbles of 32 bytes, the others in the high.
    pub low: [u8; 128],
}

impl Super for Q4K {
    const GROUP: usize = 32;
    const LEVELS: Levels = Levels::Integers { low: 0, high: 15 };

    #[inline(always)]
    fn encode_blocks(src: &[f32], weighing: Weighing<'_>, dst: &mut [Self]) {
        affine::encode_row::<Self, 32>(src, weighing, dst);
    }

    #[inline(always)]
    fn affine(&self, group: usize) -> Affine {
        self.sixes.affine(group, self.scale, self.min)
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8; WEIGHTS]) {
        for (bytes, codes) in self.low.chunks_exact_mut(32).zip(codes.chunks_exact(64)) {
            for (j, byte) in bytes.iter_mut().enumerate() {
                *byte = codes[j] | codes[j + 32] << 4;
            }
        }
    }

    #[inline(always)]
    fn codes(&self) -> [u8; WEIGHTS] {
        let mut codes = [0; WEIGHTS];
        for (bytes, codes) in self.low.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
            for (j, byte) in bytes.iter().enumerate() {
                codes[j] = byte & 15;
                codes[j + 32] = byte >> 4;
            }
        }
        codes
    }
}

impl Minima<32> for Q4K {
    const TRIES: Tries = Tries { top: 15, first: -1.0, step: 0.1, last: 20, absolute: false };
    const SCALE_TOP: i32 = 63;
    const CUTS: Cuts = Cuts { plain: true, weighted: false };
    const SPREAD: f32 = 2.0 / 256.0;

    #[inline(always)]
    fn own_weights(x: &[F; 32]) -> [F; 32] {
        by_magnitude(x)
    }

    fn with_scales(scale: f32, min: f32, scales: &[u8], minima: &[u8]) -> Self {
        Self {
            scale: f16::from_f32(scale).to_le_bytes(),
            min: f16::from_f32(min).to_le_bytes(),
            sixes: Sixes::new(scales, minima),
            low: [0; 128],
        }
    }
}

impl Parted for Q4K {
    const SCALES: (i32, i32) = (0, 63);
    const MINIMA: i32 = 63;

    fn parts(&self) -> Parts {
        self.sixes.parts(self.scale, self.min)
    }

    fn of_parts(parts: &Parts) -> Self {
        let (scales, minima) = (parts.scales.map(|x| x as u8), parts.minima.map(|x| x as u8));
        Self::with_scales(parts.scale, parts.min, &scales, &minima)
    }
}

super_format! {
    Q4K, "q4_k", "q4_K", limit: 65504.0 * 32.0, bound: 0.16, reach: 63 * 16,
    "per 256 weights: f16 scale s and minimum m, 6-bit scales and minima of groups of 32 in 12 bytes, 128 bytes of nibbles; w = s · scale · code − m · minimum"
}
