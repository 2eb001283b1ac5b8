//! Blocks of 32 columns that are a scale and then plain codes: Q4_0, IQ4_NL and Q8_0. Reading such a
//! file is mostly this, so that their codes go from rows to panels in whole vectors and are not spread
//! to a byte each first.

use lathe_simd::{Isa, LANES, Op};

use super::{
    SUB, Shape,
    pack::{Source, turn, write},
};

/// Bytes of a block's codes; `None` for formats that are not like this.
pub(super) fn code_bytes(format: &str) -> Option<usize> {
    match format {
        "q4_0" | "iq4_nl" => Some(SUB / 2),
        "q8_0" => Some(SUB),
        _ => None,
    }
}

/// Bytes of a block's scale.
const SCALE: usize = 2;
/// Bytes that a vector holds.
const LINE: usize = 4 * LANES;
const NIBBLES: u32 = 0x0f0f_0f0f;
/// i8 −128 … 127 become u8 0 … 255.
const SIGNS: u32 = 0x8080_8080;

/// One panel of blocks with `CODES` bytes of codes.
pub(super) struct Pack<'a, const CODES: usize> {
    pub(super) source: &'a Source<'a>,
    pub(super) shape: &'a Shape,
    /// The first row.
    pub(super) first: usize,
    pub(super) to: &'a mut [u8],
}

impl<const CODES: usize> Op for Pack<'_, CODES> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { source, shape, first, to } = self;
        let (rows, bytes) = source.rows(first);
        let (group_bytes, head_bytes) = (shape.group_bytes(), shape.kind.head_bytes());
        let (size, together) = (SCALE + CODES, LINE / CODES);
        // Lanes without a row stay zero.
        let mut lines = [0; LANES * LINE];
        for group in (0..shape.groups).step_by(together) {
            let groups = together.min(shape.groups - group);
            let to = &mut to[group * group_bytes..][..groups * group_bytes];
            for lane in 0..rows {
                let blocks = bytes[lane][group * size..][..groups * size].chunks_exact(size);
                let line = lines[lane * LINE..][..LINE].chunks_exact_mut(CODES);
                let heads = to.chunks_exact_mut(group_bytes);
                for ((block, codes), head) in blocks.zip(line).zip(heads) {
                    let (scale, from) = block.split_at(SCALE);
                    head[lane * SCALE..][..SCALE].copy_from_slice(scale);
                    codes.copy_from_slice(from);
                }
            }
            let turned = turn(isa, &lines, LINE);
            let blocks = turned.chunks_exact(CODES / 4);
            for (words, to) in blocks.zip(to.chunks_exact_mut(group_bytes)) {
                let to = to[head_bytes..].as_chunks_mut().0;
                if CODES == SUB {
                    for i in 0..SUB / 4 {
                        let mut codes = words[i];
                        for lane in 0..LANES {
                            codes[lane] ^= SIGNS;
                        }
                        write(&codes, &mut to[i]);
                    }
                } else {
                    // The low nibbles are the first sixteen columns, the high ones the others.
                    for i in 0..2 {
                        let (even, odd) = (words[2 * i], words[2 * i + 1]);
                        let (mut low, mut high) = ([0; LANES], [0; LANES]);
                        for lane in 0..LANES {
                            low[lane] = even[lane] & NIBBLES | (odd[lane] & NIBBLES) << 4;
                            high[lane] = even[lane] >> 4 & NIBBLES | odd[lane] & !NIBBLES;
                        }
                        write(&low, &mut to[i]);
                        write(&high, &mut to[i + 2]);
                    }
                }
            }
        }
    }
}
