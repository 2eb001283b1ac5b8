use std::{collections::BTreeMap, rc::Rc};

use lathe_engine::{Entry, LayerRunner, Linears, Output};
use lathe_formats::Blocks;
use lathe_models::{Role, Spec, Weight};

use crate::{Error, Weights};

/// A weight that differs from the original's.
#[derive(Clone, Debug)]
pub(super) struct Edit {
    /// What tells it from others of the same weight.
    pub(super) mark: &'static str,
    pub(super) blocks: Blocks,
}

/// All weights that differ.
pub(super) type Edits = BTreeMap<Role, Edit>;
/// What there is instead of some of the original's weights.
pub(super) type Marks = BTreeMap<Role, &'static str>;

pub(super) fn marks(edits: &Edits) -> Marks {
    edits.iter().map(|(role, edit)| (*role, edit.mark)).collect()
}

/// Stages of layers, ready to be run: each with the weights of the original and with the latest
/// others, where there is room for that.
pub(super) struct Prepared<'a> {
    weights: &'a dyn Weights,
    keeps: bool,
    stages: Vec<Slot<(Entry, Linears)>>,
    output: Slot<Output>,
}

/// Below this, what is prepared is kept: four bytes a weight, twice.
const KEPT_WEIGHTS: u64 = 1 << 28;

/// Whether what is prepared of a model is kept.
pub(super) fn keeps(spec: &Spec) -> bool {
    spec.parameters() <= KEPT_WEIGHTS
}

/// One stage, or the head.
struct Slot<T> {
    original: Option<Rc<T>>,
    latest: Option<(Marks, Rc<T>)>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { original: None, latest: None }
    }
}

impl<T> Slot<T> {
    fn get(
        &mut self,
        marks: Marks,
        keeps: bool,
        make: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Rc<T>, Error> {
        let known = match &self.latest {
            _ if marks.is_empty() => self.original.as_ref(),
            Some((latest, made)) if *latest == marks => Some(made),
            _ => None,
        };
        if let Some(known) = known {
            return Ok(Rc::clone(known));
        }
        if !marks.is_empty() {
            self.latest = None;
        }
        let made = Rc::new(make()?);
        if keeps {
            match marks.is_empty() {
                true => self.original = Some(Rc::clone(&made)),
                false => self.latest = Some((marks, Rc::clone(&made))),
            }
        }
        Ok(made)
    }
}

impl<'a> Prepared<'a> {
    pub(super) fn new(weights: &'a dyn Weights) -> Self {
        let spec = weights.spec();
        let stages = (0..4 * spec.layers.len()).map(|_| Slot::default()).collect();
        Self { weights, keeps: keeps(spec), stages, output: Slot::default() }
    }

    /// A stage, counted from the first of the first layer.
    pub(super) fn stage(
        &mut self,
        runner: &LayerRunner,
        at: usize,
        edits: &Edits,
    ) -> Result<Rc<(Entry, Linears)>, Error> {
        let (layer, stage) = (at / 4, at % 4);
        let own = |role: &Role| matches!(role, Role::Layer(l, part) if *l == layer && part.step() == stage);
        let mut source = |weight: &Weight| supply(self.weights, weight.role, edits);
        self.stages[at].get(marked(edits, own), self.keeps, || {
            let entry = runner.entry(layer, stage, &mut source)?;
            Ok((entry, runner.linears(layer, stage, &mut source)?))
        })
    }

    /// The final norm and the head.
    pub(super) fn output(
        &mut self,
        runner: &LayerRunner,
        edits: &Edits,
    ) -> Result<Rc<Output>, Error> {
        let head = head(self.weights);
        let mut source = |weight: &Weight| supply(self.weights, weight.role, edits);
        self.output.get(marked(edits, |role| *role == head), self.keeps, || {
            Ok(runner.output(&mut source)?)
        })
    }
}

/// The weight that logits are made with.
pub(super) fn head(weights: &dyn Weights) -> Role {
    if weights.spec().tied_head { Role::Embed } else { Role::Head }
}

fn marked(edits: &Edits, own: impl Fn(&Role) -> bool) -> Marks {
    edits.iter().filter(|(role, _)| own(role)).map(|(role, edit)| (*role, edit.mark)).collect()
}

fn supply(weights: &dyn Weights, role: Role, edits: &Edits) -> Result<Blocks, lathe_engine::Error> {
    let read = |error: Error| match error {
        Error::Model(error) => lathe_engine::Error::Model(*error),
        other => lathe_engine::Error::Request(other.to_string()),
    };
    match edits.get(&role) {
        Some(edit) => Ok(edit.blocks.clone()),
        None => weights.matrix(role).map_err(read),
    }
}
