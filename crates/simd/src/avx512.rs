use std::arch::x86_64::*;

use crate::{
    Isa, LANES, Op, amx,
    isa::{HalfRows, HalfSums, HalfTokens, half_tiles_by_loops, pairs_of_bf16},
};

/// AVX-512 with F, BW, VL, DQ and VNNI (Intel since Cascade Lake, AMD since Zen 4). `LEVEL` says what
/// there is beside it.
#[derive(Clone, Copy, Debug)]
pub struct Avx512<const LEVEL: u8 = PLAIN>(());

/// Nothing.
pub(crate) const PLAIN: u8 = 0;
/// The dot product of bfloat16 (Intel since Cooper Lake, AMD since Zen 4).
pub(crate) const BF16: u8 = 1;
/// That, and tile registers with products of bfloat16 (Intel since Sapphire Rapids).
pub(crate) const AMX: u8 = 2;

impl<const LEVEL: u8> Avx512<LEVEL> {
    /// The same machine without more than that, for what does not use it: its code is compiled
    /// once.
    pub(crate) fn plain(self) -> Avx512 {
        Avx512(())
    }
}

impl Avx512<AMX> {
    /// The same machine without tiles.
    pub(crate) fn without_tiles(self) -> Avx512<BF16> {
        Avx512(())
    }
}

/// Which words of two vectors are the upper halves of their lanes.
const UPPER_HALVES: [u16; 32] = {
    let mut words = [0; 32];
    let mut i = 0;
    while i < 32 {
        words[i] = 2 * i as u16 + 1;
        i += 1;
    }
    words
};

/// Calls intrinsics on the strength of the token.
macro_rules! v {
    ($e:expr) => {{
        // SAFETY: `self` exists only where `detect` found every feature that `enter` enables, and
        // the loads and stores go through references to arrays of the full width.
        unsafe { $e }
    }};
}

impl<const LEVEL: u8> Isa for Avx512<LEVEL> {
    const NAME: &'static str = match LEVEL {
        PLAIN => "avx512",
        BF16 => "avx512bf16",
        _ => "amx",
    };
    const REGISTERS: usize = 32;
    const DOT_BIAS: i32 = 0;
    const BF16: bool = LEVEL >= BF16;
    const TILES: bool = LEVEL == AMX;

    type F = __m512;
    type I = __m512i;
    type B = __m512i;

    fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (LEVEL < BF16 || is_x86_feature_detected!("avx512bf16"))
            && (LEVEL < AMX || amx::is_here()))
        .then_some(Self(()))
    }
    #[inline]
    fn enter<O: Op>(self, op: O) -> O::Out {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        fn inner<I: Isa, O: Op>(isa: I, op: O) -> O::Out {
            op.run(isa)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        #[target_feature(enable = "avx512bf16")]
        fn with_bf16<I: Isa, O: Op>(isa: I, op: O) -> O::Out {
            op.run(isa)
        }
        if LEVEL >= BF16 { v!(with_bf16(self, op)) } else { v!(inner(self, op)) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        v!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        v!(_mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> __m512 {
        v!(_mm512_loadu_ps(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> __m512 {
        v!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> __m512 {
        v!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn load_e4m3(self, from: &[u8; LANES]) -> __m512 {
        // Shifted into place the bits are a half of 2^-8 times the value, subnormals included.
        v!({
            let x = _mm256_cvtepu8_epi16(_mm_loadu_si128(from.as_ptr().cast()));
            let size = _mm256_slli_epi16::<7>(_mm256_and_si256(x, _mm256_set1_epi16(127)));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(x, _mm256_set1_epi16(128)));
            let half = _mm512_cvtph_ps(_mm256_or_si256(size, sign));
            _mm512_mul_ps(half, _mm512_set1_ps(256.0))
        })
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        v!(_mm512_storeu_ps(to.as_mut_ptr(), x));
    }
    #[inline(always)]
    fn store_f16(self, x: __m512, to: &mut [u8; 32]) {
        v!(_mm256_storeu_si256(
            to.as_mut_ptr().cast(),
            _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        ));
    }
    #[inline(always)]
    fn store_bf16(self, x: __m512, to: &mut [u8; 32]) {
        v!({
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(rounded));
        });
    }
    #[inline(always)]
    fn load_e4m3_pairs(self, from: &[u8; 32]) -> __m512i {
        // A bfloat16's exponent is larger by 120 and its fraction wider by four bits; subnormals,
        // which are eighths of the smallest power of two, become normal.
        v!({
            let x = _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.as_ptr().cast()));
            let size = _mm512_and_si512(x, _mm512_set1_epi16(127));
            let sign = _mm512_slli_epi16::<8>(_mm512_xor_si512(x, size));
            let normal =
                _mm512_add_epi16(_mm512_slli_epi16::<4>(size), _mm512_set1_epi16(120 << 7));
            let small = _mm512_cmplt_epu16_mask(size, _mm512_set1_epi16(8));
            let table = _mm512_castsi128_si512(_mm_setr_epi16(
                0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60,
            ));
            let value = _mm512_mask_permutexvar_epi16(normal, small, size, table);
            _mm512_or_si512(value, sign)
        })
    }
    #[inline(always)]
    fn load_f16_pairs(self, from: &[u8; 64]) -> __m512i {
        v!({
            let low = _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()));
            let high = _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().add(32).cast()));
            _mm512_permutex2var_epi16(
                _mm512_castps_si512(low),
                _mm512_loadu_si512(UPPER_HALVES.as_ptr().cast()),
                _mm512_castps_si512(high),
            )
        })
    }
    #[inline(always)]
    fn bf16_pairs(self, x: __m512i) -> [__m512; 2] {
        v!([
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)),
            _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(-65536))),
        ])
    }
    #[inline(always)]
    fn dot_bf16(self, acc: __m512, a: __m512i, b: __m512i) -> __m512 {
        if LEVEL >= BF16 {
            // SAFETY: the token proves the feature; all three are 64 bytes of plain numbers.
            unsafe {
                let (a, b) = (
                    std::mem::transmute::<__m512i, __m512bh>(a),
                    std::mem::transmute::<__m512i, __m512bh>(b),
                );
                _mm512_dpbf16_ps(acc, a, b)
            }
        } else {
            pairs_of_bf16(self, acc, a, b)
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        v!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        v!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        v!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        v!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        v!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        v!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        v!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, x: __m512) -> __m512 {
        v!(_mm512_abs_ps(x))
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512i {
        v!(_mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x))
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        v!({
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }
    #[inline(always)]
    fn sums(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // The same additions as in `sum`, those of the four side by side: quarters of vectors are
        // brought together, then the lanes of each quarter.
        v!({
            let ab = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
            );
            let cd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
            );
            let x = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
            );
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0b11_10_11_10>(x));
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0b01_01_01_01>(x));
            let first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let x = _mm512_castps512_ps128(_mm512_permutexvar_ps(first, x));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), x);
            sums
        })
    }
    #[inline(always)]
    fn quarter_sums(self, x: __m512) -> [f32; 4] {
        v!({
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0b11_10_11_10>(x));
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0b01_01_01_01>(x));
            let first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let x = _mm512_castps512_ps128(_mm512_permutexvar_ps(first, x));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), x);
            sums
        })
    }
    #[inline(always)]
    fn max_lane(self, x: __m512) -> f32 {
        v!(_mm512_reduce_max_ps(x))
    }
    #[inline(always)]
    fn exp2_int(self, n: __m512i) -> __m512 {
        v!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(
            n,
            _mm512_set1_epi32(127)
        ))))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        v!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn splat_pair_i(self, [a, b]: [i32; 2]) -> __m512i {
        v!(_mm512_set4_epi32(b, a, b, a))
    }
    #[inline(always)]
    fn to_f32(self, x: __m512i) -> __m512 {
        v!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> __m512i {
        v!(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn split_nibbles(self, x: __m512i) -> [__m512i; 2] {
        v!({
            let mask = _mm512_set1_epi32(15);
            [_mm512_and_si512(x, mask), _mm512_and_si512(_mm512_srli_epi32::<4>(x), mask)]
        })
    }
    #[inline(always)]
    fn store_low_bytes(self, x: __m512i, to: &mut [i8; LANES]) {
        v!(_mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x)));
    }

    #[inline(always)]
    fn store_bytes(self, x: __m512i, to: &mut [u8; 64]) {
        v!(_mm512_storeu_si512(to.as_mut_ptr().cast(), x));
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> __m512i {
        v!(_mm512_loadu_si512(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn splat_bytes(self, x: &[i8; 4]) -> __m512i {
        self.splat_i(i32::from_ne_bytes(x.map(i8::cast_unsigned)))
    }
    #[inline(always)]
    fn splat_quarter(self, from: &[u8; 16]) -> __m512i {
        v!(_mm512_broadcast_i32x4(_mm_loadu_si128(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn splat_quarter_f32(self, from: &[u8; 16]) -> __m512 {
        v!(_mm512_castsi512_ps(self.splat_quarter(from)))
    }
    #[inline(always)]
    fn transpose_quarters(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        v!({
            let (ab, ab2) = (
                _mm512_shuffle_i32x4::<0b01_00_01_00>(a, b),
                _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b),
            );
            let (cd, cd2) = (
                _mm512_shuffle_i32x4::<0b01_00_01_00>(c, d),
                _mm512_shuffle_i32x4::<0b11_10_11_10>(c, d),
            );
            [
                _mm512_shuffle_i32x4::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(ab, cd),
                _mm512_shuffle_i32x4::<0b10_00_10_00>(ab2, cd2),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(ab2, cd2),
            ]
        })
    }
    #[inline(always)]
    fn transpose(self, x: [__m512i; LANES]) -> [__m512i; LANES] {
        v!({
            // Within quarters: four vectors of four lanes at a time.
            let mut fours = x;
            for i in 0..LANES / 4 {
                let [a, b, c, d] = [x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]];
                let (ab, ab2) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
                let (cd, cd2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
                fours[i] = _mm512_unpacklo_epi64(ab, cd);
                fours[4 + i] = _mm512_unpackhi_epi64(ab, cd);
                fours[8 + i] = _mm512_unpacklo_epi64(ab2, cd2);
                fours[12 + i] = _mm512_unpackhi_epi64(ab2, cd2);
            }
            // Quarter q of four's vector i: lane 4q + k of rows 4i .. 4i + 4, where k is the four.
            let mut columns = x;
            for k in 0..LANES / 4 {
                let four = [fours[4 * k], fours[4 * k + 1], fours[4 * k + 2], fours[4 * k + 3]];
                let [a, b, c, d] = self.transpose_quarters(four);
                (columns[k], columns[4 + k]) = (a, b);
                (columns[8 + k], columns[12 + k]) = (c, d);
            }
            columns
        })
    }
    #[inline(always)]
    fn low_nibbles(self, x: __m512i) -> __m512i {
        v!(_mm512_and_si512(x, _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn high_nibbles(self, x: __m512i) -> __m512i {
        v!(_mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn add_fifth_bit(self, x: __m512i, mask: &[u8; 8]) -> __m512i {
        v!(_mm512_mask_add_epi8(x, u64::from_le_bytes(*mask), x, _mm512_set1_epi8(16)))
    }
    #[inline(always)]
    fn add_bit_pair<const N: i32>(self, x: __m512i, pairs: __m512i) -> __m512i {
        v!({
            // What a shift of words moves from byte to byte lies outside the mask.
            let moved = match N {
                0 => _mm512_slli_epi16::<4>(pairs),
                1 => _mm512_slli_epi16::<2>(pairs),
                2 => pairs,
                _ => _mm512_srli_epi16::<2>(pairs),
            };
            _mm512_or_si512(x, _mm512_and_si512(moved, _mm512_set1_epi8(48)))
        })
    }
    #[inline(always)]
    fn lookup(self, x: __m512i, table: &[u8; 16]) -> __m512i {
        v!({
            let table = _mm_loadu_si128(table.as_ptr().cast());
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), x)
        })
    }
    #[inline(always)]
    fn byte_f32<const J: i32>(self, x: __m512i) -> __m512 {
        self.to_f32(byte::<J>(self, x))
    }
    #[inline(always)]
    fn byte_table<const J: i32>(self, x: __m512i, table: &[f32; 16]) -> __m512 {
        let table = self.load(table);
        v!(_mm512_permutexvar_ps(byte::<J>(self, x), table))
    }
    #[inline(always)]
    fn dot_small(self, acc: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        v!(_mm512_dpbusd_epi32(acc, codes, x))
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        v!(_mm512_dpbusd_epi32(acc, codes, x))
    }

    #[inline(always)]
    fn half_tiles_on(self, tokens: usize) {
        if LEVEL == AMX {
            amx::half_tiles_on(tokens);
        }
    }
    #[inline(always)]
    unsafe fn half_tiles(self, w: HalfRows, x: HalfTokens, steps: usize, sums: &mut [HalfSums; 4]) {
        // SAFETY: the token is the proof that there are tiles, the caller vouches for the rest.
        unsafe {
            if LEVEL == AMX {
                amx::half_tiles(w, x, steps, sums);
            } else {
                half_tiles_by_loops(w, x, steps, sums);
            }
        }
    }
    #[inline(always)]
    fn spin_tiles(self, rounds: usize) -> usize {
        // SAFETY: the token is the proof that there are tiles.
        if LEVEL == AMX { unsafe { amx::spin(rounds) } } else { 0 }
    }
    #[inline(always)]
    fn tiles_off(self) {
        if LEVEL == AMX {
            amx::tiles_off();
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        v!(_mm_prefetch::<_MM_HINT_T0>(at.cast()));
    }
}

/// Byte `J` of each lane, as i32.
#[inline(always)]
fn byte<const J: i32>(isa: impl Isa, x: __m512i) -> __m512i {
    let _proof = isa;
    // SAFETY: the token proves the features.
    unsafe {
        let x = match J {
            0 => x,
            1 => _mm512_srli_epi32::<8>(x),
            2 => _mm512_srli_epi32::<16>(x),
            _ => _mm512_srli_epi32::<24>(x),
        };
        _mm512_and_si512(x, _mm512_set1_epi32(255))
    }
}
