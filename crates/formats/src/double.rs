use std::{marker::PhantomData, sync::OnceLock};

use bytemuck::{Pod, Zeroable};
use lathe_base::Buf;

use crate::{
    Affine, AnyFormat, Blocks, Effort, Erased, Error, Format, Grid, Levels, Rows, Scales, Span,
    format::map_rows,
    four_bit::{self, BLOCK, Float4, FourBit, NormalFloat, Table},
    grid,
    round::absmax,
};

/// Double quantization of [`FourBit`]: the absmax of each block is itself an eight-bit code.
///
/// All absmax of the matrix, in order of the flattened weights, less their mean are cut into
/// nested blocks of 256; each is coded by bitsandbytes' dynamic map against the nested block's own
/// absmax. The nested numbers are the side data; a block is one [`DoubleBlock`].
#[derive(Debug)]
pub struct Double<T>(PhantomData<T>);

pub type Nf4Dq = Double<NormalFloat>;
pub type Fp4Dq = Double<Float4>;

impl<T> Double<T> {
    /// The one value of this type.
    pub const NEW: Self = Self(PhantomData);
}

/// 64 codes and the code of their absmax.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct DoubleBlock {
    /// Index into [`Nested::map`].
    pub absmax: u8,
    /// The even weight in the high nibble, the odd one after it in the low nibble.
    pub codes: [u8; 32],
}

/// The side data of a matrix in [`Double`]: what turns a block's code into its absmax.
///
/// As bytes: f32 offset, u32 skip, f32 map\[256\], f32 absmax\[…\], all little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct Nested {
    /// The mean of all absmax, taken off before coding.
    pub offset: f32,
    /// How many blocks of the first nested block lie before this matrix: not 0 only in a slice.
    pub skip: usize,
    /// The levels of the eight-bit codes.
    pub map: Vec<f32>,
    /// The largest magnitude of each nested block of 256.
    pub absmax: Vec<f32>,
}

const NESTED_BLOCK: usize = 256;
const MAP: usize = 256;
const HEADER: usize = 8 + 4 * MAP;

fn nested_blocks(skip: usize, rows: usize, cols: usize) -> usize {
    (skip + rows.saturating_mul(cols / BLOCK)).div_ceil(NESTED_BLOCK)
}

fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_bits(u32_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn skip(side: &[u8]) -> usize {
    u32_at(side, 4) as usize
}

impl Nested {
    /// The bytes for [`Blocks::side`].
    pub fn to_side(&self) -> Buf {
        let mut side = Vec::with_capacity(HEADER + 4 * self.absmax.len());
        side.extend(self.offset.to_le_bytes());
        side.extend((self.skip as u32).to_le_bytes());
        side.extend(self.map.iter().chain(&self.absmax).flat_map(|x| x.to_le_bytes()));
        side.into()
    }

    /// Reads the side data of a matrix that [`Blocks::new`] has checked.
    pub fn of(blocks: &Blocks) -> Self {
        let side = &blocks.side;
        let numbers = side[8..].chunks_exact(4).map(|word| f32_at(word, 0));
        let mut map: Vec<f32> = numbers.collect();
        let absmax = map.split_off(MAP);
        Self { offset: f32_at(side, 0), skip: skip(side), map, absmax }
    }

    /// Codes the absmax of all blocks against a given `offset`: their codes and the nested data.
    fn compress(values: &[f32], offset: f32) -> (Vec<u8>, Self) {
        let mut codes = Vec::with_capacity(values.len());
        let mut nested = Vec::with_capacity(values.len().div_ceil(NESTED_BLOCK));
        for block in values.chunks(NESTED_BLOCK) {
            let mut rest = [0.0; NESTED_BLOCK];
            let rest = &mut rest[..block.len()];
            for (rest, value) in rest.iter_mut().zip(block) {
                *rest = value - offset;
            }
            let most = absmax(rest);
            let inverse = 1.0 / most;
            codes.extend(rest.iter().map(|x| dynamic_code(x * inverse)));
            nested.push(most);
        }
        (codes, Self { offset, skip: 0, map: dynamic_map().to_vec(), absmax: nested })
    }
}

/// bitsandbytes' signed eight-bit "dynamic" levels, ascending (8-bit Optimizers, arXiv
/// 2110.02861, and `create_dynamic_map`): for each decade 10⁻⁶ … 1 twice as many levels as for the
/// one below, at the centres of equal parts of 0.1 … 1; then 0 and 1.
pub fn dynamic_map() -> &'static [f32; MAP] {
    static LEVELS: OnceLock<[f32; MAP]> = OnceLock::new();
    LEVELS.get_or_init(|| {
        let mut levels = vec![0.0, 1.0];
        for decade in 0..7u32 {
            let parts = 1usize << decade;
            // In f32 from both ends towards the middle, each with one rounding: the reference's
            // linspace.
            let step = (1.0f32 - 0.1) / parts as f32;
            let edge = |i: usize| {
                if i < parts.div_ceil(2) {
                    step.mul_add(i as f32, 0.1)
                } else {
                    step.mul_add(-((parts - i) as f32), 1.0)
                }
            };
            let scale = 10f64.powi(decade as i32 - 6) as f32;
            for i in 0..parts {
                let level = scale * ((edge(i) + edge(i + 1)) / 2.0);
                levels.extend([level, -level]);
            }
        }
        levels.sort_by(f32::total_cmp);
        let mut map = [0.0; MAP];
        map.copy_from_slice(&levels);
        map
    })
}

/// Points at which the nearest level is tabulated, equally spaced over −1..=1.
const POINTS: usize = 1 << 16;

/// The code of `x` in −1..=1, by the nearest of [`POINTS`] points.
///
/// The exact nearest level would differ once in a thousand times; this is what bitsandbytes
/// (0.50, on CPU) computes, and the files are to be the same. NaN (a nested block of zeros) is 0.
fn dynamic_code(x: f32) -> u8 {
    static NEAREST: OnceLock<Vec<u8>> = OnceLock::new();
    let nearest = NEAREST.get_or_init(|| {
        let map = dynamic_map();
        let mut code = 0;
        let place = |i: usize| -1.0 + 2.0 * i as f64 / (POINTS - 1) as f64;
        let above = |code: usize, x: f64| {
            code + 1 < MAP && x > (f64::from(map[code]) + f64::from(map[code + 1])) / 2.0
        };
        let mut table = Vec::with_capacity(POINTS);
        for x in (0..POINTS).map(place) {
            while above(code, x) {
                code += 1;
            }
            table.push(code as u8);
        }
        table
    });
    if x.is_nan() {
        return 0;
    }
    let place = (x + 1.0) * (0.5 * (POINTS - 1) as f32) + 0.5;
    nearest[(place as usize).min(POINTS - 1)]
}

impl<T: Table> AnyFormat for Double<T> {
    fn name(&self) -> &'static str {
        T::NAMES[1]
    }

    fn layout(&self) -> &'static str {
        "per 64 weights: u8 code of absmax, 32 bytes of nibbles; per 256 blocks: f32; \
         per matrix: f32 offset, 256 f32 levels"
    }

    fn source(&self) -> &'static str {
        "bitsandbytes quantize_4bit with compress_statistics, blocks 64 and 256"
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn row_bytes(&self, cols: usize) -> usize {
        cols.div_ceil(BLOCK).saturating_mul(size_of::<DoubleBlock>())
    }

    fn limit(&self) -> f32 {
        FourBit::<T>::LIMIT
    }

    fn error_bound(&self, absmax: f32) -> f32 {
        // An absmax is off by at most half the widest gap of the dynamic map (0.9 / 64, plus the
        // table's spacing) of what the offset leaves, which is at most the matrix's own absmax.
        (T::HALF_GAP + 0.0072) * absmax + 2.0 * FourBit::<T>::error_bound(f32::MIN_POSITIVE)
    }

    fn side_bytes(&self, rows: usize, cols: usize) -> usize {
        HEADER + 4 * nested_blocks(0, rows, cols)
    }

    fn side_fits(&self, rows: usize, cols: usize, side: &[u8]) -> bool {
        side.len() >= HEADER
            && skip(side) < NESTED_BLOCK
            && side.len() == HEADER + 4 * nested_blocks(skip(side), rows, cols)
    }

    fn slice_side(&self, blocks: &Blocks, start: usize, end: usize) -> Buf {
        let per_row = blocks.cols / BLOCK;
        let mut nested = Nested::of(blocks);
        let (first, last) = (nested.skip + start * per_row, nested.skip + end * per_row);
        nested.skip = first % NESTED_BLOCK;
        let range = first / NESTED_BLOCK..last.div_ceil(NESTED_BLOCK).max(first / NESTED_BLOCK);
        nested.absmax = nested.absmax[range].to_vec();
        nested.to_side()
    }

    fn decode_row(&self, blocks: &Blocks, row: usize, out: &mut [f32]) {
        let side = &blocks.side;
        let (offset, skip) = (f32_at(side, 0), skip(side));
        let codes: &[DoubleBlock] = bytemuck::cast_slice(blocks.row(row));
        let first = skip + row * codes.len();
        for (i, (block, out)) in codes.iter().zip(out.chunks_exact_mut(BLOCK)).enumerate() {
            let level = f32_at(side, 8 + 4 * usize::from(block.absmax));
            let nested = f32_at(side, HEADER + 4 * ((first + i) / NESTED_BLOCK));
            four_bit::levels::<T>(&block.codes, level * nested + offset, out);
        }
    }

    fn encode_from(&'static self, source: &dyn Rows, threads: usize) -> Result<Blocks, Error> {
        self.check(source.shape().1)?;
        let single = Erased::<FourBit<T>>::REF.encode_from(source, threads)?;
        let plain: &[FourBit<T>] = bytemuck::cast_slice(&single.data);
        let all: Vec<f32> = plain.iter().map(|b| f32::from_le_bytes(b.absmax)).collect();
        let (codes, nested) = Nested::compress(&all, mean(&all));
        let blocks: Vec<DoubleBlock> = plain
            .iter()
            .zip(codes)
            .map(|(block, absmax)| DoubleBlock { absmax, codes: block.codes })
            .collect();
        Ok(Blocks {
            format: self,
            rows: single.rows,
            cols: single.cols,
            data: bytemuck::allocation::cast_vec::<_, u8>(blocks).into(),
            side: nested.to_side(),
            order: None,
            input_scale: None,
        })
    }

    fn grid(&'static self) -> Option<&'static dyn Grid> {
        Some(self)
    }
}

impl<T: Table> Grid for Double<T> {
    fn span(&self, _: usize) -> usize {
        BLOCK
    }

    fn group(&self, _: usize) -> usize {
        BLOCK
    }

    fn levels(&self) -> Levels {
        Levels::Table(T::DISTINCT.0)
    }

    fn begin(
        &self,
        weights: &dyn Rows,
        importance: Option<&[f32]>,
        effort: Effort,
        threads: usize,
    ) -> Buf {
        let per_row = weights.shape().1 / BLOCK;
        let all = map_rows(weights, per_row, threads, |_, row, scales| {
            let blocks = row.chunks_exact(BLOCK).zip(scales).enumerate();
            for (j, (weights, scale)) in blocks {
                let importance = importance.map(|all| &all[j * BLOCK..][..BLOCK]);
                let span = Span { side: &[], index: 0, weights, importance, effort };
                *scale = grid::scale(self.levels(), absmax(weights), span, |scale| scale);
            }
        });
        Nested::compress(&all, mean(&all)).1.to_side()
    }

    fn fit(&self, span: Span<'_>, scales: &mut Scales) {
        let side = span.side;
        let nested = f32_at(side, HEADER + 4 * ((skip(side) + span.index) / NESTED_BLOCK));
        let offset = f32_at(side, 0);
        let code = |scale: f32| dynamic_code((scale - offset) * (1.0 / nested));
        let level = |code: u8| f32_at(side, 8 + 4 * usize::from(code)) * nested + offset;
        let own = absmax(span.weights);
        let code = code(grid::scale(self.levels(), own, span, |scale| level(code(scale))));
        let scale = level(code);
        scales.set(Affine { scale, offset: 0.0 }, &[code]);
    }

    fn pack(&self, scales: &Scales, codes: &[u8], out: &mut [u8]) {
        out[..1].copy_from_slice(&scales.stored);
        out[1..].copy_from_slice(&four_bit::nibbles(codes, T::DISTINCT.1));
    }
}

/// The mean in f64, rounded once: the same on every machine (the reference sums in f32, in an
/// order that depends on the vector unit, and differs in the last bit).
fn mean(values: &[f32]) -> f32 {
    (values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len().max(1) as f64) as f32
}
