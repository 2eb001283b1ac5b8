//! Shares the difficulty of rounding between inputs and weights.

use lathe_models::{Part, Stage};

use crate::{
    Block, Context, Error, Needs, Stats, Transform,
    fold::fold,
    recipe::is_dense,
    scaled::{Scaled, by_channel},
};

/// SmoothQuant: what is extreme in a layer's inputs moves into its weights, so that both can be
/// rounded to 8 bits.
///
/// The inputs of column j are divided by max|xⱼ|^α / max|wⱼ|^(1−α). Where α is not given, each stage
/// gets its own: the one with the least error of the stage's outputs when its weights and, if
/// engines round them too, its inputs are rounded. That may be no smoothing at all.
///
/// **Source** Xiao et al. 2022 (arXiv 2211.10438), equation 4.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Smooth {
    /// How much of the difficulty moves, 0 to 1; each stage's best where it is not given.
    pub alpha: Option<f32>,
}

impl Smooth {
    /// The same share for all stages, as in the paper.
    ///
    /// **Errors**: a share that is not between 0 and 1.
    pub fn new(alpha: f32) -> Result<Self, Error> {
        if (0.0..=1.0).contains(&alpha) {
            return Ok(Self { alpha: Some(alpha) });
        }
        Err(Error::Unsupported {
            what: format!("smoothing with alpha {alpha}"),
            instead: "choose between 0 and 1, such as 0.5, or auto".to_owned(),
        })
    }
}

impl Transform for Smooth {
    fn name(&self) -> String {
        match self.alpha {
            Some(alpha) => format!("smoothquant alpha {alpha}"),
            None => "smoothquant".to_owned(),
        }
    }

    fn needs(&self) -> Needs {
        match self.alpha {
            Some(_) => Needs::Importance,
            None => Needs::Hessian,
        }
    }

    fn folds(&self) -> bool {
        true
    }

    fn apply(
        &self,
        block: &mut Block<'_>,
        stage: &Stage,
        stats: &mut Stats,
        cx: &Context<'_>,
    ) -> Result<Vec<String>, Error> {
        let known = stats.absmax.iter().chain(&stats.importance).all(|x| x.is_finite());
        if stats.count == 0 || !known {
            return Ok(Vec::new());
        }
        let extremes = Extremes {
            inputs: by_channel(stage, &stats.absmax, f32::max),
            weights: by_channel(
                stage,
                &columns(block, &stage.linears, stats.absmax.len()),
                f32::max,
            ),
        };
        let best = match self.alpha {
            Some(alpha) => Some(alpha),
            None => extremes.best(block, stage, stats, cx)?,
        };
        if let Some(alpha) = best {
            fold(block, stage, stats, &extremes.scales(alpha));
        }
        Ok(Vec::new())
    }
}

/// The largest input and weight of each channel.
struct Extremes {
    inputs: Vec<f32>,
    weights: Vec<f32>,
}

impl Extremes {
    fn scales(&self, alpha: f32) -> Vec<f32> {
        // A channel that is never fed, or never used, has nothing to share.
        let scale = |(x, w): (&f32, &f32)| match *x > 0.0 && *w > 0.0 {
            true => (x.powf(alpha) / w.powf(1.0 - alpha)).max(LEAST),
            false => 1.0,
        };
        self.inputs.iter().zip(&self.weights).map(scale).collect()
    }

    /// The share with the least error; none where all are worse than leaving things as they are.
    fn best(
        &self,
        block: &Block<'_>,
        stage: &Stage,
        stats: &Stats,
        cx: &Context<'_>,
    ) -> Result<Option<f32>, Error> {
        let coded = |part: &Part| Some((block.matrix(*part)?, *cx.formats.get(part)?));
        let linears: Vec<_> =
            stage.linears.iter().filter_map(coded).filter(|l| !is_dense(l.1)).collect();
        if linears.is_empty() {
            return Ok(None);
        }
        let scaled = Scaled::new(&linears, stage, stats, cx);
        let mut best = None;
        let mut least = scaled.error(&vec![1.0; self.inputs.len()])?;
        let mut look = |alpha: f32, best: &mut Option<f32>| -> Result<(), Error> {
            let error = scaled.error(&self.scales(alpha))?;
            if error < least {
                (*best, least) = (Some(alpha), error);
            }
            Ok(())
        };
        for tenth in 0..=10 {
            look(tenth as f32 / 10.0, &mut best)?;
        }
        for step in [0.05, 0.025] {
            let Some(middle) = best else { break };
            for alpha in [middle - step, middle + step] {
                if (0.0..=1.0).contains(&alpha) {
                    look(alpha, &mut best)?;
                }
            }
        }
        Ok(best)
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
