//! How the codes of ggml's superblocks of 256 columns are read: the layouts of `ggml-common.h`.

use half::f16;

use super::{Kind, pack::RowHead};

/// Reads one superblock's codes in the order of its columns, and gives the head for that row.
#[inline(always)]
pub(super) fn read(kind: Kind, bytes: &[u8], codes: &mut [u8]) -> RowHead {
    match kind {
        Kind::TwoSuper => two(bytes, codes),
        Kind::ThreeSuper => three(bytes, codes),
        Kind::FourSuper => four(bytes, codes),
        Kind::FiveSuper => five(bytes, codes),
        Kind::SixSuper => six(bytes, codes),
        Kind::TableIq4Super => iq4_xs(bytes, codes),
        other => unreachable!("{other:?} has no superblocks"),
    }
}

/// Q2_K: 16 bytes of a scale and a minimum, 64 of codes, the units of both.
#[inline(always)]
fn two(bytes: &[u8], codes: &mut [u8]) -> RowHead {
    let (scales, rest) = bytes.split_at(16);
    let (low, units) = rest.split_at(64);
    bit_pairs(low, codes);
    scales.iter().fold(RowHead::new(units), |head, both| head.then(both & 15).then(both >> 4))
}

/// Q3_K: 32 bytes of third bits, 64 of the lower two, 12 of scales + 32, their unit.
#[inline(always)]
fn three(bytes: &[u8], codes: &mut [u8]) -> RowHead {
    let (high, rest) = bytes.split_at(32);
    let (low, rest) = rest.split_at(64);
    let (scales, unit) = rest.split_at(12);
    bit_pairs(low, codes);
    for (k, codes) in codes.chunks_exact_mut(32).enumerate() {
        for (code, high) in codes.iter_mut().zip(high) {
            *code |= (high >> k & 1) << 2;
        }
    }
    let scale = |part: usize| {
        let low = scales[part % 8] >> (4 * (part / 8)) & 15;
        low | (scales[8 + part % 4] >> (2 * (part / 4)) & 3) << 4
    };
    // A byte stands for itself − 128, the scale for itself − 32.
    (0..16).fold(unit_head(unit), |head, part| head.then(scale(part) + 96))
}

/// Q4_K: the units of scales and minima, 12 bytes of those, 128 of nibbles.
#[inline(always)]
fn four(bytes: &[u8], codes: &mut [u8]) -> RowHead {
    let (head, low) = bytes.split_at(16);
    nibbles::<32>(low, codes);
    sixes(head)
}

/// Q5_K: as Q4_K, with 32 bytes of fifth bits before the nibbles.
#[inline(always)]
fn five(bytes: &[u8], codes: &mut [u8]) -> RowHead {
    let (head, rest) = bytes.split_at(16);
    let (high, low) = rest.split_at(32);
    nibbles::<32>(low, codes);
    for (k, codes) in codes.chunks_exact_mut(32).enumerate() {
        for (code, high) in codes.iter_mut().zip(high) {
            *code |= (high >> k & 1) << 4;
        }
    }
    sixes(head)
}

/// Q6_K: 128 bytes of nibbles, 64 of the bits above, 16 scales, their unit.
#[inline(always)]
fn six(bytes: &[u8], codes: &mut [u8]) -> RowHead {
    let (low, rest) = bytes.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, unit) = rest.split_at(16);
    bit_pairs(high, codes);
    codes.iter_mut().for_each(|code| *code <<= 4);
    for (low, codes) in low.chunks_exact(64).zip(codes.chunks_exact_mut(128)) {
        let (first, second) = codes.split_at_mut(64);
        for ((low, first), second) in low.iter().zip(first).zip(second) {
            *first |= low & 15;
            *second |= low >> 4;
        }
    }
    scales.iter().fold(unit_head(unit), |head, scale| head.then(scale ^ 128))
}

/// IQ4_XS: the unit of the scales, their high bits and low nibbles, 128 bytes of nibbles.
#[inline(always)]
fn iq4_xs(bytes: &[u8], codes: &mut [u8]) -> RowHead {
    let (unit, rest) = bytes.split_at(2);
    let (high, rest) = rest.split_at(2);
    let (low, packed) = rest.split_at(4);
    nibbles::<16>(packed, codes);
    let scale = |part: usize| {
        let low = low[part / 2] >> (4 * (part % 2)) & 15;
        low | (high[part / 4] >> (2 * (part % 4)) & 3) << 4
    };
    (0..8).fold(unit_head(unit), |head, part| head.then(scale(part) + 96))
}

/// An f16 as f32.
#[inline(always)]
fn unit_head(unit: &[u8]) -> RowHead {
    RowHead::new(&f16::from_le_bytes([unit[0], unit[1]]).to_f32().to_le_bytes())
}

/// The head of Q4_K and Q5_K: eight scales and eight minima of six bits behind their units. The
/// first four of each are the low six bits of eight bytes; of the others, the low four bits share
/// four bytes, and the high two lie above the first.
#[inline(always)]
fn sixes(bytes: &[u8]) -> RowHead {
    let (units, bytes) = bytes.split_at(4);
    (0..8).fold(RowHead::new(units), |head, part| {
        let (scale, min) = if part < 4 {
            (bytes[part] & 63, bytes[part + 4] & 63)
        } else {
            let low = bytes[part + 4];
            (low & 15 | bytes[part - 4] >> 6 << 4, low >> 4 | bytes[part] >> 6 << 4)
        };
        head.then(scale).then(min)
    })
}

/// Of every 2 N columns the first N in the low nibbles of N bytes, the others in the high ones.
#[inline(always)]
fn nibbles<const N: usize>(from: &[u8], codes: &mut [u8]) {
    for (from, codes) in from.chunks_exact(N).zip(codes.chunks_exact_mut(2 * N)) {
        let (low, high) = codes.split_at_mut(N);
        for ((byte, low), high) in from.iter().zip(low).zip(high) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
    }
}

/// Of every 128 columns, the k-th 32 in the k-th bit pairs of 32 bytes.
#[inline(always)]
fn bit_pairs(from: &[u8], codes: &mut [u8]) {
    for (from, codes) in from.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
        for (k, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (byte, code) in from.iter().zip(codes) {
                *code = byte >> (2 * k) & 3;
            }
        }
    }
}
