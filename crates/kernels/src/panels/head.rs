use std::marker::PhantomData;

use lathe_simd::{Isa, LANES};

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
