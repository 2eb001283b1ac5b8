mod mask;
mod simple;
mod sparsegpt;
mod words;

use lathe_formats::AnyFormat;
use lathe_models::Stage;

use crate::{Block, Context, Dense, Error, Needs, Stats, Transform, curvature::Curvature};

pub(crate) use mask::Mask;

/// Zeroes weights.
///
/// Zeros stay exact zeros in every format whose levels have one: see [`keeps_zeros`]; in others they
/// become what is nearest. [`crate::Gptq`] leaves a weight that is exactly zero alone, so that a pruned matrix is
/// coded within its mask. Doing both in one sweep over the columns, as SparseGPT's paper suggests,
/// was tried and leaves more error: what is zeroed late can then be made up for by later columns
/// only, while here all that stay do it before they are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prune {
    pub criterion: Criterion,
    pub pattern: Pattern,
}

/// Which weights go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Criterion {
    /// The smallest of the matrix.
    Magnitude,
    /// In each row those of the least |w| times norm of the column's inputs.
    ///
    /// **Source**: Wanda, arXiv 2306.11695.
    Wanda,
    /// Those whose loss the others make up for best; the others change.
    ///
    /// **Source**: arXiv 2301.00774. Differences: the share holds for each 128 rows × 128 columns
    /// instead of all rows × 128 columns, and two passes of coordinate descent bring the weights
    /// that stay closer to the best for that mask.
    SparseGpt,
}

/// How many weights go, and from where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// This share of a matrix, anywhere.
    Share(f32),
    /// Of each `of` neighbours in a row all but `keep`: 2 of 4 is what sparse tensor cores take.
    Of { keep: usize, of: usize },
}

impl Pattern {
    /// What is wrong with the numbers by themselves.
    fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Share(share) if share > 0.0 && share < 1.0 => None,
            Self::Share(_) => Some("give a share above 0 and below 1, such as 50%"),
            Self::Of { keep, of } if (1..of).contains(&keep) && [2, 4, 8, 16, 32].contains(&of) => {
                None
            }
            Self::Of { .. } => Some(
                "N:M keeps N of M neighbours: N is at least 1 and fewer than M, M is 2, 4, 8, 16 \
                 or 32",
            ),
        }
    }

    /// Checks the numbers against the `cols` of a matrix.
    fn check(self, cols: usize) -> Result<(), Error> {
        let instead = match (self.refusal(), self) {
            (Some(why), _) => why.to_owned(),
            (None, Self::Of { of, .. }) if !cols.is_multiple_of(of) => {
                format!("the {cols} columns of this matrix would have to be a multiple of {of}")
            }
            (None, _) => return Ok(()),
        };
        Err(Error::Unsupported { what: format!("pruning by {self}"), instead })
    }
}

/// What is added to the Hessian's diagonal, as a part of its mean: SparseGPT's own.
const DAMPING: f32 = 0.01;

impl Prune {
    /// Zeroes weights of one matrix; what a reader should know.
    ///
    /// **Errors**: a pattern that does not fit the matrix; statistics that are not there.
    pub fn apply_to(
        &self,
        weights: &mut Dense,
        stats: &Stats,
        threads: usize,
    ) -> Result<Vec<String>, Error> {
        self.pattern.check(weights.cols)?;
        let cols = weights.cols;
        match self.criterion {
            Criterion::Magnitude => simple::magnitude(weights, self.pattern),
            Criterion::Wanda => {
                let importance = stats.importance.as_slice();
                let known = importance.len() == cols;
                let importance =
                    known.then_some(importance).ok_or_else(|| uncalibrated("wanda"))?;
                simple::wanda(weights, importance, self.pattern);
            }
            Criterion::SparseGpt => {
                let hessian = stats.hessian.as_deref().filter(|h| h.len() == cols * cols);
                let hessian = hessian.ok_or_else(|| uncalibrated("sparsegpt"))?;
                let curvature = Curvature::new(hessian, cols, DAMPING);
                return Ok(sparsegpt::prune(weights, curvature, self.pattern, threads));
            }
        }
        Ok(Vec::new())
    }
}

impl Transform for Prune {
    fn name(&self) -> String {
        format!("prune {self}")
    }

    fn needs(&self) -> Needs {
        match self.criterion {
            Criterion::Magnitude => Needs::Nothing,
            Criterion::Wanda => Needs::Importance,
            Criterion::SparseGpt => Needs::Hessian,
        }
    }

    fn folds(&self) -> bool {
        false
    }

    fn apply(
        &self,
        block: &mut Block<'_>,
        stage: &Stage,
        stats: &mut Stats,
        cx: &Context<'_>,
    ) -> Result<Vec<String>, Error> {
        let mut notes = Vec::new();
        for part in &stage.linears {
            if let Some(weights) = block.matrix_mut(*part) {
                notes.extend(self.apply_to(weights, stats, cx.threads)?);
            }
        }
        Ok(notes)
    }
}

fn uncalibrated(criterion: &str) -> Error {
    Error::Unsupported {
        what: format!("pruning by {criterion} without calibration"),
        instead: "give it texts to calibrate with, or prune by magnitude".to_owned(),
    }
}

/// Whether a weight of exactly 0 is exactly 0 when it is decoded, whatever its neighbours.
///
/// Found out by coding a matrix of which every other weight is 0: symmetric levels and the tables
/// of nf4 and fp4 have a zero, asymmetric integers have one because their zero point is a code;
/// formats with a minimum of its own (q4_1, q2_K, q4_K) or a table without 0 (iq4_nl) do not.
pub fn keeps_zeros(format: &'static dyn AnyFormat) -> bool {
    const ROWS: usize = 4;
    // A multiple of every block; odd columns are zero, and a row leans to one side.
    const COLS: usize = 512;
    let lean = |i: usize| (i / COLS) as f32 * 0.3;
    let weight = |i: usize| ((i * 7919 % 1013) as f32 / 506.0 - 1.0 + lean(i)) * 0.1;
    let weights: Vec<f32> =
        (0..ROWS * COLS).map(|i| if i % 2 == 1 { 0.0 } else { weight(i) }).collect();
    let Ok(blocks) = format.encode(ROWS, COLS, &weights, 1) else { return false };
    blocks.decode().iter().skip(1).step_by(2).all(|x| *x == 0.0)
}
