use std::rc::Rc;

use lathe_engine::{LayerRunner, Sequences};
use lathe_models::{Role, Spec};

use super::prepared::Marks;

/// What entered the stages of a model on its way through the texts, so that another that differs
/// only later need not begin at the beginning.
#[derive(Clone, Default)]
pub(super) struct Path {
    /// The weights that it was run with.
    pub(super) marks: Marks,
    /// At every stage, or every layer, one after the other: of each group of texts.
    places: Vec<Rc<Vec<Sequences>>>,
}

/// How densely paths are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grain {
    /// Stages from one place to the next.
    stages: usize,
    layers: usize,
}

/// Bytes of a path that is kept stage by stage; longer ones are layer by layer.
const MOST_BYTES: u64 = 256 << 20;

impl Grain {
    pub(super) fn new(spec: &Spec, tokens: usize) -> Self {
        let stages = if bytes(spec, tokens, 1) <= MOST_BYTES { 1 } else { 4 };
        Self { stages, layers: spec.layers.len() }
    }

    /// Where, from a stage on, what enters is to be kept.
    pub(super) fn keeps(self, stage: usize) -> bool {
        stage.is_multiple_of(self.stages)
    }

    /// Bytes of a path over so many tokens.
    pub(super) fn bytes(self, spec: &Spec, tokens: usize) -> u64 {
        bytes(spec, tokens, self.stages)
    }
}

fn bytes(spec: &Spec, tokens: usize, grain: usize) -> u64 {
    let layer = |layer: &lathe_models::Layer| {
        let inner = |stage| LayerRunner::inner_width(layer, stage);
        match grain {
            1 => 4 * spec.width + inner(1) + inner(3),
            _ => spec.width,
        }
    };
    let numbers: usize = spec.layers.iter().map(layer).sum();
    4 * tokens as u64 * (numbers + spec.width) as u64
}

impl Path {
    /// The last stage up to which it is the same as a model with other weights: `None` where even
    /// the embedding differs.
    fn shared(&self, grain: Grain, marks: &Marks) -> Option<usize> {
        let differs = |role: &&Role| self.marks.get(role) != marks.get(role);
        let first = self.marks.keys().chain(marks.keys()).filter(differs).map(|role| match role {
            Role::Embed => None,
            Role::Layer(layer, part) => Some(4 * layer + part.step()),
            _ => Some(4 * grain.layers),
        });
        first.min().unwrap_or(Some(4 * grain.layers))
    }

    /// Where a model with other weights can begin, and what enters there.
    pub(super) fn start(&self, grain: Grain, marks: &Marks) -> Option<(usize, Rc<Vec<Sequences>>)> {
        let place = self.shared(grain, marks)? / grain.stages;
        Some((place * grain.stages, Rc::clone(self.places.get(place)?)))
    }

    /// The beginning of a path with other weights.
    pub(super) fn branch(&self, grain: Grain, marks: Marks, stage: usize) -> Self {
        Self { marks, places: self.places[..stage / grain.stages].to_vec() }
    }

    /// What left the last layer, of a group of texts.
    pub(super) fn end(&self, group: usize) -> Sequences {
        self.places.last().and_then(|groups| groups.get(group)).cloned().unwrap_or_default()
    }

    /// Adds what enters the next place.
    pub(super) fn push(&mut self, entering: &[Sequences]) {
        self.places.push(Rc::new(entering.to_vec()));
    }
}
