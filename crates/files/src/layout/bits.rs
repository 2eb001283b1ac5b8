//! Small integers in runs of 32-bit words: the packing that GPTQ and compressed-tensors share.
//!
//! Number `i` occupies bits `i·b` to `i·b + b` of a little-endian stream of words, so that 32
//! numbers take exactly `b` words. Where 32 is no multiple of `b` (3 bits), a number may lie across
//! two words.

/// Numbers in a whole run of words.
pub(super) const RUN: usize = 32;
/// The most words in a run: of eight bits.
pub(super) const WORDS: usize = 8;

/// Words that `count` numbers of `bits` take.
pub(super) fn words(count: usize, bits: usize) -> Option<usize> {
    count.checked_mul(bits).map(|n| n.div_ceil(32))
}

/// The numbers of a run of `BITS` words (those beyond are not looked at).
#[inline]
fn unpack<const BITS: usize>(words: &[u32; WORDS]) -> [u8; RUN] {
    let mask = (1u32 << BITS) - 1;
    // Places that are known when this is compiled: loading a model is mostly this.
    std::array::from_fn(|i| {
        let (word, shift) = (i * BITS / 32, i * BITS % 32);
        let mut number = words[word] >> shift;
        if shift + BITS > 32 {
            number |= words[word + 1] << (32 - shift);
        }
        (number & mask) as u8
    })
}

/// Writes the first numbers of a run.
#[inline(always)]
pub(super) fn put(numbers: &[u8; RUN], to: &mut [u8]) {
    match to.first_chunk_mut() {
        // Of a known length: else it is a call.
        Some(whole) => *whole = *numbers,
        None => to.copy_from_slice(&numbers[..to.len()]),
    }
}

/// Calls a function of the number of bits, 1 to 8.
macro_rules! by_bits {
    ($bits:expr, $function:ident $arguments:tt) => {
        match $bits {
            1 => $function::<1> $arguments,
            2 => $function::<2> $arguments,
            3 => $function::<3> $arguments,
            4 => $function::<4> $arguments,
            5 => $function::<5> $arguments,
            6 => $function::<6> $arguments,
            7 => $function::<7> $arguments,
            _ => $function::<8> $arguments,
        }
    };
}

/// The words of up to 32 numbers, each below 2^`bits`; missing ones are 0.
pub(super) fn pack(numbers: &[u8], bits: usize) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    for (i, number) in numbers.iter().enumerate() {
        let (word, shift) = (i * bits / 32, i * bits % 32);
        words[word] |= u32::from(*number) << shift;
        if shift + bits > 32 {
            words[word + 1] |= u32::from(*number) >> (32 - shift);
        }
    }
    words
}

/// A matrix of numbers below 2^`bits`, packed along its rows: `[rows, words]` of little-endian
/// words become `[rows, cols]`. The bytes must be there.
pub(super) fn unpack_rows(data: &[u8], rows: usize, cols: usize, bits: usize) -> Vec<u8> {
    by_bits!(bits, rows_of(data, rows, cols))
}

fn rows_of<const BITS: usize>(data: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let stride = words(cols, BITS).unwrap_or(0);
    let (data, _) = data.as_chunks::<4>();
    let mut out = vec![0; rows * cols];
    let all = data.chunks_exact(stride.max(1)).zip(out.chunks_exact_mut(cols.max(1)));
    for (row, out) in all {
        for (run, to) in row.chunks(BITS).zip(out.chunks_mut(RUN)) {
            put(&unpack::<BITS>(&load(run)), to);
        }
    }
    out
}

/// The opposite of [`unpack_rows`].
pub(super) fn pack_rows(numbers: &[u8], cols: usize, bits: usize) -> Vec<u8> {
    let stride = words(cols, bits).unwrap_or(0);
    let mut out = Vec::with_capacity(numbers.len() / cols.max(1) * stride * 4);
    for row in numbers.chunks_exact(cols.max(1)) {
        let start = out.len();
        for run in row.chunks(RUN) {
            out.extend(pack(run, bits)[..bits].iter().flat_map(|word| word.to_le_bytes()));
        }
        // The last run may need fewer words.
        out.truncate(start + 4 * stride);
    }
    out
}

/// A matrix packed along its columns: `[words, cols]` of words, whose numbers are `[rows, cols]`,
/// become the transposed `[cols, rows]`.
pub(super) fn unpack_columns(data: &[u8], rows: usize, cols: usize, bits: usize) -> Vec<u8> {
    by_bits!(bits, columns_of(data, rows, cols))
}

fn columns_of<const BITS: usize>(data: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let (data, _) = data.as_chunks::<4>();
    let mut out = vec![0; rows * cols];
    // Tiles of columns: each of their rows in `out` is a line of cache that stays.
    const TILE: usize = 64;
    for tile in (0..cols).step_by(TILE) {
        let tile = tile..cols.min(tile + TILE);
        for first in (0..rows).step_by(RUN) {
            let top = first / RUN * BITS;
            let count = RUN.min(rows - first);
            for col in tile.clone() {
                let mut run = [0; WORDS];
                for (i, word) in run[..BITS].iter_mut().enumerate() {
                    let at = data.get((top + i) * cols + col);
                    *word = at.map_or(0, |bytes| u32::from_le_bytes(*bytes));
                }
                put(&unpack::<BITS>(&run), &mut out[col * rows + first..][..count]);
            }
        }
    }
    out
}

/// The opposite of [`unpack_columns`]: `numbers` are `[cols, rows]`.
pub(super) fn pack_columns(numbers: &[u8], rows: usize, cols: usize, bits: usize) -> Vec<u8> {
    let height = words(rows, bits).unwrap_or(0);
    let mut out = vec![0; height * cols * 4];
    let (data, _) = out.as_chunks_mut::<4>();
    const TILE: usize = 64;
    for tile in (0..cols).step_by(TILE) {
        let tile = tile..cols.min(tile + TILE);
        for first in (0..rows).step_by(RUN) {
            let top = first / RUN * bits;
            let count = RUN.min(rows - first);
            for col in tile.clone() {
                let run = pack(&numbers[col * rows + first..][..count], bits);
                for (i, word) in run[..bits.min(height - top)].iter().enumerate() {
                    data[(top + i) * cols + col] = word.to_le_bytes();
                }
            }
        }
    }
    out
}

fn load(run: &[[u8; 4]]) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(run) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, bits: usize) -> Vec<u8> {
        let mut state = 77u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 & ((1u16 << bits) - 1) as u8
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn thirty_two_numbers_of_three_bits_take_three_words_as_gptq_has_them() {
        // Number 10 has two bits in the first word and one in the second, number 21 one and two.
        let mut run = [0; 32];
        run[10] = 7;
        assert_eq!(pack(&run, 3)[..3], [0xc000_0000, 1, 0]);
        run[10] = 0;
        run[21] = 7;
        assert_eq!(pack(&run, 3)[..3], [0, 0x8000_0000, 3]);
        run[21] = 0;
        run[0] = 5;
        run[11] = 6;
        run[31] = 4;
        assert_eq!(pack(&run, 3)[..3], [5, 6 << 1, 4 << 29]);
    }

    #[test]
    fn what_is_packed_is_unpacked_for_all_bits_and_odd_sizes() {
        for bits in [2, 3, 4, 8] {
            for (rows, cols) in [(1, 1), (3, 31), (2, 32), (33, 5), (64, 70), (40, 130)] {
                let all = numbers(rows * cols, bits);
                let packed = pack_rows(&all, cols, bits);
                assert_eq!(packed.len(), rows * words(cols, bits).unwrap() * 4);
                assert_eq!(unpack_rows(&packed, rows, cols, bits), all, "{bits} {rows} {cols}");
                let packed = pack_columns(&all, rows, cols, bits);
                assert_eq!(packed.len(), cols * words(rows, bits).unwrap() * 4);
                assert_eq!(unpack_columns(&packed, rows, cols, bits), all, "{bits} {rows} {cols}");
            }
        }
    }
}
