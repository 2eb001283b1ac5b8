//! Scales and clipping that follow what the inputs of a layer are.

mod clip;
mod scale;

use lathe_models::{Part, Stage};

use crate::{Block, Context, Error, Needs, Stats, Transform, fold::fold, recipe::is_dense};

/// Activation-aware weight quantization: columns that meet large inputs are scaled up before they
/// are coded, and what feeds them is scaled down; then each group is clipped where that helps.
///
/// A column's scale is |x|^α / |w|^β. The exponents are searched for the least error of the
/// outputs of a stage after rounding in the formats that its linears will get. Where the original
/// samples tokens to measure that error, the inputs' second moments are used here, which are those
/// of all tokens.
///
/// **Source** Lin et al. 2023 (arXiv 2306.00978).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Awq {
    /// Whether to search for clipping too.
    pub clip: bool,
}

impl Default for Awq {
    fn default() -> Self {
        Self { clip: true }
    }
}

impl Transform for Awq {
    fn name(&self) -> String {
        if self.clip { "awq".to_owned() } else { "awq without clipping".to_owned() }
    }

    fn needs(&self) -> Needs {
        Needs::Hessian
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
        let coded = |part: &Part| Some((*part, *cx.formats.get(part)?));
        let coded: Vec<_> =
            stage.linears.iter().filter_map(coded).filter(|l| !is_dense(l.1)).collect();
        if coded.is_empty() || stats.count == 0 {
            return Ok(Vec::new());
        }
        if !stats.mean_abs.iter().chain(&stats.importance).all(|x| x.is_finite()) {
            let name = stage.name;
            return Ok(vec![format!(
                "{name}: calibration met numbers that are not finite; no awq"
            )]);
        }
        let linears =
            coded.iter().filter_map(|(part, format)| Some((block.matrix(*part)?, *format)));
        let linears: Vec<_> = linears.collect();
        let scales = scale::search(&linears, stage, stats, cx)?;
        fold(block, stage, stats, &scales);
        if self.clip && cx.quantizer.needs() != Needs::Hessian {
            // Clipped queries and keys would move every score of a head.
            let clipped = coded.iter().filter(|(part, _)| !matches!(part, Part::Q | Part::K));
            for (part, format) in clipped {
                let Some(weights) = block.matrix_mut(*part) else { continue };
                clip::clip(weights, *format, stats, cx)?;
            }
        }
        Ok(Vec::new())
    }
}
