use lathe_base::f16;
use lathe_formats::{Blocks, Int, Int8, Q4_0, Q8_0};

/// Weights as ONNX Runtime's product with codes takes them: 4 or 8 bits, a scale for each block of
/// columns, `scale · (code − zero)`.
///
/// **Source** ONNX Runtime's `docs/ContribOperators.md`, MatMulNBits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Coded {
    pub(crate) bits: usize,
    /// Columns of a block.
    pub(crate) block: usize,
    /// Whether blocks bring zero points; without them 0 is half of the codes.
    pub(crate) zeros: bool,
}

/// One block of a row: as many codes as a block has, the last ones those of 0 where the row ends
/// before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) codes: Vec<u8>,
    pub(crate) scale: f32,
    pub(crate) zero: u8,
}

/// The block for formats whose scale is a whole row's: the largest that all kernels know.
const OF_ROWS: usize = 128;

impl Coded {
    /// How all of these matrices are held, where one operator can have them together.
    pub(crate) fn of_all<'a>(mut all: impl Iterator<Item = &'a Blocks>) -> Option<Self> {
        let first = Self::of(all.next()?)?;
        all.all(|blocks| Self::of(blocks) == Some(first)).then_some(first)
    }

    fn of(blocks: &Blocks) -> Option<Self> {
        // Columns elsewhere than in order, or inputs in 8 bits: not this operator's.
        if blocks.order.is_some() {
            return None;
        }
        if let Some(int) = Int::named(blocks.format.name()) {
            let bits = if int.bits() <= 4 { 4 } else { 8 };
            let block = int.columns().unwrap_or(OF_ROWS);
            return Some(Self { bits, block, zeros: int.zero_points() });
        }
        let (bits, block) = match blocks.format.name() {
            "q4_0" => (4, 32),
            "q8_0" => (8, 32),
            "int8" => (8, OF_ROWS),
            _ => return None,
        };
        Some(Self { bits, block, zeros: false })
    }

    /// Bytes of a block's codes.
    pub(crate) fn packed(self) -> usize {
        self.block * self.bits / 8
    }

    /// Appends codes, the first in the lowest bits; the last byte is filled with zeros.
    pub(crate) fn pack(self, codes: &[u8], bytes: &mut Vec<u8>) {
        if self.bits == 8 {
            return bytes.extend(codes);
        }
        let (pairs, rest) = codes.as_chunks::<2>();
        bytes.extend(pairs.iter().map(|[low, high]| low | high << 4));
        bytes.extend(rest);
    }

    fn middle(self) -> u8 {
        1 << (self.bits - 1)
    }

    /// The blocks of a row.
    pub(crate) fn groups(self, blocks: &Blocks, row: usize) -> Vec<Group> {
        let cols = blocks.cols;
        let middle = self.middle();
        let (mut codes, scales, zeros) = match blocks.format.name() {
            "q4_0" => of_q4_0(blocks, row),
            "q8_0" => of_q8_0(blocks, row),
            "int8" => of_int8(blocks, row),
            name => {
                let Some(int) = Int::named(name) else {
                    unreachable!("only what `of` knows is coded")
                };
                self.of_int(int, blocks, row)
            }
        };
        codes.truncate(cols);
        // A scale that is a whole row's is every block's.
        let of = |list: &[f32], i: usize| if list.len() == 1 { list[0] } else { list[i] };
        let zero = |i: usize| match zeros.len() {
            0 => middle,
            1 => zeros[0],
            _ => zeros[i],
        };
        let group = |(i, codes): (usize, &[u8])| {
            let mut codes = codes.to_vec();
            codes.resize(self.block, zero(i));
            Group { codes, scale: of(&scales, i), zero: zero(i) }
        };
        codes.chunks(self.block).enumerate().map(group).collect()
    }

    /// Codes of 2 or 3 bits are moved to where 4 bits have their middle.
    fn of_int(self, int: &Int, blocks: &Blocks, row: usize) -> (Vec<u8>, Vec<f32>, Vec<u8>) {
        let columns = int.columns().unwrap_or(blocks.cols);
        let shift = if self.zeros { 0 } else { self.middle() - int.middle() };
        let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
        for group in blocks.row(row).chunks_exact(int.group_bytes(columns)) {
            let (scale, zero, _) = int.head_of(group);
            let start = codes.len();
            codes.resize(start + columns, 0);
            int.unpack(group, &mut codes[start..]);
            codes[start..].iter_mut().for_each(|code| *code += shift);
            scales.push(int.scale_of(scale));
            if self.zeros {
                zeros.push(zero);
            }
        }
        (codes, scales, zeros)
    }
}

fn of_q4_0(blocks: &Blocks, row: usize) -> (Vec<u8>, Vec<f32>, Vec<u8>) {
    let per_row = blocks.cols / 32;
    let all = blocks.typed::<Q4_0>().unwrap_or_default();
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for block in &all[row * per_row..][..per_row] {
        codes.extend(block.codes.iter().map(|byte| byte & 15));
        codes.extend(block.codes.iter().map(|byte| byte >> 4));
        scales.push(f16::from_le_bytes(block.scale).to_f32());
    }
    (codes, scales, Vec::new())
}

fn of_q8_0(blocks: &Blocks, row: usize) -> (Vec<u8>, Vec<f32>, Vec<u8>) {
    let per_row = blocks.cols / 32;
    let all = blocks.typed::<Q8_0>().unwrap_or_default();
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for block in &all[row * per_row..][..per_row] {
        codes.extend(block.codes.iter().map(|code| (*code as u8) ^ 0x80));
        scales.push(f16::from_le_bytes(block.scale).to_f32());
    }
    (codes, scales, Vec::new())
}

fn of_int8(blocks: &Blocks, row: usize) -> (Vec<u8>, Vec<f32>, Vec<u8>) {
    let (codes, scale) = Int8::row(blocks, row);
    (codes.iter().map(|code| (*code as u8) ^ 0x80).collect(), vec![scale], Vec::new())
}
