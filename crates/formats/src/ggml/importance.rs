//! What an error in a column weighs.

use std::ops::Range;

/// Importance of mean 1 that leaves no column without a say; none where all are alike or nothing
/// is known. What calibration never saw may yet be used, and errors of numbers that weigh nothing
/// have no scale of least error.
pub(crate) fn tempered(importance: &[f32]) -> Option<Vec<f32>> {
    const LEAST: f32 = 1e-4;
    let largest = importance.iter().fold(0.0, |most: f32, x| most.max(*x));
    if largest == 0.0 {
        return None;
    }
    let mean = importance.iter().map(|x| x / largest).sum::<f32>() / importance.len() as f32;
    Some(importance.iter().map(|x| (x / largest / mean).max(LEAST)).collect())
}

/// What errors weigh in a row or a part of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weighing<'a> {
    /// What the reference has where nothing is known of columns.
    Own,
    /// What the reference makes of an importance: errors of large weights count for more.
    Importance(&'a [f32]),
    /// Exactly this.
    Exact(&'a [f32]),
}

impl Weighing<'_> {
    /// That of a range of columns.
    #[inline(always)]
    pub(crate) fn of(&self, range: Range<usize>) -> Self {
        match self {
            Self::Own => Self::Own,
            Self::Importance(all) => Self::Importance(&all[range]),
            Self::Exact(all) => Self::Exact(&all[range]),
        }
    }
}

impl<'a> From<Option<&'a [f32]>> for Weighing<'a> {
    fn from(importance: Option<&'a [f32]>) -> Self {
        importance.map_or(Self::Own, Self::Importance)
    }
}
