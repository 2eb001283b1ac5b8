//! Scales and clipping that follow what the inputs of a layer are.

mod clip;
mod scale;

use lathe_formats::{AnyFormat, Effort};
use lathe_models::{Part, Stage};

use crate::{
    Block, Context, Dense, Error, Gptq, Needs, Stats, Transform,
    curvature::Curvature,
    fold::fold,
    loss::{output_error, spread},
    recipe::is_dense,
};

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
        let makes_up = cx.quantizer.needs() == Needs::Hessian;
        let scales = match makes_up {
            true => scale::search(&linears, stage, &left(stats, cx.threads), cx)?,
            false => scale::search(&linears, stage, stats, cx)?,
        };
        fold(block, stage, stats, &scales);
        if self.clip && !makes_up {
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

/// What is left of each column's inputs to a quantizer that makes up for its errors: their
/// variance given the columns that are coded later.
///
/// It is what an error in the column costs in the end, so that such quantizers are measured column
/// by column, without running them.
fn left(stats: &Stats, threads: usize) -> Stats {
    let Some(hessian) = &stats.hessian else { return stats.clone() };
    let cols = stats.importance.len();
    let order: Vec<u32> = (0..cols as u32).collect();
    let feedback = Curvature::new(hessian, cols, Gptq::default().damping).solve(&order, threads);
    Stats { importance: feedback.variance().to_vec(), ..without_hessian(stats) }
}

/// The same statistics of the columns by themselves.
fn without_hessian(stats: &Stats) -> Stats {
    Stats {
        count: stats.count,
        mean_abs: stats.mean_abs.clone(),
        importance: stats.importance.clone(),
        absmax: stats.absmax.clone(),
        hessian: None,
    }
}

/// What rounding does to weights: the numbers that the codes stand for.
///
/// The quantizer that follows is asked, unless it is one that makes up for its errors, which are
/// measured otherwise: then the format searches its scales, as such a quantizer does.
fn rounded(
    weights: &Dense,
    stats: &Stats,
    format: &'static dyn AnyFormat,
    cx: &Context<'_>,
) -> Result<Dense, Error> {
    let coded = match cx.quantizer.needs() {
        Needs::Hessian => {
            format.encode_weighted(weights, Some(&stats.importance), Effort::Search, cx.threads)?
        }
        _ => cx.quantizer.quantize(weights, Some(stats), format, cx.threads)?.blocks,
    };
    let rows = spread(coded.rows, cx.threads, |row| {
        let mut out = vec![0.0; coded.cols];
        coded.decode_row(row, &mut out);
        out
    });
    Ok(Dense { rows: coded.rows, cols: coded.cols, data: rows.concat() })
}

/// Rows that stand for all of a matrix in a search, spread without a period: neighbours in a head
/// differ. All of them where the work allows it, which grows with the square of the columns.
fn sample(weights: &Dense) -> Dense {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let most = (WORK / (weights.cols * weights.cols).max(1)).max(FEWEST);
    if weights.rows <= most {
        return weights.clone();
    }
    let stride = weights.rows as f64 / most as f64;
    let row = |i: usize| ((i as f64 + (i as f64 * GOLDEN).fract()) * stride) as usize;
    let data: Vec<f32> = (0..most).flat_map(|i| weights.row(row(i))).copied().collect();
    Dense { rows: most, cols: weights.cols, data }
}

/// Products that one look at a matrix may cost, and rows that are looked at in any case.
const WORK: usize = 1 << 32;
const FEWEST: usize = 256;
