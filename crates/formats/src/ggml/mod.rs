//! ggml's block formats with searched scales. Without an importance matrix the bytes are those of
//! ggml's own code (`quantize_q4_K` and its like in ggml-quants.c), with one too.

/// Implements [`crate::Format`] and [`crate::Grid`] for a [`superblock::Super`].
///
/// `bound`: the most that a weight is off, as a part of the largest. A search for the least error
/// of a group may give up any one weight, so no tight bound can be derived; these are a third
/// above the worst seen over uniform, heavy-tailed, two-valued and arbitrary bit patterns.
/// `reach`: the largest number that multiplies the block's f16 scale, whose rounding is felt where
/// that is below 2⁻¹⁴.
macro_rules! super_format {
    ($block:ident, $name:literal, $theirs:literal, limit: $limit:expr, bound: $bound:expr, reach: $reach:expr, $layout:literal) => {
        impl crate::Format for $block {
            const NAME: &'static str = $name;
            const LAYOUT: &'static str = $layout;
            const SOURCE: &'static str =
                concat!("ggml block_", $theirs, "; bytes as its quantize_", $theirs);
            const BLOCK: usize = super::superblock::WEIGHTS;
            const LIMIT: f32 = $limit;

            fn encode(src: &[f32]) -> Self {
                super::superblock::encode(src, None)
            }

            #[inline(always)]
            fn decode(&self, out: &mut [f32]) {
                super::superblock::decode(self, out);
            }

            fn error_bound(absmax: f32) -> f32 {
                $bound * absmax + ($reach) as f32 * 2f32.powi(-25)
            }

            fn grid() -> Option<&'static dyn crate::Grid> {
                Some(crate::Erased::<Self>::REF)
            }

            fn encode_row(src: &[f32], dst: &mut [Self]) {
                super::superblock::encode_row(src, None, dst);
            }

            fn weighted(effort: crate::Effort) -> Option<crate::format::Weighted<Self>> {
                Some(match effort {
                    crate::Effort::Nearest => super::superblock::encode_row,
                    crate::Effort::Search => {
                        super::polish::search_row::<
                            Self,
                            { <Self as super::superblock::Super>::GROUP },
                        >
                    }
                })
            }
        }

        impl crate::Grid for crate::Erased<$block> {
            fn span(&self, _: usize) -> usize {
                super::superblock::WEIGHTS
            }

            fn group(&self, _: usize) -> usize {
                <$block as super::superblock::Super>::GROUP
            }

            fn levels(&self) -> crate::Levels {
                <$block as super::superblock::Super>::LEVELS
            }

            fn fit(&self, span: crate::Span<'_>, scales: &mut crate::Scales) {
                super::superblock::fit::<$block>(span, scales);
            }

            fn pack(&self, scales: &crate::Scales, codes: &[u8], out: &mut [u8]) {
                super::superblock::pack::<$block>(scales, codes, out);
            }
        }
    };
}

mod affine;
mod importance;
mod iq4_nl;
mod iq4_xs;
mod lanes;
mod polish;
mod q2_k;
mod q3_k;
mod q4_k;
mod q5_k;
mod q6_k;
mod read_only;
mod sixes;
pub(crate) mod small;
mod superblock;
mod symmetric;
mod table;
mod with_minimum;

pub use iq4_nl::Iq4Nl;
pub use iq4_xs::Iq4Xs;
pub use q2_k::Q2K;
pub use q3_k::Q3K;
pub use q4_k::Q4K;
pub use q5_k::Q5K;
pub use q6_k::Q6K;
pub use read_only::{READ_ONLY, ReadOnly};
pub use sixes::Sixes;
pub use table::IQ4_LEVELS;
pub use with_minimum::{Q4_1, Q5_1};
