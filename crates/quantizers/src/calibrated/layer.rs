use std::collections::BTreeMap;

use lathe_engine::{Entry, Linears, Source};
use lathe_formats::{AnyFormat, Blocks};
use lathe_models::{Kind, Part, Role, Stage, Weight};

use super::{Run, apart::take_apart, collect::Collector, edited::Edited, place};
use crate::{
    Block, Context, Error, Needs, Planned, Stats, Transform, Weights, measure::deviation,
    recipe::is_dense, source::Numbers,
};

/// What a sweep over all sequences gathers, by stage.
type Collectors = [Option<Collector>; 4];

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
    stages: [Stage; 4],
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
        let mut work = Work {
            index,
            stages: self.job.weights.spec().layers[index].stages(),
            tensors: plan.tensors.iter().enumerate().filter(own).collect(),
            formats: run.formats(index),
            weights: Edited { base: self.job.weights, layer: index, parts: BTreeMap::new() },
            coded: BTreeMap::new(),
        };
        let mut stats = self.whole(&work)?;
        if run.folds() {
            self.fold(&mut work, &mut stats)?;
        }
        self.vectors(&mut work)?;
        if run.steps_by_stage() {
            self.by_stage(&mut work)?;
        } else {
            for (stage, stats) in stats.into_iter().enumerate() {
                self.code_stage(&mut work, stage, stats)?;
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
    fn whole(&mut self, work: &Work<'_>) -> Result<[Option<Stats>; 4], Error> {
        if !self.wants_whole() {
            return Ok(Default::default());
        }
        let run = self.calibrated;
        let rest = if run.sequential { Needs::Nothing } else { run.stage_needs() };
        let needs = run.fold_needs().max(rest);
        let mut collectors = Collectors::default();
        for (stage, collector) in collectors.iter_mut().enumerate() {
            *collector = Some(self.collector(work, stage, needs)?);
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

    fn finish_all(&self, collectors: Collectors) -> Result<[Option<Stats>; 4], Error> {
        let pool = self.runner.pool();
        let mut stats: [Option<Stats>; 4] = Default::default();
        for (stats, collector) in stats.iter_mut().zip(collectors) {
            *stats = collector.map(|collector| collector.finish(&pool)).transpose()?;
        }
        Ok(stats)
    }

    /// Applies the transforms that reach beyond a stage to the whole layer.
    fn fold(&mut self, work: &mut Work<'_>, stats: &mut [Option<Stats>; 4]) -> Result<(), Error> {
        let mut block = Block::load(work.weights.base, work.index)?;
        for transform in self.calibrated.transforms.iter().filter(|t| t.folds()) {
            for (stage, stats) in work.stages.iter().zip(stats.iter_mut()) {
                self.progress.check()?;
                let mut none = Stats::default();
                let stats = stats.as_mut().unwrap_or(&mut none);
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
            threads: self.job.threads,
        };
        let notes = transform.apply(block, stage, stats, &cx)?;
        let named = |note| format!("layer {}, {}: {note}", work.index, stage.name);
        self.notes.extend(notes.into_iter().map(named));
        Ok(())
    }

    /// Writes the layer's norms and biases, which are final now.
    fn vectors(&mut self, work: &mut Work<'_>) -> Result<(), Error> {
        for (at, planned) in work.tensors.clone() {
            if planned.kind != Kind::Vector {
                continue;
            }
            let blocks = self.code_tensor(work, (at, planned), None)?;
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
            let mut collectors = Collectors::default();
            let mut sweep = Sweep { keeps: stage > 0, ..Sweep::default() };
            if stage > 0 {
                let blocks = work.blocks(stage - 1)?;
                sweep.through.push(self.load(work.index, stage - 1, &blocks)?);
            }
            let entry = if stage < 4 { Some(self.entry(work, stage)?) } else { None };
            if work.quantizes(stage, !self.calibrated.transforms.is_empty()) {
                collectors[stage] = Some(self.collector(work, stage, needs)?);
                sweep.until = entry.as_ref();
            }
            self.sweep(work, sweep, &mut collectors)?;
            work.forget_matrices(stage);
            if stage < 4 {
                let [stats] = [collectors[stage].take()];
                let pool = self.runner.pool();
                let stats = stats.map(|collector| collector.finish(&pool)).transpose()?;
                self.code_stage(work, stage, stats)?;
            }
        }
        Ok(())
    }

    /// Takes the hidden states through a layer that is coded.
    fn pass_on(&mut self, work: &Work<'_>) -> Result<(), Error> {
        let load = |stage| self.load(work.index, stage, &work.blocks(stage)?);
        let through = (0..4).map(load).collect::<Result<_, Error>>()?;
        let sweep = Sweep { through, until: None, keeps: true };
        self.sweep(work, sweep, &mut Collectors::default())
    }

    /// Codes and writes the matrices of a stage.
    fn code_stage(
        &mut self,
        work: &mut Work<'_>,
        stage: usize,
        mut stats: Option<Stats>,
    ) -> Result<(), Error> {
        if let Some(stats) = &stats {
            self.note_dead(work, stage, stats);
        }
        let run = self.calibrated;
        if run.changes() {
            let own = |part: Part| part.stage() == stage;
            let parts = {
                let mut block = Block::load_parts(&work.weights, work.index, own)?;
                for transform in run.transforms.iter().filter(|t| !t.folds()) {
                    let mut none = Stats::default();
                    let stats = stats.as_mut().unwrap_or(&mut none);
                    let place = (&*work, &work.stages[stage]);
                    self.apply(transform.as_ref(), &mut block, place, stats)?;
                }
                block.into_parts()?
            };
            let is_matrix = |part: &Part| work.formats.contains_key(part);
            work.weights.parts.extend(parts.into_iter().filter(|(part, _)| is_matrix(part)));
        }
        for (at, planned) in work.tensors.clone() {
            if planned.kind == Kind::Vector || place(planned).1 != stage + 1 {
                continue;
            }
            self.progress.check()?;
            let blocks = self.code_tensor(work, (at, planned), stats.as_ref())?;
            let spec = self.job.weights.spec();
            let rows = |role: Role| rows_of(&spec.weights(), role);
            for (role, blocks) in take_apart(planned, &blocks, rows)? {
                if let Role::Layer(_, part) = role {
                    work.coded.insert(part, blocks);
                    work.weights.parts.remove(&part);
                }
            }
        }
        Ok(())
    }

    /// Codes one tensor, and writes it unless an earlier run has.
    fn code_tensor(
        &mut self,
        work: &Work<'_>,
        (at, planned): (usize, &Planned),
        stats: Option<&Stats>,
    ) -> Result<Blocks, Error> {
        let numbers = Numbers::open(&work.weights, self.job.checkpoint, planned)?;
        let same = numbers.in_order(planned.format);
        let copied = same.is_some() && !work.has_edited(planned);
        // Without calibration, an importance matrix may say something.
        let own = if stats.is_none() { self.job.importance(planned)? } else { None };
        let stats = stats.or(own.as_ref());
        let blocks = match same {
            // Dense numbers are coded anew, to the same bytes, because that finds NaN.
            Some(blocks) if !is_dense(planned.format) => blocks.clone(),
            _ => {
                let coded = self.job.code(planned, &numbers, stats)?;
                let named = |note| format!("`{}`: {note}", planned.name);
                self.notes.extend(coded.notes.into_iter().map(named));
                coded.blocks
            }
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
        let cols = |stage| work.cols(stage);
        for batch in self.batches.clone() {
            self.progress.check()?;
            self.report(work, first);
            let mut sequences = self.states.read(batch.clone(), (first, cols(first)))?;
            let lengths = sequences.lengths.clone();
            for (entry, linears) in &sweep.through {
                let stage = entry.stage();
                let mut bad = None;
                let tap = &mut |x: &[f32]| {
                    if let Some(collector) = &mut collectors[stage] {
                        bad = collector.add(&pool, x).err();
                    }
                };
                self.runner.advance((entry, linears), &mut sequences, tap)?;
                work.check(bad, stage, (batch.start, &lengths))?;
            }
            if let Some(entry) = sweep.until
                && let Some(collector) = &mut collectors[last]
            {
                let bad = collector.add(&pool, self.runner.input(entry, &mut sequences)?).err();
                work.check(bad, last, (batch.start, &lengths))?;
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
        let (layer, stage) = (work.index + 1, work.stages.get(stage).map_or("", |s| s.name));
        let total = layers as u64 * self.steps_per_layer();
        self.progress.at(&format!("layer {layer} of {layers}, {stage}"), self.at, total);
    }

    fn collector(&self, work: &Work<'_>, stage: usize, needs: Needs) -> Result<Collector, Error> {
        Collector::new(work.cols(stage), needs)
    }

    fn note_dead(&mut self, work: &Work<'_>, stage: usize, stats: &Stats) {
        let dead = stats.absmax.iter().filter(|most| **most == 0.0).count();
        if dead > 0 {
            let (layer, name, cols) = (work.index, work.stages[stage].name, stats.absmax.len());
            self.notes.push(format!(
                "layer {layer}, {name}: {dead} of {cols} columns are 0 in all of the calibration \
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
            if index == self.index && part.stage() == stage {
                let coded = self.coded.get(&part).cloned();
                let now = coded.map_or_else(|| self.weights.matrix(weight.role), Ok)?;
                blocks.insert(part, now);
            }
        }
        Ok(blocks)
    }

    /// Columns of a stage's inputs.
    fn cols(&self, stage: usize) -> usize {
        let linears = self.stages.get(stage).map_or(&[][..], |stage| stage.linears);
        let role = |part: &Part| Role::Layer(self.index, *part);
        let model = self.weights.model();
        let found = linears.iter().find_map(|part| model.find(role(part)));
        found.map_or(0, |located| located.weight.cols)
    }

    /// Whether anything of a stage is quantized, or changed before.
    fn quantizes(&self, stage: usize, changed: bool) -> bool {
        let linears = self.stages.get(stage).map_or(&[][..], |stage| stage.linears);
        linears
            .iter()
            .any(|part| changed || self.formats.get(part).is_some_and(|format| !is_dense(*format)))
    }

    /// Lets go of the matrices before a stage: they are not needed again.
    fn forget_matrices(&mut self, stage: usize) {
        let formats = &self.formats;
        self.coded.retain(|part, _| part.stage() >= stage || !formats.contains_key(part));
    }

    fn check(
        &self,
        bad: Option<super::collect::Bad>,
        stage: usize,
        (first, lengths): (usize, &[usize]),
    ) -> Result<(), Error> {
        match bad {
            Some(bad) => Err(bad.of(self.index, self.stages[stage].name, (first, lengths))),
            None => Ok(()),
        }
    }
}
