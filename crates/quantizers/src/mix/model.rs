use std::{collections::BTreeMap, time::Instant};

use lathe_base::{Progress, Seconds};
use lathe_engine::{Fed, LayerRunner, Room, Sequences};
use lathe_formats::{AnyFormat, Blocks};
use lathe_models::{Inputs, Role, Spec};

use super::{
    coded::{Coder, Of},
    divergence::{Reference, Sums},
    paths::{Grain, Path},
    prepared::{Edit, Edits, Prepared, marks},
    probe::{Divergence, Item, Probe},
    texts::Texts,
};
use crate::{Error, Needs, Quantizer, Stats, Weights, calibrated::Collector};

/// A model, the tokens to measure it on, and how its weights are coded.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub weights: &'a dyn Weights,
    pub items: &'a [Item],
    /// As tokens; each text is run from its beginning.
    pub texts: &'a Texts,
    pub quantizer: &'a dyn Quantizer,
    pub threads: usize,
}

/// Measures a model in Lathe's own engine, stage by stage in f32.
///
/// What enters the stages is kept of the original and of the latest model that was measured, so
/// that a change is computed from its stage on. Weights are coded once for each format, with the
/// original's inputs for statistics.
pub struct ModelProbe<'a> {
    subject: Subject<'a>,
    runner: LayerRunner,
    /// Texts that are measured on, those together that are run at once.
    groups: Vec<Vec<&'a [u32]>>,
    reference: Reference,
    coder: Coder<'a>,
    prepared: Prepared<'a>,
    grain: Grain,
    original: Path,
    latest: Path,
    /// What one run through all of the model takes.
    pass: Seconds,
}

/// Tokens that are run at once where the vocabulary is small: more is no faster.
const GROUP_TOKENS: usize = 1024;
/// Logits that are computed at once at most: 128 MiB.
const GROUP_LOGITS: usize = 32 << 20;

impl<'a> ModelProbe<'a> {
    /// Runs the original over the texts and keeps what changes will be held against.
    ///
    /// **Errors**: the engine's; inputs that are not finite; [`Error::Cancelled`].
    pub fn new(subject: Subject<'a>, progress: &dyn Progress) -> Result<Self, Error> {
        let (weights, texts) = (subject.weights, subject.texts);
        let spec = weights.spec();
        let groups = group(&texts.measured, spec);
        let fitted = group(&texts.fitted, spec);
        let runner = LayerRunner::new(spec, room(&[&groups, &fitted]), subject.threads)?;
        let tokens = texts.measured.iter().map(Vec::len).sum();
        let mut probe = Self {
            subject,
            runner: runner.expanded(),
            groups,
            reference: Reference::new(tokens, spec.vocab),
            coder: Coder::new(subject),
            prepared: Prepared::new(weights),
            grain: Grain::new(spec, tokens),
            original: Path::default(),
            latest: Path::default(),
            pass: Seconds::default(),
        };
        let stats = probe.gather(&fitted, progress)?;
        probe.coder.set(stats);
        let start = Instant::now();
        probe.run_original(progress)?;
        probe.pass = start.elapsed().into();
        Ok(probe)
    }

    /// The codes of a weight in a format: those that were measured.
    pub fn code(&mut self, role: Role, format: &'static dyn AnyFormat) -> Result<Blocks, Error> {
        self.coder.code(role, format)
    }

    /// What running the whole model over the texts once took.
    pub fn pass(&self) -> Seconds {
        self.pass
    }

    /// The divergence with other codes than those that are measured for their formats: for each
    /// weight, its codes.
    ///
    /// **Errors**: the engine's.
    pub fn recoded(&mut self, codes: &BTreeMap<Role, Blocks>) -> Result<Divergence, Error> {
        let edit = |(role, blocks): (&Role, &Blocks)| {
            (*role, Edit { mark: "recoded", blocks: blocks.clone() })
        };
        let edits = codes.iter().map(edit).collect();
        self.measure(&edits)
    }

    /// Statistics of what enters the stages of the layers and the head, layer by layer.
    fn gather(
        &mut self,
        groups: &[Vec<&[u32]>],
        progress: &dyn Progress,
    ) -> Result<BTreeMap<Of, Stats>, Error> {
        let needs = self.subject.quantizer.needs().max(Needs::Importance);
        let spec = self.subject.weights.spec();
        let (none, pool) = (Edits::new(), self.runner.pool());
        let mut all = BTreeMap::new();
        let mut entering = self.embed(groups, &none)?;
        for (at, layer) in spec.layers.iter().enumerate() {
            progress.at("layers run for statistics", at as u64, spec.layers.len() as u64);
            let mut collectors = BTreeMap::new();
            for inputs in layer.inputs() {
                let cols = layer.input_width(inputs, spec.width);
                collectors.insert(inputs, Collector::new(cols, needs)?);
            }
            let stage = |stage| self.prepared.stage(&self.runner, 4 * at + stage, &none);
            let stages = (0..4).map(stage).collect::<Result<Vec<_>, _>>()?;
            let mut first = 0;
            for sequences in &mut entering {
                progress.check()?;
                let lengths = sequences.lengths.clone();
                for (step, made) in stages.iter().enumerate() {
                    let mut bad = None;
                    let tap = &mut |fed: Fed<'_>| {
                        let inputs = Inputs { step, expert: fed.expert };
                        let collector = collectors.get_mut(&inputs);
                        let added = collector.map(|collector| collector.add(&pool, fed.x));
                        bad = bad.or(added.and_then(Result::err).map(|bad| (bad, inputs)));
                    };
                    self.runner.advance((&made.0, &made.1), sequences, tap)?;
                    if let Some((bad, inputs)) = bad {
                        return Err(bad.of(at, inputs, (first, &lengths)));
                    }
                }
                first += lengths.len();
            }
            for (inputs, collector) in collectors {
                all.insert(Some((at, inputs)), collector.finish(&pool)?);
            }
        }
        let mut head = Collector::new(spec.width, needs)?;
        let output = self.prepared.output(&self.runner, &none)?;
        let mut first = 0;
        for sequences in &mut entering {
            let bad = head.add(&pool, self.runner.final_input(&output, sequences)?).err();
            if let Some(bad) = bad {
                return Err(bad.of(spec.layers.len(), "the head", (first, &sequences.lengths)));
            }
            first += sequences.lengths.len();
        }
        all.insert(None, head.finish(&pool)?);
        Ok(all)
    }

    fn run_original(&mut self, progress: &dyn Progress) -> Result<(), Error> {
        progress.at("the original measured", 0, 1);
        let none = Edits::new();
        let mut ended = self.run(&none)?;
        self.original = self.latest.clone();
        let output = self.prepared.output(&self.runner, &none)?;
        for sequences in &mut ended {
            progress.check()?;
            self.reference.keep(self.runner.logits(&output, sequences)?);
        }
        Ok(())
    }

    fn embed(&self, groups: &[Vec<&[u32]>], edits: &Edits) -> Result<Vec<Sequences>, Error> {
        let table = match edits.get(&Role::Embed) {
            Some(edit) => edit.blocks.clone(),
            None => self.subject.weights.matrix(Role::Embed)?,
        };
        groups.iter().map(|texts| Ok(self.runner.embed(&table, texts)?)).collect()
    }

    /// Runs the layers and returns what leaves the last, going on from where the original or the
    /// latest model was still the same.
    fn run(&mut self, edits: &Edits) -> Result<Vec<Sequences>, Error> {
        let marks = marks(edits);
        let last = 4 * self.subject.weights.spec().layers.len();
        let paths = [&self.original, &self.latest];
        let starts = paths.map(|path| Some((path, path.start(self.grain, &marks)?)));
        let known = starts.into_iter().flatten().max_by_key(|(_, (stage, _))| *stage);
        let (mut path, from, mut sequences) = match known {
            Some((path, (stage, entering))) => {
                (path.branch(self.grain, marks, stage), stage, entering.to_vec())
            }
            None => {
                let path = Path::default().branch(self.grain, marks, 0);
                (path, 0, self.embed(&self.groups, edits)?)
            }
        };
        for stage in from..last {
            if self.grain.keeps(stage) {
                path.push(&sequences);
            }
            let made = self.prepared.stage(&self.runner, stage, edits)?;
            for sequences in &mut sequences {
                self.runner.advance((&made.0, &made.1), sequences, &mut |_| {})?;
            }
        }
        path.push(&sequences);
        self.latest = path;
        Ok(sequences)
    }

    fn measure(&mut self, edits: &Edits) -> Result<Divergence, Error> {
        let mut ended = self.run(edits)?;
        let output = self.prepared.output(&self.runner, edits)?;
        let original = match self.reference.is_kept() {
            true => None,
            false => Some(self.prepared.output(&self.runner, &Edits::new())?),
        };
        let mut sums = Sums::default();
        for (group, sequences) in ended.iter_mut().enumerate() {
            let logits = self.runner.logits(&output, sequences)?;
            let base = match &original {
                None => None,
                Some(output) => {
                    let mut ended = self.original.end(group);
                    Some(self.runner.logits(output, &mut ended)?)
                }
            };
            let base = base.as_deref().unwrap_or_else(|| self.reference.kept(group));
            let threads = self.subject.threads;
            sums.add(self.reference.vocab(), (base, &logits), &sequences.lengths, threads)?;
        }
        Ok(sums.divergence())
    }

    /// The codes of a state.
    fn edits(&mut self, state: &[Option<usize>]) -> Result<Edits, Error> {
        let mut edits = Edits::new();
        for (item, option) in self.subject.items.iter().zip(state) {
            let Some(option) = option else { continue };
            let format = item.options[*option].format;
            for role in &item.roles {
                let blocks = self.coder.code(*role, format)?;
                edits.insert(*role, Edit { mark: format.name(), blocks });
            }
        }
        Ok(edits)
    }
}

impl Probe for ModelProbe<'_> {
    fn error(&mut self, item: usize, option: usize) -> Result<f64, Error> {
        let item = &self.subject.items[item];
        let (mut error, mut power) = (0.0, 0.0);
        for role in &item.roles {
            let lost = self.coder.loss(*role, item.options[option].format)?;
            error += lost.error;
            power += lost.power;
        }
        Ok(if power > 0.0 { error / power } else { 0.0 })
    }

    fn divergence(&mut self, state: &[Option<usize>]) -> Result<Divergence, Error> {
        let edits = self.edits(state)?;
        self.measure(&edits)
    }
}

/// Texts in order, as many together as there is room for.
pub(super) fn group<'a>(texts: &'a [Vec<u32>], spec: &Spec) -> Vec<Vec<&'a [u32]>> {
    let most = GROUP_TOKENS.min(GROUP_LOGITS / spec.vocab.max(1));
    let mut groups: Vec<Vec<&[u32]>> = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        match groups.last_mut().filter(|group| tokens(group) + text.len() <= most) {
            Some(group) => group.push(text),
            None => groups.push(vec![text]),
        }
    }
    groups
}

fn tokens(group: &[&[u32]]) -> usize {
    group.iter().map(|text| text.len()).sum()
}

pub(super) fn room(all: &[&Vec<Vec<&[u32]>>]) -> Room {
    let groups = || all.iter().flat_map(|groups| groups.iter());
    Room {
        tokens: groups().map(|group| tokens(group)).max().unwrap_or(1).max(1),
        sequences: groups().map(Vec::len).max().unwrap_or(1).max(1),
    }
}
