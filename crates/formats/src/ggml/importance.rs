//! What an error in a column weighs, made fit for a search.

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
