use bytemuck::{Pod, Zeroable};
use half::f16;

use super::affine::{self, Cuts, Minima, Tries};
use super::importance::Weighing;
use super::lanes::{F, Number};
use super::polish::{Parted, Parts};
use super::superblock::{Super, WEIGHTS, pack_twos, unpack_twos};
use crate::{Affine, Levels};

/// ggml's Q2_K: 256 codes of two bits in sixteen groups with scales and minima of four bits.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Q2K {
    /// Of each group, the scale in the low nibble and the minimum in the high one.
    pub scales: [u8; 16],
    /// Two bits a weight, see [`pack_twos`].
    pub codes: [u8; 64],
    /// f16, little-endian: what a scale of 1 stands for, and a minimum of 1.
    pub scale: [u8; 2],
    pub min: [u8; 2],
}

impl Super for Q2K {
    const GROUP: usize = 16;
    const LEVELS: Levels = Levels::Integers { low: 0, high: 3 };

    #[inline(always)]
    fn encode_blocks(src: &[f32], weighing: Weighing<'_>, dst: &mut [Self]) {
        affine::encode_row::<Self, 16>(src, weighing, dst);
    }

    #[inline(always)]
    fn affine(&self, group: usize) -> Affine {
        let both = self.scales[group];
        Affine {
            scale: f16::from_le_bytes(self.scale).to_f32() * f32::from(both & 15),
            offset: -(f16::from_le_bytes(self.min).to_f32() * f32::from(both >> 4)),
        }
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8; WEIGHTS]) {
        self.codes = pack_twos(codes);
    }

    #[inline(always)]
    fn codes(&self) -> [u8; WEIGHTS] {
        unpack_twos(&self.codes)
    }
}

impl Minima<16> for Q2K {
    const TRIES: Tries = Tries { top: 3, first: -0.5, step: 0.1, last: 15, absolute: true };
    const SCALE_TOP: i32 = 15;
    const CUTS: Cuts = Cuts { plain: false, weighted: false };
    const SPREAD: f32 = 1.0 / 256.0;

    #[inline(always)]
    fn own_weights(x: &[F; 16]) -> [F; 16] {
        x.map(|x| x.map(f32::abs))
    }

    fn with_scales(scale: f32, min: f32, scales: &[u8], minima: &[u8]) -> Self {
        let mut both = [0; 16];
        for (both, (scale, min)) in both.iter_mut().zip(scales.iter().zip(minima)) {
            *both = scale | min << 4;
        }
        Self {
            scales: both,
            codes: [0; 64],
            scale: f16::from_f32(scale).to_le_bytes(),
            min: f16::from_f32(min).to_le_bytes(),
        }
    }
}

impl Parted for Q2K {
    const SCALES: (i32, i32) = (0, 15);
    const MINIMA: i32 = 15;

    fn parts(&self) -> Parts {
        Parts {
            scale: f16::from_le_bytes(self.scale).to_f32(),
            min: f16::from_le_bytes(self.min).to_f32(),
            scales: self.scales.map(|both| i32::from(both & 15)),
            minima: self.scales.map(|both| i32::from(both >> 4)),
        }
    }

    fn of_parts(parts: &Parts) -> Self {
        let (scales, minima) = (parts.scales.map(|x| x as u8), parts.minima.map(|x| x as u8));
        Self::with_scales(parts.scale, parts.min, &scales, &minima)
    }
}

super_format! {
    Q2K, "q2_k", "q2_K", limit: 65504.0 * 8.0, bound: 0.8, reach: 15 * 4,
    "per 256 weights: 16 bytes of 4-bit scales and minima of groups of 16, 64 bytes of codes, f16 scale s and minimum m; w = s · scale · code − m · minimum"
}
