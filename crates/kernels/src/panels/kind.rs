use std::marker::PhantomData;

use lathe_formats::NF4_LEVELS;
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
    /// INT8 by rows: bytes − 128, one f32 scale per row.
    EightRow,
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
                type $K = Both<Levels, HeadF32>;
                $body
            }
            Kind::Five => {
                type $K = Both<FiveBits, HeadF16>;
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
        }
    }};
}
pub(crate) use with_layout;

impl Kind {
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

    /// Whether groups bring a zero point for each row.
    pub(crate) fn has_zeros(self) -> bool {
        with_layout!(self, K => <K as Layout>::Head::ZEROS)
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

/// Nibbles that stand for the levels of NF4. The dot product takes the levels in 127ths, which
/// are off by 0.0037 at most: an eighth of what separates the nearest two from their midpoint,
/// and as much as rounding the activations costs.
pub(crate) struct Levels;

/// The levels in 127ths, plus 128.
const LEVELS: [u8; 16] = {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = (NF4_LEVELS[i] * 127.0 + 128.5) as u8;
        i += 1;
    }
    bytes
};

impl Codes for Levels {
    const BYTES: usize = 256;
    const FRACTION: f32 = 127.0;

    fn zero<I: Isa>() -> i32 {
        128 - I::DOT_BIAS
    }
    #[inline(always)]
    unsafe fn pair<I: Isa>(isa: I, from: *const u8, j: usize) -> [I::B; 2] {
        // SAFETY: the caller vouches for it.
        let [low, high] = unsafe { Self::stored(isa, from, j) };
        [isa.lookup(low, &LEVELS), isa.lookup(high, &LEVELS)]
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
        isa.byte_table::<J>(stored, &NF4_LEVELS)
    }
}

/// Nibbles as in [`Nibbles`], then eight masks of 64 fifth bits, one per vector.
pub(crate) struct FiveBits;

impl Codes for FiveBits {
    const BYTES: usize = 256 + 64;

    fn zero<I: Isa>() -> i32 {
        16
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
        isa.sub(isa.byte_f32::<J>(stored), isa.splat(16.0))
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

/// The head of a group: a scale for each row, perhaps a zero point.
pub(crate) trait Head: 'static {
    const BYTES: usize;
    /// Whether there are scales in the head; where not, they are in the panel's tail.
    const SCALES: bool = true;
    /// Whether there are zero points, after the scales.
    const ZEROS: bool = false;

    /// The sixteen scales.
    ///
    /// # Safety
    /// A head can be read at `from`.
    unsafe fn scales<I: Isa>(isa: I, from: *const u8) -> I::F;

    /// The sixteen zero points.
    ///
    /// # Safety
    /// A head can be read at `from`.
    #[inline(always)]
    unsafe fn zeros<I: Isa>(isa: I, _from: *const u8) -> I::F {
        isa.splat(0.0)
    }
}

pub(crate) struct HeadF16;

impl Head for HeadF16 {
    const BYTES: usize = 2 * LANES;
    #[inline(always)]
    unsafe fn scales<I: Isa>(isa: I, from: *const u8) -> I::F {
        // SAFETY: the caller vouches for it.
        isa.load_f16(unsafe { &*from.cast() })
    }
}

pub(crate) struct HeadBf16;

impl Head for HeadBf16 {
    const BYTES: usize = 2 * LANES;
    #[inline(always)]
    unsafe fn scales<I: Isa>(isa: I, from: *const u8) -> I::F {
        // SAFETY: the caller vouches for it.
        isa.load_bf16(unsafe { &*from.cast() })
    }
}

pub(crate) struct HeadF32;

impl Head for HeadF32 {
    const BYTES: usize = 4 * LANES;
    #[inline(always)]
    unsafe fn scales<I: Isa>(isa: I, from: *const u8) -> I::F {
        // SAFETY: the caller vouches for it.
        isa.load_f32(unsafe { &*from.cast() })
    }
}

/// Scales, then bytes of zero points.
pub(crate) struct Zero<H>(PhantomData<H>);

impl<H: Head> Head for Zero<H> {
    const BYTES: usize = H::BYTES + LANES;
    const ZEROS: bool = true;
    #[inline(always)]
    unsafe fn scales<I: Isa>(isa: I, from: *const u8) -> I::F {
        // SAFETY: the caller vouches for it.
        unsafe { H::scales(isa, from) }
    }
    #[inline(always)]
    unsafe fn zeros<I: Isa>(isa: I, from: *const u8) -> I::F {
        // SAFETY: the caller vouches for it.
        isa.to_f32(isa.load_u8(unsafe { &*from.add(H::BYTES).cast() }))
    }
}

/// No head: f32 scales at the end of the panel.
pub(crate) struct Tail;

impl Head for Tail {
    const BYTES: usize = 0;
    const SCALES: bool = false;
    #[inline(always)]
    unsafe fn scales<I: Isa>(isa: I, _from: *const u8) -> I::F {
        isa.splat(1.0)
    }
}
