use bytemuck::{Pod, Zeroable};
use half::f16;

use super::affine::NOTHING;
use super::importance::Weighing;
use super::lanes::{F, LANES, side_by_side};
use super::polish::{Parted, Parts};
use super::superblock::{Super, WEIGHTS, pack_twos, unpack_twos};
use super::symmetric::{self, Chosen, GROUP, Signed};
use crate::{Affine, Levels, round::nearest_wrapped};

/// ggml's Q6_K: 256 codes of six bits in sixteen groups with signed scales of eight bits.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Q6K {
    /// The low four bits: of every 128 weights, the first 64 in the low nibbles of 64 bytes, the
    /// others in the high ones.
    pub low: [u8; 128],
    /// The high two bits of every code, see [`pack_twos`].
    pub high: [u8; 64],
    pub scales: [i8; 16],
    /// f16, little-endian: what a scale of 1 stands for.
    pub scale: [u8; 2],
}

/// Half of the levels.
const TOP: i32 = 32;

impl Super for Q6K {
    const GROUP: usize = GROUP;
    const LEVELS: Levels = Levels::Integers { low: -TOP, high: TOP - 1 };

    #[inline(always)]
    fn encode_blocks(src: &[f32], weighing: Weighing<'_>, dst: &mut [Self]) {
        symmetric::encode_row(src, weighing, dst);
    }

    #[inline(always)]
    fn affine(&self, group: usize) -> Affine {
        let scale = f16::from_le_bytes(self.scale).to_f32() * f32::from(self.scales[group]);
        Affine { scale, offset: 0.0 }
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8; WEIGHTS]) {
        for (bytes, codes) in self.low.chunks_exact_mut(64).zip(codes.chunks_exact(128)) {
            for (j, byte) in bytes.iter_mut().enumerate() {
                *byte = codes[j] & 15 | codes[j + 64] << 4;
            }
        }
        self.high = pack_twos(&codes.map(|code| code >> 4));
    }

    #[inline(always)]
    fn codes(&self) -> [u8; WEIGHTS] {
        let mut codes = unpack_twos(&self.high).map(|high| high << 4);
        for (bytes, codes) in self.low.chunks_exact(64).zip(codes.chunks_exact_mut(128)) {
            for (j, byte) in bytes.iter().enumerate() {
                codes[j] |= byte & 15;
                codes[j + 64] |= byte >> 4;
            }
        }
        codes
    }
}

impl Signed for Q6K {
    #[inline(always)]
    fn choose(x: &[F; GROUP], _: &[f32], weighing: Weighing<'_>) -> Chosen {
        let weights = match weighing {
            Weighing::Own => x.map(|x| x * x),
            Weighing::Importance(all) | Weighing::Exact(all) => side_by_side(all),
        };
        let (scales, inverse) = symmetric::search(x, &weights, TOP);
        Chosen { scales: scales.0, weights: None, codes: symmetric::kept(x, inverse, TOP) }
    }

    fn with_scales(chosen: &Chosen) -> Option<Self> {
        let largest = symmetric::largest(&chosen.scales);
        if largest.abs() < NOTHING {
            return None;
        }
        let inverse = -128.0 / largest;
        Some(Self {
            low: [0; 128],
            high: [0; 64],
            scales: chosen.scales.map(|x| nearest_wrapped(inverse * x).min(127) as i8),
            scale: f16::from_f32(1.0 / inverse).to_le_bytes(),
        })
    }
}

impl Parted for Q6K {
    const SCALES: (i32, i32) = (-128, 127);
    const MINIMA: i32 = 0;

    fn parts(&self) -> Parts {
        Parts {
            scale: f16::from_le_bytes(self.scale).to_f32(),
            min: 0.0,
            scales: self.scales.map(i32::from),
            minima: [0; LANES],
        }
    }

    fn of_parts(parts: &Parts) -> Self {
        Self {
            low: [0; 128],
            high: [0; 64],
            scales: parts.scales.map(|x| x as i8),
            scale: f16::from_f32(parts.scale).to_le_bytes(),
        }
    }
}

super_format! {
    Q6K, "q6_k", "q6_K", limit: 65504.0 * 1024.0, bound: 0.035, reach: 128 * 32,
    "per 256 weights: 128 bytes of low nibbles, 64 bytes of the upper two bits, 16 i8 scales of groups of 16, f16 scale s; w = s · scale · (code − 32)"
}
