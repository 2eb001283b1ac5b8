use std::collections::BTreeMap;

use lathe_base::{Bytes, Progress};
use lathe_engine::{Fed, LayerRunner, Room};
use lathe_files::{Imatrix, Squares};
use lathe_models::{Inputs, Kind, Layer, Role, Weight, gguf};

use super::{batches, collect::Collector, layer::gather};
use crate::{Calibration, Error, Needs, Weights};

/// What importance is measured on.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'a> {
    pub weights: &'a dyn Weights,
    pub calibration: &'a Calibration,
    /// Whether the head's inputs count too, as with `llama-imatrix --process-output`.
    pub head: bool,
    pub threads: usize,
}

/// Tokens that are run at once.
const TOKENS: usize = 2048;

/// Measures what `llama-imatrix` measures: for each matrix the sums of squares of its inputs over
/// the calibration texts, with the model as it is, under llama.cpp's names.
///
/// Memory holds the activations of some 2048 tokens and, one stage at a time, the weights: those
/// that are stored dense stay in their files.
///
/// **Errors**: texts without tokens; inputs that are not finite, by layer and sample.
pub fn measure_importance(
    measured: &Measured<'_>,
    progress: &dyn Progress,
) -> Result<Imatrix, Error> {
    let about = &measured.calibration.about;
    if about.tokens == 0 {
        return Err(Error::NoTexts { name: about.name.clone() });
    }
    let mut walk = Walk::new(measured, progress)?;
    let lengths: Vec<usize> = measured.calibration.sequences.iter().map(Vec::len).collect();
    let batches = batches(&lengths, TOKENS);
    for (i, batch) in batches.iter().enumerate() {
        walk.at = (i, batches.len());
        walk.run(batch.start, &measured.calibration.sequences[batch.clone()])?;
    }
    walk.finish()
}

impl Measured<'_> {
    /// What [`measure_importance`] takes at its peak, mapped weights included.
    pub fn memory(&self) -> Bytes {
        let spec = self.weights.spec();
        let activations = LayerRunner::bytes(spec, self.room());
        let stage = |index: usize, stage: usize| -> u64 {
            let own =
                |w: &Weight| matches!(w.role, Role::Layer(l, p) if l == index && p.step() == stage);
            4 * spec.weights().iter().filter(|w| own(w)).map(|w| w.len() as u64).sum::<u64>()
        };
        let layers = 0..spec.layers.len();
        let largest = layers.flat_map(|l| (0..4).map(move |s| stage(l, s))).max();
        Bytes(activations.0 + largest.unwrap_or(0) + (48 << 20))
    }

    fn room(&self) -> Room {
        let tokens = TOKENS.max(self.calibration.longest());
        Room { tokens, sequences: self.calibration.sequences.len().min(tokens).max(1) }
    }
}

struct Walk<'a> {
    measured: &'a Measured<'a>,
    runner: LayerRunner,
    /// By layer.
    collectors: Vec<BTreeMap<Inputs, Collector>>,
    head: Option<Collector>,
    progress: &'a dyn Progress,
    /// Which batch, of how many.
    at: (usize, usize),
}

impl<'a> Walk<'a> {
    fn new(measured: &'a Measured<'a>, progress: &'a dyn Progress) -> Result<Self, Error> {
        let spec = measured.weights.spec();
        let collector = |cols| Collector::new(cols, Needs::Importance);
        let layer = |layer: &Layer| {
            let one = |inputs| Ok((inputs, collector(layer.input_width(inputs, spec.width))?));
            layer.inputs().into_iter().map(one).collect()
        };
        Ok(Self {
            measured,
            runner: LayerRunner::new(spec, measured.room(), measured.threads)?,
            collectors: spec.layers.iter().map(layer).collect::<Result<_, Error>>()?,
            head: measured.head.then(|| collector(spec.width)).transpose()?,
            progress,
            at: (0, 0),
        })
    }

    /// Takes some sequences, the first of them number `first`, through the whole model.
    fn run(&mut self, first: usize, sequences: &[Vec<u32>]) -> Result<(), Error> {
        let weights = self.measured.weights;
        let spec = weights.spec();
        let table = weights.matrix(Role::Embed)?;
        let tokens: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let mut states = self.runner.embed(&table, &tokens)?;
        lathe_files::release(&table.data);
        let pool = self.runner.pool();
        for layer in 0..spec.layers.len() {
            for stage in 0..4 {
                self.progress.check()?;
                self.report(layer, stage);
                let mut used = Vec::new();
                let source = &mut |weight: &Weight| {
                    let blocks = weights.matrix(weight.role).map_err(unreadable)?;
                    used.push(blocks.data.clone());
                    Ok(blocks)
                };
                let entry = self.runner.entry(layer, stage, source)?;
                let linears = self.runner.linears(layer, stage, source)?;
                let collectors = &mut self.collectors[layer];
                let mut bad = None;
                let tap = &mut |fed: Fed<'_>| gather(collectors, (stage, fed), &pool, &mut bad);
                self.runner.advance((&entry, &linears), &mut states, tap)?;
                used.iter().for_each(lathe_files::release);
                if let Some((inputs, bad)) = bad {
                    return Err(bad.of(layer, inputs, (first, &states.lengths)));
                }
            }
        }
        if let Some(head) = &mut self.head {
            let source = &mut |weight: &Weight| weights.matrix(weight.role).map_err(unreadable);
            let output = self.runner.output(source)?;
            if let Err(bad) = head.add(&pool, self.runner.final_input(&output, &mut states)?) {
                let layer = spec.layers.len();
                return Err(bad.of(layer, "output head", (first, &states.lengths)));
            }
        }
        Ok(())
    }

    fn report(&self, layer: usize, stage: usize) {
        let layers = self.collectors.len();
        let steps = |batch: usize| (batch * layers * 4) as u64;
        let (batch, batches) = self.at;
        let at = steps(batch) + (layer * 4 + stage) as u64;
        let what = format!("batch {} of {batches}, layer {}", batch + 1, layer + 1);
        self.progress.at(&what, at, steps(batches));
    }

    fn finish(self) -> Result<Imatrix, Error> {
        let model = self.measured.weights.model();
        let mut imatrix = Imatrix::default();
        let mut add = |role: Role, collector: &Collector| {
            let name = gguf::name(model.arch.gguf(), &model.spec, role).name;
            let (sums, count) = (collector.squares(), collector.count());
            match role {
                // One expert after the other.
                Role::Layer(_, part) if part.expert().is_some_and(|expert| expert > 0) => {
                    let all = imatrix.entries.entry(name).or_default();
                    all.sums.extend(sums);
                    all.counts.push(count);
                }
                // Parts of a fused tensor share their input.
                _ => drop(imatrix.entries.insert(name, Squares { sums, counts: vec![count] })),
            }
        };
        let fed = |weight: &&Weight| matches!(weight.kind, Kind::Linear | Kind::Router);
        for weight in model.spec.weights().iter().filter(fed) {
            if let Role::Layer(layer, part) = weight.role
                && let Some(collector) = self.collectors[layer].get(&part.inputs())
            {
                add(weight.role, collector);
            }
        }
        if let Some(head) = &self.head {
            add(Role::Head, head);
        }
        let calibration = self.measured.calibration;
        imatrix.datasets = vec![calibration.about.name.clone()];
        imatrix.chunks = calibration.sequences.len() as u32;
        imatrix.chunk_size = calibration.longest() as u32;
        Ok(imatrix)
    }
}

/// The runner's own error where weights cannot be read; the cause is kept in words.
pub(crate) fn unreadable(error: Error) -> lathe_engine::Error {
    lathe_engine::Error::Request(error.to_string())
}
