//! What a stage's outputs lose when its channels are scaled, and then rounded.

use std::borrow::Cow;

use lathe_files::Activations;
use lathe_formats::{AnyFormat, Effort};
use lathe_models::Stage;

use crate::{
    Context, Dense, Error, Gptq, Needs, Stats,
    curvature::Curvature,
    fold::divide,
    loss::{output_error, spread},
};

/// The linears of a stage that are going to be coded, for a search of its channels' scales.
pub(crate) struct Scaled<'a> {
    /// Rows that stand for each linear, and its format.
    samples: Vec<(Dense, &'static dyn AnyFormat)>,
    stage: &'a Stage,
    /// Borrowed where they are the layer's own: second moments are large.
    stats: Cow<'a, Stats>,
    cx: &'a Context<'a>,
}

impl<'a> Scaled<'a> {
    pub(crate) fn new(
        linears: &[(&Dense, &'static dyn AnyFormat)],
        stage: &'a Stage,
        stats: &'a Stats,
        cx: &'a Context<'a>,
    ) -> Self {
        let samples = linears.iter().map(|(w, format)| (sample(w), *format)).collect();
        let stats = match cx.quantizer.needs() {
            Needs::Hessian => Cow::Owned(left(stats, cx.threads)),
            _ => Cow::Borrowed(stats),
        };
        Self { samples, stage, stats, cx }
    }

    /// What rounding adds to the outputs when channels are divided by `scales`: the mean square of
    /// the error, summed over the outputs of the rows that stand for all.
    pub(crate) fn error(&self, scales: &[f32]) -> Result<f64, Error> {
        let scales = self.stage.before.by_column(scales);
        let mut scaled_stats = without_hessian(&self.stats);
        divide(&mut scaled_stats, &scales);
        let noise = self.noise(&scaled_stats);
        let mut sum = 0.0;
        for (weights, format) in &self.samples {
            let mut scaled = weights.clone();
            for row in 0..scaled.rows {
                scaled.row_mut(row).iter_mut().zip(&scales).for_each(|(w, s)| *w *= s);
            }
            if noise > 0.0 {
                sum += noise * scaled.data.iter().map(|w| f64::from(w * w)).sum::<f64>();
            }
            let mut delta = rounded(&scaled, &scaled_stats, *format, self.cx)?;
            for row in 0..delta.rows {
                let places = delta.row_mut(row).iter_mut().zip(weights.row(row)).zip(&scales);
                places.for_each(|((d, w), s)| *d = *d / s - w);
            }
            sum += output_error(&delta, &self.stats, self.cx.threads);
        }
        Ok(sum)
    }

    /// The mean square error that engines make of each input when they round it.
    ///
    /// Codes of one scale are equally far apart, so that a twelfth of a step's square is lost by
    /// every number of a token. FP8's steps grow with the numbers: scales change next to nothing
    /// there, and it counts as exact here.
    fn noise(&self, scaled: &Stats) -> f64 {
        /// The largest code of an 8-bit input.
        const MOST: f64 = 127.0;
        let cols = scaled.importance.len().max(1);
        let tokens = scaled.sample.chunks_exact(cols);
        if self.cx.activations != Activations::Int8PerToken || tokens.len() == 0 {
            return 0.0;
        }
        let count = tokens.len() as f64;
        let largest = tokens.map(|x| x.iter().fold(0f32, |most, x| most.max(x.abs())));
        let steps = largest.map(|x| (f64::from(x) / MOST).powi(2));
        steps.sum::<f64>() / count / 12.0
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
        sample: stats.sample.clone(),
        hessian: None,
    }
}

/// What rounding does to weights: the numbers that the codes stand for.
///
/// The quantizer that follows is asked, unless it is one that makes up for its errors, which are
/// measured otherwise: then the format searches its scales, as such a quantizer does.
pub(crate) fn rounded(
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
pub(crate) fn sample(weights: &Dense) -> Dense {
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

/// For each channel one number of its columns' numbers.
pub(crate) fn by_channel(
    stage: &Stage,
    columns: &[f32],
    join: impl Fn(f32, f32) -> f32,
) -> Vec<f32> {
    let mut channels = vec![0.0; columns.len() / stage.before.repeat()];
    for (column, value) in columns.iter().enumerate() {
        let channel = &mut channels[stage.before.channel(column)];
        *channel = join(*channel, *value);
    }
    channels
}
