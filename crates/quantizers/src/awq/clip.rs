use lathe_formats::AnyFormat;

use crate::{
    Context, Dense, Error, Stats,
    loss::{group_errors, output_error},
    scaled::{rounded, sample},
};

/// Shares of a group's range that are tried besides all of it: AutoAWQ's reach.
const RATIOS: [f32; 10] = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5];

/// Wider groups are measured in parts: columns that are far apart matter little to one another,
/// and the work grows with the square.
const WIDEST: usize = 256;

/// Cuts the largest weights of each group off where the outputs of the rounded group get nearer
/// to what they were. Weights stay as they are where that does not make the whole better.
pub(super) fn clip(
    weights: &mut Dense,
    format: &'static dyn AnyFormat,
    stats: &Stats,
    cx: &Context<'_>,
) -> Result<(), Error> {
    let cols = weights.cols;
    let group = format.grid().map_or(cols, |grid| grid.group(cols)).clamp(1, cols);
    let mut best = Limits::new(weights, group);
    let errors = best.errors(weights, 1.0, format, stats, cx)?;
    let mut least = errors;
    for ratio in RATIOS {
        let errors = best.errors(weights, ratio, format, stats, cx)?;
        let places = least.iter_mut().zip(errors).zip(&mut best.ratios);
        for ((least, error), chosen) in places {
            if error < *least {
                (*least, *chosen) = (error, ratio);
            }
        }
    }
    if best.ratios.iter().all(|ratio| *ratio == 1.0) {
        return Ok(());
    }
    let clipped = best.clip(weights, |place| best.ratios[place]);
    // Groups were measured as if their inputs were independent: now all together.
    let error = |of: &Dense| -> Result<f64, Error> {
        let mut delta = rounded(&sample(of), stats, format, cx)?;
        let exact = sample(weights);
        delta.data.iter_mut().zip(&exact.data).for_each(|(d, w)| *d -= w);
        Ok(output_error(&delta, stats, cx.threads))
    };
    if error(&clipped)? < error(weights)? {
        *weights = clipped;
    }
    Ok(())
}

/// The extremes of every group, row after row, and the share of them that is kept.
struct Limits {
    group: usize,
    extremes: Vec<(f32, f32)>,
    ratios: Vec<f32>,
}

impl Limits {
    fn new(weights: &Dense, group: usize) -> Self {
        let extremes: Vec<_> = weights
            .data
            .chunks_exact(weights.cols)
            .flat_map(|row| row.chunks(group))
            .map(|group| group.iter().fold((0f32, 0f32), |(l, h), w| (l.min(*w), h.max(*w))))
            .collect();
        let ratios = vec![1.0; extremes.len()];
        Self { group, extremes, ratios }
    }

    fn clip(&self, weights: &Dense, ratio: impl Fn(usize) -> f32) -> Dense {
        let mut clipped = weights.clone();
        let groups =
            clipped.data.chunks_exact_mut(weights.cols).flat_map(|row| row.chunks_mut(self.group));
        for (place, (group, (low, high))) in groups.zip(&self.extremes).enumerate() {
            let ratio = ratio(place);
            group.iter_mut().for_each(|w| *w = w.clamp(low * ratio, high * ratio));
        }
        clipped
    }

    /// What clipping every group at `ratio` and rounding adds to the outputs, by group.
    fn errors(
        &self,
        weights: &Dense,
        ratio: f32,
        format: &'static dyn AnyFormat,
        stats: &Stats,
        cx: &Context<'_>,
    ) -> Result<Vec<f64>, Error> {
        let mut delta = rounded(&self.clip(weights, |_| ratio), stats, format, cx)?;
        delta.data.iter_mut().zip(&weights.data).for_each(|(d, w)| *d -= w);
        let per_row = weights.cols.div_ceil(self.group);
        let parts = self.group.div_ceil(WIDEST);
        let mut errors = vec![0.0; per_row * weights.rows];
        let measured = group_errors(&delta, stats, self.group.div_ceil(parts), cx.threads);
        for (nth, rows) in measured.iter().enumerate() {
            for (row, error) in rows.iter().enumerate() {
                errors[row * per_row + nth / parts] += error;
            }
        }
        Ok(errors)
    }
}
