use std::fmt;

use lathe_formats::{AnyFormat, Blocks, Error, Rows};

/// An algorithm that chooses the codes of a matrix.
pub trait Quantizer: fmt::Debug + Sync {
    /// Its name on the command line and in reports.
    fn name(&self) -> &'static str;

    /// What it must be told about the inputs of a layer.
    fn needs(&self) -> Needs;

    /// Codes `weights` in the format `to`, with the same result for any number of `threads`.
    fn quantize(
        &self,
        weights: &dyn Rows,
        stats: &Stats<'_>,
        to: &'static dyn AnyFormat,
        threads: usize,
    ) -> Result<Blocks, Error>;
}

/// What a quantizer must know about the inputs that a matrix is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// The weights alone: no calibration.
    Nothing,
    /// The mean square of each input column.
    Importance,
    /// The mean product of each pair of input columns.
    Hessian,
}

/// What calibration found out about the inputs of one matrix; empty without calibration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats<'a> {
    /// Mean square of each input column, \[cols\].
    pub importance: Option<&'a [f32]>,
    /// Mean product of each pair of input columns, \[cols, cols\].
    pub hessian: Option<&'a [f32]>,
}

/// Round to nearest: each weight gets the code nearest to it, by the format's own rule.
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
        _: &Stats<'_>,
        to: &'static dyn AnyFormat,
        threads: usize,
    ) -> Result<Blocks, Error> {
        to.encode_from(weights, threads)
    }
}
