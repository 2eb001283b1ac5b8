use std::arch::x86_64::*;

use crate::{Isa, LANES, Op};

/// AVX2 with FMA and F16C (Intel since Haswell, AMD since Zen): a vector is two registers.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

/// Calls intrinsics on the strength of the token.
macro_rules! v {
    ($e:expr) => {{
        // SAFETY: `self` exists only where `detect` found every feature that `enter` enables, and
        // the loads and stores go through references to arrays of the full width.
        unsafe { $e }
    }};
}

/// The same instruction on both halves.
macro_rules! both {
    ($f:path, $a:expr) => {{
        let a = $a;
        v!([$f(a[0]), $f(a[1])])
    }};
    ($f:path, $a:expr, $b:expr) => {{
        let (a, b) = ($a, $b);
        v!([$f(a[0], b[0]), $f(a[1], b[1])])
    }};
    ($f:path, $a:expr, $b:expr, $c:expr) => {{
        let (a, b, c) = ($a, $b, $c);
        v!([$f(a[0], b[0], c[0]), $f(a[1], b[1], c[1])])
    }};
}

type F = [__m256; 2];
type I = [__m256i; 2];

impl Isa for Avx2 {
    const NAME: &'static str = "avx2";
    const REGISTERS: usize = 8;
    const DOT_BIAS: i32 = 128;

    type F = F;
    type I = I;
    type B = I;

    fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Self(()))
    }
    #[inline]
    fn enter<O: Op>(self, op: O) -> O::Out {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<O: Op>(isa: Avx2, op: O) -> O::Out {
            op.run(isa)
        }
        v!(inner(self, op))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        v!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        v!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))])
    }
    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> F {
        v!([_mm256_loadu_ps(from.as_ptr().cast()), _mm256_loadu_ps(from.as_ptr().add(32).cast())])
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> F {
        v!([
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(16).cast()))
        ])
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> F {
        v!({
            let a = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let b = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().add(16).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
            ]
        })
    }
    #[inline(always)]
    fn load_e4m3(self, from: &[u8; LANES]) -> F {
        // Shifted into place the bits are a half of 2^-8 times the value, subnormals included.
        v!({
            let x = _mm256_cvtepu8_epi16(_mm_loadu_si128(from.as_ptr().cast()));
            let size = _mm256_slli_epi16::<7>(_mm256_and_si256(x, _mm256_set1_epi16(127)));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(x, _mm256_set1_epi16(128)));
            let half = _mm256_or_si256(size, sign);
            let (low, high) = (_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
            let by = _mm256_set1_ps(256.0);
            [_mm256_mul_ps(_mm256_cvtph_ps(low), by), _mm256_mul_ps(_mm256_cvtph_ps(high), by)]
        })
    }
    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; LANES]) {
        v!({
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
        });
    }
    #[inline(always)]
    fn store_f16(self, x: F, to: &mut [u8; 32]) {
        v!({
            let to = to.as_mut_ptr();
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(to.add(16).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
        });
    }
    #[inline(always)]
    fn store_bf16(self, x: F, to: &mut [u8; 32]) {
        v!({
            // Packing takes four numbers of each in turn.
            let packed = _mm256_packus_epi32(to_bf16(x[0]), to_bf16(x[1]));
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), packed);
        });
    }
    #[inline(always)]
    fn load_f16_pairs(self, from: &[u8; 64]) -> I {
        let (from, _) = from.as_chunks::<32>();
        let [low, high] = [self.load_f16(&from[0]), self.load_f16(&from[1])];
        // SAFETY: the token proves AVX2.
        unsafe { [upper_halves(low), upper_halves(high)] }
    }
    #[inline(always)]
    fn bf16_pairs(self, x: I) -> [F; 2] {
        v!({
            let mask = _mm256_set1_epi32(-65536);
            [
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x[0])),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x[1])),
                ],
                [
                    _mm256_castsi256_ps(_mm256_and_si256(x[0], mask)),
                    _mm256_castsi256_ps(_mm256_and_si256(x[1], mask)),
                ],
            ]
        })
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn abs(self, x: F) -> F {
        both!(_mm256_andnot_ps, self.splat(-0.0), x)
    }
    #[inline(always)]
    fn round(self, x: F) -> I {
        both!(_mm256_cvtps_epi32, x)
    }
    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        v!({
            let x = _mm256_add_ps(x[0], x[1]);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }
    #[inline(always)]
    fn quarter_sums(self, x: F) -> [f32; 4] {
        v!({
            // Of both quarters of each half, lanes 0 and 1 with 2 and 3, then what is left.
            let low = _mm256_shuffle_ps::<0b01_00_01_00>(x[0], x[1]);
            let high = _mm256_shuffle_ps::<0b11_10_11_10>(x[0], x[1]);
            let x = _mm256_add_ps(low, high);
            let x = _mm256_add_ps(x, _mm256_movehdup_ps(x));
            // Quarters 0 and 2 lie in the lower half, 1 and 3 in the upper.
            let (even, odd) = (_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let mut sums = [0.0; 4];
            let pairs = _mm_shuffle_ps::<0b10_00_10_00>(even, odd);
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_permute_ps::<0b11_01_10_00>(pairs));
            sums
        })
    }
    #[inline(always)]
    fn max_lane(self, x: F) -> f32 {
        v!({
            let x = _mm256_max_ps(x[0], x[1]);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }
    #[inline(always)]
    fn exp2_int(self, n: I) -> F {
        let biased = both!(_mm256_add_epi32, n, self.splat_i(127));
        both!(_mm256_castsi256_ps, both!(_mm256_slli_epi32::<23>, biased))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        v!([_mm256_set1_epi32(x); 2])
    }
    #[inline(always)]
    fn splat_pair_i(self, [a, b]: [i32; 2]) -> I {
        v!([_mm256_setr_epi32(a, b, a, b, a, b, a, b); 2])
    }
    #[inline(always)]
    fn to_f32(self, x: I) -> F {
        both!(_mm256_cvtepi32_ps, x)
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I {
        v!({
            let x = _mm_loadu_si128(from.as_ptr().cast());
            [_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(x))]
        })
    }
    #[inline(always)]
    fn split_nibbles(self, x: I) -> [I; 2] {
        let mask = self.splat_i(15);
        let high = both!(_mm256_srli_epi32::<4>, x);
        [both!(_mm256_and_si256, x, mask), both!(_mm256_and_si256, high, mask)]
    }
    #[inline(always)]
    fn store_low_bytes(self, x: I, to: &mut [i8; LANES]) {
        v!({
            // Within each 128-bit half the low bytes of four lanes gather in its first word.
            let pick = _mm256_set1_epi64x(0x8080_8080_0c08_0400_u64.cast_signed());
            for (half, x) in x.into_iter().enumerate() {
                let x = _mm256_shuffle_epi8(x, pick);
                let low = _mm256_extract_epi32::<0>(x).to_ne_bytes();
                let high = _mm256_extract_epi32::<4>(x).to_ne_bytes();
                for i in 0..4 {
                    to[8 * half + i] = low[i].cast_signed();
                    to[8 * half + 4 + i] = high[i].cast_signed();
                }
            }
        });
    }

    #[inline(always)]
    fn store_bytes(self, x: I, to: &mut [u8; 64]) {
        v!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(32).cast(), x[1]);
        });
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> I {
        v!([
            _mm256_loadu_si256(from.as_ptr().cast()),
            _mm256_loadu_si256(from.as_ptr().add(32).cast())
        ])
    }
    #[inline(always)]
    fn splat_bytes(self, x: &[i8; 4]) -> I {
        self.splat_i(i32::from_ne_bytes(x.map(i8::cast_unsigned)))
    }
    #[inline(always)]
    fn splat_quarter(self, from: &[u8; 16]) -> I {
        v!([_mm256_broadcastsi128_si256(_mm_loadu_si128(from.as_ptr().cast())); 2])
    }
    #[inline(always)]
    fn splat_quarter_f32(self, from: &[u8; 16]) -> F {
        both!(_mm256_castsi256_ps, self.splat_quarter(from))
    }
    #[inline(always)]
    fn transpose_quarters(self, [a, b, c, d]: [I; 4]) -> [I; 4] {
        v!({
            const LOWER: i32 = 0x20;
            const UPPER: i32 = 0x31;
            [
                [
                    _mm256_permute2x128_si256::<LOWER>(a[0], b[0]),
                    _mm256_permute2x128_si256::<LOWER>(c[0], d[0]),
                ],
                [
                    _mm256_permute2x128_si256::<UPPER>(a[0], b[0]),
                    _mm256_permute2x128_si256::<UPPER>(c[0], d[0]),
                ],
                [
                    _mm256_permute2x128_si256::<LOWER>(a[1], b[1]),
                    _mm256_permute2x128_si256::<LOWER>(c[1], d[1]),
                ],
                [
                    _mm256_permute2x128_si256::<UPPER>(a[1], b[1]),
                    _mm256_permute2x128_si256::<UPPER>(c[1], d[1]),
                ],
            ]
        })
    }
    #[inline(always)]
    fn low_nibbles(self, x: I) -> I {
        v!({
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)]
        })
    }
    #[inline(always)]
    fn high_nibbles(self, x: I) -> I {
        self.low_nibbles(v!([_mm256_srli_epi16::<4>(x[0]), _mm256_srli_epi16::<4>(x[1])]))
    }
    #[inline(always)]
    fn add_fifth_bit(self, x: I, mask: &[u8; 8]) -> I {
        v!({
            // Byte i of each half takes the mask byte that holds its bit, then tests that bit.
            let spread = _mm256_setr_epi64x(
                0,
                0x0101_0101_0101_0101,
                0x0202_0202_0202_0202,
                0x0303_0303_0303_0303,
            );
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let sixteen = _mm256_set1_epi8(16);
            let [a, b, c, d, e, f, g, h] = *mask;
            let words = [i32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h])];
            let one = _mm256_shuffle_epi8(_mm256_set1_epi32(words[0]), spread);
            let two = _mm256_shuffle_epi8(_mm256_set1_epi32(words[1]), spread);
            let one = _mm256_cmpeq_epi8(_mm256_and_si256(one, bit), bit);
            let two = _mm256_cmpeq_epi8(_mm256_and_si256(two, bit), bit);
            [
                _mm256_or_si256(x[0], _mm256_and_si256(one, sixteen)),
                _mm256_or_si256(x[1], _mm256_and_si256(two, sixteen)),
            ]
        })
    }
    #[inline(always)]
    fn add_bit_pair<const N: i32>(self, x: I, pairs: I) -> I {
        // What a shift of words moves from byte to byte lies outside the mask.
        let moved = match N {
            0 => both!(_mm256_slli_epi16::<4>, pairs),
            1 => both!(_mm256_slli_epi16::<2>, pairs),
            2 => pairs,
            _ => both!(_mm256_srli_epi16::<2>, pairs),
        };
        let mask = v!([_mm256_set1_epi8(48); 2]);
        both!(_mm256_or_si256, x, both!(_mm256_and_si256, moved, mask))
    }
    #[inline(always)]
    fn lookup(self, x: I, table: &[u8; 16]) -> I {
        v!({
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, x[0]), _mm256_shuffle_epi8(table, x[1])]
        })
    }
    #[inline(always)]
    fn byte_f32<const J: i32>(self, x: I) -> F {
        self.to_f32(byte::<J>(self, x))
    }
    #[inline(always)]
    fn byte_table<const J: i32>(self, x: I, table: &[f32; 16]) -> F {
        let index = byte::<J>(self, x);
        let [low, high] = self.load(table);
        v!([pick(low, high, index[0]), pick(low, high, index[1])])
    }
    #[inline(always)]
    fn dot_small(self, acc: I, codes: I, x: I) -> I {
        both!(_mm256_add_epi32, acc, pairs(self, both!(_mm256_maddubs_epi16, codes, x)))
    }
    #[inline(always)]
    fn dot(self, acc: I, codes: I, x: I) -> I {
        // maddubs saturates on two products of bytes above 127: take the codes as signed, give
        // their sign to x, and multiply by their magnitude, which is at most 128.
        let top = v!([_mm256_set1_epi8(-128); 2]);
        let codes = both!(_mm256_xor_si256, codes, top);
        let x = both!(_mm256_sign_epi8, x, codes);
        self.dot_small(acc, both!(_mm256_abs_epi8, codes), x)
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        v!(_mm_prefetch::<_MM_HINT_T0>(at.cast()));
    }
}

/// Sums of neighbouring i16.
#[inline(always)]
fn pairs(isa: Avx2, x: I) -> I {
    let _proof = isa;
    // SAFETY: the token proves the features.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        [_mm256_madd_epi16(x[0], ones), _mm256_madd_epi16(x[1], ones)]
    }
}

/// Byte `J` of each lane, as i32.
#[inline(always)]
fn byte<const J: i32>(isa: Avx2, x: I) -> I {
    let _proof = isa;
    // SAFETY: the token proves the features.
    unsafe {
        let x = match J {
            0 => x,
            1 => [_mm256_srli_epi32::<8>(x[0]), _mm256_srli_epi32::<8>(x[1])],
            2 => [_mm256_srli_epi32::<16>(x[0]), _mm256_srli_epi32::<16>(x[1])],
            _ => [_mm256_srli_epi32::<24>(x[0]), _mm256_srli_epi32::<24>(x[1])],
        };
        let mask = _mm256_set1_epi32(255);
        [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)]
    }
}

/// `table[index]` of sixteen floats in two registers: bit 3 of the index chooses between them.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn pick(low: __m256, high: __m256, index: __m256i) -> __m256 {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let low = _mm256_permutevar8x32_ps(low, index);
        let high = _mm256_permutevar8x32_ps(high, index);
        _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
    }
}

/// Rounds to nearest even, to bfloat16 in the low halves of the lanes.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn to_bf16(x: __m256) -> __m256i {
    // SAFETY: the caller vouches for the feature.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan)
    }
}

/// The upper halves of the lanes, side by side.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn upper_halves(x: [__m256; 2]) -> __m256i {
    // SAFETY: the caller vouches for the feature.
    unsafe {
        let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(x[0]));
        let high = _mm256_srli_epi32::<16>(_mm256_castps_si256(x[1]));
        // Packing takes four numbers of each in turn.
        _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high))
    }
}
