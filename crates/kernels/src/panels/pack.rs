use std::sync::Arc;

use lathe_formats::{Blocks, Int, Nested, ScaleType};
use lathe_simd::{Isa, LANES, Op};

use super::{Kind, Panels, SUB, Shape, kind::with_kind, plain, superblocks};
use crate::{Error, Pool, memory::Room, output::Output};

/// Where the codes of a format are read from.
pub(super) struct Source<'a> {
    blocks: &'a Blocks,
    kind: Kind,
    /// Columns that share a scale, as the format has them; of a whole row, padded to sub-blocks.
    block: usize,
    /// Bytes of such a block, where it lies within a row.
    size: usize,
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
        let size = blocks.format.row_bytes(blocks.cols) / (blocks.cols / block).max(1);
        block.is_multiple_of(SUB).then_some(Self { blocks, kind, block, size, nested, int })
    }

    /// Reads the codes of block `index` of a row, whose `bytes` these are, into `codes`, and gives
    /// the head for that row. The kind is known when this is compiled.
    #[inline(always)]
    fn read<const KIND: u8>(
        &self,
        row: usize,
        bytes: &[u8],
        index: usize,
        codes: &mut [u8],
    ) -> RowHead {
        let kind = const { Kind::ALL[KIND as usize] };
        if kind == Kind::EightRow {
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
        let bytes = &bytes[index * self.size..][..self.size];
        match kind {
            Kind::Five => {
                let (scale, rest) = bytes.split_at(2);
                five_bits(rest, codes);
                RowHead::new(scale)
            }
            Kind::FourMin | Kind::FiveMin => {
                let (head, rest) = bytes.split_at(4);
                match kind {
                    Kind::FourMin => split_halves(rest, codes),
                    _ => five_bits(rest, codes),
                }
                // The minimum with its sign turned.
                RowHead::new(&[head[0], head[1], head[2], head[3] ^ 128])
            }
            Kind::Table => {
                const NIBBLES: usize = 32;
                let (absmax, nibbles) = bytes.split_last_chunk::<NIBBLES>().expect("a block");
                let pairs = codes.as_chunks_mut::<2>().0.first_chunk_mut::<NIBBLES>();
                for (pair, byte) in pairs.expect("a block").iter_mut().zip(nibbles) {
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

impl Source<'_> {
    /// How many rows a panel from a row on has, and their bytes.
    #[inline(always)]
    pub(super) fn rows(&self, first: usize) -> (usize, [&[u8]; LANES]) {
        let rows = LANES.min(self.blocks.rows - first);
        let mut bytes: [&[u8]; LANES] = [&[]; LANES];
        for (lane, bytes) in bytes[..rows].iter_mut().enumerate() {
            *bytes = self.blocks.row(first + lane);
        }
        (rows, bytes)
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

    #[inline(always)]
    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut head = Self { bytes: [0; Self::MOST], len: bytes.len() };
        head.bytes[..bytes.len()].copy_from_slice(bytes);
        head
    }

    /// With one more byte.
    #[inline(always)]
    pub(super) fn then(mut self, byte: u8) -> Self {
        self.bytes[self.len] = byte;
        self.len += 1;
        self
    }

    /// Writes it to a row's places in a head of these fields.
    #[inline(always)]
    fn write(&self, lane: usize, fields: &[usize], to: &mut [u8]) {
        let mut at = 0;
        for bytes in fields {
            let (from, to) = (&self.bytes[at..], &mut to[at * LANES + lane * bytes..]);
            // Of known sizes: else each is a call.
            match bytes {
                1 => to[0] = from[0],
                2 => to[..2].copy_from_slice(&from[..2]),
                4 => to[..4].copy_from_slice(&from[..4]),
                _ => to[..*bytes].copy_from_slice(&from[..*bytes]),
            }
            at += bytes;
        }
    }
}

/// i8 −128 … 127 as u8 0 … 255.
#[inline(always)]
fn flip_signs(from: &[u8], to: &mut [u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from ^ 128;
    }
}

/// ggml's nibbles: the low ones are the first half of the block, the high ones the second.
#[inline(always)]
fn split_halves(nibbles: &[u8], codes: &mut [u8]) {
    // Of a known length, so that they become vectors.
    let nibbles = nibbles.first_chunk::<{ SUB / 2 }>().expect("a block");
    let codes = codes.first_chunk_mut::<SUB>().expect("a block");
    let (low, high) = codes.split_at_mut(SUB / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(nibbles) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// ggml's five bits: 32 high ones, then nibbles.
#[inline(always)]
fn five_bits(from: &[u8], codes: &mut [u8]) {
    let (high, nibbles) = from.split_at(4);
    split_halves(nibbles, codes);
    for (byte, codes) in high.iter().zip(codes.as_chunks_mut::<8>().0) {
        // Byte i of a word keeps bit i of the byte, becomes 16 where it is set.
        let spread = (u64::from(*byte) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        let fifth = ((spread + 0x7f7f_7f7f_7f7f_7f7f) >> 3) & 0x1010_1010_1010_1010;
        *codes = (u64::from_le_bytes(*codes) | fifth).to_le_bytes();
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
    let plain = plain::code_bytes(format.name());
    let kind = source.kind;
    pool.run(shape.count(), &|index| {
        // SAFETY: panels do not overlap.
        let to = unsafe { out.part(index * panel, panel) };
        let (shape, first) = (&shape, index * LANES);
        match plain {
            Some(16) => lathe_simd::run(plain::Pack::<16> { source, shape, first, to }),
            Some(_) => lathe_simd::run(plain::Pack::<32> { source, shape, first, to }),
            None => with_kind!(kind, K => lathe_simd::run(Pack::<K> { source, shape, first, to })),
        }
    });
    Ok(Panels { shape, data: Arc::new(data) })
}

/// One panel. Plain loops over bytes, compiled for the instruction set and the kind.
struct Pack<'a, const KIND: u8> {
    source: &'a Source<'a>,
    shape: &'a Shape,
    /// The first row.
    first: usize,
    to: &'a mut [u8],
}

impl<const KIND: u8> Op for Pack<'_, KIND> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { source, shape, first, to } = self;
        let (kind, block) = (const { Kind::ALL[KIND as usize] }, source.block);
        let (rows, bytes) = source.rows(first);
        let fields = if kind.tail_bytes() > 0 { &[] } else { kind.fields() };
        let (group_bytes, head_bytes) = (shape.group_bytes(), kind.head_bytes());
        let sub_bytes = kind.sub_bytes();
        // As many columns at a time as fill vectors; lanes without a row stay zero.
        let wide = block.next_multiple_of(TURNED * SUB);
        let together = wide / block;
        let mut codes = vec![0; LANES * wide];
        for group in (0..shape.groups).step_by(together) {
            let groups = together.min(shape.groups - group);
            let to = &mut to[group * group_bytes..][..groups * group_bytes];
            for (index, to) in to.chunks_exact_mut(group_bytes).enumerate() {
                let head = &mut to[..head_bytes];
                for lane in 0..rows {
                    let codes = &mut codes[lane * wide + index * block..][..block];
                    let (row, bytes) = (first + lane, bytes[lane]);
                    let own = source.read::<KIND>(row, bytes, group + index, codes);
                    own.write(lane, fields, head);
                }
            }
            let per_group = block / SUB;
            for sub in (0..groups * per_group).step_by(TURNED) {
                let turned = turn(isa, &codes[sub * SUB..], wide);
                let turned = turned.as_chunks::<{ SUB / 4 }>().0;
                for (sub, fours) in (sub..groups * per_group).zip(turned) {
                    let at = sub / per_group * group_bytes + head_bytes;
                    let to = &mut to[at + sub % per_group * sub_bytes..][..sub_bytes];
                    interleave(kind, fours, to);
                }
            }
        }
        if kind.tail_bytes() > 0 {
            let tail = &mut to[shape.groups * group_bytes..];
            for lane in 0..rows {
                let codes = &mut codes[..block];
                source.read::<KIND>(first + lane, bytes[lane], 0, codes).write(lane, &[4], tail);
            }
        }
    }
}

/// Bytes of a sub-block's nibbles; bits above them follow.
const LOW_BYTES: usize = LANES * SUB / 2;

/// Four neighbouring codes of sixteen rows.
pub(super) type Fours = [u32; LANES];

/// Sub-blocks whose codes are brought side by side at once: they fill a vector of each row.
const TURNED: usize = 2;

/// The codes of two sub-blocks four by four, those of all rows side by side; rows lie `stride` apart.
#[inline(always)]
pub(super) fn turn<I: Isa>(isa: I, codes: &[u8], stride: usize) -> [Fours; LANES] {
    let mut lines = [isa.splat_bytes(&[0; 4]); LANES];
    for lane in 0..LANES {
        let row = codes[lane * stride..].first_chunk();
        lines[lane] = isa.load_bytes(row.expect("two sub-blocks of each row"));
    }
    lines = isa.transpose(lines);
    let mut all = [[0; LANES]; LANES];
    for i in 0..LANES {
        let mut bytes = [0; 4 * LANES];
        isa.store_bytes(lines[i], &mut bytes);
        for (to, from) in all[i].iter_mut().zip(bytes.as_chunks().0) {
            *to = u32::from_le_bytes(*from);
        }
    }
    all
}

/// Writes a sub-block.
#[inline(always)]
fn interleave(kind: Kind, codes: &[Fours; SUB / 4], to: &mut [u8]) {
    match kind {
        Kind::Eight | Kind::EightBf16 | Kind::EightZero | Kind::EightRow => {
            for (fours, to) in codes.iter().zip(to.as_chunks_mut().0) {
                write(fours, to);
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
            for (pair, to) in codes.as_chunks::<2>().0.iter().zip(to.as_chunks_mut().0) {
                let mut both = [0; LANES];
                for lane in 0..LANES {
                    both[lane] = pair[0][lane] & 0x0f0f_0f0f | (pair[1][lane] & 0x0f0f_0f0f) << 4;
                }
                write(&both, to);
            }
        }
    }
    if matches!(kind, Kind::Five | Kind::FiveMin | Kind::FiveSuper) {
        for (fours, to) in codes.iter().zip(to[LOW_BYTES..].as_chunks_mut::<8>().0) {
            let mut mask = 0;
            for lane in 0..LANES {
                // The fifth bits of four codes, brought side by side at the top by a product whose
                // terms do not meet.
                let fifth = fours[lane] >> 4 & 0x0101_0101;
                mask |= u64::from(fifth.wrapping_mul(0x0102_0408) >> 24 & 15) << (4 * lane);
            }
            *to = mask.to_le_bytes();
        }
    } else if kind == Kind::SixSuper {
        for (four, to) in codes.as_chunks::<4>().0.iter().zip(to[LOW_BYTES..].as_chunks_mut().0) {
            let mut pairs = [0; LANES];
            for lane in 0..LANES {
                for (v, fours) in four.iter().enumerate() {
                    pairs[lane] |= (fours[lane] >> 4 & 0x0303_0303) << (2 * v);
                }
            }
            write(&pairs, to);
        }
    }
}

#[inline(always)]
pub(super) fn write(words: &Fours, to: &mut [u8; 4 * LANES]) {
    for (word, to) in words.iter().zip(to.as_chunks_mut().0) {
        *to = word.to_le_bytes();
    }
}
