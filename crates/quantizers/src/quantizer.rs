use std::fmt;

use lathe_base::Bytes;
use lathe_formats::{AnyFormat, Blocks, Effort, Rows};

use crate::{Error, Needs, Stats};

/// An algorithm that chooses the codes of a matrix.
pub trait Quantizer: fmt::Debug + Sync {
    /// Its name on the command line and in reports.
    fn name(&self) -> &'static str;

    /// What it must be told about the inputs of a matrix to do its work.
    fn needs(&self) -> Needs;

    /// Working memory for a matrix `[rows, cols]`, besides its rows, its statistics and its codes.
    fn room(&self, _rows: usize, cols: usize) -> Bytes {
        solver_room(self.needs(), cols)
    }

    /// Codes `weights` in the format `to`, with the same result for any number of `threads`.
    ///
    /// `stats` is there where [`Quantizer::needs`] asks for it and the matrix is inside a layer,
    /// and may be there where it does not; without, the weights alone decide.
    ///
    /// **Errors**: [`Error::Format`] where a weight cannot be coded; the caller adds the tensor.
    fn quantize(
        &self,
        weights: &dyn Rows,
        stats: Option<&Stats>,
        to: &'static dyn AnyFormat,
        threads: usize,
    ) -> Result<Coded, Error>;
}

/// What solving with a Hessian usually takes: two triangles.
pub(crate) fn solver_room(needs: Needs, cols: usize) -> Bytes {
    match needs {
        Needs::Hessian => Bytes(4 * (cols as u64) * (cols as u64)),
        _ => Bytes(0),
    }
}

/// A coded matrix.
#[derive(Clone, Debug)]
pub struct Coded {
    pub blocks: Blocks,
    /// What a reader should know, such as dead columns or a damping that was needed.
    pub notes: Vec<String>,
}

impl From<Blocks> for Coded {
    fn from(blocks: Blocks) -> Self {
        Self { blocks, notes: Vec::new() }
    }
}

/// Round to nearest: each weight gets the code nearest to it, by the format's own rule; where
/// columns are known to differ in importance and the format has a rule for that, by that one.
#[derive(Clone, Copy, Debug)]
pub struct Rtn;

impl Quantizer for Rtn {
    fn name(&self) -> &'static str {
        "rtn"
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn quantize(
        &self,
        weights: &dyn Rows,
        stats: Option<&Stats>,
        to: &'static dyn AnyFormat,
        threads: usize,
    ) -> Result<Coded, Error> {
        let importance = stats.map(|stats| stats.importance.as_slice());
        Ok(to.encode_weighted(weights, importance, Effort::Nearest, threads)?.into())
    }
}

/// Round to nearest where errors count by the mean square of what each column is multiplied with:
/// what an importance matrix is for, measured on the spot.
#[derive(Clone, Copy, Debug)]
pub struct Weighted;

impl Quantizer for Weighted {
    fn name(&self) -> &'static str {
        "imatrix"
    }

    fn needs(&self) -> Needs {
        Needs::Importance
    }

    fn quantize(
        &self,
        weights: &dyn Rows,
        stats: Option<&Stats>,
        to: &'static dyn AnyFormat,
        threads: usize,
    ) -> Result<Coded, Error> {
        Rtn.quantize(weights, stats, to, threads)
    }
}

/// Round to nearest after a search for the scales (and zero points) that lose least, weighted by
/// the importance of the columns where it is known.
#[derive(Clone, Copy, Debug)]
pub struct Search;

impl Quantizer for Search {
    fn name(&self) -> &'static str {
        "search"
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn quantize(
        &self,
        weights: &dyn Rows,
        stats: Option<&Stats>,
        to: &'static dyn AnyFormat,
        threads: usize,
    ) -> Result<Coded, Error> {
        let importance = stats.map(|stats| stats.importance.as_slice());
        Ok(to.encode_weighted(weights, importance, Effort::Search, threads)?.into())
    }
}
