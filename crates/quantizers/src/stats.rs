/// What calibration found out about the inputs that the matrices of one stage are multiplied with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// How many inputs (tokens) were seen.
    pub count: u64,
    /// Mean of |x| of each column, \[cols\]; empty where all that is known is an importance matrix.
    pub mean_abs: Vec<f32>,
    /// Mean of x² of each column, \[cols\]: what llama.cpp calls importance.
    pub importance: Vec<f32>,
    /// Largest |x| of each column, \[cols\]; empty as `mean_abs`.
    pub absmax: Vec<f32>,
    /// The inputs of some tokens, spread over all of them, \[n, cols\]: for what depends on a token's
    /// inputs together. May be empty.
    pub sample: Vec<f32>,
    /// Mean of x xᵀ, \[cols, cols\], symmetric with both halves filled, where it was asked for.
    pub hessian: Option<Vec<f32>>,
}

impl Stats {
    /// What they are enough for.
    pub fn gives(&self) -> Needs {
        match self.hessian {
            Some(_) => Needs::Hessian,
            None => Needs::Importance,
        }
    }
}

/// What an algorithm must know about the inputs that a matrix is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// The weights alone: no calibration.
    Nothing,
    /// Means and extremes of each input column.
    Importance,
    /// The mean product of each pair of input columns besides.
    Hessian,
}
