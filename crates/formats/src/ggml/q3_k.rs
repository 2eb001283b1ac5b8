use bytemuck::{Pod, Zeroable};
use half::f16;

use super::importance::Weighing;
use super::lanes::{F, LANES, side_by_side};
use super::polish::{Parted, Parts};
use super::superblock::{self, Super, WEIGHTS, pack_twos, unpack_twos};
use super::symmetric::{self, Chosen, GROUP, Signed};
use crate::{Affine, Levels, round::nearest_wrapped};

/// ggml's Q3_K: 256 codes of three bits in sixteen groups with signed scales of six bits.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Q3K {
    /// The third bits: bit k of byte j belongs to weight 32 k + j.
    pub high: [u8; 32],
    /// The low two bits of every code, see [`pack_twos`].
    pub low: [u8; 64],
    /// Scales + 32: the low four bits of groups g and g + 8 in byte g, the high two bits of groups
    /// 4 k + j in bits 2 k of byte 8 + j.
    pub scales: [u8; 12],
    /// f16, little-endian: what a scale of 1 stands for.
    pub scale: [u8; 2],
}

/// Half of the levels.
const TOP: i32 = 4;
/// Half of the scales.
const SCALE_TOP: i32 = 32;

impl Super for Q3K {
    const GROUP: usize = GROUP;
    const LEVELS: Levels = Levels::Integers { low: -TOP, high: TOP - 1 };

    #[inline(always)]
    fn encode_blocks(src: &[f32], weighing: Weighing<'_>, dst: &mut [Self]) {
        symmetric::encode_row(src, weighing, dst);
    }

    #[inline(always)]
    fn affine(&self, group: usize) -> Affine {
        let scale = f16::from_le_bytes(self.scale).to_f32() * self.scale_of(group) as f32;
        Affine { scale, offset: 0.0 }
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8; WEIGHTS]) {
        self.low = pack_twos(codes);
        self.high = [0; 32];
        for (k, codes) in codes.chunks_exact(32).enumerate() {
            for (byte, code) in self.high.iter_mut().zip(codes) {
                *byte |= code >> 2 << k;
            }
        }
    }

    #[inline(always)]
    fn codes(&self) -> [u8; WEIGHTS] {
        let mut codes = unpack_twos(&self.low);
        for (k, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (byte, code) in self.high.iter().zip(codes) {
                *code |= (byte >> k & 1) << 2;
            }
        }
        codes
    }
}

impl Signed for Q3K {
    #[inline(always)]
    fn choose(x: &[F; GROUP], src: &[f32], weighing: Weighing<'_>) -> Chosen {
        let weights = match weighing {
            Weighing::Own => {
                let (scales, codes) = symmetric::descend(x, TOP);
                return Chosen { scales: scales.0, weights: None, codes };
            }
            Weighing::Importance(all) => superblock::weights(x, src, all, 2.0 / WEIGHTS as f32),
            Weighing::Exact(all) => side_by_side(all),
        };
        let (scales, inverse) = symmetric::search(x, &weights, TOP);
        let total = weights.iter().skip(1).fold(weights[0], |sum, w| sum + *w);
        let codes = symmetric::kept(x, inverse, TOP);
        Chosen { scales: scales.0, weights: Some(total.0), codes }
    }

    fn with_scales(chosen: &Chosen) -> Option<Self> {
        let scales = &chosen.scales;
        let (scale, codes) = match &chosen.weights {
            None => against_largest(scales),
            Some(weights) => {
                let (scale, inverse) = symmetric::search(scales, weights, SCALE_TOP);
                (scale, symmetric::kept(scales, inverse, SCALE_TOP).map(|code| code as u8))
            }
        };
        Some(Self::with_codes(scale, codes))
    }
}

impl Q3K {
    /// The signed scale of a group.
    #[inline(always)]
    fn scale_of(&self, group: usize) -> i32 {
        let low = self.scales[group % 8] >> (4 * (group / 8)) & 15;
        let high = self.scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        i32::from(low | high << 4) - SCALE_TOP
    }

    /// A block with these scales + 32 and any codes.
    fn with_codes(scale: f32, codes: [u8; LANES]) -> Self {
        let mut packed = [0; 12];
        for (group, code) in codes.iter().enumerate() {
            packed[group % 8] |= (code & 15) << (4 * (group / 8));
            packed[8 + group % 4] |= code >> 4 << (2 * (group / 4));
        }
        let scale = f16::from_f32(scale).to_le_bytes();
        Self { high: [0; 32], low: [0; 64], scales: packed, scale }
    }
}

/// Scales as parts of the largest, which becomes −32.
fn against_largest(scales: &[f32; LANES]) -> (f32, [u8; LANES]) {
    let largest = symmetric::largest(scales);
    if largest == 0.0 {
        return (0.0, [0; LANES]);
    }
    let inverse = -SCALE_TOP as f32 / largest;
    let code = |x: f32| nearest_wrapped(inverse * x).clamp(-SCALE_TOP, SCALE_TOP - 1);
    (1.0 / inverse, scales.map(|x| (code(x) + SCALE_TOP) as u8))
}

impl Parted for Q3K {
    const SCALES: (i32, i32) = (-SCALE_TOP, SCALE_TOP - 1);
    const MINIMA: i32 = 0;

    fn parts(&self) -> Parts {
        let scales = std::array::from_fn(|group| self.scale_of(group));
        let scale = f16::from_le_bytes(self.scale).to_f32();
        Parts { scale, min: 0.0, scales, minima: [0; LANES] }
    }

    fn of_parts(parts: &Parts) -> Self {
        Self::with_codes(parts.scale, parts.scales.map(|scale| (scale + SCALE_TOP) as u8))
    }
}

super_format! {
    Q3K, "q3_k", "q3_K", limit: 65504.0 * 64.0, bound: 0.34, reach: 32 * 4,
    "per 256 weights: 32 bytes of third bits, 64 bytes of the lower two, 6-bit scales of groups of 16 in 12 bytes, f16 scale s; w = s · (scale − 32) · (code − 4)"
}
