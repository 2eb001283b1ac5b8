use std::collections::BTreeMap;

use lathe_base::Progress;
use lathe_engine::{Entry, Fed, LayerRunner, Linears, Output, Room, Sequences};
use lathe_formats::{AnyFormat, Blocks, by_name};
use lathe_models::{Inputs, Layer, Role, Weight};

use super::{
    coded::{Coder, Of},
    divergence::{Reference, Sums},
    probe::{Divergence, Item, Probe},
    tally::Tally,
};
use crate::{Error, Needs, Quantizer, Weights};

/// A model, the tokens to measure it on, and how its weights are coded.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub weights: &'a dyn Weights,
    pub items: &'a [Item],
    /// Texts as tokens; each is run from its beginning.
    pub texts: &'a [Vec<u32>],
    pub quantizer: &'a dyn Quantizer,
    pub threads: usize,
}

/// Measures a model in Lathe's own engine, layer by layer in f32.
///
/// What enters each layer is kept of the original, so that a change is computed from its layer on.
/// Weights are coded once for each format, with the original's inputs for statistics.
pub struct ModelProbe<'a> {
    subject: Subject<'a>,
    runner: LayerRunner,
    /// Texts that are run together.
    groups: Vec<Group>,
    reference: Reference,
    coder: Coder<'a>,
    base: Base,
}

/// Tokens that are run at once: what bounds working memory.
const GROUP_TOKENS: usize = 1024;
/// Below this, all layers are kept prepared for the kernels, and changed weights decoded.
const RESIDENT_WEIGHTS: u64 = 1 << 28;

/// Some of the texts.
struct Group {
    texts: Vec<Vec<u32>>,
    /// The original's residual stream where each layer begins, and after the last.
    entering: Vec<Sequences>,
}

/// The original's weights, where they are kept prepared.
#[derive(Default)]
struct Base {
    stages: Vec<(Entry, Linears)>,
    output: Option<Output>,
}

/// What is gathered of inputs.
type Tallies = BTreeMap<Of, Tally>;

/// Weights that differ from the original's.
type Edits = BTreeMap<Role, Blocks>;

impl<'a> ModelProbe<'a> {
    /// Runs the original over the texts and keeps what changes will be held against.
    ///
    /// **Errors**: the engine's; [`Error::Cancelled`].
    pub fn new(subject: Subject<'a>, progress: &dyn Progress) -> Result<Self, Error> {
        let groups = group(subject.texts);
        let room = Room {
            tokens: groups.iter().map(Group::tokens).max().unwrap_or(1).max(1),
            sequences: groups.iter().map(|group| group.texts.len()).max().unwrap_or(1).max(1),
        };
        let spec = subject.weights.spec();
        let runner = LayerRunner::new(spec, room, subject.threads)?;
        let reference = Reference::new(subject.texts, spec.vocab);
        let coder = Coder::new(subject);
        let mut probe = Self { subject, runner, groups, reference, coder, base: Base::default() };
        if probe.is_small() {
            probe.prepare()?;
        }
        probe.run_original(progress)?;
        Ok(probe)
    }

    /// The codes of a weight in a format: those that were measured.
    pub fn code(&mut self, role: Role, format: &'static dyn AnyFormat) -> Result<Blocks, Error> {
        self.coder.code(role, format)
    }

    /// Whether the whole model may be held in f32.
    fn is_small(&self) -> bool {
        self.subject.weights.spec().parameters() <= RESIDENT_WEIGHTS
    }

    fn layers(&self) -> usize {
        self.subject.weights.spec().layers.len()
    }

    fn prepare(&mut self) -> Result<(), Error> {
        let none = Edits::new();
        for at in 0..4 * self.layers() {
            let stage = self.stage(at, &none)?;
            self.base.stages.push(stage);
        }
        self.base.output = Some(self.output(&none)?);
        Ok(())
    }

    fn run_original(&mut self, progress: &dyn Progress) -> Result<(), Error> {
        let needs = self.subject.quantizer.needs().max(Needs::Importance);
        let mut tallies = self.tallies(needs);
        let none = Edits::new();
        let table = self.weight(Role::Embed, &none)?;
        for at in 0..self.groups.len() {
            progress.check()?;
            progress.at("texts run through the original", at as u64, self.groups.len() as u64);
            let mut x = self.embed(at, &table)?;
            let mut entering = Vec::with_capacity(self.layers() + 1);
            for layer in 0..self.layers() {
                entering.push(x.clone());
                self.run_layer(layer, &none, &mut x, Some(&mut tallies))?;
            }
            entering.push(x.clone());
            let logits = self.logits(&none, &mut x, tallies.get_mut(&None))?;
            self.reference.keep(at, logits);
            self.groups[at].entering = entering;
        }
        self.coder
            .set(tallies.into_iter().map(|(of, t)| (of, t.stats(self.subject.threads))).collect());
        Ok(())
    }

    /// One for all inputs of each layer, and one for the head.
    fn tallies(&self, needs: Needs) -> Tallies {
        let spec = self.subject.weights.spec();
        let of_layer = |(index, layer): (usize, &Layer)| -> Vec<_> {
            let width = |inputs| layer.input_width(inputs, spec.width);
            layer.inputs().into_iter().map(|i| (Some((index, i)), width(i))).collect()
        };
        let widths = spec.layers.iter().enumerate().flat_map(of_layer).chain([(None, spec.width)]);
        widths.map(|(of, cols)| (of, Tally::new(cols, needs))).collect()
    }

    fn embed(&self, group: usize, table: &Blocks) -> Result<Sequences, Error> {
        let texts: Vec<&[u32]> = self.groups[group].texts.iter().map(Vec::as_slice).collect();
        Ok(self.runner.embed(table, &texts)?)
    }

    fn run_layer(
        &mut self,
        layer: usize,
        edits: &Edits,
        x: &mut Sequences,
        mut tallies: Option<&mut Tallies>,
    ) -> Result<(), Error> {
        let threads = self.subject.threads;
        for stage in 4 * layer..4 * layer + 4 {
            let mut tap = |fed: Fed<'_>| {
                let of = Some((layer, Inputs { step: stage % 4, expert: fed.expert }));
                if let Some(tally) = tallies.as_mut().and_then(|tallies| tallies.get_mut(&of)) {
                    tally.add(fed.x, threads);
                }
            };
            let changed = edits.keys().any(|role| matches!(role, Role::Layer(l, _) if *l == layer));
            let made = match self.base.stages.get(stage) {
                Some(_) if !changed => None,
                _ => Some(self.stage(stage, edits)?),
            };
            let (entry, linears) = made.as_ref().unwrap_or_else(|| &self.base.stages[stage]);
            self.runner.advance((entry, linears), x, &mut tap)?;
        }
        Ok(())
    }

    /// Prepares a stage of a layer.
    fn stage(&self, at: usize, edits: &Edits) -> Result<(Entry, Linears), Error> {
        let mut source = |weight: &Weight| self.supply(weight.role, edits);
        let (layer, stage) = (at / 4, at % 4);
        let entry = self.runner.entry(layer, stage, &mut source)?;
        Ok((entry, self.runner.linears(layer, stage, &mut source)?))
    }

    fn output(&self, edits: &Edits) -> Result<Output, Error> {
        Ok(self.runner.output(&mut |weight| self.supply(weight.role, edits))?)
    }

    fn supply(&self, role: Role, edits: &Edits) -> Result<Blocks, lathe_engine::Error> {
        let read = |error: Error| match error {
            Error::Model(error) => lathe_engine::Error::Model(*error),
            other => lathe_engine::Error::Request(other.to_string()),
        };
        self.weight(role, edits).map_err(read)
    }

    fn weight(&self, role: Role, edits: &Edits) -> Result<Blocks, Error> {
        match edits.get(&role) {
            Some(blocks) => Ok(blocks.clone()),
            None => self.subject.weights.matrix(role),
        }
    }

    fn logits(
        &mut self,
        edits: &Edits,
        x: &mut Sequences,
        tally: Option<&mut Tally>,
    ) -> Result<Vec<f32>, Error> {
        let changed = edits.contains_key(&self.head());
        let made = match &self.base.output {
            Some(_) if !changed => None,
            _ => Some(self.output(edits)?),
        };
        let Self { runner, base, subject, .. } = self;
        let output = match (&made, &base.output) {
            (Some(output), _) | (None, Some(output)) => output,
            (None, None) => unreachable!("one of them was made"),
        };
        if let Some(tally) = tally {
            tally.add(runner.final_input(output, x)?, subject.threads);
        }
        Ok(runner.logits(output, x)?)
    }

    fn head(&self) -> Role {
        if self.subject.weights.spec().tied_head { Role::Embed } else { Role::Head }
    }

    /// The codes of a state, decoded where there is room for that.
    fn edits(&mut self, state: &[Option<usize>]) -> Result<Edits, Error> {
        let small = self.is_small();
        let mut edits = Edits::new();
        for (item, option) in self.subject.items.iter().zip(state) {
            let Some(option) = option else { continue };
            for role in &item.roles {
                let coded = self.coder.code(*role, item.options[*option].format)?;
                let blocks = if small { decoded(&coded)? } else { coded };
                edits.insert(*role, blocks);
            }
        }
        Ok(edits)
    }

    /// The first layer that edits change what enters or what happens in; the number of layers
    /// where it is the head alone.
    fn first(&self, edits: &Edits) -> usize {
        let of = |role: &Role| match role {
            Role::Embed => 0,
            Role::Layer(layer, _) => *layer,
            _ => self.layers(),
        };
        edits.keys().map(of).min().unwrap_or(self.layers())
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
        let first = self.first(&edits);
        let table = edits.get(&Role::Embed).cloned();
        let mut sums = Sums::default();
        for at in 0..self.groups.len() {
            let mut x = match &table {
                Some(table) => self.embed(at, table)?,
                None => self.groups[at].entering[first].clone(),
            };
            for layer in first..self.layers() {
                self.run_layer(layer, &edits, &mut x, None)?;
            }
            let logits = self.logits(&edits, &mut x, None)?;
            let base = match self.reference.kept(at) {
                Some(_) => None,
                None => {
                    let mut last = self.groups[at].entering[self.layers()].clone();
                    Some(self.logits(&Edits::new(), &mut last, None)?)
                }
            };
            let base = base.as_deref().or(self.reference.kept(at)).unwrap_or_default();
            let threads = self.subject.threads;
            sums.add(&self.reference, base, &logits, &self.groups[at].lengths(), threads)?;
        }
        Ok(sums.divergence())
    }
}

impl Group {
    fn tokens(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }

    fn lengths(&self) -> Vec<usize> {
        self.texts.iter().map(Vec::len).collect()
    }
}

/// Texts in order, as many together as there is room for.
fn group(texts: &[Vec<u32>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        match groups.last_mut().filter(|group| group.tokens() + text.len() <= GROUP_TOKENS) {
            Some(group) => group.texts.push(text.clone()),
            None => groups.push(Group { texts: vec![text.clone()], entering: Vec::new() }),
        }
    }
    groups
}

fn decoded(blocks: &Blocks) -> Result<Blocks, Error> {
    let f32s = by_name("f32").map_err(lathe_models::Error::from)?;
    let encoded = f32s.encode(blocks.rows, blocks.cols, &blocks.decode(), 1);
    Ok(encoded.map_err(lathe_models::Error::from)?)
}
