use std::collections::BTreeMap;

use lathe_base::e4m3;
use lathe_engine::{Entry, Fed, LayerRunner, Linears, Source};
use lathe_formats::{AnyFormat, Blocks};
use lathe_kernels::Pool;
use lathe_models::{Inputs, Part, Role, Stage, Weight};

use super::{
    Run,
    apart::take_apart,
    collect::{Bad, Collector},
    edited::Edited,
    few, place,
};
use crate::{
    Block, Context, Error, Needs, Planned, Stats, Transform, Weights, measure::deviation,
    recipe::is_dense, source::Numbers,
};

/// What a sweep over all sequences gathers.
type Collectors = BTreeMap<Inputs, Collector>;

/// What is known of the inputs within a layer.
pub(super) type Gathered = BTreeMap<Inputs, Stats>;

/// What a sweep over all sequences does.
#[derive(Default)]
struct Sweep<'a> {
    /// The stages that the sequences are taken through, one after the other.
    through: Vec<(Entry, Linears)>,
    /// The stage behind them, whose inputs are looked at as well.
    until: Option<&'a Entry>,
    /// Whether what comes out is kept.
    keeps: bool,
}

/// A layer that is being coded.
struct Work<'a> {
    index: usize,
    stages: Vec<Stage>,
    /// All that can be looked at, and how many columns it has.
    inputs: Vec<(Inputs, usize)>,
    /// Its tensors, with their places in the plan.
    tensors: Vec<(usize, &'a Planned)>,
    formats: BTreeMap<Part, &'static dyn AnyFormat>,
    weights: Edited<'a>,
    /// What is written already, as the layer's own parts.
    coded: BTreeMap<Part, Blocks>,
}

impl Run<'_> {
    /// Codes a layer and takes the hidden states through it.
    pub(super) fn layer(&mut self, index: usize) -> Result<(), Error> {
        let run = self.calibrated;
        let plan = self.job.plan;
        let own = |(_, planned): &(usize, &Planned)| place(planned).0 == index + 1;
        let spec = self.job.weights.spec();
        let layer = &spec.layers[index];
        let with_cols = |inputs| (inputs, layer.input_width(inputs, spec.width));
        let mut work = Work {
            index,
            stages: layer.stages(),
            inputs: layer.inputs().into_iter().map(with_cols).collect(),
            tensors: plan.tensors.iter().enumerate().filter(own).collect(),
            formats: run.formats(index),
            weights: Edited { base: self.job.weights, layer: index, parts: BTreeMap::new() },
            coded: BTreeMap::new(),
        };
        let mut stats = self.whole(&work)?;
        if run.folds() {
            self.fold(&mut work, &mut stats)?;
            let experts = spec.layers[index].mlp.experts().is_some();
            if experts && !run.steps_by_stage() {
                // A fold of what all experts are fed changes what each of them is fed.
                stats = self.whole(&work)?;
            }
        }
        self.vectors(&mut work)?;
        if run.steps_by_stage() {
            self.by_stage(&mut work)?;
        } else {
            for step in 0..4 {
                let own = stats.extract_if(.., |inputs, _| inputs.step == step).collect();
                self.code_step(&mut work, step, own)?;
            }
            if !self.is_last(index) {
                self.pass_on(&work)?;
            }
        }
        if self.is_last(index) { Ok(()) } else { self.states.complete() }
    }

    /// Nobody asks what comes after the last layer.
    fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.job.weights.spec().layers.len()
    }

    /// Statistics of the layer as it is, where they are wanted.
    fn whole(&mut self, work: &Work<'_>) -> Result<Gathered, Error> {
        if !self.wants_whole() {
            return Ok(Gathered::new());
        }
        let run = self.calibrated;
        let rest = if run.sequential { Needs::Nothing } else { run.stage_needs() };
        let needs = run.fold_needs().max(rest);
        let mut collectors = Collectors::new();
        for (inputs, cols) in &work.inputs {
            collectors.insert(*inputs, Collector::new(*cols, needs)?);
        }
        let mut used = Vec::new();
        let through = (0..4).map(|stage| {
            let blocks = work.blocks(stage)?;
            let loaded = self.load(work.index, stage, &blocks)?;
            used.extend(blocks.into_values());
            Ok(loaded)
        });
        let through = through.collect::<Result<_, Error>>()?;
        self.sweep(work, Sweep { through, ..Sweep::default() }, &mut collectors)?;
        used.iter().for_each(|blocks| lathe_files::release(&blocks.data));
        self.finish_all(collectors)
    }

    fn finish_all(&self, collectors: Collectors) -> Result<Gathered, Error> {
        let pool = self.runner.pool();
        let all = collectors.into_iter();
        all.map(|(inputs, collector)| Ok((inputs, collector.finish(&pool)?))).collect()
    }

    /// Applies the transforms that reach beyond a stage to the whole layer.
    fn fold(&mut self, work: &mut Work<'_>, stats: &mut Gathered) -> Result<(), Error> {
        let mut block = Block::load(work.weights.base, work.index)?;
        for transform in self.calibrated.transforms.iter().filter(|t| t.folds()) {
            for stage in &work.stages {
                self.progress.check()?;
                let mut none = Stats::default();
                let stats = stats.get_mut(&stage.inputs).unwrap_or(&mut none);
                self.apply(transform.as_ref(), &mut block, (work, stage), stats)?;
            }
        }
        work.weights.parts = block.into_parts()?;
        Ok(())
    }

    fn apply(
        &mut self,
        transform: &dyn Transform,
        block: &mut Block<'_>,
        (work, stage): (&Work<'_>, &Stage),
        stats: &mut Stats,
    ) -> Result<(), Error> {
        let cx = Context {
            formats: &work.formats,
            quantizer: self.job.quantizer,
            activations: self.job.plan.activations,
            threads: self.job.threads,
        };
        let notes = transform.apply(block, stage, stats, &cx)?;
        let named = |note| format!("layer {}, {}: {note}", work.index, stage.inputs);
        self.notes.extend(notes.into_iter().map(named));
        Ok(())
    }

    /// Writes the layer's norms, biases and routers, which are final now.
    fn vectors(&mut self, work: &mut Work<'_>) -> Result<(), Error> {
        for (at, planned) in work.tensors.clone() {
            if planned.kind.may_be_coded() {
                continue;
            }
            let blocks = self.code_tensor(work, (at, planned), &Gathered::new())?;
            // What is run is what is written; llama.cpp's files hold vectors in f32 anyway.
            if let (crate::Input::Stored(_), [Role::Layer(_, part)]) =
                (&planned.input, planned.roles.as_slice())
            {
                work.coded.insert(*part, blocks);
            }
        }
        Ok(())
    }

    /// Stage by stage: statistics with everything before quantized, then codes.
    fn by_stage(&mut self, work: &mut Work<'_>) -> Result<(), Error> {
        let needs = self.calibrated.stage_needs();
        let sweeps = if self.is_last(work.index) { 4 } else { 5 };
        for stage in 0..sweeps {
            let mut collectors = Collectors::new();
            let mut sweep = Sweep { keeps: stage > 0, ..Sweep::default() };
            if stage > 0 {
                let blocks = work.blocks(stage - 1)?;
                sweep.through.push(self.load(work.index, stage - 1, &blocks)?);
            }
            let entry = if stage < 4 { Some(self.entry(work, stage)?) } else { None };
            if work.quantizes(stage, !self.calibrated.transforms.is_empty()) {
                for (inputs, cols) in work.inputs.iter().filter(|(i, _)| i.step == stage) {
                    collectors.insert(*inputs, Collector::new(*cols, needs)?);
                }
                sweep.until = entry.as_ref();
            }
            self.sweep(work, sweep, &mut collectors)?;
            work.forget_matrices(stage);
            if stage < 4 {
                let stats = self.finish_all(collectors)?;
                self.code_step(work, stage, stats)?;
            }
        }
        Ok(())
    }

    /// Takes the hidden states through a layer that is coded.
    fn pass_on(&mut self, work: &Work<'_>) -> Result<(), Error> {
        let load = |stage| self.load(work.index, stage, &work.blocks(stage)?);
        let through = (0..4).map(load).collect::<Result<_, Error>>()?;
        let sweep = Sweep { through, until: None, keeps: true };
        self.sweep(work, sweep, &mut Collectors::new())
    }

    /// Codes and writes the matrices of a step.
    fn code_step(
        &mut self,
        work: &mut Work<'_>,
        step: usize,
        mut stats: Gathered,
    ) -> Result<(), Error> {
        for (inputs, stats) in stats.iter().filter(|(inputs, _)| inputs.expert.is_none()) {
            self.note_dead(work, *inputs, stats);
        }
        self.notes.extend(few::support(work.index, &mut stats));
        self.change(work, step, &mut stats)?;
        let weights = self.job.weights.spec().weights();
        for (at, planned) in work.tensors.clone() {
            if !planned.kind.may_be_coded() || place(planned).1 != step + 1 {
                continue;
            }
            self.progress.check()?;
            let blocks = self.code_tensor(work, (at, planned), &stats)?;
            let rows = |role: Role| rows_of(&weights, role);
            for (role, blocks) in take_apart(planned, &blocks, rows)? {
                if let Role::Layer(_, part) = role {
                    work.coded.insert(part, blocks);
                    work.weights.parts.remove(&part);
                }
            }
        }
        Ok(())
    }

    /// Applies the transforms that change single steps.
    fn change(
        &mut self,
        work: &mut Work<'_>,
        step: usize,
        stats: &mut Gathered,
    ) -> Result<(), Error> {
        let run = self.calibrated;
        if !run.changes() {
            return Ok(());
        }
        let own = |part: Part| part.step() == step;
        let parts = {
            let mut block = Block::load_parts(&work.weights, work.index, own)?;
            for transform in run.transforms.iter().filter(|t| !t.folds()) {
                let stages = work.stages.iter().flat_map(Stage::by_inputs);
                for stage in stages.filter(|stage| stage.inputs.step == step) {
                    let mut none = Stats::default();
                    let stats = stats.get_mut(&stage.inputs).unwrap_or(&mut none);
                    self.apply(transform.as_ref(), &mut block, (&*work, &stage), stats)?;
                }
            }
            block.into_parts()?
        };
        let is_matrix = |part: &Part| work.formats.contains_key(part);
        work.weights.parts.extend(parts.into_iter().filter(|(part, _)| is_matrix(part)));
        Ok(())
    }

    /// Codes one tensor, and writes it unless an earlier run has.
    fn code_tensor(
        &mut self,
        work: &Work<'_>,
        (at, planned): (usize, &Planned),
        stats: &Gathered,
    ) -> Result<Blocks, Error> {
        let numbers = Numbers::open(&work.weights, self.job.checkpoint, planned)?;
        let same = numbers.in_order(planned.format);
        let copied = same.is_some() && !work.has_edited(planned);
        // Without calibration, an importance matrix may say something.
        let own = |role: &Role| match stats.is_empty() {
            true => self.job.importance(planned, *role),
            false => Ok(None),
        };
        let own = planned.roles.iter().map(own).collect::<Result<Vec<_>, Error>>()?;
        let blocks = match same {
            // Dense numbers are coded anew, to the same bytes, because that finds NaN.
            Some(blocks) if !is_dense(planned.format) => blocks,
            _ => {
                let known = planned.roles.iter().zip(&own).map(|(role, own)| match role {
                    Role::Layer(_, part) => stats.get(&part.inputs()).or(own.as_ref()),
                    _ => own.as_ref(),
                });
                let known: Vec<_> = known.collect();
                let coded = self.job.code(planned, &numbers, &known)?;
                let named = |note| format!("`{}`: {note}", planned.name);
                self.notes.extend(coded.notes.into_iter().map(named));
                coded.blocks
            }
        };
        let blocks = match self.calibrated.fixes_inputs() && !is_dense(planned.format) {
            true => {
                let fed = planned.roles.iter().filter_map(|role| match role {
                    Role::Layer(_, part) => stats.get(&part.inputs()),
                    _ => None,
                });
                with_input_scale(blocks, planned, fed)?
            }
            false => blocks,
        };
        let written = at < self.resumed;
        if !written {
            self.writer.add(&planned.name, &planned.shape, &blocks)?;
        }
        let measured = self.job.measure && !copied;
        let loss = measured.then(|| deviation(&numbers, &blocks, self.job.threads));
        numbers.release();
        self.done.push(crate::Done { copied, ..planned.done(loss) });
        Ok(blocks)
    }

    /// One pass over all sequences.
    fn sweep(
        &mut self,
        work: &Work<'_>,
        sweep: Sweep<'_>,
        collectors: &mut Collectors,
    ) -> Result<(), Error> {
        let first = match (sweep.through.first(), sweep.until) {
            (Some((entry, _)), _) | (None, Some(entry)) => entry.stage(),
            (None, None) => return Ok(()),
        };
        let last = first + sweep.through.len();
        let pool = self.runner.pool();
        for batch in self.batches.clone() {
            self.progress.check()?;
            self.report(work, first);
            let inner = LayerRunner::inner_width(self.runner.layer(work.index), first);
            let mut sequences = self.states.read(batch.clone(), (first, inner))?;
            let lengths = sequences.lengths.clone();
            for (entry, linears) in &sweep.through {
                let stage = entry.stage();
                let mut bad = None;
                let tap = &mut |fed: Fed<'_>| gather(collectors, (stage, fed), &pool, &mut bad);
                self.runner.advance((entry, linears), &mut sequences, tap)?;
                work.check(bad, (batch.start, &lengths))?;
            }
            if let Some(entry) = sweep.until {
                let mut bad = None;
                let tap = &mut |fed: Fed<'_>| gather(collectors, (last, fed), &pool, &mut bad);
                self.runner.look(entry, &mut sequences, tap)?;
                work.check(bad, (batch.start, &lengths))?;
            }
            if sweep.keeps {
                self.states.write(batch.clone(), last, &sequences)?;
            }
            self.at += batch.len() as u64;
        }
        Ok(())
    }

    fn report(&self, work: &Work<'_>, stage: usize) {
        let layers = self.job.weights.spec().layers.len();
        let (layer, stage) = (work.index + 1, Inputs { step: stage, expert: None });
        let total = layers as u64 * self.steps_per_layer();
        self.progress.at(&format!("layer {layer} of {layers}, {stage}"), self.at, total);
    }

    fn note_dead(&mut self, work: &Work<'_>, inputs: Inputs, stats: &Stats) {
        let dead = stats.absmax.iter().filter(|most| **most == 0.0).count();
        if dead > 0 {
            let (layer, cols) = (work.index, stats.absmax.len());
            self.notes.push(format!(
                "layer {layer}, {inputs}: {dead} of {cols} columns are 0 in all of the calibration \
                 texts"
            ));
        }
    }

    fn entry(&self, work: &Work<'_>, stage: usize) -> Result<Entry, Error> {
        let blocks = work.blocks(stage)?;
        Ok(self.runner.entry(work.index, stage, &mut source(&blocks))?)
    }

    fn load(
        &self,
        layer: usize,
        stage: usize,
        blocks: &BTreeMap<Part, Blocks>,
    ) -> Result<(Entry, Linears), Error> {
        let source: &mut Source<'_> = &mut source(blocks);
        let entry = self.runner.entry(layer, stage, source)?;
        Ok((entry, self.runner.linears(layer, stage, source)?))
    }
}

/// Gives a runner what was gathered for it.
fn source(
    blocks: &BTreeMap<Part, Blocks>,
) -> impl FnMut(&Weight) -> Result<Blocks, lathe_engine::Error> + '_ {
    |weight: &Weight| {
        let found = match weight.role {
            Role::Layer(_, part) => blocks.get(&part).cloned(),
            _ => None,
        };
        found.ok_or_else(|| {
            let tensor = weight.role.to_string();
            lathe_models::Error::MissingTensor { role: tensor.clone(), tensor }.into()
        })
    }
}

/// The weight with the scale that brings the largest input seen to FP8's largest number, as
/// compressed-tensors' min-max observer has it.
fn with_input_scale<'a>(
    blocks: Blocks,
    planned: &Planned,
    fed: impl Iterator<Item = &'a Stats>,
) -> Result<Blocks, Error> {
    let largest = |stats: &Stats| stats.absmax.iter().fold(0f32, |most, x| most.max(*x));
    let most = fed.map(largest).reduce(f32::max);
    let known = most.map(|most| (most / e4m3::MAX).max(f32::EPSILON)).or(blocks.input_scale);
    let Some(scale) = known else {
        return Err(Error::Unsupported {
            what: format!("fp8-static activations of `{}`", planned.name),
            instead: "nothing is known of its inputs: calibrate it, or take fp8 activations"
                .to_owned(),
        });
    };
    Ok(Blocks { input_scale: Some(scale), ..blocks })
}

fn rows_of(weights: &[Weight], role: Role) -> usize {
    weights.iter().find(|weight| weight.role == role).map_or(0, |weight| weight.rows)
}

impl Work<'_> {
    /// Whether a transform has changed any of a tensor's numbers.
    fn has_edited(&self, planned: &Planned) -> bool {
        let edited = |role: &Role| match role {
            Role::Layer(_, part) => self.weights.parts.contains_key(part),
            _ => false,
        };
        planned.roles.iter().any(edited)
    }

    /// Everything of a stage as it is now: coded where it is.
    fn blocks(&self, stage: usize) -> Result<BTreeMap<Part, Blocks>, Error> {
        let mut blocks = BTreeMap::new();
        for weight in self.weights.spec().weights() {
            let Role::Layer(index, part) = weight.role else { continue };
            if index == self.index && part.step() == stage {
                let coded = self.coded.get(&part).cloned();
                let now = coded.map_or_else(|| self.weights.matrix(weight.role), Ok)?;
                blocks.insert(part, now);
            }
        }
        Ok(blocks)
    }

    /// Whether anything of a step is quantized, or changed before.
    fn quantizes(&self, step: usize, changed: bool) -> bool {
        let linears = self.stages.iter().flat_map(|stage| &stage.linears);
        linears
            .filter(|part| part.step() == step)
            .any(|part| changed || self.formats.get(part).is_some_and(|format| !is_dense(*format)))
    }

    /// Lets go of the matrices before a stage: they are not needed again.
    fn forget_matrices(&mut self, stage: usize) {
        let formats = &self.formats;
        self.coded.retain(|part, _| part.step() >= stage || !formats.contains_key(part));
    }

    fn check(
        &self,
        bad: Option<(Inputs, Bad)>,
        (first, lengths): (usize, &[usize]),
    ) -> Result<(), Error> {
        match bad {
            Some((inputs, bad)) => Err(bad.of(self.index, inputs, (first, lengths))),
            None => Ok(()),
        }
    }
}

/// Adds inputs of a step to what is gathered of them; the first that cannot be added is kept.
pub(super) fn gather(
    collectors: &mut Collectors,
    (step, fed): (usize, Fed<'_>),
    pool: &Pool,
    bad: &mut Option<(Inputs, Bad)>,
) {
    let inputs = Inputs { step, expert: fed.expert };
    let Some(collector) = collectors.get_mut(&inputs) else { return };
    if let Err(found) = collector.add(pool, fed.x) {
        // Of an expert's tokens, which one of all it is.
        let token = fed.tokens.get(found.token).copied().unwrap_or(found.token);
        bad.get_or_insert((inputs, Bad { token, ..found }));
    }
}
