//! The layer-by-layer job: each layer's inputs are those that the quantized layers before it give.

mod apart;
mod collect;
mod edited;
mod estimate;
mod few;
mod imatrix;
mod layer;
mod states;

use std::{collections::BTreeMap, ops::Range, time::Instant};

use lathe_base::{Bytes, Progress};
use lathe_engine::{LayerRunner, Room};
use lathe_files::{Activations, Writer};
use lathe_formats::AnyFormat;
use lathe_models::{Kind, Part, Role};
use sha2::{Digest, Sha256};

use crate::{
    Calibration, Done, Error, Job, Needs, Plan, Planned, Summary, Transform,
    fingerprint::{fingerprint, hex},
    made::Made,
};

pub(crate) use collect::Collector;
pub use estimate::Estimate;
pub(crate) use imatrix::unreadable;
pub use imatrix::{Measured, measure_importance};
use states::States;

/// A job with everything that calibration adds to it.
#[derive(Clone, Copy, Debug)]
pub struct Calibrated<'a> {
    pub job: Job<'a>,
    /// What is done to each layer before it is coded, in order.
    pub transforms: &'a [Box<dyn Transform>],
    pub calibration: &'a Calibration,
    /// Whether each stage of a layer is calibrated with the stages before it already quantized
    /// ("true sequential"), or all with the layer as it was.
    pub sequential: bool,
    /// Memory that is not to be exceeded.
    pub max_memory: Option<Bytes>,
}

/// Carries out a job layer by layer: statistics of the inputs, transforms, codes, and the hidden
/// states that the quantized layer gives.
///
/// The result is written as by [`crate::quantize`], and can be interrupted like it: hidden states
/// are kept on disk beside the result, and the same call goes on at the layer where it was, with
/// the same bytes in the end, whatever the number of threads and the cap.
///
/// **Errors**: as [`crate::quantize`]; a cap that is too low ([`Error::MaxMemory`]); inputs that
/// are not finite, by layer and sample ([`Error::Input`]).
pub fn quantize_calibrated(
    calibrated: &Calibrated<'_>,
    progress: &dyn Progress,
) -> Result<Summary, Error> {
    let start = Instant::now();
    let estimate = calibrated.estimate()?;
    progress.note(&estimate.words());
    let plan = calibrated.ordered();
    let run = Calibrated { job: Job { plan: &plan, ..calibrated.job }, ..*calibrated };
    let mut run = Run::new(&run, &estimate, progress)?;
    run.all()?;
    run.finish(start)
}

impl Calibrated<'_> {
    /// What the job takes.
    ///
    /// **Errors**: a cap that is too low.
    pub fn estimate(&self) -> Result<Estimate, Error> {
        let needs = self.fold_needs().max(self.stage_needs());
        if self.calibration.about.tokens == 0 && needs > Needs::Nothing {
            return Err(Error::NoTexts { name: self.calibration.about.name.clone() });
        }
        Estimate::new(self)
    }

    /// The plan in the order of the work: what is outside of the layers, then layer by layer first
    /// the vectors and routers and then stage by stage the matrices, then what follows the layers.
    fn ordered(&self) -> Plan {
        let mut plan = self.job.plan.clone();
        plan.tensors.sort_by_key(place);
        plan
    }

    fn folds(&self) -> bool {
        self.transforms.iter().any(|transform| transform.folds())
    }

    /// Whether a transform changes single stages.
    fn changes(&self) -> bool {
        self.transforms.iter().any(|transform| !transform.folds())
    }

    fn fold_needs(&self) -> Needs {
        let folding = self.transforms.iter().filter(|transform| transform.folds());
        folding.map(|transform| transform.needs()).max().unwrap_or(Needs::Nothing)
    }

    /// What must be known of a stage when it is coded.
    fn stage_needs(&self) -> Needs {
        let rest = self.transforms.iter().filter(|transform| !transform.folds());
        let rest = rest.map(|transform| transform.needs());
        let scales = if self.fixes_inputs() { Needs::Importance } else { Needs::Nothing };
        rest.fold(self.job.quantizer.needs().max(scales), Needs::max)
    }

    /// Whether inputs get scales that are known beforehand.
    fn fixes_inputs(&self) -> bool {
        self.job.plan.activations == Activations::Fp8Static
    }

    /// Whether every stage waits for the one before.
    fn steps_by_stage(&self) -> bool {
        self.sequential && self.stage_needs() > Needs::Nothing
    }

    /// The format of each part of a layer.
    fn formats(&self, layer: usize) -> BTreeMap<Part, &'static dyn AnyFormat> {
        let mut formats = BTreeMap::new();
        for planned in &self.job.plan.tensors {
            for role in &planned.roles {
                match role {
                    Role::Layer(index, part) if *index == layer && planned.kind == Kind::Linear => {
                        formats.insert(*part, planned.format);
                    }
                    _ => {}
                }
            }
        }
        formats
    }

    /// Everything that the numbers depend on.
    fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(fingerprint(&self.job));
        hash.update(format!("{:?} {}\n", self.calibration.about, self.sequential));
        hash.update(format!("{}\n", self.job.plan.activations));
        for transform in self.transforms {
            hash.update(format!("{transform:?}\n"));
        }
        for planned in &self.job.plan.tensors {
            hash.update(format!("{} {:?}\n", planned.name, planned.format));
        }
        hex(&hash.finalize())
    }
}

/// Where a tensor stands in the order of the work: layer, counted from 1, and step within it.
fn place(planned: &Planned) -> (usize, usize) {
    let of_role = |role: &Role| match role {
        Role::Layer(index, part) => (index + 1, 1 + part.step()),
        Role::FinalNorm | Role::Head => (usize::MAX, 0),
        Role::Embed | Role::RopeFactors(_) => (0, 0),
    };
    let (layer, step) = planned.roles.iter().map(of_role).max().unwrap_or((0, 0));
    (layer, if planned.kind.may_be_coded() { step } else { 0 })
}

/// A run that is under way.
struct Run<'a> {
    calibrated: &'a Calibrated<'a>,
    job: &'a Job<'a>,
    runner: LayerRunner,
    writer: Box<dyn Writer>,
    /// Tensors that an earlier run has written.
    resumed: usize,
    states: States,
    /// Sequences that are run together.
    batches: Vec<Range<usize>>,
    done: Vec<Done>,
    notes: Vec<String>,
    progress: &'a dyn Progress,
    /// Steps of [`Progress`]: sequences times sweeps.
    at: u64,
}

impl<'a> Run<'a> {
    fn new(
        calibrated: &'a Calibrated<'a>,
        estimate: &Estimate,
        progress: &'a dyn Progress,
    ) -> Result<Self, Error> {
        let job = &calibrated.job;
        let spec = job.weights.spec();
        let lengths: Vec<usize> = calibrated.calibration.sequences.iter().map(Vec::len).collect();
        let batches = batches(&lengths, estimate.tokens);
        let sequences = batches.iter().map(Range::len).max().unwrap_or(1);
        let room = Room { tokens: estimate.tokens, sequences };
        let runner = LayerRunner::new(spec, room, job.threads)?;
        let fingerprint = calibrated.fingerprint();
        let about = &calibrated.calibration.about;
        let made = Made::calibrated(job, calibrated.transforms, about);
        let writer = job.writer(&fingerprint, made)?;
        let resumed = writer.done();
        // The newest layer whose predecessors are all written.
        let newest = job.plan.tensors.get(resumed).map_or(usize::MAX, |next| place(next).0);
        let newest = newest.saturating_sub(1).min(spec.layers.len());
        let shape = (lengths.as_slice(), spec.width);
        let states = States::open(job.out, &fingerprint, shape, newest)?;
        job.plan.notes.iter().for_each(|note| progress.note(note));
        if resumed > 0 {
            let layer = states.layer();
            progress.note(&format!(
                "{resumed} tensors are there from an interrupted run; going on at layer {layer}"
            ));
        }
        let (done, notes) = (Vec::new(), job.plan.notes.clone());
        let run = Self {
            calibrated,
            job,
            runner,
            writer,
            resumed,
            states,
            batches,
            done,
            notes,
            progress,
            at: 0,
        };
        Ok(run)
    }

    fn all(&mut self) -> Result<(), Error> {
        let layers = self.job.weights.spec().layers.len();
        self.outside(|layer| layer == 0)?;
        if self.states.layer() == 0 {
            self.embed()?;
        }
        for layer in 0..layers {
            self.at = layer as u64 * self.steps_per_layer();
            if layer < self.states.layer() {
                self.skip(layer);
            } else {
                self.layer(layer)?;
            }
        }
        self.outside(|layer| layer > layers)
    }

    /// The sequences' embeddings are the first layer's inputs.
    fn embed(&mut self) -> Result<(), Error> {
        let table = self.job.weights.matrix(Role::Embed)?;
        for batch in self.batches.clone() {
            self.progress.check()?;
            let sequences = &self.calibrated.calibration.sequences[batch.clone()];
            let tokens: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
            let states = self.runner.embed(&table, &tokens)?;
            self.states.write(batch, 0, &states)?;
        }
        lathe_files::release(&table.data);
        Ok(())
    }

    /// Tensors before or after all layers: the weights alone decide.
    fn outside(&mut self, wanted: impl Fn(usize) -> bool) -> Result<(), Error> {
        for (i, planned) in self.job.plan.tensors.iter().enumerate() {
            if !wanted(place(planned).0) {
                continue;
            }
            self.progress.check()?;
            let done = match i < self.resumed {
                true => planned.done(None),
                false => self.job.make(planned, self.writer.as_mut(), &mut self.notes)?,
            };
            self.done.push(done);
        }
        Ok(())
    }

    /// A layer that an earlier run has completed.
    fn skip(&mut self, layer: usize) {
        let tensors = self.job.plan.tensors.iter();
        let own = tensors.filter(|planned| place(planned).0 == layer + 1);
        self.done.extend(own.map(|planned| planned.done(None)));
    }

    fn finish(self, start: Instant) -> Result<Summary, Error> {
        let Self { job, writer, states, done, notes, resumed, .. } = self;
        writer.finish()?;
        states.remove()?;
        let about = &self.calibrated.calibration.about;
        let calibration = (about.tokens > 0).then(|| about.clone());
        let summary = job.summary(done, resumed, start.elapsed().into());
        Ok(Summary { notes, calibration, ..summary })
    }

    /// Sweeps of a layer, times the sequences.
    fn steps_per_layer(&self) -> u64 {
        let whole = u64::from(self.wants_whole());
        let sweeps = if self.calibrated.steps_by_stage() { 5 } else { 1 };
        (whole + sweeps) * self.calibrated.calibration.sequences.len() as u64
    }

    /// Whether statistics are made of the layer as it was.
    fn wants_whole(&self) -> bool {
        let run = self.calibrated;
        let rest = if run.sequential { Needs::Nothing } else { run.stage_needs() };
        run.fold_needs().max(rest) > Needs::Nothing
    }
}

/// Runs of neighbouring sequences of at most `tokens` tokens; longer ones are alone.
fn batches(lengths: &[usize], tokens: usize) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut held = 0;
    for (i, length) in lengths.iter().enumerate() {
        match batches.last_mut() {
            Some(last) if held + length <= tokens => {
                last.end = i + 1;
                held += length;
            }
            _ => {
                batches.push(i..i + 1);
                held = *length;
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_run_together_up_to_the_room() {
        assert_eq!(batches(&[4, 4, 4, 9, 1, 1], 8), [0..2, 2..3, 3..4, 4..6]);
        assert!(batches(&[], 8).is_empty());
    }
}
