use bytemuck::{Pod, Zeroable};
use half::f16;

use crate::{
    Affine, Erased, Format, Grid, Levels, Scaled, Span, grid,
    round::{absmax, half_away, inverse, through_f16},
};

/// ggml's Q8_0: 32 signed bytes and their f16 scale, absmax / 127.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Q8_0 {
    /// f16, little-endian.
    pub scale: [u8; 2],
    pub codes: [i8; 32],
}

impl Format for Q8_0 {
    const NAME: &'static str = "q8_0";
    const LAYOUT: &'static str = "per 32 weights: f16 scale, 32 i8 codes; w = scale · code";
    const SOURCE: &'static str = "ggml block_q8_0; bytes as gguf-py's gguf/quants.py";
    const BLOCK: usize = 32;
    const LIMIT: f32 = 65504.0 * 127.0;

    #[inline(always)]
    fn encode(src: &[f32]) -> Self {
        // The codes come from the scale before it is rounded to f16.
        let scale = absmax(src) / 127.0;
        let inverse = inverse(scale);
        let mut codes = [0; 32];
        for (code, x) in codes.iter_mut().zip(src) {
            *code = half_away(x * inverse) as i8;
        }
        Self { scale: f16::from_f32(scale).to_le_bytes(), codes }
    }

    #[inline(always)]
    fn decode(&self, out: &mut [f32]) {
        let scale = f16::from_le_bytes(self.scale).to_f32();
        for (out, code) in out.iter_mut().zip(self.codes) {
            *out = f32::from(code) * scale;
        }
    }

    fn grid() -> Option<&'static dyn Grid> {
        Some(Erased::<Self>::REF)
    }

    fn error_bound(absmax: f32) -> f32 {
        // Half a step, and 127 times the rounding of the scale to f16.
        let scale = absmax / 127.0;
        0.5001 * scale + 127.0 * (scale * 2f32.powi(-11)).max(2f32.powi(-25))
    }
}

impl Scaled for Q8_0 {
    const LEVELS: Levels = Levels::Integers { low: -127, high: 127 };

    fn fit(span: Span<'_>) -> Self {
        let own = absmax(span.weights) / 127.0;
        let scale = grid::scale(Self::LEVELS, own, span, through_f16);
        Self { scale: f16::from_f32(scale).to_le_bytes(), codes: [0; 32] }
    }

    fn affine(&self) -> Affine {
        Affine { scale: f16::from_le_bytes(self.scale).to_f32(), offset: 0.0 }
    }

    fn set_codes(&mut self, codes: &[u8]) {
        for (to, code) in self.codes.iter_mut().zip(codes) {
            *to = (i16::from(*code) - 127) as i8;
        }
    }
}
