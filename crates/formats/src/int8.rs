use lathe_base::Buf;

use crate::{
    Affine, AnyFormat, Blocks, Effort, Error, Grid, Levels, Rows, Scales, Span,
    format::encode_by_row,
    grid,
    round::{absmax, half_even},
    tiles::Tiles,
};

/// INT8 per output channel: a row's codes, then its f32 scale.
///
/// The scale is absmax / 127, a code is weight / scale rounded half to even: −127..=127, so that
/// the grid is symmetric. Not a [`crate::Format`], because a row is one block of any length.
#[derive(Debug)]
pub struct Int8;

impl Int8 {
    /// The codes and the scale of one row of [`Blocks`] in this format.
    pub fn row(blocks: &Blocks, row: usize) -> (&[i8], f32) {
        let (codes, scale) = blocks.row(row).split_at(blocks.cols);
        (bytemuck::cast_slice(codes), read_scale(scale))
    }
}

fn read_scale(bytes: &[u8]) -> f32 {
    let mut scale = [0; 4];
    scale.copy_from_slice(bytes);
    f32::from_le_bytes(scale)
}

fn encode_row(src: &[f32], dst: &mut [u8]) {
    let scale = absmax(src) / 127.0;
    let (codes, tail) = dst.split_at_mut(src.len());
    tail.copy_from_slice(&scale.to_le_bytes());
    let step = if scale > 0.0 { scale } else { f32::INFINITY };
    for (code, x) in codes.iter_mut().zip(src) {
        *code = half_even((x / step).clamp(-127.0, 127.0)) as i8 as u8;
    }
}

impl AnyFormat for Int8 {
    fn name(&self) -> &'static str {
        "int8"
    }

    fn layout(&self) -> &'static str {
        "per row: i8 codes, then f32 scale; w = scale · code"
    }

    fn source(&self) -> &'static str {
        "symmetric absmax / 127 per output channel; codes as bitsandbytes' int8_vectorwise_quant \
         up to the order of its two roundings"
    }

    fn block(&self) -> usize {
        1
    }

    fn row_bytes(&self, cols: usize) -> usize {
        cols.saturating_add(size_of::<f32>())
    }

    fn limit(&self) -> f32 {
        // 127 times a scale that was rounded up must stay finite.
        f32::MAX / 2.0
    }

    fn error_bound(&self, absmax: f32) -> f32 {
        // Half a step; the smallest f32s are steps of their own.
        (0.5001 * (absmax / 127.0)).max(127.0 * f32::from_bits(1))
    }

    fn decode_row(&self, blocks: &Blocks, row: usize, out: &mut [f32]) {
        let (codes, scale) = Self::row(blocks, row);
        for (out, code) in out.iter_mut().zip(codes) {
            *out = f32::from(*code) * scale;
        }
    }

    fn encode_from(&'static self, source: &dyn Rows, threads: usize) -> Result<Blocks, Error> {
        encode_by_row(self, source, threads, |_, src, dst| encode_row(src, dst))
    }

    fn grid(&'static self) -> Option<&'static dyn Grid> {
        Some(self)
    }
}

impl Grid for Int8 {
    fn span(&self, cols: usize) -> usize {
        cols
    }

    fn group(&self, cols: usize) -> usize {
        cols
    }

    fn levels(&self) -> Levels {
        Levels::Integers { low: -127, high: 127 }
    }

    fn fit(&self, span: Span<'_>, scales: &mut Scales) {
        let own = absmax(span.weights) / 127.0;
        let scale = grid::scale(self.levels(), own, span, |scale| scale);
        scales.set(Affine { scale, offset: 0.0 }, &scale.to_le_bytes());
    }

    fn pack(&self, scales: &Scales, codes: &[u8], out: &mut [u8]) {
        let (to, scale) = out.split_at_mut(codes.len());
        for (to, code) in to.iter_mut().zip(codes) {
            *to = code.wrapping_sub(127);
        }
        scale.copy_from_slice(&scales.stored);
    }
}

/// INT8 with one f32 scale for the matrix, which is the side data.
///
/// The scale is absmax / 127.5 (half of the 255 steps between −128 and 127), a code weight / scale
/// rounded half to even and clamped. As in compressed-tensors, a scale of 0 becomes f32's machine
/// epsilon.
#[derive(Debug)]
pub struct Int8Tensor;

impl AnyFormat for Int8Tensor {
    fn name(&self) -> &'static str {
        "int8_tensor"
    }

    fn layout(&self) -> &'static str {
        "per matrix: f32 scale; i8 codes; w = scale · code"
    }

    fn source(&self) -> &'static str {
        "compressed-tensors calculate_qparams, strategy tensor"
    }

    fn block(&self) -> usize {
        1
    }

    fn row_bytes(&self, cols: usize) -> usize {
        cols
    }

    fn limit(&self) -> f32 {
        f32::MAX / 2.0
    }

    fn error_bound(&self, absmax: f32) -> f32 {
        // Half a step, at the positive end too; the smallest f32s are steps of their own.
        (0.5001 * (absmax / 127.5)).max(128.0 * f32::from_bits(1))
    }

    fn side_bytes(&self, _: usize, _: usize) -> usize {
        size_of::<f32>()
    }

    fn decode_row(&self, blocks: &Blocks, row: usize, out: &mut [f32]) {
        let scale = read_scale(&blocks.side);
        for (out, code) in out.iter_mut().zip(blocks.row(row)) {
            *out = f32::from(code.cast_signed()) * scale;
        }
    }

    fn encode_from(&'static self, source: &dyn Rows, threads: usize) -> Result<Blocks, Error> {
        let side = self.begin(source, None, Effort::Nearest, threads);
        let scale = read_scale(&side);
        let blocks = encode_by_row(self, source, threads, |_, src, dst| {
            for (code, x) in dst.iter_mut().zip(src) {
                *code = half_even((x / scale).clamp(-128.0, 127.0)) as i8 as u8;
            }
        })?;
        Ok(Blocks { side, ..blocks })
    }

    fn grid(&'static self) -> Option<&'static dyn Grid> {
        Some(self)
    }
}

impl Grid for Int8Tensor {
    fn span(&self, cols: usize) -> usize {
        cols
    }

    fn group(&self, cols: usize) -> usize {
        cols
    }

    fn levels(&self) -> Levels {
        Levels::Integers { low: -128, high: 127 }
    }

    fn begin(
        &self,
        weights: &dyn Rows,
        importance: Option<&[f32]>,
        effort: Effort,
        threads: usize,
    ) -> Buf {
        let (rows, cols) = weights.shape();
        let own = |absmax: f32| match absmax / 127.5 {
            0.0 => f32::EPSILON,
            scale => scale,
        };
        let (all, how) = (Tiles { rows, cols }, (importance, effort));
        let scales = all.scales(weights, &self.levels().into(), own, how, threads);
        scales.first().copied().unwrap_or(own(0.0)).to_le_bytes().to_vec().into()
    }

    fn fit(&self, span: Span<'_>, scales: &mut Scales) {
        scales.set(Affine { scale: read_scale(span.side), offset: 0.0 }, &[]);
    }

    fn pack(&self, _: &Scales, codes: &[u8], out: &mut [u8]) {
        for (to, code) in out.iter_mut().zip(codes) {
            *to = code ^ 128;
        }
    }
}
