use super::Pattern;
use crate::Dense;

/// Zeroes the smallest weights: of the whole matrix, or of each run of neighbours.
pub(super) fn magnitude(weights: &mut Dense, pattern: Pattern) {
    let cols = weights.cols.max(1);
    match pattern {
        Pattern::Share(share) => zero_least(&mut weights.data, share, |_, w| w.abs()),
        Pattern::Of { keep, of } => {
            let rows = weights.data.chunks_exact_mut(cols);
            rows.for_each(|row| zero_in_runs(row, (keep, of), |_, w| w.abs()));
        }
    }
}

/// Zeroes in each row the weights of the least |w|·‖x‖; `importance` is the mean of x² by column.
pub(super) fn wanda(weights: &mut Dense, importance: &[f32], pattern: Pattern) {
    // What is no number says nothing for a column.
    let norms: Vec<f32> =
        importance.iter().map(|x| if x.is_finite() { x.max(0.0).sqrt() } else { 0.0 }).collect();
    let score = |column: usize, w: f32| w.abs() * norms[column];
    for row in weights.data.chunks_exact_mut(weights.cols.max(1)) {
        match pattern {
            Pattern::Share(share) => zero_least(row, share, score),
            Pattern::Of { keep, of } => zero_in_runs(row, (keep, of), score),
        }
    }
}

/// Zeroes all but `keep` of each `of` neighbours of a row.
fn zero_in_runs(row: &mut [f32], (keep, of): (usize, usize), score: impl Fn(usize, f32) -> f32) {
    for (run, weights) in row.chunks_exact_mut(of).enumerate() {
        zero(weights, of - keep, |i, w| score(run * of + i, w));
    }
}

/// Zeroes the `share` of `weights` with the least scores.
fn zero_least(weights: &mut [f32], share: f32, score: impl Fn(usize, f32) -> f32) {
    let count = super::mask::part(weights.len(), share);
    zero(weights, count, score);
}

/// Zeroes the `count` weights with the least scores; of equal ones the first.
fn zero(weights: &mut [f32], count: usize, score: impl Fn(usize, f32) -> f32) {
    let scores: Vec<f32> = weights.iter().enumerate().map(|(i, w)| score(i, *w)).collect();
    for i in super::mask::least(&scores, count) {
        weights[i as usize] = 0.0;
    }
}
