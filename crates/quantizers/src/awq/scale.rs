use lathe_formats::AnyFormat;
use lathe_models::Stage;

use crate::{
    Context, Dense, Error, Stats,
    scaled::{Scaled, by_channel},
};

/// The scales of a stage's channels with the least error of the outputs of `linears`; all 1 where
/// none are better.
pub(super) fn search(
    linears: &[(&Dense, &'static dyn AnyFormat)],
    stage: &Stage,
    stats: &Stats,
    cx: &Context<'_>,
) -> Result<Vec<f32>, Error> {
    let share = 1.0 / stage.before.repeat() as f32;
    let means = |columns: &[f32]| by_channel(stage, columns, |sum, x| sum + x * share);
    let search = Search {
        inputs: logs(&means(&stats.mean_abs)),
        weights: logs(&means(&magnitudes(linears))),
        scaled: Scaled::new(linears, stage, stats, cx),
    };
    let best = search.best()?;
    Ok(search.scales(best))
}

/// The exponents of inputs and weights.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Exponents {
    inputs: f32,
    weights: f32,
}

struct Search<'a> {
    scaled: Scaled<'a>,
    /// Logarithms of the mean |x| of each channel.
    inputs: Vec<f32>,
    /// Logarithms of the mean |w| of each channel, relative to the largest of its group.
    weights: Vec<f32>,
}

impl Search<'_> {
    /// The two lines that AutoAWQ goes along, coarsely, then around the best point of both in
    /// ever smaller steps.
    fn best(&self) -> Result<Exponents, Error> {
        const LINE: usize = 5;
        let mut best = Exponents { inputs: 0.0, weights: 0.0 };
        let mut least = self.scaled.error(&self.scales(best))?;
        let mut try_at = |at: Exponents, best: &mut Exponents| -> Result<bool, Error> {
            let error = self.scaled.error(&self.scales(at))?;
            let better = error < least;
            if better {
                (*best, least) = (at, error);
            }
            Ok(better)
        };
        for i in 0..=LINE {
            let inputs = i as f32 / LINE as f32;
            try_at(Exponents { inputs, weights: 0.0 }, &mut best)?;
            if i < LINE {
                try_at(Exponents { inputs, weights: 1.0 - inputs }, &mut best)?;
            }
        }
        for step in [0.1, 0.05, 0.025] {
            for (inputs, weights) in [(step, 0.0), (0.0, step)] {
                for sign in [1.0, -1.0] {
                    let at = Exponents {
                        inputs: (best.inputs + sign * inputs).clamp(0.0, 2.0),
                        weights: (best.weights + sign * weights).clamp(0.0, 2.0),
                    };
                    if at != best && try_at(at, &mut best)? {
                        break;
                    }
                }
            }
        }
        Ok(best)
    }

    fn scales(&self, at: Exponents) -> Vec<f32> {
        let logs = self.inputs.iter().zip(&self.weights);
        let logs: Vec<f32> = logs.map(|(x, w)| at.inputs * x - at.weights * w).collect();
        // The largest and the smallest end up equally far from 1.
        let most = logs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let least = logs.iter().copied().fold(f32::INFINITY, f32::min);
        let middle = (most + least) / 2.0;
        logs.iter().map(|log| (log - middle).clamp(-FARTHEST, FARTHEST).exp()).collect()
    }
}

/// The natural logarithm of the farthest that a scale goes from 1.
const FARTHEST: f32 = 9.0;

/// Logarithms, with 0 and everything that is next to nothing at a thousandth of the mean.
fn logs(values: &[f32]) -> Vec<f32> {
    let mean = values.iter().sum::<f32>() / values.len().max(1) as f32;
    if !(mean.is_finite() && mean > 0.0) {
        return vec![0.0; values.len()];
    }
    values.iter().map(|value| (value / mean).max(1e-3).ln()).collect()
}

/// The mean over all rows of each column's |w|, relative to the largest of its group.
fn magnitudes(linears: &[(&Dense, &'static dyn AnyFormat)]) -> Vec<f32> {
    let cols = linears.first().map_or(0, |(weights, _)| weights.cols);
    let mut means = vec![0.0; cols];
    let rows: usize = linears.iter().map(|(weights, _)| weights.rows).sum();
    for (weights, format) in linears {
        let group = format.grid().map_or(cols, |grid| grid.group(cols)).clamp(1, cols);
        for row in weights.data.chunks_exact(cols) {
            for (means, row) in means.chunks_mut(group).zip(row.chunks(group)) {
                let largest = row.iter().fold(f32::MIN_POSITIVE, |most, w| most.max(w.abs()));
                let share = (largest * rows as f32).recip();
                means.iter_mut().zip(row).for_each(|(mean, w)| *mean += w.abs() * share);
            }
        }
    }
    means
}
