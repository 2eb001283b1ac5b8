/// Why a figure cannot be computed from the data given.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Fewer independent units than the figure needs.
    #[error("{what} needs at least {needed} measurements but there are {found}")]
    TooFew { what: &'static str, needed: usize, found: usize },

    /// A value that is not a number, or infinite.
    #[error("measurement {index} of {what} is {value}, not a finite number")]
    NotFinite { what: &'static str, index: usize, value: f64 },

    /// A value that must be above zero (a time, a rate, a count of tokens) and is not.
    #[error("measurement {index} of {what} is {value} but must be above zero")]
    NotPositive { what: &'static str, index: usize, value: f64 },

    /// Two lists that must be pairs have different lengths.
    #[error("pairs are needed but one side has {left} measurements and the other {right}")]
    Unpaired { left: usize, right: usize },

    /// A probability or level outside its range.
    #[error("{what} must lie strictly between 0 and 1 but is {value}")]
    BadProbability { what: &'static str, value: f64 },

    /// The statistic is not a number on some resample, for example a division by a sum of zero.
    #[error("the statistic has no finite value on some resamples of the data")]
    Undefined,
}

/// Returns `Ok` if there are `needed` finite values.
pub(crate) fn check(what: &'static str, values: &[f64], needed: usize) -> Result<(), Error> {
    if values.len() < needed {
        return Err(Error::TooFew { what, needed, found: values.len() });
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(Error::NotFinite { what, index, value: values[index] }),
        None => Ok(()),
    }
}

/// Returns `Ok` if there are `needed` finite values above zero.
pub(crate) fn check_positive(
    what: &'static str,
    values: &[f64],
    needed: usize,
) -> Result<(), Error> {
    check(what, values, needed)?;
    match values.iter().position(|&v| v <= 0.0) {
        Some(index) => Err(Error::NotPositive { what, index, value: values[index] }),
        None => Ok(()),
    }
}

pub(crate) fn check_probability(what: &'static str, value: f64) -> Result<(), Error> {
    if value > 0.0 && value < 1.0 { Ok(()) } else { Err(Error::BadProbability { what, value }) }
}

pub(crate) fn check_pairs(left: &[f64], right: &[f64]) -> Result<(), Error> {
    if left.len() == right.len() {
        Ok(())
    } else {
        Err(Error::Unpaired { left: left.len(), right: right.len() })
    }
}
