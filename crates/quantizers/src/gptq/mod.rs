mod work;

use std::{num::NonZero, thread};

use lathe_base::Bytes;
use lathe_formats::{AnyFormat, Blocks, Effort, Rows};

use crate::{
    Coded, Error, Needs, Quantizer, Stats,
    curvature::Curvature,
    linalg::{Feedback, TILE, parallel},
};

use work::{Job, Work};

/// GPTQ: columns are coded one after the other, each with what makes up for the errors of those
/// before it.
///
/// A weight that is exactly zero stays zero, so that pruned models stay pruned.
///
/// What is made small is the squared error of the layer's outputs, `tr(ΔW·H·ΔWᵀ)` for the mean H
/// of x·xᵀ over the calibration's inputs. Works with every format that has a [`Grid`]. Scales are
/// fitted when a span is reached, on the weights as the errors before have changed them, unless a
/// span is very long or the order is not the natural one.
///
/// **Source**: arXiv 2210.17323, in the form of QuIP's LDLQ (arXiv 2307.13304); the passes after
/// it are coordinate descent on the codes, as in QuantEase (arXiv 2309.01885).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gptq {
    pub order: Order,
    /// What is added to the Hessian's diagonal, as a part of its mean.
    pub damping: f32,
    /// How scales are fitted; a search weighs columns by what their rounding costs.
    pub effort: Effort,
    /// How often all codes are looked at again, each given all the others.
    pub passes: usize,
}

/// In which order columns are coded. Where they are stored does not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// From the first to the last, scales fitted on the way.
    #[default]
    Natural,
    /// By falling importance ("act-order", "desc_act"), with all scales fitted before ("static
    /// groups").
    Importance,
}

impl Default for Gptq {
    fn default() -> Self {
        Self { order: Order::Natural, damping: 0.01, effort: Effort::Search, passes: 2 }
    }
}

/// Spans longer than this are fitted before the first column is coded.
const LONGEST_FITTED_LATE: usize = 1024;

impl Quantizer for Gptq {
    fn name(&self) -> &'static str {
        match self.order {
            Order::Natural => "gptq",
            Order::Importance => "gptq act-order",
        }
    }

    fn needs(&self) -> Needs {
        Needs::Hessian
    }

    fn room(&self, rows: usize, cols: usize) -> Bytes {
        // As many panels as there may be threads.
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let panels = threads.min(rows.div_ceil(TILE)).max(1);
        Bytes((Feedback::bytes(cols) + panels * Work::bytes(cols)) as u64)
    }

    fn quantize(
        &self,
        weights: &dyn Rows,
        stats: Option<&Stats>,
        to: &'static dyn AnyFormat,
        threads: usize,
    ) -> Result<Coded, Error> {
        let (rows, cols) = weights.shape();
        to.check(cols)?;
        let grid = to.grid().ok_or_else(|| no_grid(to))?;
        let hessian = stats.and_then(|stats| stats.hessian.as_deref());
        let hessian = hessian.filter(|h| h.len() == cols * cols).ok_or_else(no_hessian)?;
        check(weights, to)?;
        let mut curvature = Curvature::new(hessian, cols, self.damping);
        let order = match self.order {
            Order::Natural => (0..cols as u32).collect(),
            Order::Importance => curvature.by_importance(),
        };
        let feedback = curvature.solve(&order, threads);
        let job = Job::new(self, grid, weights, (&curvature, &feedback, &order), threads);
        let row_bytes = to.row_bytes(cols);
        let mut data = vec![0; rows * row_bytes];
        let parts = data.chunks_mut((TILE * row_bytes).max(1)).enumerate();
        parallel(
            threads,
            parts,
            || Work::new(&job),
            |work, (i, out)| work.code(&job, i * TILE, out),
        );
        let blocks = Blocks::new(to, rows, cols, data.into(), job.side)?;
        Ok(Coded { blocks, notes: curvature.into_notes() })
    }
}

fn no_grid(to: &dyn AnyFormat) -> Error {
    Error::Unsupported {
        what: format!("gptq to {}", to.name()),
        instead: "it needs a format whose codes are levels of a scale; use --method rtn".to_owned(),
    }
}

fn no_hessian() -> Error {
    Error::Unsupported {
        what: "gptq without calibration".to_owned(),
        instead: "give it texts to calibrate with, or use --method rtn".to_owned(),
    }
}

/// Finds the first weight that the format cannot hold.
fn check(weights: &dyn Rows, to: &dyn AnyFormat) -> Result<(), Error> {
    let (rows, cols) = weights.shape();
    let mut numbers = vec![0.0; cols];
    let limit = to.limit();
    for row in 0..rows {
        weights.read(row, &mut numbers);
        let bad = |x: &f32| x.is_nan() || x.abs() > limit;
        let Some(col) = numbers.iter().position(bad) else { continue };
        let value = numbers[col];
        let format = to.name();
        return Err(Error::Format(if value.is_finite() {
            lathe_formats::Error::TooLarge { format, row, col, value, limit }
        } else {
            lathe_formats::Error::NotFinite { row, col, value }
        }));
    }
    Ok(())
}
