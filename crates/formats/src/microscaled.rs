//! FP4: E2M1 codes in small groups whose scales are themselves floats of eight bits.

use bytemuck::{Pod, Zeroable};
use lathe_base::Buf;

use crate::{
    Affine, AnyFormat, Blocks, Effort, Erased, Error, Format, Grid, Levels, Rows, Scaled, Scales,
    Span,
    format::encode_by_row,
    grid,
    minifloat::{E2M1, E2M1_LEVELS, E2M1_VALUES, E4M3, E4M3_VALUES, e2m1, e2m1_of_level, e4m3},
    round::absmax,
    search::{self, Rounding},
    tiles::Tiles,
};

/// MXFP4: 32 codes and the power of two that they are multiplied with.
///
/// The scale reaches from the group's largest magnitude to 4 or 6, the two largest codes: its
/// exponent is that of the magnitude, raised by one from 1.75 times a power of two on, less 2.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct MxFp4 {
    /// E8M0: the exponent + 127.
    pub scale: u8,
    /// E2M1; the even weight in the low nibble, the odd one after it in the high nibble.
    pub codes: [u8; 16],
}

/// The largest code.
const LARGEST: f32 = 6.0;

/// 2 to the power of `scale` − 127; 255 is not a number.
fn power(scale: u8) -> f32 {
    match scale {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(scale) << 23),
    }
}

/// Two codes a byte, the first in the low nibble.
#[inline(always)]
fn encode(weights: &[f32], scale: f32, codes: &mut [u8]) {
    for (byte, pair) in codes.iter_mut().zip(weights.as_chunks::<2>().0) {
        // As in the reference, −0 becomes 0, and only what rounds to it keeps its sign.
        *byte = e2m1(pair[0] / scale + 0.0) | e2m1(pair[1] / scale + 0.0) << 4;
    }
}

#[inline(always)]
fn decode(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (byte, pair) in codes.iter().zip(out.as_chunks_mut::<2>().0) {
        pair[0] = E2M1_VALUES[usize::from(byte & 15)] * scale;
        pair[1] = E2M1_VALUES[usize::from(byte >> 4)] * scale;
    }
}

fn pack(levels: &[u8], codes: &mut [u8]) {
    for (byte, pair) in codes.iter_mut().zip(levels.as_chunks::<2>().0) {
        *byte = e2m1_of_level(pair[0]) | e2m1_of_level(pair[1]) << 4;
    }
}

impl MxFp4 {
    fn own(weights: &[f32]) -> u8 {
        // A quarter of the power of two carries from 1.75 times it on; 2 is the exponent of 4.
        let exponent = (absmax(weights).to_bits() + (1 << 21)) >> 23;
        exponent.saturating_sub(2).min(254) as u8
    }
}

impl Format for MxFp4 {
    const NAME: &'static str = "mxfp4";
    const LAYOUT: &'static str =
        "per 32 weights: e8m0 scale, 16 bytes of e2m1 nibbles; w = scale · code";
    const SOURCE: &'static str =
        "OCP Microscaling Formats; compressed-tensors mxfp4-pack-quantized";
    const BLOCK: usize = 32;
    const LIMIT: f32 = f32::MAX / 2.0;

    fn encode(src: &[f32]) -> Self {
        let scale = Self::own(src);
        let mut codes = [0; 16];
        encode(src, power(scale), &mut codes);
        Self { scale, codes }
    }

    fn decode(&self, out: &mut [f32]) {
        decode(&self.codes, power(self.scale), out);
    }

    fn error_bound(absmax: f32) -> f32 {
        // Numbers up to 7 are cut to 6 where the exponent stays: a seventh at most; those from 4 to
        // 6 are off by up to 1 in 5. The smallest scale is a power of two like any other.
        0.2001 * absmax + f32::from_bits(0x0040_0000)
    }

    fn grid() -> Option<&'static dyn Grid> {
        Some(Erased::<Self>::REF)
    }
}

impl Scaled for MxFp4 {
    const LEVELS: Levels = Levels::Table(&E2M1_LEVELS);

    fn fit(span: Span<'_>) -> Self {
        let mut scale = Self::own(span.weights);
        if span.effort == Effort::Search && (1..254).contains(&scale) {
            // There are no scales between powers of two to fit: the neighbours are all there is.
            let mut gains = [0.0; 3];
            let group = (span.weights, span.importance);
            let parts = [1.0, 0.5, 2.0];
            search::gains(&Rounding::Float(E2M1), power(scale), group, &parts, &mut gains);
            if gains[1] > gains[0].max(gains[2]) {
                scale -= 1;
            } else if gains[2] > gains[0] {
                scale += 1;
            }
        }
        Self { scale, codes: [0; 16] }
    }

    fn affine(&self) -> Affine {
        Affine { scale: power(self.scale), offset: 0.0 }
    }

    fn set_codes(&mut self, codes: &[u8]) {
        pack(codes, &mut self.codes);
    }
}

/// NVFP4: 16 codes and their E4M3 scale, and one divisor of all scales, f32, as side data.
///
/// The divisor brings the largest magnitude of the matrix to the largest code, 6, under the
/// largest scale, 448. A group's scale is divisor · its largest magnitude / 6, rounded half to even;
/// 0 becomes 0.125.
#[derive(Debug)]
pub struct NvFp4;

const GROUP: usize = 16;
const GROUP_BYTES: usize = 1 + GROUP / 2;

/// The divisor of a matrix in [`NvFp4`], from its side data.
fn divisor(side: &[u8]) -> f32 {
    side.first_chunk().map_or(1.0, |bytes| f32::from_le_bytes(*bytes))
}

/// The scale's code for groups up to `absmax`.
fn scale_code(absmax: f32, divisor: f32) -> u8 {
    nonzero(e4m3(divisor * (absmax / LARGEST)))
}

/// Nobody divides by 0.
fn nonzero(code: u8) -> u8 {
    // 0.125 as E4M3.
    const EIGHTH: u8 = 0x20;
    if code == 0 { EIGHTH } else { code }
}

impl NvFp4 {
    /// The largest magnitude as the divisor that brings it to 448 · 6.
    fn divisor_for(absmax: f32) -> f32 {
        // In two steps, as the reference divides a number by a tensor.
        let divisor = 448.0 * LARGEST * (1.0 / absmax.max(f32::MIN_POSITIVE));
        if divisor.is_finite() { divisor } else { 1.0 }
    }
}

impl AnyFormat for NvFp4 {
    fn name(&self) -> &'static str {
        "nvfp4"
    }

    fn layout(&self) -> &'static str {
        "per 16 weights: e4m3 scale, 8 bytes of e2m1 nibbles; per matrix: f32 divisor; \
         w = scale / divisor · code"
    }

    fn source(&self) -> &'static str {
        "compressed-tensors nvfp4-pack-quantized"
    }

    fn block(&self) -> usize {
        GROUP
    }

    fn row_bytes(&self, cols: usize) -> usize {
        cols.div_ceil(GROUP).saturating_mul(GROUP_BYTES)
    }

    fn limit(&self) -> f32 {
        f32::MAX / 2.0
    }

    fn error_bound(&self, absmax: f32) -> f32 {
        // Half of the gap from 4 to 6, a sixteenth for the rounded scale (half of its last bit, at
        // six times it), and all of what is below the least scale of the matrix. Below 2688 over
        // the largest f32 the divisor would be infinite; it is 1 then, and nothing is left.
        absmax * (1.0 / 6.0 + 1.0 / 16.0 + 1.0 / 512.0) + absmax.min(8e-36)
    }

    fn side_bytes(&self, _: usize, _: usize) -> usize {
        4
    }

    fn decode_row(&self, blocks: &Blocks, row: usize, out: &mut [f32]) {
        let divisor = divisor(&blocks.side);
        let groups = blocks.row(row).chunks_exact(GROUP_BYTES).zip(out.chunks_exact_mut(GROUP));
        for (group, out) in groups {
            decode(&group[1..], E4M3_VALUES[usize::from(group[0])] / divisor, out);
        }
    }

    fn encode_from(&'static self, source: &dyn Rows, threads: usize) -> Result<Blocks, Error> {
        let side = self.begin(source, None, Effort::Nearest, threads);
        let divisor = divisor(&side);
        let blocks = encode_by_row(self, source, threads, |_, weights, row| {
            let groups = weights.chunks_exact(GROUP).zip(row.chunks_exact_mut(GROUP_BYTES));
            for (weights, group) in groups {
                group[0] = scale_code(absmax(weights), divisor);
                let scale = E4M3_VALUES[usize::from(group[0])] / divisor;
                encode(weights, scale, &mut group[1..]);
            }
        })?;
        Ok(Blocks { side, ..blocks })
    }

    fn grid(&'static self) -> Option<&'static dyn Grid> {
        Some(self)
    }
}

impl Grid for NvFp4 {
    fn span(&self, _: usize) -> usize {
        GROUP
    }

    fn group(&self, _: usize) -> usize {
        GROUP
    }

    fn levels(&self) -> Levels {
        Levels::Table(&E2M1_LEVELS)
    }

    fn begin(&self, weights: &dyn Rows, _: Option<&[f32]>, _: Effort, threads: usize) -> Buf {
        // The divisor only places the scales' range, so that there is nothing to search.
        let (rows, cols) = weights.shape();
        let how = (None, Effort::Nearest);
        let rounding = Rounding::Float(E4M3);
        let most = Tiles { rows, cols }.scales(weights, &rounding, |most| most, how, threads);
        let most = most.first().copied().unwrap_or(0.0);
        Self::divisor_for(most).to_le_bytes().to_vec().into()
    }

    fn fit(&self, span: Span<'_>, scales: &mut Scales) {
        let divisor = divisor(span.side);
        let code = |scale: f32| nonzero(e4m3(scale * divisor));
        let stored = |scale: f32| E4M3_VALUES[usize::from(code(scale))] / divisor;
        let own = scale_code(absmax(span.weights), divisor);
        let own = E4M3_VALUES[usize::from(own)] / divisor;
        let code = code(grid::scale(Rounding::Float(E2M1), own, span, stored));
        let scale = E4M3_VALUES[usize::from(code)] / divisor;
        scales.set(Affine { scale, offset: 0.0 }, &[code]);
    }

    fn pack(&self, scales: &Scales, codes: &[u8], out: &mut [u8]) {
        out[..1].copy_from_slice(&scales.stored);
        pack(codes, &mut out[1..]);
    }
}
