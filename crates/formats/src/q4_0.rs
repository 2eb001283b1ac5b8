use bytemuck::{Pod, Zeroable};
use half::f16;

use crate::{
    Affine, Effort, Erased, Format, Grid, Levels, Scaled, Span,
    format::Weighted,
    ggml::small::{self, Rule, Small},
    grid,
    round::{extreme, shifted_inverse},
};

/// ggml's Q4_0: 32 codes of four bits and their f16 scale.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Q4_0 {
    /// f16, little-endian.
    pub scale: [u8; 2],
    /// Weight j in the low nibble of byte j, weight j + 16 in the high one.
    pub codes: [u8; 16],
}

impl Format for Q4_0 {
    const NAME: &'static str = "q4_0";
    const LAYOUT: &'static str =
        "per 32 weights: f16 scale, 16 bytes of nibbles; w = scale · (code − 8)";
    const SOURCE: &'static str = "ggml block_q4_0; bytes as gguf-py's gguf/quants.py";
    const BLOCK: usize = 32;
    const LIMIT: f32 = 65504.0 * 8.0;

    #[inline(always)]
    fn encode(src: &[f32]) -> Self {
        // The weight of largest magnitude becomes −8, whatever its sign.
        let scale = extreme(src) / -8.0;
        let (inverse, shift) = shifted_inverse(scale, 8.5);
        let code = |x: f32| ((x * inverse + shift) as i32).min(15) as u8;
        let mut codes = [0; 16];
        for (j, byte) in codes.iter_mut().enumerate() {
            *byte = code(src[j]) & 15 | code(src[j + 16]) << 4;
        }
        Self { scale: f16::from_f32(scale).to_le_bytes(), codes }
    }

    #[inline(always)]
    fn decode(&self, out: &mut [f32]) {
        let scale = f16::from_le_bytes(self.scale).to_f32();
        for (j, byte) in self.codes.iter().enumerate() {
            out[j] = (i32::from(byte & 15) - 8) as f32 * scale;
            out[j + 16] = (i32::from(byte >> 4) - 8) as f32 * scale;
        }
    }

    fn grid() -> Option<&'static dyn Grid> {
        Some(Erased::<Self>::REF)
    }

    fn weighted(effort: Effort) -> Option<Weighted<Self>> {
        (effort == Effort::Nearest).then_some(small::encode_row)
    }

    fn error_bound(absmax: f32) -> f32 {
        // As for Q5_0: a whole step at the end opposite to the extreme, half a step elsewhere.
        let scale = absmax / 8.0;
        1.0001 * scale + 8.0 * (scale * 2f32.powi(-11)).max(2f32.powi(-25))
    }
}

impl Small for Q4_0 {
    const RULE: Rule = Rule::Symmetric { top: 8 };

    fn with_scale(scale: f16, _: f16) -> Self {
        Self { scale: scale.to_le_bytes(), codes: [0; 16] }
    }
}

impl Scaled for Q4_0 {
    const LEVELS: Levels = Levels::Integers { low: -8, high: 7 };

    fn fit(span: Span<'_>) -> Self {
        let scale = grid::signed_scale(Self::LEVELS, extreme(span.weights) / -8.0, span);
        Self { scale: f16::from_f32(scale).to_le_bytes(), codes: [0; 16] }
    }

    fn affine(&self) -> Affine {
        Affine { scale: f16::from_le_bytes(self.scale).to_f32(), offset: 0.0 }
    }

    fn set_codes(&mut self, codes: &[u8]) {
        for (j, byte) in self.codes.iter_mut().enumerate() {
            *byte = codes[j] & 15 | codes[j + 16] << 4;
        }
    }
}
