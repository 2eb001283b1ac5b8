use bytemuck::{Pod, Zeroable};
use half::f16;

use super::small::{self, Rule, Small};
use super::table::IQ4_LEVELS;
use crate::{Affine, Effort, Erased, Format, Grid, Levels, Scaled, Span, format::Weighted};

/// ggml's IQ4_NL: 32 codes of four bits among uneven levels, and their f16 scale.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Iq4Nl {
    /// f16, little-endian.
    pub scale: [u8; 2],
    /// Weight j in the low nibble of byte j, weight j + 16 in the high one.
    pub codes: [u8; 16],
}

impl Format for Iq4Nl {
    const NAME: &'static str = "iq4_nl";
    const LAYOUT: &'static str =
        "per 32 weights: f16 scale, 16 bytes of nibbles; w = scale · level(code)";
    const SOURCE: &'static str = "ggml block_iq4_nl; bytes as its quantize_iq4_nl";
    const BLOCK: usize = small::WEIGHTS;
    const LIMIT: f32 = 65504.0 * 64.0;

    fn encode(src: &[f32]) -> Self {
        small::fit(src, None, Effort::Nearest)
    }

    #[inline(always)]
    fn decode(&self, out: &mut [f32]) {
        let scale = f16::from_le_bytes(self.scale).to_f32();
        for (j, byte) in self.codes.iter().enumerate() {
            out[j] = scale * IQ4_LEVELS[usize::from(byte & 15)];
            out[j + 16] = scale * IQ4_LEVELS[usize::from(byte >> 4)];
        }
    }

    fn error_bound(absmax: f32) -> f32 {
        // As for K-quants: a third above the worst seen.
        0.19 * absmax + 127.0 * 2f32.powi(-25)
    }

    fn grid() -> Option<&'static dyn Grid> {
        Some(Erased::<Self>::REF)
    }

    fn encode_row(src: &[f32], dst: &mut [Self]) {
        small::encode_row(src, None, dst);
    }

    fn weighted(effort: Effort) -> Option<Weighted<Self>> {
        (effort == Effort::Nearest).then_some(small::encode_row)
    }
}

impl Small for Iq4Nl {
    const RULE: Rule = Rule::Table;

    fn with_scale(scale: f16, _: f16) -> Self {
        Self { scale: scale.to_le_bytes(), codes: [0; 16] }
    }
}

impl Scaled for Iq4Nl {
    const LEVELS: Levels = Levels::Table(&IQ4_LEVELS);

    fn fit(span: Span<'_>) -> Self {
        small::fit(span.weights, span.importance, span.effort)
    }

    fn affine(&self) -> Affine {
        Affine { scale: f16::from_le_bytes(self.scale).to_f32(), offset: 0.0 }
    }

    #[inline(always)]
    fn set_codes(&mut self, codes: &[u8]) {
        for (j, byte) in self.codes.iter_mut().enumerate() {
            *byte = codes[j] | codes[j + 16] << 4;
        }
    }
}
