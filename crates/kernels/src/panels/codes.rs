use std::marker::PhantomData;

use lathe_formats::{IQ4_LEVELS, NF4_LEVELS};
use lathe_simd::Isa;

/// The codes of a sub-block: eight vectors of four columns each.
pub(crate) trait Codes: 'static {
    /// Bytes of a sub-block.
    const BYTES: usize;
    /// A code of the dot product stands for this many times the weight over its scale.
    const FRACTION: f32 = 1.0;

    /// Whether [`Codes::zero`] differs between instruction sets: beside zero points it is then taken
    /// off in integers, so that the results do not.
    const BIASED: bool = false;

    /// What the dot product leaves too high in every code, before zero points.
    fn zero<I: Isa>() -> i32;

    /// Vectors `2 j` and `2 j + 1`, ready for the dot product.
    ///
    /// # Safety
    /// A sub-block can be read at `from`, and `j < 4`.
    unsafe fn pair<I: Isa>(isa: I, from: *const u8, j: usize) -> [I::B; 2];

    /// Adds four columns.
    fn dot<I: Isa>(isa: I, acc: I::I, codes: I::B, x: I::B) -> I::I;

    /// Like [`Codes::pair`], the codes as they are stored.
    ///
    /// # Safety
    /// A sub-block can be read at `from`, and `j < 4`.
    #[inline(always)]
    unsafe fn stored<I: Isa>(isa: I, from: *const u8, j: usize) -> [I::B; 2] {
        // SAFETY: the caller vouches for it.
        unsafe { Self::pair(isa, from, j) }
    }

    /// Column `J` of four as the weight over its scale; where rows have zero points, plus those.
    fn weight<I: Isa, const J: i32>(isa: I, stored: I::B) -> I::F;
}

/// Nibbles: the low ones of 64 bytes are four columns, the high ones the next four.
pub(crate) struct Nibbles<const ZERO: i32>;

impl<const ZERO: i32> Codes for Nibbles<ZERO> {
    const BYTES: usize = 256;

    fn zero<I: Isa>() -> i32 {
        ZERO
    }
    #[inline(always)]
    unsafe fn pair<I: Isa>(isa: I, from: *const u8, j: usize) -> [I::B; 2] {
        // SAFETY: the caller vouches for 256 bytes.
        let bytes = isa.load_bytes(unsafe { &*from.add(64 * j).cast() });
        [isa.low_nibbles(bytes), isa.high_nibbles(bytes)]
    }
    #[inline(always)]
    fn dot<I: Isa>(isa: I, acc: I::I, codes: I::B, x: I::B) -> I::I {
        isa.dot_small(acc, codes, x)
    }
    #[inline(always)]
    fn weight<I: Isa, const J: i32>(isa: I, stored: I::B) -> I::F {
        isa.sub(isa.byte_f32::<J>(stored), isa.splat(ZERO as f32))
    }
}

/// Nibbles that stand for the levels of a table.
pub(crate) struct Levels<T>(PhantomData<T>);

/// Sixteen levels.
pub(crate) trait Table: 'static {
    const LEVELS: [f32; 16];
    /// What a step of the dot product's codes goes into a level's unit.
    const FRACTION: f32;
    /// The levels in steps, plus 128.
    const CODES: [u8; 16] = {
        let mut codes = [0; 16];
        let mut i = 0;
        while i < 16 {
            codes[i] = (Self::LEVELS[i] * Self::FRACTION + 128.5) as u8;
            i += 1;
        }
        codes
    };
}

/// NF4. The dot product takes the levels in 127ths, which are off by 0.0037 at most: an eighth of
/// what separates the nearest two from their midpoint, and as much as rounding the activations
/// costs.
pub(crate) struct Nf4;

impl Table for Nf4 {
    const LEVELS: [f32; 16] = NF4_LEVELS;
    const FRACTION: f32 = 127.0;
}

/// IQ4_NL and IQ4_XS: integers.
pub(crate) struct Iq4;

impl Table for Iq4 {
    const LEVELS: [f32; 16] = IQ4_LEVELS;
    const FRACTION: f32 = 1.0;
}

impl<T: Table> Codes for Levels<T> {
    const BYTES: usize = 256;
    const FRACTION: f32 = T::FRACTION;

    fn zero<I: Isa>() -> i32 {
        128 - I::DOT_BIAS
    }
    #[inline(always)]
    unsafe fn pair<I: Isa>(isa: I, from: *const u8, j: usize) -> [I::B; 2] {
        // SAFETY: the caller vouches for it.
        let [low, high] = unsafe { Self::stored(isa, from, j) };
        [isa.lookup(low, &T::CODES), isa.lookup(high, &T::CODES)]
    }
    #[inline(always)]
    unsafe fn stored<I: Isa>(isa: I, from: *const u8, j: usize) -> [I::B; 2] {
        // SAFETY: the caller vouches for it.
        unsafe { Nibbles::<0>::pair(isa, from, j) }
    }
    #[inline(always)]
    fn dot<I: Isa>(isa: I, acc: I::I, codes: I::B, x: I::B) -> I::I {
        isa.dot(acc, codes, x)
    }
    #[inline(always)]
    fn weight<I: Isa, const J: i32>(isa: I, stored: I::B) -> I::F {
        isa.byte_table::<J>(stored, &T::LEVELS)
    }
}

/// Nibbles as in [`Nibbles`], then eight masks of 64 fifth bits, one per vector.
pub(crate) struct FiveBits<const ZERO: i32>;

impl<const ZERO: i32> Codes for FiveBits<ZERO> {
    const BYTES: usize = 256 + 64;

    fn zero<I: Isa>() -> i32 {
        ZERO
    }
    #[inline(always)]
    unsafe fn pair<I: Isa>(isa: I, from: *const u8, j: usize) -> [I::B; 2] {
        // SAFETY: the caller vouches for 256 bytes and 64 of masks.
        unsafe {
            let [low, high] = Nibbles::<0>::pair(isa, from, j);
            let masks = from.add(256 + 16 * j);
            [isa.add_fifth_bit(low, &*masks.cast()), isa.add_fifth_bit(high, &*masks.add(8).cast())]
        }
    }
    #[inline(always)]
    fn dot<I: Isa>(isa: I, acc: I::I, codes: I::B, x: I::B) -> I::I {
        isa.dot_small(acc, codes, x)
    }
    #[inline(always)]
    fn weight<I: Isa, const J: i32>(isa: I, stored: I::B) -> I::F {
        isa.sub(isa.byte_f32::<J>(stored), isa.splat(ZERO as f32))
    }
}

/// Nibbles as in [`Nibbles`], then two vectors of bit pairs: byte i of the first has the fifth and
/// sixth bit of byte i of vectors 0, 1, 2 and 3, from its low end; the second those of the others.
pub(crate) struct SixBits;

impl Codes for SixBits {
    const BYTES: usize = 256 + 128;

    fn zero<I: Isa>() -> i32 {
        32
    }
    #[inline(always)]
    unsafe fn pair<I: Isa>(isa: I, from: *const u8, j: usize) -> [I::B; 2] {
        // SAFETY: the caller vouches for 256 bytes and 128 of pairs.
        unsafe {
            let [low, high] = Nibbles::<0>::pair(isa, from, j);
            let pairs = isa.load_bytes(&*from.add(256 + 64 * (j / 2)).cast());
            if j.is_multiple_of(2) {
                [isa.add_bit_pair::<0>(low, pairs), isa.add_bit_pair::<1>(high, pairs)]
            } else {
                [isa.add_bit_pair::<2>(low, pairs), isa.add_bit_pair::<3>(high, pairs)]
            }
        }
    }
    #[inline(always)]
    fn dot<I: Isa>(isa: I, acc: I::I, codes: I::B, x: I::B) -> I::I {
        isa.dot_small(acc, codes, x)
    }
    #[inline(always)]
    fn weight<I: Isa, const J: i32>(isa: I, stored: I::B) -> I::F {
        isa.sub(isa.byte_f32::<J>(stored), isa.splat(32.0))
    }
}

/// Whole bytes.
pub(crate) struct Bytes<const ZERO: i32>;

impl<const ZERO: i32> Codes for Bytes<ZERO> {
    const BYTES: usize = 512;
    const BIASED: bool = true;

    fn zero<I: Isa>() -> i32 {
        ZERO - I::DOT_BIAS
    }
    #[inline(always)]
    unsafe fn pair<I: Isa>(isa: I, from: *const u8, j: usize) -> [I::B; 2] {
        // SAFETY: the caller vouches for 512 bytes.
        unsafe {
            let from = from.add(128 * j);
            [isa.load_bytes(&*from.cast()), isa.load_bytes(&*from.add(64).cast())]
        }
    }
    #[inline(always)]
    fn dot<I: Isa>(isa: I, acc: I::I, codes: I::B, x: I::B) -> I::I {
        isa.dot(acc, codes, x)
    }
    #[inline(always)]
    fn weight<I: Isa, const J: i32>(isa: I, stored: I::B) -> I::F {
        isa.sub(isa.byte_f32::<J>(stored), isa.splat(ZERO as f32))
    }
}
