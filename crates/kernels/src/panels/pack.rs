use std::sync::Arc;

use lathe_formats::{Blocks, Int, Nested, ScaleType};
use lathe_simd::LANES;

use super::{Kind, Panels, SUB, Shape, superblocks};
use crate::{Error, Pool, memory::Room, output::Output};

/// Where the codes of a format are read from.
pub(super) struct Source<'a> {
    blocks: &'a Blocks,
    kind: Kind,
    /// Columns that share a scale, as the format has them; of a whole row, padded to sub-blocks.
    block: usize,
    nested: Option<Nested>,
    int: Option<&'static Int>,
}

impl<'a> Source<'a> {
    /// `None` where the format has no panel kind.
    pub(super) fn of(blocks: &'a Blocks) -> Option<Self> {
        let name = blocks.format.name();
        let int = Int::named(name);
        let kind = match name {
            "q4_0" => Kind::Four,
            "q5_0" => Kind::Five,
            "q8_0" => Kind::Eight,
            "int8" | "int8_tensor" => Kind::EightRow,
            "nf4" | "nf4_dq" => Kind::Table,
            "q4_1" => Kind::FourMin,
            "q5_1" => Kind::FiveMin,
            "iq4_nl" => Kind::TableIq4,
            "iq4_xs" => Kind::TableIq4Super,
            "q2_k" => Kind::TwoSuper,
            "q3_k" => Kind::ThreeSuper,
            "q4_k" => Kind::FourSuper,
            "q5_k" => Kind::FiveSuper,
            "q6_k" => Kind::SixSuper,
            _ => kind_of(int?),
        };
        let block = match kind {
            Kind::EightRow => SUB,
            _ if blocks.format.block() == 1 => blocks.cols.next_multiple_of(SUB).max(SUB),
            _ => blocks.format.block(),
        };
        let nested = (name == "nf4_dq").then(|| Nested::of(blocks));
        block.is_multiple_of(SUB).then_some(Self { blocks, kind, block, nested, int })
    }

    /// Reads the codes of block `index` of a row into `codes`, and gives the head for that row.
    fn read(&self, row: usize, index: usize, codes: &mut [u8]) -> RowHead {
        let bytes = self.blocks.row(row);
        if self.kind == Kind::EightRow {
            let (weights, scale) = bytes.split_at(self.blocks.cols);
            // One scale for the matrix becomes one for each row.
            let scale = if scale.is_empty() { &self.blocks.side } else { scale };
            let from = &weights[index * SUB..(index * SUB + SUB).min(weights.len())];
            // The padding's codes meet activations that are zero.
            codes.fill(128);
            flip_signs(from, codes);
            return RowHead::new(scale);
        }
        if let Some(int) = self.int {
            return read_int(int, bytes, (index, self.blocks.cols), codes);
        }
        let size = bytes.len() / (self.blocks.cols / self.block);
        let bytes = &bytes[index * size..][..size];
        match self.kind {
            Kind::Eight => {
                let (scale, from) = bytes.split_at(2);
                flip_signs(from, codes);
                RowHead::new(scale)
            }
            Kind::Four | Kind::TableIq4 => {
                let (scale, nibbles) = bytes.split_at(2);
                split_halves(nibbles, codes);
                RowHead::new(scale)
            }
            Kind::Five => {
                let (scale, rest) = bytes.split_at(2);
                five_bits(rest, codes);
                RowHead::new(scale)
            }
            Kind::FourMin | Kind::FiveMin => {
                let (head, rest) = bytes.split_at(4);
                match self.kind {
                    Kind::FourMin => split_halves(rest, codes),
                    _ => five_bits(rest, codes),
                }
                // The minimum with its sign turned.
                RowHead::new(&[head[0], head[1], head[2], head[3] ^ 128])
            }
            Kind::Table => {
                let (absmax, nibbles) = bytes.split_at(size - self.block / 2);
                for (pair, byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(nibbles) {
                    *pair = [byte >> 4, byte & 15];
                }
                match &self.nested {
                    Some(nested) => {
                        let block = row * (self.blocks.cols / self.block) + index;
                        RowHead::new(&absmax_of(nested, block, absmax[0]).to_le_bytes())
                    }
                    None => RowHead::new(absmax),
                }
            }
            kind => superblocks::read(kind, bytes, codes),
        }
    }
}

/// The panels that hold an integer format: codes of two and three bits are widened to nibbles.
fn kind_of(int: &Int) -> Kind {
    match (int.bits() <= 4, int.zero_points(), int.scale_type()) {
        (true, false, ScaleType::F16) => Kind::Four,
        (true, false, ScaleType::Bf16) => Kind::FourBf16,
        (true, true, ScaleType::F16) => Kind::FourZero,
        (true, true, ScaleType::Bf16) => Kind::FourZeroBf16,
        (false, false, ScaleType::F16) => Kind::Eight,
        (false, false, ScaleType::Bf16) => Kind::EightBf16,
        (false, true, _) => Kind::EightZero,
    }
}

/// Reads group `index` of a row of `cols`.
fn read_int(int: &Int, row: &[u8], (index, cols): (usize, usize), codes: &mut [u8]) -> RowHead {
    let columns = int.columns().unwrap_or(cols);
    let bytes = int.group_bytes(columns);
    let group = &row[index * bytes..][..bytes];
    // The padding's codes meet activations that are zero.
    let (codes, padding) = codes.split_at_mut(columns);
    padding.fill(0);
    int.unpack(group, codes);
    if int.bits() < 4 && !int.zero_points() {
        codes.iter_mut().for_each(|code| *code += 8 - int.middle());
    }
    let (scale, zero, _) = int.head_of(group);
    let head = if int.bits() == 8 && int.zero_points() {
        RowHead::new(&int.scale_of(scale).to_le_bytes())
    } else {
        RowHead::new(&scale)
    };
    if int.zero_points() { head.then(zero) } else { head }
}

/// The absmax of a block of the whole matrix in NF4 with double quantization.
fn absmax_of(nested: &Nested, block: usize, code: u8) -> f32 {
    const NESTED_BLOCK: usize = 256;
    let level = nested.map[usize::from(code)];
    level * nested.absmax[(nested.skip + block) / NESTED_BLOCK] + nested.offset
}

/// A row's share of a group's head: its bytes of each field, one after the other.
pub(super) struct RowHead {
    bytes: [u8; Self::MOST],
    len: usize,
}

impl RowHead {
    /// Two halves, and two bytes for each of sixteen parts.
    const MOST: usize = 36;

    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut head = Self { bytes: [0; Self::MOST], len: bytes.len() };
        head.bytes[..bytes.len()].copy_from_slice(bytes);
        head
    }

    /// With one more byte.
    pub(super) fn then(mut self, byte: u8) -> Self {
        self.bytes[self.len] = byte;
        self.len += 1;
        self
    }

    /// Writes it to a row's places in a head of these fields.
    fn write(&self, lane: usize, fields: &[usize], to: &mut [u8]) {
        let mut at = 0;
        for bytes in fields {
            to[at * LANES + lane * bytes..][..*bytes].copy_from_slice(&self.bytes[at..at + bytes]);
            at += bytes;
        }
    }
}

/// i8 −128 … 127 as u8 0 … 255.
fn flip_signs(from: &[u8], to: &mut [u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from ^ 128;
    }
}

/// ggml's nibbles: the low ones are the first half of the block, the high ones the second.
fn split_halves(nibbles: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(nibbles.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(nibbles) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// ggml's five bits: 32 high ones, then nibbles.
fn five_bits(from: &[u8], codes: &mut [u8]) {
    let (high, nibbles) = from.split_at(4);
    split_halves(nibbles, codes);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (high[i / 8] >> (i % 8) & 1) << 4;
    }
}

/// Repacks all rows, a panel per task.
pub(super) fn pack(pool: &Pool, source: &Source<'_>) -> Result<Panels, Error> {
    let Blocks { rows, cols, format, .. } = *source.blocks;
    let shape = Shape::new(source.kind, source.block / SUB, rows, cols);
    let panel = shape.panel_bytes();
    let bytes = panel.saturating_mul(shape.count());
    let refused = Error::Memory { format: format.name(), rows, cols, bytes };
    let mut data = Room::huge(bytes).ok_or(refused)?;
    let out = Output::new(&mut data);
    pool.run(shape.count(), &|index| {
        // SAFETY: panels do not overlap.
        let to = unsafe { out.part(index * panel, panel) };
        pack_panel(source, &shape, index * LANES, to);
    });
    Ok(Panels { shape, data: Arc::new(data) })
}

fn pack_panel(source: &Source<'_>, shape: &Shape, first: usize, to: &mut [u8]) {
    let kind = shape.kind;
    let rows = LANES.min(source.blocks.rows - first);
    let mut codes = vec![0; source.block];
    for group in 0..shape.groups {
        let start = group * shape.group_bytes();
        let (head, subs) = to[start..start + shape.group_bytes()].split_at_mut(kind.head_bytes());
        for lane in 0..rows {
            let row = source.read(first + lane, group, &mut codes);
            row.write(lane, if kind.tail_bytes() > 0 { &[] } else { kind.fields() }, head);
            let subs = subs.chunks_exact_mut(kind.sub_bytes());
            for (codes, sub) in codes.chunks_exact(SUB).zip(subs) {
                interleave(kind, codes, lane, sub);
            }
        }
    }
    if kind.tail_bytes() > 0 {
        let tail = &mut to[shape.groups * shape.group_bytes()..];
        for lane in 0..rows {
            source.read(first + lane, 0, &mut codes).write(lane, &[4], tail);
        }
    }
}

/// Puts a row's 32 codes into its lane of a sub-block.
fn interleave(kind: Kind, codes: &[u8], lane: usize, sub: &mut [u8]) {
    let fours = codes.as_chunks::<4>().0;
    match kind {
        Kind::Eight | Kind::EightBf16 | Kind::EightZero | Kind::EightRow => {
            for (j, four) in fours.iter().enumerate() {
                sub[64 * j + 4 * lane..][..4].copy_from_slice(four);
            }
        }
        Kind::Four
        | Kind::FourBf16
        | Kind::FourZero
        | Kind::FourZeroBf16
        | Kind::Table
        | Kind::Five
        | Kind::FourMin
        | Kind::FiveMin
        | Kind::TableIq4
        | Kind::TableIq4Super
        | Kind::TwoSuper
        | Kind::ThreeSuper
        | Kind::FourSuper
        | Kind::FiveSuper
        | Kind::SixSuper => {
            let word = |four: &[u8; 4]| u32::from_le_bytes(four.map(|code| code & 15));
            for (j, pair) in fours.as_chunks::<2>().0.iter().enumerate() {
                let nibbles = word(&pair[0]) | word(&pair[1]) << 4;
                sub[64 * j + 4 * lane..][..4].copy_from_slice(&nibbles.to_le_bytes());
            }
        }
    }
    if matches!(kind, Kind::Five | Kind::FiveMin | Kind::FiveSuper) {
        let masks = &mut sub[256..];
        for (j, four) in fours.iter().enumerate() {
            let bits = (0..4).fold(0, |bits, i| bits | (four[i] >> 4) << i);
            masks[8 * j + lane / 2] |= bits << (lane % 2 * 4);
        }
    }
    if kind == Kind::SixSuper {
        let pairs = &mut sub[256..];
        for (v, four) in fours.iter().enumerate() {
            for (i, code) in four.iter().enumerate() {
                pairs[64 * (v / 4) + 4 * lane + i] |= (code >> 4) << (2 * (v % 4));
            }
        }
    }
}
