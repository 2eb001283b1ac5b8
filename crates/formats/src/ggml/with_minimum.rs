use bytemuck::{Pod, Zeroable};
use half::f16;

use super::small::{self, Rule, Small};
use crate::{
    Affine, Effort, Erased, Format, Grid, Levels, Scaled, Span,
    format::Weighted,
    round::{inverse, range},
};

/// ggml's Q4_1: 32 codes of four bits, their f16 scale and their f16 minimum.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Q4_1 {
    /// f16, little-endian.
    pub scale: [u8; 2],
    pub min: [u8; 2],
    /// Weight j in the low nibble of byte j, weight j + 16 in the high one.
    pub low: [u8; 16],
}

/// ggml's Q5_1: 32 codes of five bits, their f16 scale and their f16 minimum.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_1 {
    /// f16, little-endian.
    pub scale: [u8; 2],
    pub min: [u8; 2],
    /// The fifth bit of each code: bit j of this little-endian u32 belongs to weight j.
    pub high: [u8; 4],
    /// The lower four bits: weight j in the low nibble of byte j, weight j + 16 in the high one.
    pub low: [u8; 16],
}

/// What the two have alike; `$high` is the field that only one has.
macro_rules! with_minimum {
    ($block:ident, $name:literal, $theirs:literal, $top:literal, $layout:literal, $($high:ident)?) => {
        impl Format for $block {
            const NAME: &'static str = $name;
            const LAYOUT: &'static str = $layout;
            const SOURCE: &'static str =
                concat!("ggml block_", $theirs, "; bytes as its quantize_", $theirs);
            const BLOCK: usize = small::WEIGHTS;
            // The minimum in f16, and a range of twice that.
            const LIMIT: f32 = 65504.0;

            #[inline(always)]
            fn encode(src: &[f32]) -> Self {
                let (min, max) = range(src);
                let scale = (max - min) / $top as f32;
                let inverse = inverse(scale);
                let mut codes = [0; small::WEIGHTS];
                for (code, x) in codes.iter_mut().zip(src) {
                    *code = (((x - min) * inverse + 0.5) as i32).min($top) as u8;
                }
                let mut block = Self::with_scale(f16::from_f32(scale), f16::from_f32(min));
                block.set_codes(&codes);
                block
            }

            #[inline(always)]
            fn decode(&self, out: &mut [f32]) {
                let Affine { scale, offset } = self.affine();
                for (out, code) in out.iter_mut().zip(self.codes()) {
                    *out = f32::from(code) * scale + offset;
                }
            }

            fn error_bound(absmax: f32) -> f32 {
                // Half a step, `top` times the rounding of the scale to f16, and that of the
                // minimum.
                let scale = 2.0 * absmax / $top as f32;
                let rounding = |x: f32| (x * 2f32.powi(-11)).max(2f32.powi(-25));
                0.5001 * scale + $top as f32 * rounding(scale) + rounding(absmax)
            }

            fn grid() -> Option<&'static dyn Grid> {
                Some(Erased::<Self>::REF)
            }

            fn weighted(effort: Effort) -> Option<Weighted<Self>> {
                (effort == Effort::Nearest).then_some(small::encode_row)
            }
        }

        impl Small for $block {
            const RULE: Rule = Rule::Minimum { top: $top };

            fn with_scale(scale: f16, min: f16) -> Self {
                let (scale, min) = (scale.to_le_bytes(), min.to_le_bytes());
                Self { scale, min, $($high: [0; 4],)? low: [0; 16] }
            }
        }

        impl Scaled for $block {
            const LEVELS: Levels = Levels::Integers { low: 0, high: $top };

            fn fit(span: Span<'_>) -> Self {
                let Span { weights, importance, effort, .. } = span;
                match (importance, effort) {
                    (None, Effort::Nearest) => Self::encode(weights),
                    (None, Effort::Search) => {
                        small::fit(weights, Some(&[1.0; small::WEIGHTS]), effort)
                    }
                    (Some(_), _) => small::fit(weights, importance, effort),
                }
            }

            fn affine(&self) -> Affine {
                Affine {
                    scale: f16::from_le_bytes(self.scale).to_f32(),
                    offset: f16::from_le_bytes(self.min).to_f32(),
                }
            }

            #[inline(always)]
            fn set_codes(&mut self, codes: &[u8]) {
                for (j, byte) in self.low.iter_mut().enumerate() {
                    *byte = codes[j] & 15 | codes[j + 16] << 4;
                }
                $(
                    let bits = codes.iter().take(small::WEIGHTS).enumerate();
                    let high = bits.fold(0, |bits, (j, code)| bits | u32::from(code >> 4) << j);
                    self.$high = high.to_le_bytes();
                )?
            }
        }

        impl $block {
            #[inline(always)]
            fn codes(&self) -> [u8; small::WEIGHTS] {
                let mut codes = [0; small::WEIGHTS];
                for (j, byte) in self.low.iter().enumerate() {
                    codes[j] = byte & 15;
                    codes[j + 16] = byte >> 4;
                }
                $(
                    let high = u32::from_le_bytes(self.$high);
                    for (j, code) in codes.iter_mut().enumerate() {
                        *code |= ((high >> j & 1) << 4) as u8;
                    }
                )?
                codes
            }
        }
    };
}

with_minimum! {
    Q4_1, "q4_1", "q4_1", 15,
    "per 32 weights: f16 scale, f16 minimum, 16 bytes of nibbles; w = scale · code + minimum",
}

with_minimum! {
    Q5_1, "q5_1", "q5_1", 31,
    "per 32 weights: f16 scale, f16 minimum, u32 of fifth bits, 16 bytes of nibbles; w = scale · code + minimum",
    high
}
