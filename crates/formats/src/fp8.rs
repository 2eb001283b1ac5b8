//! FP8: E4M3 codes, as torch's `float8_e4m3fn`, with f32 scales; a weight is scale · code.
//!
//! A scale is the largest magnitude of what it belongs to / 448, and a code weight / scale, rounded
//! half to even and saturated. As in compressed-tensors, a scale of 0 becomes f32's machine epsilon.

use lathe_base::Buf;

use crate::{
    Affine, AnyFormat, Blocks, Effort, Error, Grid, Levels, Rows, Scales, Span,
    format::encode_by_row,
    grid,
    minifloat::{E4M3, E4M3_LEVELS, E4M3_VALUES, e4m3, e4m3_of_level},
    round::absmax,
    search::Rounding,
    tiles::Tiles,
};

/// One scale per output channel: a row's codes, then its f32 scale.
#[derive(Debug)]
pub struct Fp8Row;

/// One scale for the matrix, which is the side data.
#[derive(Debug)]
pub struct Fp8Tensor;

/// One scale for each tile of 128 × 128, as DeepSeek-V3 has them. The side data are a u32, how
/// many rows of the first tiles lie before this matrix (not 0 only in a slice), and the scales,
/// f32 \[tiles down, tiles across\], all little-endian.
#[derive(Debug)]
pub struct Fp8Block;

const LARGEST: f32 = 448.0;
const TILE: usize = 128;
const SKIP: usize = 4;

/// The format's own scale for numbers up to `absmax`.
fn own(absmax: f32) -> f32 {
    let scale = absmax / LARGEST;
    if scale == 0.0 { f32::EPSILON } else { scale }
}

fn encode(weights: &[f32], scale: f32, codes: &mut [u8]) {
    for (code, weight) in codes.iter_mut().zip(weights) {
        // As in the reference, −0 becomes 0, and only what rounds to it keeps its sign.
        *code = e4m3(weight / scale + 0.0);
    }
}

fn decode(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (out, code) in out.iter_mut().zip(codes) {
        *out = E4M3_VALUES[usize::from(*code)] * scale;
    }
}

/// Half of the widest gap, 32 of 448; and what a scale that is no normal f32 is off by.
fn error_bound(absmax: f32) -> f32 {
    absmax * (16.001 / LARGEST) + LARGEST * f32::from_bits(1)
}

/// 448 times a scale that was rounded up must stay finite.
const LIMIT: f32 = f32::MAX / 2.0;

fn f32_at(bytes: &[u8], at: usize) -> f32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    f32::from_le_bytes(word)
}

fn pack(codes: &[u8], out: &mut [u8]) {
    for (out, code) in out.iter_mut().zip(codes) {
        *out = e4m3_of_level(*code);
    }
}

/// What the three have in common.
macro_rules! fp8 {
    ($type:ident, $name:literal, $layout:literal, $source:literal, { $($rest:item)* }) => {
        impl AnyFormat for $type {
            fn name(&self) -> &'static str {
                $name
            }
            fn layout(&self) -> &'static str {
                $layout
            }
            fn source(&self) -> &'static str {
                $source
            }
            fn block(&self) -> usize {
                1
            }
            fn limit(&self) -> f32 {
                LIMIT
            }
            fn error_bound(&self, absmax: f32) -> f32 {
                error_bound(absmax)
            }
            fn grid(&'static self) -> Option<&'static dyn Grid> {
                Some(self)
            }
            $($rest)*
        }
    };
}

fp8!(
    Fp8Row,
    "fp8_row",
    "per row: e4m3 codes, then f32 scale; w = scale · code",
    "compressed-tensors float-quantized, strategy channel; OCP 8-bit Floating Point",
    {
        fn row_bytes(&self, cols: usize) -> usize {
            cols.saturating_add(4)
        }

        fn decode_row(&self, blocks: &Blocks, row: usize, out: &mut [f32]) {
            let (codes, scale) = blocks.row(row).split_at(blocks.cols);
            decode(codes, f32_at(scale, 0), out);
        }

        fn encode_from(&'static self, source: &dyn Rows, threads: usize) -> Result<Blocks, Error> {
            encode_by_row(self, source, threads, |_, weights, row| {
                let (codes, tail) = row.split_at_mut(weights.len());
                let scale = own(absmax(weights));
                tail.copy_from_slice(&scale.to_le_bytes());
                encode(weights, scale, codes);
            })
        }
    }
);

fp8!(
    Fp8Tensor,
    "fp8_tensor",
    "per matrix: f32 scale; e4m3 codes; w = scale · code",
    "compressed-tensors float-quantized, strategy tensor; OCP 8-bit Floating Point",
    {
        fn row_bytes(&self, cols: usize) -> usize {
            cols
        }

        fn side_bytes(&self, _: usize, _: usize) -> usize {
            4
        }

        fn decode_row(&self, blocks: &Blocks, row: usize, out: &mut [f32]) {
            decode(blocks.row(row), f32_at(&blocks.side, 0), out);
        }

        fn encode_from(&'static self, source: &dyn Rows, threads: usize) -> Result<Blocks, Error> {
            let side = self.begin(source, None, Effort::Nearest, threads);
            let scale = f32_at(&side, 0);
            let blocks = encode_by_row(self, source, threads, |_, weights, codes| {
                encode(weights, scale, codes);
            })?;
            Ok(Blocks { side, ..blocks })
        }
    }
);

fp8!(
    Fp8Block,
    "fp8_block",
    "per 128 × 128 weights: f32 scale; e4m3 codes; w = scale · code",
    "DeepSeek-V3's quantization_config with weight_block_size; OCP 8-bit Floating Point",
    {
        fn row_bytes(&self, cols: usize) -> usize {
            cols
        }

        fn side_bytes(&self, rows: usize, cols: usize) -> usize {
            tiles_bytes(0, rows, cols)
        }

        fn side_fits(&self, rows: usize, cols: usize, side: &[u8]) -> bool {
            side.len() >= SKIP
                && skip(side) < TILE
                && side.len() == tiles_bytes(skip(side), rows, cols)
        }

        fn slice_side(&self, blocks: &Blocks, start: usize, end: usize) -> Buf {
            let (first, last) = (skip(&blocks.side) + start, skip(&blocks.side) + end);
            let across = 4 * blocks.cols.div_ceil(TILE);
            let rows = first / TILE..last.div_ceil(TILE).max(first / TILE);
            let mut side = ((first % TILE) as u32).to_le_bytes().to_vec();
            side.extend(&blocks.side[SKIP..][rows.start * across..rows.end * across]);
            side.into()
        }

        fn decode_row(&self, blocks: &Blocks, row: usize, out: &mut [f32]) {
            let scales = scales_of(&blocks.side, row, blocks.cols);
            let tiles = blocks.row(row).chunks(TILE).zip(out.chunks_mut(TILE));
            tiles.zip(scales).for_each(|((codes, out), scale)| decode(codes, scale, out));
        }

        fn encode_from(&'static self, source: &dyn Rows, threads: usize) -> Result<Blocks, Error> {
            let side = self.begin(source, None, Effort::Nearest, threads);
            let blocks = encode_by_row(self, source, threads, |row, weights, codes| {
                let scales = scales_of(&side, row, weights.len());
                let tiles = weights.chunks(TILE).zip(codes.chunks_mut(TILE));
                tiles.zip(scales).for_each(|((weights, codes), scale)| {
                    encode(weights, scale, codes);
                });
            })?;
            Ok(Blocks { side, ..blocks })
        }
    }
);

impl Fp8Block {
    /// The side data of a whole matrix with these scales, \[tiles down, tiles across\].
    pub fn side(scales: &[f32]) -> Buf {
        let scales = scales.iter().flat_map(|scale| scale.to_le_bytes());
        [0; SKIP].into_iter().chain(scales).collect::<Vec<u8>>().into()
    }

    /// The scales of a matrix, \[tiles down, tiles across\].
    pub fn scales(blocks: &Blocks) -> Vec<f32> {
        blocks.side[SKIP..].chunks_exact(4).map(|word| f32_at(word, 0)).collect()
    }
}

fn skip(side: &[u8]) -> usize {
    f32_at(side, 0).to_bits() as usize
}

fn tiles_bytes(skip: usize, rows: usize, cols: usize) -> usize {
    let tiles = rows.saturating_add(skip).div_ceil(TILE).saturating_mul(cols.div_ceil(TILE));
    tiles.saturating_mul(4).saturating_add(SKIP)
}

/// The scales of a row's tiles.
fn scales_of(side: &[u8], row: usize, cols: usize) -> impl Iterator<Item = f32> {
    let across = cols.div_ceil(TILE);
    let first = (skip(side) + row) / TILE * across;
    side[SKIP + 4 * first..][..4 * across].chunks_exact(4).map(|word| f32_at(word, 0))
}

impl Grid for Fp8Row {
    fn span(&self, cols: usize) -> usize {
        cols
    }

    fn group(&self, cols: usize) -> usize {
        cols
    }

    fn levels(&self) -> Levels {
        Levels::Table(&E4M3_LEVELS)
    }

    fn fit(&self, span: Span<'_>, scales: &mut Scales) {
        let own = own(absmax(span.weights));
        let scale = grid::scale(Rounding::Float(E4M3), own, span, |scale| scale);
        scales.set(Affine { scale, offset: 0.0 }, &scale.to_le_bytes());
    }

    fn pack(&self, scales: &Scales, codes: &[u8], out: &mut [u8]) {
        let (to, scale) = out.split_at_mut(codes.len());
        pack(codes, to);
        scale.copy_from_slice(&scales.stored);
    }
}

impl Grid for Fp8Tensor {
    fn span(&self, cols: usize) -> usize {
        cols
    }

    fn group(&self, cols: usize) -> usize {
        cols
    }

    fn levels(&self) -> Levels {
        Levels::Table(&E4M3_LEVELS)
    }

    fn begin(
        &self,
        weights: &dyn Rows,
        importance: Option<&[f32]>,
        effort: Effort,
        threads: usize,
    ) -> Buf {
        let (rows, cols) = weights.shape();
        let how = (importance, effort);
        let all = Tiles { rows, cols };
        let scales = all.scales(weights, &Rounding::Float(E4M3), own, how, threads);
        scales.first().copied().unwrap_or(own(0.0)).to_le_bytes().to_vec().into()
    }

    fn fit(&self, span: Span<'_>, scales: &mut Scales) {
        scales.set(Affine { scale: f32_at(span.side, 0), offset: 0.0 }, &[]);
    }

    fn pack(&self, _: &Scales, codes: &[u8], out: &mut [u8]) {
        pack(codes, out);
    }
}

impl Grid for Fp8Block {
    fn span(&self, cols: usize) -> usize {
        cols
    }

    fn group(&self, cols: usize) -> usize {
        // The last tile may be narrower: groups that fit into tiles and rows alike.
        let largest = 1 << cols.trailing_zeros().min(TILE.trailing_zeros());
        largest.min(cols)
    }

    fn levels(&self) -> Levels {
        Levels::Table(&E4M3_LEVELS)
    }

    fn begin(
        &self,
        weights: &dyn Rows,
        importance: Option<&[f32]>,
        effort: Effort,
        threads: usize,
    ) -> Buf {
        let tiles = Tiles { rows: TILE, cols: TILE };
        let how = (importance, effort);
        Self::side(&tiles.scales(weights, &Rounding::Float(E4M3), own, how, threads))
    }

    fn fit(&self, span: Span<'_>, scales: &mut Scales) {
        let cols = span.weights.len();
        scales.affine.clear();
        scales.stored.clear();
        for scale in scales_of(span.side, span.index, cols) {
            let affine = Affine { scale, offset: 0.0 };
            scales.affine.extend(std::iter::repeat_n(affine, TILE / self.group(cols)));
        }
        scales.affine.truncate(cols / self.group(cols));
    }

    fn pack(&self, _: &Scales, codes: &[u8], out: &mut [u8]) {
        pack(codes, out);
    }
}
