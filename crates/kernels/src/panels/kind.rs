use std::marker::PhantomData;

use lathe_simd::{Isa, LANES};

use super::{codes::Codes, head::Head};

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
        use $crate::panels::{codes::*, head::*, kind::*};
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

/// Names all kinds, in their order.
macro_rules! all_kinds {
    ($($name:ident),*) => {
        impl Kind {
            /// A kind `k` is the one at `k as u8`.
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];
        }

        /// Runs `$body` with the number of `$kind` as a constant `$K`.
        macro_rules! with_kind {
            ($kind:expr, $K:ident => $body:expr) => {
                match $kind {
                    $($crate::panels::Kind::$name => {
                        const $K: u8 = $crate::panels::Kind::$name as u8;
                        $body
                    })*
                }
            };
        }
    };
}
all_kinds!(
    Four,
    FourBf16,
    FourZero,
    FourZeroBf16,
    Table,
    Five,
    Eight,
    EightBf16,
    EightZero,
    EightRow,
    FourMin,
    FiveMin,
    TableIq4,
    TableIq4Super,
    TwoSuper,
    ThreeSuper,
    FourSuper,
    FiveSuper,
    SixSuper
);
#[expect(
    clippy::single_component_path_imports,
    reason = "a macro's macro is not seen by the lint"
)]
pub(crate) use with_kind;

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

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn kinds_are_found_by_their_numbers() {
        for (number, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, number);
        }
    }
}
