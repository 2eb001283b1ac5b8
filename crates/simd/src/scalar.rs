use std::array::from_fn;

use half::{bf16, f16};

use crate::{Isa, LANES, Op};

/// Plain Rust, everywhere: naive on purpose, since the others are tested against it.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

type F = [f32; LANES];
type I = [i32; LANES];
type B = [u8; 64];

#[inline(always)]
fn byte(x: &B, lane: usize, j: i32) -> u8 {
    x[4 * lane + j as usize]
}

#[inline(always)]
fn dot(acc: I, codes: B, x: B) -> I {
    from_fn(|lane| {
        let products = (0..4)
            .map(|j| i32::from(byte(&codes, lane, j)) * i32::from(byte(&x, lane, j).cast_signed()));
        acc[lane] + products.sum::<i32>()
    })
}

impl Isa for Scalar {
    const NAME: &'static str = "scalar";
    const REGISTERS: usize = 8;
    const DOT_BIAS: i32 = 0;

    type F = F;
    type I = I;
    type B = B;

    fn detect() -> Option<Self> {
        Some(Self)
    }
    fn enter<O: Op>(self, op: O) -> O::Out {
        op.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        *from
    }
    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> F {
        from_fn(|i| f32::from_le_bytes([0, 1, 2, 3].map(|j| from[4 * i + j])))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> F {
        from_fn(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> F {
        from_fn(|i| bf16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn load_e4m3(self, from: &[u8; LANES]) -> F {
        from.map(|byte| {
            let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
            let size = match exponent {
                0 => fraction * 2f32.powi(-6),
                _ => (1.0 + fraction) * 2f32.powi(exponent - 7),
            };
            if byte < 128 { size } else { -size }
        })
    }
    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn store_f16(self, x: F, to: &mut [u8; 32]) {
        for (to, x) in to.as_chunks_mut::<2>().0.iter_mut().zip(x) {
            *to = f16::from_f32(x).to_le_bytes();
        }
    }
    #[inline(always)]
    fn store_bf16(self, x: F, to: &mut [u8; 32]) {
        for (to, x) in to.as_chunks_mut::<2>().0.iter_mut().zip(x) {
            *to = bf16::from_f32(x).to_le_bytes();
        }
    }
    #[inline(always)]
    fn bf16_pairs(self, x: B) -> [F; 2] {
        let at = |i: usize| bf16::from_le_bytes([x[i], x[i + 1]]).to_f32();
        [from_fn(|i| at(4 * i)), from_fn(|i| at(4 * i + 2))]
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, x: F) -> F {
        x.map(f32::abs)
    }
    #[inline(always)]
    fn round(self, x: F) -> I {
        x.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        let x: [f32; 8] = from_fn(|i| x[i] + x[i + 8]);
        let x: [f32; 4] = from_fn(|i| x[i] + x[i + 4]);
        (x[0] + x[2]) + (x[1] + x[3])
    }
    #[inline(always)]
    fn quarter_sums(self, x: F) -> [f32; 4] {
        from_fn(|i| (x[4 * i] + x[4 * i + 2]) + (x[4 * i + 1] + x[4 * i + 3]))
    }
    #[inline(always)]
    fn max_lane(self, x: F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn exp2_int(self, n: I) -> F {
        n.map(|n| f32::from_bits(((n + 127) as u32) << 23))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        [x; LANES]
    }
    #[inline(always)]
    fn splat_pair_i(self, x: [i32; 2]) -> I {
        from_fn(|i| x[i % 2])
    }
    #[inline(always)]
    fn to_f32(self, x: I) -> F {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I {
        from.map(i32::from)
    }
    #[inline(always)]
    fn split_nibbles(self, x: I) -> [I; 2] {
        [x.map(|x| x & 15), x.map(|x| x >> 4 & 15)]
    }
    #[inline(always)]
    fn store_low_bytes(self, x: I, to: &mut [i8; LANES]) {
        *to = x.map(|x| x as i8);
    }

    #[inline(always)]
    fn store_bytes(self, x: B, to: &mut [u8; 64]) {
        *to = x;
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> B {
        *from
    }
    #[inline(always)]
    fn splat_bytes(self, x: &[i8; 4]) -> B {
        from_fn(|i| x[i % 4].cast_unsigned())
    }
    #[inline(always)]
    fn splat_quarter(self, from: &[u8; 16]) -> B {
        from_fn(|i| from[i % 16])
    }
    #[inline(always)]
    fn splat_quarter_f32(self, from: &[u8; 16]) -> F {
        self.load_f32(&self.splat_quarter(from))
    }
    #[inline(always)]
    fn transpose_quarters(self, x: [B; 4]) -> [B; 4] {
        from_fn(|i| from_fn(|byte| x[byte / 16][16 * i + byte % 16]))
    }
    #[inline(always)]
    fn low_nibbles(self, x: B) -> B {
        x.map(|x| x & 15)
    }
    #[inline(always)]
    fn high_nibbles(self, x: B) -> B {
        x.map(|x| x >> 4)
    }
    #[inline(always)]
    fn add_fifth_bit(self, x: B, mask: &[u8; 8]) -> B {
        from_fn(|i| x[i] | ((mask[i / 8] >> (i % 8)) & 1) << 4)
    }
    #[inline(always)]
    fn add_bit_pair<const N: i32>(self, x: B, pairs: B) -> B {
        from_fn(|i| x[i] | (pairs[i] >> (2 * N) & 3) << 4)
    }
    #[inline(always)]
    fn lookup(self, x: B, table: &[u8; 16]) -> B {
        x.map(|x| table[usize::from(x & 15)])
    }
    #[inline(always)]
    fn byte_f32<const J: i32>(self, x: B) -> F {
        from_fn(|lane| f32::from(byte(&x, lane, J)))
    }
    #[inline(always)]
    fn byte_table<const J: i32>(self, x: B, table: &[f32; 16]) -> F {
        from_fn(|lane| table[usize::from(byte(&x, lane, J) & 15)])
    }
    #[inline(always)]
    fn dot_small(self, acc: I, codes: B, x: B) -> I {
        dot(acc, codes, x)
    }
    #[inline(always)]
    fn dot(self, acc: I, codes: B, x: B) -> I {
        dot(acc, codes, x)
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
