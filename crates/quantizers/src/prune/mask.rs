use std::ops::Range;

use super::Pattern;
use crate::{
    linalg::{Feedback, TILE},
    panel::{Lane, Panel},
};

/// Which weights of a panel are zero and stay so, step by step.
#[derive(Debug)]
pub(crate) struct Mask {
    steps: Vec<[bool; TILE]>,
}

impl Mask {
    /// A mask for `steps` columns.
    pub(crate) fn new(steps: usize) -> Self {
        Self { steps: vec![[false; TILE]; steps] }
    }

    /// Marks the weights that are zero, and no others.
    pub(crate) fn start(&mut self, panel: &Panel) {
        for (step, marks) in self.steps.iter_mut().enumerate() {
            *marks = panel.weights(step).map(|w| w == 0.0);
        }
    }

    /// Chooses what goes in the first `rows` rows, as far as that is to be known before `step` is
    /// settled.
    pub(super) fn choose(
        &mut self,
        (panel, rows): (&Panel, usize),
        feedback: &Feedback,
        pattern: Pattern,
        step: usize,
    ) {
        let width = match pattern {
            Pattern::Share(_) => TILE,
            Pattern::Of { of, .. } => of,
        };
        if !step.is_multiple_of(width) {
            return;
        }
        let steps = step..(step + width).min(self.steps.len());
        let (ahead, variance) = (panel.foresee(feedback, self, steps.clone()), feedback.variance());
        // What zeroing a weight costs when the later steps make up for it.
        let score = |row: usize, at: usize| ahead[at - steps.start][row].powi(2) * variance[at];
        match pattern {
            Pattern::Share(share) => {
                // Row by row, as the columns lie: of equal scores the first goes.
                let scores: Vec<f32> = (0..rows)
                    .flat_map(|row| steps.clone().map(move |step| score(row, step)))
                    .collect();
                self.mark(&scores, part(scores.len(), share), steps.clone(), 0);
            }
            Pattern::Of { keep, of } => {
                for row in 0..rows {
                    let scores: Vec<f32> = steps.clone().map(|step| score(row, step)).collect();
                    self.mark(&scores, of - keep, steps.clone(), row);
                }
            }
        }
    }

    /// Marks the `count` least of `scores`, which are those of `steps`, row by row from `first` on.
    fn mark(&mut self, scores: &[f32], count: usize, steps: Range<usize>, first: usize) {
        for at in least(scores, count) {
            let (row, step) = (at as usize / steps.len(), at as usize % steps.len());
            self.steps[steps.start + step][first + row] = true;
        }
    }

    /// Whether a weight is marked.
    pub(super) fn has(&self, step: usize, row: usize) -> bool {
        self.steps[step][row]
    }

    /// Zeroes what is marked.
    pub(crate) fn apply(&self, step: usize, wanted: &mut Lane) {
        for (x, marked) in wanted.iter_mut().zip(&self.steps[step]) {
            *x = if *marked { 0.0 } else { *x };
        }
    }
}

/// How many a share of `count` is.
pub(super) fn part(count: usize, share: f32) -> usize {
    // In f64, and a hair up: 0.7 of 10 is 7, although 0.7 in binary is a little less.
    (count as f64 * f64::from(share) + 1e-6 * count as f64).floor() as usize
}

/// The places of the `count` least of `scores`; of equal ones the first. NaN counts as most.
pub(super) fn least(scores: &[f32], count: usize) -> Vec<u32> {
    let mut places: Vec<u32> = (0..scores.len() as u32).collect();
    if count == 0 || count >= places.len() {
        places.truncate(count);
        return places;
    }
    let key = |at: &u32| scores[*at as usize];
    places.select_nth_unstable_by(count - 1, |a, b| key(a).total_cmp(&key(b)).then(a.cmp(b)));
    places.truncate(count);
    places
}
