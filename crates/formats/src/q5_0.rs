use bytemuck::{Pod, Zeroable};
use half::f16;

use crate::{
    Affine, Effort, Erased, Format, Grid, Levels, Scaled, Span,
    format::Weighted,
    ggml::small::{self, Rule, Small},
    grid,
    round::{extreme, shifted_inverse},
};

/// ggml's Q5_0: 32 codes of five bits and their f16 scale.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_0 {
    /// f16, little-endian.
    pub scale: [u8; 2],
    /// The fifth bit of each code: bit j of this little-endian u32 belongs to weight j.
    pub high: [u8; 4],
    /// The lower four bits: weight j in the low nibble of byte j, weight j + 16 in the high one.
    pub low: [u8; 16],
}

impl Format for Q5_0 {
    const NAME: &'static str = "q5_0";
    const LAYOUT: &'static str = "per 32 weights: f16 scale, u32 of fifth bits, 16 bytes of nibbles; w = scale · (code − 16)";
    const SOURCE: &'static str = "ggml block_q5_0; bytes as gguf-py's gguf/quants.py";
    const BLOCK: usize = 32;
    const LIMIT: f32 = 65504.0 * 16.0;

    #[inline(always)]
    fn encode(src: &[f32]) -> Self {
        // The weight of largest magnitude becomes −16, whatever its sign.
        let scale = extreme(src) / -16.0;
        let (inverse, shift) = shifted_inverse(scale, 16.5);
        let mut codes = [0u8; 32];
        for (code, x) in codes.iter_mut().zip(src) {
            *code = ((x * inverse + shift) as i32).clamp(0, 31) as u8;
        }
        let mut block =
            Self { scale: f16::from_f32(scale).to_le_bytes(), high: [0; 4], low: [0; 16] };
        block.set_codes(&codes);
        block
    }

    #[inline(always)]
    fn decode(&self, out: &mut [f32]) {
        let scale = f16::from_le_bytes(self.scale).to_f32();
        let high = u32::from_le_bytes(self.high);
        for (j, byte) in self.low.iter().enumerate() {
            let first = i32::from(byte & 15) | ((high >> j & 1) << 4) as i32;
            let second = i32::from(byte >> 4) | ((high >> (j + 16) & 1) << 4) as i32;
            out[j] = (first - 16) as f32 * scale;
            out[j + 16] = (second - 16) as f32 * scale;
        }
    }

    fn grid() -> Option<&'static dyn Grid> {
        Some(Erased::<Self>::REF)
    }

    fn weighted(effort: Effort) -> Option<Weighted<Self>> {
        (effort == Effort::Nearest).then_some(small::encode_row)
    }

    fn error_bound(absmax: f32) -> f32 {
        // The end opposite to the extreme is cut one step short (−16..15): a whole step there,
        // half a step elsewhere, and 16 times the rounding of the scale to f16.
        let scale = absmax / 16.0;
        1.0001 * scale + 16.0 * (scale * 2f32.powi(-11)).max(2f32.powi(-25))
    }
}

impl Small for Q5_0 {
    const RULE: Rule = Rule::Symmetric { top: 16 };

    fn with_scale(scale: f16, _: f16) -> Self {
        Self { scale: scale.to_le_bytes(), high: [0; 4], low: [0; 16] }
    }
}

impl Scaled for Q5_0 {
    const LEVELS: Levels = Levels::Integers { low: -16, high: 15 };

    fn fit(span: Span<'_>) -> Self {
        let scale = grid::signed_scale(Self::LEVELS, extreme(span.weights) / -16.0, span);
        Self { scale: f16::from_f32(scale).to_le_bytes(), high: [0; 4], low: [0; 16] }
    }

    fn affine(&self) -> Affine {
        Affine { scale: f16::from_le_bytes(self.scale).to_f32(), offset: 0.0 }
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        for (j, byte) in self.low.iter_mut().enumerate() {
            *byte = codes[j] & 15 | codes[j + 16] << 4;
        }
        let bits = codes.iter().take(32).enumerate();
        let high = bits.fold(0, |bits, (j, code)| bits | u32::from(code >> 4) << j);
        self.high = high.to_le_bytes();
    }
}
