//! What is written to a page: tokens, and codes once it is full.

use half::f16;
use lathe_base::{bf16, e4m3};
use lathe_formats::KvType;
use lathe_simd::{Isa, LANES, Op};

use super::PAGE_TOKENS;

/// Writes neighbouring tokens to one head of a page, number by number.
pub(super) struct Put<'a> {
    /// Not a grouped type.
    pub(super) kind: KvType,
    /// The first token's keys and values; the next one's are `width` further.
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) width: usize,
    pub(super) dim: usize,
    pub(super) tokens: usize,
    /// Which token of the page the first one is.
    pub(super) offset: usize,
    pub(super) keys: &'a mut [u8],
    pub(super) values: &'a mut [u8],
}

impl Op for Put<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { kind, dim, offset, keys, values, .. } = self;
        let row = kind.value_row_bytes(dim);
        let size = row / dim;
        for token in 0..self.tokens {
            let from = token * self.width..token * self.width + dim;
            let (k, v) = (&self.k[from.clone()], &self.v[from]);
            let values = &mut values[(offset + token) * row..][..row];
            for (v, to) in v.as_chunks().0.iter().zip(values.chunks_exact_mut(size * LANES)) {
                put(isa, kind, v, to);
            }
            for (i, k) in k.as_chunks().0.iter().enumerate() {
                let mut numbers = [0; 4 * LANES];
                put(isa, kind, k, &mut numbers[..size * LANES]);
                for (d, number) in numbers.chunks_exact(size).take(LANES).enumerate() {
                    let at = ((i * LANES + d) * PAGE_TOKENS + offset + token) * size;
                    keys[at..at + size].copy_from_slice(number);
                }
            }
        }
    }
}

/// Sixteen numbers in the type's bytes.
#[inline(always)]
fn put<I: Isa>(isa: I, kind: KvType, from: &[f32; LANES], to: &mut [u8]) {
    match kind {
        KvType::F32 => {
            for (to, x) in to.as_chunks_mut().0.iter_mut().zip(from) {
                *to = x.to_le_bytes();
            }
        }
        KvType::F16 => {
            let mut halves = [0; 2 * LANES];
            isa.store_f16(isa.load(from), &mut halves);
            to.copy_from_slice(&halves);
        }
        KvType::Bf16 => {
            for (to, x) in to.as_chunks_mut().0.iter_mut().zip(from) {
                *to = bf16::from_f32(*x).to_le_bytes();
            }
        }
        KvType::Fp8 => {
            for (to, x) in to.iter_mut().zip(from) {
                *to = e4m3::from_f32(*x).to_bits();
            }
        }
        other => unreachable!("{other:?} is written page by page"),
    }
}

/// Codes a full page of f16 keys and values.
pub(super) struct Close<'a> {
    /// A grouped type.
    pub(super) kind: KvType,
    pub(super) dim: usize,
    /// Keys and values in f16.
    pub(super) from: (&'a [u8], &'a [u8]),
    /// Keys and values as coded.
    pub(super) to: (&'a mut [u8], &'a mut [u8]),
}

impl Op for Close<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.kind {
            KvType::Int8 => self.groups::<I, Eight>(isa),
            KvType::Int4 => self.groups::<I, Four>(isa),
            other => unreachable!("{other:?} is written token by token"),
        }
    }
}

impl Close<'_> {
    /// A channel's keys and a token's values are groups alike: rows of f16 that become rows of
    /// codes.
    #[inline(always)]
    fn groups<I: Isa, W: Width>(self, isa: I) {
        for (cols, from, to) in
            [(PAGE_TOKENS, self.from.0, self.to.0), (self.dim, self.from.1, self.to.1)]
        {
            let rows = from.len() / (2 * cols);
            let (codes, affine) = to.split_at_mut(to.len() - 4 * rows);
            let (scales, minima) = affine.split_at_mut(2 * rows);
            let coded = codes.len() / rows;
            for row in 0..rows {
                let from = from[row * 2 * cols..][..2 * cols].as_chunks().0;
                let (scale, minimum) = fit(isa, from, W::TOP);
                scales[2 * row..][..2].copy_from_slice(&scale.to_le_bytes());
                minima[2 * row..][..2].copy_from_slice(&minimum.to_le_bytes());
                let affine = (scale.to_f32(), minimum.to_f32());
                W::pack(isa, from, affine, &mut codes[row * coded..][..coded]);
            }
        }
    }
}

/// The least scale and the minimum with which codes `0 ..= top` reach every number of a group.
///
/// The numbers are f16, so the minimum is exact. What is not finite makes the whole group NaN:
/// better than numbers that look sound.
#[inline(always)]
fn fit<I: Isa>(isa: I, from: &[[u8; 2 * LANES]], top: f32) -> (f16, f16) {
    let zero = isa.splat(0.0);
    let (mut high, mut low) = (isa.splat(f32::NEG_INFINITY), isa.splat(f32::NEG_INFINITY));
    let mut odd = zero;
    for from in from {
        let x = isa.load_f16(from);
        high = isa.max(x, high);
        low = isa.max(isa.sub(zero, x), low);
        odd = isa.fma(x, zero, odd);
    }
    if isa.sum(odd) != 0.0 {
        return (f16::NAN, f16::NAN);
    }
    let (high, low) = (isa.max_lane(high), -isa.max_lane(low));
    let least = (high - low) / top;
    let near = f16::from_f32(least);
    let scale = if near.to_f32() < least { f16::from_bits(near.to_bits() + 1) } else { near };
    (scale, f16::from_f32(low))
}

/// How many bits codes have.
trait Width {
    /// The highest code.
    const TOP: f32;
    /// Codes a group with its scale and minimum.
    fn pack<I: Isa>(isa: I, from: &[[u8; 2 * LANES]], affine: (f32, f32), to: &mut [u8]);
}

struct Eight;
struct Four;

impl Width for Eight {
    const TOP: f32 = 255.0;
    #[inline(always)]
    fn pack<I: Isa>(isa: I, from: &[[u8; 2 * LANES]], affine: (f32, f32), to: &mut [u8]) {
        for (from, to) in from.iter().zip(to.as_chunks_mut().0) {
            *to = codes(isa, from, affine, Self::TOP);
        }
    }
}

impl Width for Four {
    const TOP: f32 = 15.0;
    #[inline(always)]
    fn pack<I: Isa>(isa: I, from: &[[u8; 2 * LANES]], affine: (f32, f32), to: &mut [u8]) {
        for (pair, to) in from.chunks(2).zip(to.as_chunks_mut::<LANES>().0) {
            let low = codes(isa, &pair[0], affine, Self::TOP);
            let high = pair.get(1).map_or([0; LANES], |from| codes(isa, from, affine, Self::TOP));
            for i in 0..LANES {
                to[i] = low[i] | high[i] << 4;
            }
        }
    }
}

/// The codes of sixteen numbers.
#[inline(always)]
fn codes<I: Isa>(
    isa: I,
    from: &[u8; 2 * LANES],
    (scale, minimum): (f32, f32),
    top: f32,
) -> [u8; LANES] {
    let by = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let x = isa.sub(isa.load_f16(from), isa.splat(minimum));
    let x = isa.min(isa.max(isa.mul(x, isa.splat(by)), isa.splat(0.0)), isa.splat(top));
    let mut codes = [0; LANES];
    isa.store_low_bytes(isa.round(x), &mut codes);
    codes.map(i8::cast_unsigned)
}
