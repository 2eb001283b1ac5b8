//! Shares the difficulty of rounding between inputs and weights.

use lathe_models::{Part, Stage};

use crate::{Block, Context, Error, Needs, Stats, Transform, fold::fold};

/// SmoothQuant: what is extreme in a layer's inputs moves into its weights, so that both can be
/// rounded to 8 bits.
///
/// The inputs of column j are divided by max|xⱼ|^α / max|wⱼ|^(1−α).
///
/// **Source** Xiao et al. 2022 (arXiv 2211.10438), equation 4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Smooth {
    /// How much of the difficulty moves, 0 to 1.
    pub alpha: f32,
}

impl Default for Smooth {
    /// The middle, which the paper finds right for most models.
    fn default() -> Self {
        Self { alpha: 0.5 }
    }
}

impl Smooth {
    /// **Errors**: a share that is not between 0 and 1.
    pub fn new(alpha: f32) -> Result<Self, Error> {
        if (0.0..=1.0).contains(&alpha) {
            return Ok(Self { alpha });
        }
        Err(Error::Unsupported {
            what: format!("smoothing with alpha {alpha}"),
            instead: "choose between 0 and 1, such as 0.5".to_owned(),
        })
    }
}

impl Transform for Smooth {
    fn name(&self) -> String {
        format!("smoothquant alpha {}", self.alpha)
    }

    fn needs(&self) -> Needs {
        Needs::Importance
    }

    fn folds(&self) -> bool {
        true
    }

    fn apply(
        &self,
        block: &mut Block<'_>,
        stage: &Stage,
        stats: &mut Stats,
        _: &Context<'_>,
    ) -> Result<Vec<String>, Error> {
        if stats.count == 0 {
            return Ok(Vec::new());
        }
        let weights = by_channel(stage, &columns(block, &stage.linears, stats.absmax.len()));
        let inputs = by_channel(stage, &stats.absmax);
        // A channel that is never fed, or never used, has nothing to share.
        let scale = |(x, w): (&f32, &f32)| match *x > 0.0 && *w > 0.0 {
            true => (x.powf(self.alpha) / w.powf(1.0 - self.alpha)).max(LEAST),
            false => 1.0,
        };
        let scales: Vec<f32> = inputs.iter().zip(&weights).map(scale).collect();
        fold(block, stage, stats, &scales);
        Ok(Vec::new())
    }
}

/// No scale is smaller, as in the authors' code.
const LEAST: f32 = 1e-5;

/// The largest |w| of each column over all linears.
fn columns(block: &Block<'_>, linears: &[Part], cols: usize) -> Vec<f32> {
    let mut largest = vec![0f32; cols];
    for weights in linears.iter().filter_map(|part| block.matrix(*part)) {
        for row in weights.data.chunks_exact(cols.max(1)) {
            largest.iter_mut().zip(row).for_each(|(most, w)| *most = most.max(w.abs()));
        }
    }
    largest
}

/// The largest over the columns of each channel.
fn by_channel(stage: &Stage, columns: &[f32]) -> Vec<f32> {
    let mut channels = vec![0f32; columns.len() / stage.before.repeat()];
    for (column, value) in columns.iter().enumerate() {
        let channel = &mut channels[stage.before.channel(column)];
        *channel = channel.max(*value);
    }
    channels
}
