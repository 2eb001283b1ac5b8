//! What Q4_K and Q5_K share: groups of 32 with scales and minima of six bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::lanes::{F, LANES, Number};
use super::polish::Parts;
use crate::Affine;

/// Eight scales and eight minima of six bits in twelve bytes: the first four scales and the first
/// four minima in the low six bits of eight bytes; of the last four, the low four bits in a nibble
/// each of the last four bytes (scales low) and the high two bits on top of the first eight.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Sixes(pub [u8; 12]);

/// Groups of a block.
const GROUPS: usize = 8;

impl Sixes {
    /// Packs scales and minima; bits above the sixth fall where ggml lets them.
    pub(crate) fn new(scales: &[u8], minima: &[u8]) -> Self {
        let mut out = [0; 12];
        out[..4].copy_from_slice(&scales[..4]);
        out[4..8].copy_from_slice(&minima[..4]);
        for j in 4..GROUPS {
            let (scale, min) = (scales[j], minima[j]);
            out[j + 4] = scale & 15 | (min & 15) << 4;
            out[j - 4] |= scale >> 4 << 6;
            out[j] |= min >> 4 << 6;
        }
        Self(out)
    }

    /// Scale and minimum of a group.
    #[inline(always)]
    pub fn get(&self, group: usize) -> (u8, u8) {
        let bytes = &self.0;
        if group < 4 {
            (bytes[group] & 63, bytes[group + 4] & 63)
        } else {
            let low = bytes[group + 4];
            (low & 15 | bytes[group - 4] >> 6 << 4, low >> 4 | bytes[group] >> 6 << 4)
        }
    }

    /// All of them, where the superblock's scale and minimum are these.
    pub(crate) fn parts(&self, scale: [u8; 2], min: [u8; 2]) -> Parts {
        let mut parts = Parts {
            scale: f16::from_le_bytes(scale).to_f32(),
            min: f16::from_le_bytes(min).to_f32(),
            scales: [0; LANES],
            minima: [0; LANES],
        };
        for group in 0..GROUPS {
            let (scale, min) = self.get(group);
            (parts.scales[group], parts.minima[group]) = (scale.into(), min.into());
        }
        parts
    }

    /// The map of a group, where the superblock's scale and minimum are these.
    #[inline(always)]
    pub(crate) fn affine(&self, group: usize, scale: [u8; 2], min: [u8; 2]) -> Affine {
        let (scales, minima) = self.get(group);
        Affine {
            scale: f16::from_le_bytes(scale).to_f32() * f32::from(scales),
            offset: -(f16::from_le_bytes(min).to_f32() * f32::from(minima)),
        }
    }
}

/// What errors weigh in Q4_K and Q5_K: the group's root mean square and the weight's magnitude.
#[inline(always)]
pub(crate) fn by_magnitude<const N: usize>(x: &[F; N]) -> [F; N] {
    let squares = x.iter().fold(F::all(0.0), |sum, x| sum + *x * *x);
    let mean = (squares / F::all(N as f32)).map(f32::sqrt);
    x.map(|x| mean + x.map(f32::abs))
}
