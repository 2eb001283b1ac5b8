use std::arch::{aarch64::*, asm};

use half::{bf16, f16};

use crate::{Isa, LANES, Op, isa::matrix_by_dots};

/// NEON, which every 64-bit ARM processor has: a vector is four registers. `BYTES` says which
/// products of bytes there are beside it.
#[derive(Clone, Copy, Debug)]
pub struct Neon<const BYTES: u8 = PLAIN>(());

/// None: Cortex until A73, as in the Raspberry Pi 4.
pub(crate) const PLAIN: u8 = 0;
/// The dot product (ARMv8.2: Apple since M1, Neoverse, Cortex since A75).
pub(crate) const DOT: u8 = 1;
/// Those of signed and unsigned bytes, and of matrices of two rows by eight columns (ARMv8.6's
/// i8mm: Apple since M2, Neoverse since V1 and N2, Cortex since A510 and A710).
pub(crate) const I8MM: u8 = 2;

impl<const BYTES: u8> Neon<BYTES> {
    /// The same machine without them, for what does not use them: its code is compiled once.
    pub(crate) fn plain(self) -> Neon {
        Neon(())
    }
}

/// Calls intrinsics on the strength of the token.
macro_rules! v {
    ($e:expr) => {{
        // SAFETY: `self` exists only where `detect` found every feature that `enter` enables, and
        // the loads and stores go through references to arrays of the full width.
        unsafe { $e }
    }};
}

/// The same expression for each of the four registers.
macro_rules! each {
    (|$i:ident| $e:expr) => {{
        v!([
            {
                let $i = 0;
                $e
            },
            {
                let $i = 1;
                $e
            },
            {
                let $i = 2;
                $e
            },
            {
                let $i = 3;
                $e
            },
        ])
    }};
}

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];
type B = [uint8x16_t; 4];

impl<const BYTES: u8> Isa for Neon<BYTES> {
    const NAME: &'static str = match BYTES {
        PLAIN => "neon",
        DOT => "neondot",
        _ => "neoni8mm",
    };
    const REGISTERS: usize = 8;
    const DOT_BIAS: i32 = if BYTES == I8MM { 0 } else { 128 };
    const MATRIX: bool = BYTES == I8MM;

    type F = F;
    type I = I;
    type B = B;

    fn detect() -> Option<Self> {
        (std::arch::is_aarch64_feature_detected!("neon")
            && (BYTES < DOT || std::arch::is_aarch64_feature_detected!("dotprod"))
            && (BYTES < I8MM || std::arch::is_aarch64_feature_detected!("i8mm")))
        .then_some(Self(()))
    }
    #[inline]
    fn enter<O: Op>(self, op: O) -> O::Out {
        #[target_feature(enable = "neon")]
        fn plain<I: Isa, O: Op>(isa: I, op: O) -> O::Out {
            op.run(isa)
        }
        #[target_feature(enable = "neon,dotprod")]
        fn with_dot<I: Isa, O: Op>(isa: I, op: O) -> O::Out {
            op.run(isa)
        }
        #[target_feature(enable = "neon,dotprod,i8mm")]
        fn with_i8mm<I: Isa, O: Op>(isa: I, op: O) -> O::Out {
            op.run(isa)
        }
        match BYTES {
            PLAIN => v!(plain(self, op)),
            DOT => v!(with_dot(self, op)),
            _ => v!(with_i8mm(self, op)),
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        v!([vdupq_n_f32(x); 4])
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        each!(|i| vld1q_f32(from.as_ptr().add(4 * i)))
    }
    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> F {
        each!(|i| vreinterpretq_f32_u8(vld1q_u8(from.as_ptr().add(16 * i))))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> F {
        each!(|i| widen_f16(vld1_u8(from.as_ptr().add(8 * i))))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> F {
        each!(|i| {
            let bits = vreinterpret_u16_u8(vld1_u8(from.as_ptr().add(8 * i)));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(bits))
        })
    }
    #[inline(always)]
    fn load_e4m3(self, from: &[u8; LANES]) -> F {
        // Shifted into place the bits are a half of 2^-8 times the value, subnormals included.
        v!({
            let x = vld1q_u8(from.as_ptr());
            let half = |x: uint8x8_t| {
                let size = vshll_n_u8::<7>(vand_u8(x, vdup_n_u8(127)));
                let sign = vshlq_n_u16::<8>(vmovl_u8(vand_u8(x, vdup_n_u8(128))));
                vreinterpretq_u8_u16(vorrq_u16(size, sign))
            };
            let (low, high) = (half(vget_low_u8(x)), half(vget_high_u8(x)));
            // Not by `map`: its closure would be compiled without the instruction set.
            [
                vmulq_n_f32(widen_f16(vget_low_u8(low)), 256.0),
                vmulq_n_f32(widen_f16(vget_high_u8(low)), 256.0),
                vmulq_n_f32(widen_f16(vget_low_u8(high)), 256.0),
                vmulq_n_f32(widen_f16(vget_high_u8(high)), 256.0),
            ]
        })
    }
    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; LANES]) {
        each!(|i| vst1q_f32(to.as_mut_ptr().add(4 * i), x[i]));
    }
    #[inline(always)]
    fn store_f16(self, x: F, to: &mut [u8; 32]) {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        for (to, x) in to.as_chunks_mut::<2>().0.iter_mut().zip(lanes) {
            *to = f16::from_f32(x).to_le_bytes();
        }
    }
    #[inline(always)]
    fn store_bf16(self, x: F, to: &mut [u8; 32]) {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        for (to, x) in to.as_chunks_mut::<2>().0.iter_mut().zip(lanes) {
            *to = bf16::from_f32(x).to_le_bytes();
        }
    }
    #[inline(always)]
    fn bf16_pairs(self, x: B) -> [F; 2] {
        let low = each!(|i| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_u8(x[i]))));
        let mask = v!(vdupq_n_u32(0xffff_0000));
        let high = each!(|i| vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(x[i]), mask)));
        [low, high]
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each!(|i| vaddq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each!(|i| vsubq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each!(|i| vmulq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each!(|i| vdivq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        each!(|i| vfmaq_f32(c[i], a[i], b[i]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        // Not vmaxq, which gives NaN where either is: the trait's rule is x86's.
        each!(|i| vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        each!(|i| vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]))
    }
    #[inline(always)]
    fn abs(self, x: F) -> F {
        each!(|i| vabsq_f32(x[i]))
    }
    #[inline(always)]
    fn round(self, x: F) -> I {
        each!(|i| vcvtnq_s32_f32(x[i]))
    }
    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        v!({
            let x = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
            vget_lane_f32::<0>(x) + vget_lane_f32::<1>(x)
        })
    }
    #[inline(always)]
    fn quarter_sums(self, x: F) -> [f32; 4] {
        // Lanes 0 and 1 of a quarter with 2 and 3, then what is left, two quarters at a time.
        let two = each!(|i| vadd_f32(vget_low_f32(x[i]), vget_high_f32(x[i])));
        v!({
            let (low, high) = (vcombine_f32(two[0], two[1]), vcombine_f32(two[2], two[3]));
            let mut sums = [0.0; 4];
            vst1q_f32(sums.as_mut_ptr(), vpaddq_f32(low, high));
            sums
        })
    }
    #[inline(always)]
    fn max_lane(self, x: F) -> f32 {
        v!(vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(x[0], x[1]), vmaxnmq_f32(x[2], x[3]))))
    }
    #[inline(always)]
    fn exp2_int(self, n: I) -> F {
        each!(|i| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n[i], vdupq_n_s32(127)))))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        v!([vdupq_n_s32(x); 4])
    }
    #[inline(always)]
    fn splat_pair_i(self, [a, b]: [i32; 2]) -> I {
        let both = i64::from(a.cast_unsigned()) | i64::from(b) << 32;
        v!([vreinterpretq_s32_s64(vdupq_n_s64(both)); 4])
    }
    #[inline(always)]
    fn to_f32(self, x: I) -> F {
        each!(|i| vcvtq_f32_s32(x[i]))
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I {
        v!({
            let x = vld1q_u8(from.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(x)), vmovl_u8(vget_high_u8(x)));
            [
                vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
                vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
                vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
                vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high))),
            ]
        })
    }
    #[inline(always)]
    fn split_nibbles(self, x: I) -> [I; 2] {
        let mask = self.splat_i(15);
        let low = each!(|i| vandq_s32(x[i], mask[i]));
        [low, each!(|i| vandq_s32(vshrq_n_s32::<4>(x[i]), mask[i]))]
    }
    #[inline(always)]
    fn store_low_bytes(self, x: I, to: &mut [i8; LANES]) {
        v!({
            let low = vcombine_s16(vmovn_s32(x[0]), vmovn_s32(x[1]));
            let high = vcombine_s16(vmovn_s32(x[2]), vmovn_s32(x[3]));
            vst1q_s8(to.as_mut_ptr(), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        });
    }

    #[inline(always)]
    fn store_bytes(self, x: B, to: &mut [u8; 64]) {
        for (i, x) in x.into_iter().enumerate() {
            v!(vst1q_u8(to.as_mut_ptr().add(16 * i), x));
        }
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> B {
        each!(|i| vld1q_u8(from.as_ptr().add(16 * i)))
    }
    #[inline(always)]
    fn splat_bytes(self, x: &[i8; 4]) -> B {
        let word = u32::from_ne_bytes(x.map(i8::cast_unsigned));
        v!([vreinterpretq_u8_u32(vdupq_n_u32(word)); 4])
    }
    #[inline(always)]
    fn splat_quarter(self, from: &[u8; 16]) -> B {
        v!([vld1q_u8(from.as_ptr()); 4])
    }
    #[inline(always)]
    fn splat_quarter_f32(self, from: &[u8; 16]) -> F {
        v!([vreinterpretq_f32_u8(vld1q_u8(from.as_ptr())); 4])
    }
    #[inline(always)]
    fn transpose_quarters(self, [a, b, c, d]: [B; 4]) -> [B; 4] {
        [
            [a[0], b[0], c[0], d[0]],
            [a[1], b[1], c[1], d[1]],
            [a[2], b[2], c[2], d[2]],
            [a[3], b[3], c[3], d[3]],
        ]
    }
    #[inline(always)]
    fn low_nibbles(self, x: B) -> B {
        each!(|i| vandq_u8(x[i], vdupq_n_u8(15)))
    }
    #[inline(always)]
    fn high_nibbles(self, x: B) -> B {
        each!(|i| vshrq_n_u8::<4>(x[i]))
    }
    #[inline(always)]
    fn add_fifth_bit(self, x: B, mask: &[u8; 8]) -> B {
        // Byte j of a register tests bit j % 8 of mask byte 2i + j / 8.
        const BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        each!(|i| {
            let bits = vcombine_u8(vdup_n_u8(mask[2 * i]), vdup_n_u8(mask[2 * i + 1]));
            let set = vtstq_u8(bits, vld1q_u8(BITS.as_ptr()));
            vorrq_u8(x[i], vandq_u8(set, vdupq_n_u8(16)))
        })
    }
    #[inline(always)]
    fn add_bit_pair<const N: i32>(self, x: B, pairs: B) -> B {
        each!(|i| {
            let moved = match N {
                0 => vshlq_n_u8::<4>(pairs[i]),
                1 => vshlq_n_u8::<2>(pairs[i]),
                2 => pairs[i],
                _ => vshrq_n_u8::<2>(pairs[i]),
            };
            vorrq_u8(x[i], vandq_u8(moved, vdupq_n_u8(48)))
        })
    }
    #[inline(always)]
    fn lookup(self, x: B, table: &[u8; 16]) -> B {
        each!(|i| vqtbl1q_u8(vld1q_u8(table.as_ptr()), x[i]))
    }
    #[inline(always)]
    fn byte_f32<const J: i32>(self, x: B) -> F {
        each!(|i| vcvtq_f32_u32(byte::<J>(x[i])))
    }
    #[inline(always)]
    fn byte_table<const J: i32>(self, x: B, table: &[f32; 16]) -> F {
        each!(|i| {
            let mut index = [0; 4];
            vst1q_u32(index.as_mut_ptr(), byte::<J>(x[i]));
            vld1q_f32(index.map(|i| table[i as usize & 15]).as_ptr())
        })
    }
    #[inline(always)]
    fn dot_small(self, acc: I, codes: B, x: B) -> I {
        each!(|i| {
            let (codes, x) = (vreinterpretq_s8_u8(codes[i]), vreinterpretq_s8_u8(x[i]));
            if BYTES >= DOT { sdot(acc[i], codes, x) } else { four_products(acc[i], codes, x) }
        })
    }
    #[inline(always)]
    fn dot(self, acc: I, codes: B, x: B) -> I {
        if BYTES == I8MM {
            return each!(|i| usdot(acc[i], codes[i], vreinterpretq_s8_u8(x[i])));
        }
        self.dot_small(acc, each!(|i| veorq_u8(codes[i], vdupq_n_u8(128))), x)
    }
    #[inline(always)]
    fn matrix_codes(self, [a, b]: [B; 2]) -> [B; 2] {
        let (a, b) = (each!(|i| vreinterpretq_u32_u8(a[i])), each!(|i| vreinterpretq_u32_u8(b[i])));
        [
            each!(|i| vreinterpretq_u8_u32(vzip1q_u32(a[i], b[i]))),
            each!(|i| vreinterpretq_u8_u32(vzip2q_u32(a[i], b[i]))),
        ]
    }
    #[inline(always)]
    fn dot_matrix(self, acc: I, codes: B, x: B) -> I {
        if BYTES == I8MM {
            each!(|i| usmmla(acc[i], codes[i], vreinterpretq_s8_u8(x[i])))
        } else {
            matrix_by_dots(self, acc, codes, x)
        }
    }
    #[inline(always)]
    fn matrix_sums(self, [a, b]: [I; 2]) -> [F; 2] {
        let (a, b) = (self.to_f32(a), self.to_f32(b));
        [each!(|i| vuzp1q_f32(a[i], b[i])), each!(|i| vuzp2q_f32(a[i], b[i]))]
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch is a hint and faults on no address.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nostack, readonly)) }
    }
}

/// Four halves as f32; the intrinsic waits for Rust's own `f16`.
///
/// # Safety
/// Needs NEON.
#[inline(always)]
unsafe fn widen_f16(x: uint8x8_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: FCVTL is part of every NEON and touches registers only.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) x, options(pure, nomem, nostack));
    }
    wide
}

/// Four-way dot products of signed bytes; the intrinsic is not stable yet.
///
/// # Safety
/// Needs the dot product extension.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller vouches for the extension; the instruction touches registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack)
        );
    }
    acc
}

/// The same of codes whose top bit is no sign; the intrinsic is not stable yet.
///
/// # Safety
/// Needs the extension i8mm.
#[inline(always)]
unsafe fn usdot(mut acc: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller vouches for the extension; the instruction touches registers only.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "usdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack)
        );
    }
    acc
}

/// Two rows of eight codes by two of eight signed bytes; the intrinsic is not stable yet.
///
/// # Safety
/// Needs the extension i8mm.
#[inline(always)]
unsafe fn usmmla(mut acc: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller vouches for the extension; the instruction touches registers only.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "usmmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack)
        );
    }
    acc
}

/// What [`sdot`] does, for `b` in −127 ..= 127: two products fit into 16 bits.
///
/// # Safety
/// Needs NEON.
#[inline(always)]
unsafe fn four_products(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller vouches for NEON.
    unsafe {
        let (low, high) = (vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
        vpadalq_s16(acc, vpaddq_s16(low, high))
    }
}

/// Byte `J` of each lane.
///
/// # Safety
/// Needs NEON.
#[inline(always)]
unsafe fn byte<const J: i32>(x: uint8x16_t) -> uint32x4_t {
    // SAFETY: the caller vouches for NEON.
    unsafe {
        let x = vreinterpretq_u32_u8(x);
        let x = match J {
            0 => x,
            1 => vshrq_n_u32::<8>(x),
            2 => vshrq_n_u32::<16>(x),
            _ => vshrq_n_u32::<24>(x),
        };
        vandq_u32(x, vdupq_n_u32(255))
    }
}
