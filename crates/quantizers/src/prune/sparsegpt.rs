use lathe_formats::Rows;

use super::{Mask, Pattern};
use crate::{
    Dense,
    curvature::Curvature,
    linalg::{Feedback, TILE, parallel},
    panel::Panel,
    revise::revise,
};

/// Passes of coordinate descent over the weights that stay.
const PASSES: usize = 2;

/// Zeroes weights by SparseGPT's criterion and lets the others make up for them; what a reader
/// should know.
pub(super) fn prune(
    weights: &mut Dense,
    mut curvature: Curvature<'_>,
    pattern: Pattern,
    threads: usize,
) -> Vec<String> {
    let (rows, cols) = weights.shape();
    let order: Vec<u32> = (0..cols as u32).collect();
    let feedback = curvature.solve(&order, threads);
    let parts = weights.data.chunks_mut((TILE * cols).max(1));
    let work = Work { curvature: &curvature, feedback: &feedback, order: &order, pattern };
    let own = || (Panel::new(cols), Mask::new(cols));
    parallel(threads, parts, own, |(panel, mask), part| work.run(panel, mask, part));
    debug_assert_eq!(weights.data.len(), rows * cols);
    curvature.into_notes()
}

/// Settles all steps of a panel's first `rows` rows, marking in `mask` what is zeroed on the way.
fn choose(
    (panel, rows): (&mut Panel, usize),
    mask: &mut Mask,
    feedback: &Feedback,
    pattern: Pattern,
) {
    for step in 0..feedback.variance().len() {
        if step.is_multiple_of(TILE) {
            panel.tell(feedback, step / TILE, step / TILE);
        }
        mask.choose((panel, rows), feedback, pattern, step);
        let mut values = *panel.state(step);
        mask.apply(step, &mut values);
        panel.settle(feedback, step, &values);
    }
}

/// What all panels share.
struct Work<'a> {
    curvature: &'a Curvature<'a>,
    feedback: &'a Feedback,
    order: &'a [u32],
    pattern: Pattern,
}

impl Work<'_> {
    /// Prunes the rows of one panel in place.
    fn run(&self, panel: &mut Panel, mask: &mut Mask, weights: &mut [f32]) {
        let cols = self.order.len();
        let rows = weights.len() / cols.max(1);
        panel.load(&Slice { data: weights, cols }, 0, rows, self.order);
        mask.start(panel);
        choose((panel, rows), mask, self.feedback, self.pattern);
        for _ in 0..PASSES {
            revise(panel, self.curvature, self.order, |step, wanted| {
                let mut values = *wanted;
                mask.apply(step, &mut values);
                Some(values)
            });
        }
        for (row, weights) in weights.chunks_exact_mut(cols).enumerate() {
            for (step, weight) in weights.iter_mut().enumerate() {
                let value = *weight - panel.state(step)[row];
                *weight = if mask.has(step, row) { 0.0 } else { value };
            }
        }
    }
}

/// Rows in memory.
struct Slice<'a> {
    data: &'a [f32],
    cols: usize,
}

impl Rows for Slice<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.data.len() / self.cols.max(1), self.cols)
    }

    fn read(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.data[row * self.cols..][..self.cols]);
    }
}
