use std::marker::PhantomData;

use lathe_formats::{IQ4_LEVELS, NF4_LEVELS};
use lathe_simd::{Isa, LANES};

/// How codes and scales lie in a panel. A storage format maps to one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nibbles − 8, f16 scales: Q4_0, and symmetric integers of up to four bits.
    Four,
    /// Nibbles − 8, bf16 scales.
    FourBf16,
    /// Nibbles − zero, f16 scales.
    FourZero,
    /// Nibbles − zero, bf16 scales.
    FourZeroBf16,
    /// NF4: nibbles into a table, f32 scales.
    Table,
    /// Q5_0: five bits − 16, f16 scales.
    Five,
    /// Bytes − 128, f16 scales: Q8_0, and symmetric INT8 by groups.
    Eight,
    /// Bytes − 128, bf16 scales.
    EightBf16,
    /// Bytes − zero, f32 scales.
    EightZero,
    /// INT8 by rows or as a whole: bytes − 128, one f32 scale per row.
    EightRow,
    /// Q4_1: nibbles, f16 scales and minima.
    FourMin,
    /// Q5_1: five bits, f16 scales and minima.
    FiveMin,
    /// IQ4_NL: nibbles into a table of integers, f16 scales.
    TableIq4,
    /// IQ4_XS: the same in superblocks, with scales of eight bits.
    TableIq4Super,
    /// Q2_K and Q3_K: codes widened to nibbles. Superblocks of 256 columns have scales of eight
    /// bits for each 16, and where the code is not symmetric minima.
    TwoSuper,
    ThreeSuper,
    /// Q4_K and Q5_K: superblocks with scales and minima of eight bits for each 32.
    FourSuper,
    FiveSuper,
    /// Q6_K: six bits − 32, superblocks with scales of eight bits for each 16.
    SixSuper,
}

/// Runs `$body` with `$K` as the [`Layout`] of `$kind`.
macro_rules! with_layout {
    ($kind:expr, $K:ident => $body:expr) => {{
        use $crate::panels::kind::*;
        match $kind {
            Kind::Four => {
                type $K = Both<Nibbles<8>, HeadF16>;
                $body
            }
            Kind::FourBf16 => {
                type $K = Both<Nibbles<8>, HeadBf16>;
                $body
            }
            Kind::FourZero => {
                type $K = Both<Nibbles<0>, Zero<HeadF16>>;
                $body
            }
            Kind::FourZeroBf16 => {
                type $K = Both<Nibbles<0>, Zero<HeadBf16>>;
                $body
            }
            Kind::Table => {
                type $K = Both<Levels<Nf4>, HeadF32>;
                $body
            }
            Kind::Five => {
                type $K = Both<FiveBits<16>, HeadF16>;
                $body
            }
            Kind::Eight => {
                type $K = Both<Bytes<128>, HeadF16>;
                $body
            }
            Kind::EightBf16 => {
                type $K = Both<Bytes<128>, HeadBf16>;
                $body
            }
            Kind::EightZero => {
                type $K = Both<Bytes<0>, Zero<HeadF32>>;
                $body
            }
            Kind::EightRow => {
                type $K = Both<Bytes<128>, Tail>;
                $body
            }
            Kind::FourMin => {
                type $K = Both<Nibbles<0>, Minimum>;
                $body
            }
            Kind::FiveMin => {
                type $K = Both<FiveBits<0>, Minimum>;
                $body
            }
            Kind::TableIq4 => {
                type $K = Both<Levels<Iq4>, HeadF16>;
                $body
            }
            Kind::TableIq4Super => {
                type $K = Both<Levels<Iq4>, Super<1>>;
                $body
            }
            Kind::TwoSuper => {
                type $K = Both<Nibbles<0>, SuperMinimum<2>>;
                $body
            }
            Kind::ThreeSuper => {
                type $K = Both<Nibbles<4>, Super<2>>;
                $body
            }
            Kind::FourSuper => {
                type $K = Both<Nibbles<0>, SuperMinimum<1>>;
                $body
            }
            Kind::FiveSuper => {
                type $K = Both<FiveBits<0>, SuperMinimum<1>>;
                $body
            }
            Kind::SixSuper => {
                type $K = Both<SixBits, Super<2>>;
                $body
            }
        }
    }};
}
pub(crate) use with_layout;

impl Kind {
    /// Bytes of each row in the fields of a head.
    pub(crate) fn fields(self) -> &'static [usize] {
        with_layout!(self, K => <K as Layout>::Head::FIELDS)
    }

    pub(crate) fn head_bytes(self) -> usize {
        with_layout!(self, K => <K as Layout>::Head::BYTES)
    }

    pub(crate) fn sub_bytes(self) -> usize {
        with_layout!(self, K => <K as Layout>::Codes::BYTES)
    }

    /// Bytes at the end of a panel: the scales of whole rows.
    pub(crate) fn tail_bytes(self) -> usize {
        if self == Self::EightRow { 4 * LANES } else { 0 }
    }

    /// What activations' scales are divided by because codes are multiples of a fraction.
    pub(crate) fn fraction(self) -> f32 {
        with_layout!(self, K => <K as Layout>::Codes::FRACTION)
    }

    /// What every code is too high by, where it is the same for all of them.
    pub(crate) fn zero<I: Isa>(self) -> i32 {
        with_layout!(self, K => <K as Layout>::Codes::zero::<I>())
    }

    /// Whether, beside zero points, a dot product starts from a multiple of its inputs' sum.
    pub(crate) fn is_biased(self) -> bool {
        with_layout!(self, K => <K as Layout>::Codes::BIASED)
    }

    /// Whether groups bring an offset for each row: a zero point or a minimum.
    pub(crate) fn has_offsets(self) -> bool {
        with_layout!(self, K => <K as Layout>::Head::OFFSETS)
    }

    /// Runs of a sub-block's columns that have scales of their own.
    pub(crate) fn parts(self) -> usize {
        with_layout!(self, K => <K as Layout>::Head::PARTS)
    }
}

/// The two halves of a [`Kind`], as types that loops are compiled for.
pub(crate) trait Layout: 'static {
    type Codes: Codes;
    type Head: Head;
}

pub(crate) struct Both<C, H>(PhantomData<(C, H)>);

impl<C: Codes, H: Head> Layout for Both<C, H> {
    type Codes = C;
    type Head = H;
}

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

/// The head of a group: a scale for each row, perhaps an offset. Fields lie one after the other,
/// each for all sixteen rows.
pub(crate) trait Head: 'static {
    /// Bytes of a row in each field.
    const FIELDS: &'static [usize];
    const BYTES: usize = {
        let (mut bytes, mut i) = (0, 0);
        while i < Self::FIELDS.len() {
            bytes += Self::FIELDS[i] * LANES;
            i += 1;
        }
        bytes
    };
    /// Whether there are scales in the head; where not, they are in the panel's tail.
    const SCALES: bool = true;
    /// Whether something is taken off the scaled codes.
    const OFFSETS: bool = false;
    /// Runs of a sub-block's columns that have scales of their own.
    const PARTS: usize = 1;

    /// The sixteen scales of a part: `at` counts the parts of a group.
    ///
    /// # Safety
    /// A head can be read at `from`, and the group has that part.
    unsafe fn scales<I: Isa>(isa: I, from: *const u8, at: usize) -> I::F;

    /// What is taken off sixteen scaled codes.
    ///
    /// # Safety
    /// As [`Head::scales`].
    #[inline(always)]
    unsafe fn offsets<I: Isa>(isa: I, _from: *const u8, _at: usize) -> I::F {
        isa.splat(0.0)
    }

    /// Sixteen weights, rounded as their format does; `level` is a code less what all codes are
    /// too high by.
    ///
    /// # Safety
    /// As [`Head::scales`].
    #[inline(always)]
    unsafe fn weights<I: Isa>(isa: I, level: I::F, from: *const u8, at: usize) -> I::F {
        // SAFETY: the caller vouches for it.
        unsafe {
            let scaled = isa.mul(level, Self::scales(isa, from, at));
            if Self::OFFSETS { isa.sub(scaled, Self::offsets(isa, from, at)) } else { scaled }
        }
    }
}

/// Defines a head that is scales alone.
macro_rules! plain_head {
    ($($name:ident, $bytes:literal, $load:ident;)*) => {$(
        pub(crate) struct $name;

        impl Head for $name {
            const FIELDS: &'static [usize] = &[$bytes];
            #[inline(always)]
            unsafe fn scales<I: Isa>(isa: I, from: *const u8, _at: usize) -> I::F {
                // SAFETY: the caller vouches for it.
                isa.$load(unsafe { &*from.cast() })
            }
        }
    )*};
}
plain_head! {
    HeadF16, 2, load_f16;
    HeadBf16, 2, load_bf16;
    HeadF32, 4, load_f32;
}

/// Scales, then bytes of zero points.
pub(crate) struct Zero<H>(PhantomData<H>);

impl<H: Head> Zero<H> {
    /// The sixteen zero points.
    ///
    /// # Safety
    /// As [`Head::scales`].
    #[inline(always)]
    unsafe fn zeros<I: Isa>(isa: I, from: *const u8) -> I::F {
        // SAFETY: the caller vouches for it.
        isa.to_f32(isa.load_u8(unsafe { &*from.add(H::BYTES).cast() }))
    }
}

impl<H: Head> Head for Zero<H> {
    const FIELDS: &'static [usize] = &[H::FIELDS[0], 1];
    const OFFSETS: bool = true;
    #[inline(always)]
    unsafe fn scales<I: Isa>(isa: I, from: *const u8, at: usize) -> I::F {
        // SAFETY: the caller vouches for it.
        unsafe { H::scales(isa, from, at) }
    }
    #[inline(always)]
    unsafe fn offsets<I: Isa>(isa: I, from: *const u8, at: usize) -> I::F {
        // SAFETY: the caller vouches for it.
        unsafe { isa.mul(H::scales(isa, from, at), Self::zeros(isa, from)) }
    }
    #[inline(always)]
    unsafe fn weights<I: Isa>(isa: I, level: I::F, from: *const u8, at: usize) -> I::F {
        // SAFETY: the caller vouches for it.
        unsafe { isa.mul(isa.sub(level, Self::zeros(isa, from)), H::scales(isa, from, at)) }
    }
}

/// f16 scales, then f16 minima with their signs turned.
pub(crate) struct Minimum;

impl Head for Minimum {
    const FIELDS: &'static [usize] = &[2, 2];
    const OFFSETS: bool = true;
    #[inline(always)]
    unsafe fn scales<I: Isa>(isa: I, from: *const u8, _at: usize) -> I::F {
        // SAFETY: the caller vouches for it.
        isa.load_f16(unsafe { &*from.cast() })
    }
    #[inline(always)]
    unsafe fn offsets<I: Isa>(isa: I, from: *const u8, _at: usize) -> I::F {
        // SAFETY: the caller vouches for it.
        isa.load_f16(unsafe { &*from.add(2 * LANES).cast() })
    }
}

/// Sub-blocks of a superblock.
pub(crate) const SUPER: usize = 8;

/// A superblock's f32 scale, then a multiple of it for each part, as a byte with its sign turned:
/// − 128.
pub(crate) struct Super<const PARTS: usize>;

impl<const PARTS: usize> Head for Super<PARTS> {
    const FIELDS: &'static [usize] =
        if PARTS == 1 { &[4, 1, 1, 1, 1, 1, 1, 1, 1] } else { &SIGNED };
    const PARTS: usize = PARTS;
    #[inline(always)]
    unsafe fn scales<I: Isa>(isa: I, from: *const u8, at: usize) -> I::F {
        // SAFETY: the caller vouches for it.
        unsafe {
            let unit = isa.load_f32(&*from.cast());
            let bytes = isa.load_u8(&*from.add((4 + at) * LANES).cast());
            isa.mul(unit, isa.sub(isa.to_f32(bytes), isa.splat(128.0)))
        }
    }
}

/// An f32, and a byte for each of sixteen parts.
const SIGNED: [usize; 17] = {
    let mut fields = [1; 17];
    fields[0] = 4;
    fields
};

/// A superblock's f16 scale and f16 minimum, then a multiple of each for each part.
pub(crate) struct SuperMinimum<const PARTS: usize>;

impl<const PARTS: usize> Head for SuperMinimum<PARTS> {
    const FIELDS: &'static [usize] =
        if PARTS == 1 { PAIRS.split_at(2 + 2 * SUPER).0 } else { &PAIRS };
    const OFFSETS: bool = true;
    const PARTS: usize = PARTS;
    #[inline(always)]
    unsafe fn scales<I: Isa>(isa: I, from: *const u8, at: usize) -> I::F {
        // SAFETY: the caller vouches for it.
        unsafe {
            let bytes = isa.load_u8(&*from.add((4 + 2 * at) * LANES).cast());
            isa.mul(isa.load_f16(&*from.cast()), isa.to_f32(bytes))
        }
    }
    #[inline(always)]
    unsafe fn offsets<I: Isa>(isa: I, from: *const u8, at: usize) -> I::F {
        // SAFETY: the caller vouches for it.
        unsafe {
            let bytes = isa.load_u8(&*from.add((5 + 2 * at) * LANES).cast());
            isa.mul(isa.load_f16(&*from.add(2 * LANES).cast()), isa.to_f32(bytes))
        }
    }
}

/// Two halves, and two bytes for each of sixteen parts.
const PAIRS: [usize; 34] = {
    let mut fields = [1; 34];
    (fields[0], fields[1]) = (2, 2);
    fields
};

/// No head: f32 scales at the end of the panel.
pub(crate) struct Tail;

impl Head for Tail {
    const FIELDS: &'static [usize] = &[];
    const SCALES: bool = false;
    #[inline(always)]
    unsafe fn scales<I: Isa>(isa: I, _from: *const u8, _at: usize) -> I::F {
        isa.splat(1.0)
    }
}
