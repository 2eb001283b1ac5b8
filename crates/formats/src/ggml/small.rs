//! Blocks of 32 weights with a scale, and perhaps a minimum, of their own: sixteen blocks at once.

use half::f16;
use lathe_simd::{Isa, Op};

use super::affine::{self, Tries};
use super::importance::{Weighing, tempered};
use super::lanes::{F, LANES, Number, side_by_side};
use super::superblock::by_spread;
use super::{symmetric, table};
use crate::{Effort, Scaled};

/// Weights per block.
pub(crate) const WEIGHTS: usize = 32;

/// A block of [`WEIGHTS`] weights whose scale is searched.
pub(crate) trait Small: Scaled {
    const RULE: Rule;

    /// A block with this scale and this offset (of formats that have one), and any codes.
    fn with_scale(scale: f16, offset: f16) -> Self;
}

/// How the reference searches where columns have an importance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// Codes `0..=top` above a minimum.
    Minimum { top: i32 },
    /// Codes `−top..top`.
    Symmetric { top: i32 },
    /// The levels of [`table`]; without importance too.
    Table,
}

/// A row to be coded with the best instructions of the machine.
struct Encode<'a, B> {
    src: &'a [f32],
    weighing: Weighing<'a>,
    dst: &'a mut [B],
}

impl<B: Small> Op for Encode<'_, B> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let row = self.src.iter().fold(0.0, |sum, x| sum + x * x) / self.src.len() as f32;
        for (i, dst) in self.dst.chunks_mut(LANES).enumerate() {
            let range = i * LANES * WEIGHTS..(i * LANES + dst.len()) * WEIGHTS;
            let weighing = self.weighing.of(range.clone());
            encode_batch(&self.src[range], weighing, row, dst);
        }
    }
}

/// Codes a row by its rule; without importance, an error weighs as much as its weight squared.
pub(crate) fn encode_row<B: Small>(src: &[f32], importance: Option<&[f32]>, dst: &mut [B]) {
    lathe_simd::run(Encode { src, weighing: importance.into(), dst });
}

/// Codes up to [`LANES`] blocks; `row` is the mean square of the row.
#[inline(always)]
fn encode_batch<B: Small>(src: &[f32], weighing: Weighing<'_>, row: f32, dst: &mut [B]) {
    let x = side_by_side::<WEIGHTS>(src);
    let weights = match (weighing, B::RULE) {
        (Weighing::Own, _) => x.map(|x| x * x),
        (Weighing::Importance(all), Rule::Table) => {
            let squares = x.iter().fold(F::all(0.0), |sum, x| sum + *x * *x);
            by_spread(&x, squares * F::all(2.0 / WEIGHTS as f32), all)
        }
        (Weighing::Importance(all), _) => by_spread(&x, F::all(row), all),
        (Weighing::Exact(all), _) => side_by_side(all),
    };
    let blocks = dst.iter_mut().zip(src.chunks_exact(WEIGHTS)).enumerate();
    match B::RULE {
        Rule::Minimum { top } => {
            let found = affine::search(&x, &weights, Tries::by_importance(top));
            for (lane, (block, src)) in blocks {
                let mut codes = [0; WEIGHTS];
                affine::kept(&found, lane, top, src, &mut codes);
                *block = with(found.scale.0[lane], -found.min.0[lane], &codes);
            }
        }
        Rule::Symmetric { top } => {
            let (scale, inverse) = symmetric::search(&x, &weights, top);
            let codes = symmetric::kept(&x, inverse, top);
            for (lane, (block, _)) in blocks {
                *block = with(scale.0[lane], 0.0, &codes.map(|code| code.0[lane] as u8));
            }
        }
        Rule::Table => {
            let scale = table::search(&x, &weights);
            for (lane, (block, src)) in blocks {
                let mut codes = [0; WEIGHTS];
                table::nearest_codes(scale.0[lane], src, &mut codes);
                *block = with(scale.0[lane], 0.0, &codes);
            }
        }
    }
}

#[inline(always)]
fn with<B: Small>(scale: f32, offset: f32, codes: &[u8; WEIGHTS]) -> B {
    let mut block = B::with_scale(f16::from_f32(scale), f16::from_f32(offset));
    block.set_codes(codes);
    block
}

/// One block, for [`Scaled::fit`].
pub(crate) fn fit<B: Small>(src: &[f32], importance: Option<&[f32]>, effort: Effort) -> B {
    let tempered = match effort {
        Effort::Nearest => None,
        Effort::Search => importance.and_then(tempered),
    };
    let importance = if effort == Effort::Search { tempered.as_deref() } else { importance };
    let mut block = B::zeroed();
    encode_row(src, importance, std::slice::from_mut(&mut block));
    block
}
