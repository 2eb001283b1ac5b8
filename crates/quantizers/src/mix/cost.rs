use lathe_base::{Bytes, Seconds};
use lathe_engine::LayerRunner;
use lathe_models::{Kind, Layer, Spec};

use super::{
    coded::MOST_CODES,
    divergence::MOST_LOGITS,
    model::{Subject, group, room},
    paths::Grain,
    prepared::keeps,
    search::Effort,
};
use crate::{Error, Needs, calibrated::Collector};

/// The memory that a search takes, by what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// In f32, ready to be multiplied with.
    weights: u64,
    /// Statistics of inputs.
    statistics: u64,
    codes: u64,
    /// Hidden states of all texts, and logits.
    states: u64,
    /// Working memory of what runs the layers.
    running: u64,
}

/// Code, stacks, tables, the plan, the tokenizer, and what an allocator keeps.
const FIXED: u64 = 96 << 20;

impl Memory {
    /// Of a search whose result takes `result` bytes.
    pub(super) fn new(subject: &Subject<'_>, result: u64) -> Self {
        let spec = subject.weights.spec();
        let (fitted, measured) = (&subject.texts.fitted, &subject.texts.measured);
        let tokens = |texts: &[Vec<u32>]| texts.iter().map(Vec::len).sum::<usize>();
        let groups = [group(measured, spec), group(fitted, spec)];
        let room = room(&[&groups[0], &groups[1]]);
        let (width, vocab) = (spec.width as u64, spec.vocab as u64);
        let head = width * vocab;
        let layer = largest_layer(spec);
        let weights = match keeps(spec) {
            true => 2 * (spec.parameters() + head),
            false => layer.max(2 * head),
        };
        let of_layers = tokens(measured);
        let paths = 2 * Grain::new(spec, of_layers).bytes(spec, of_layers);
        let kept = (of_layers as u64 * vocab).min(MOST_LOGITS as u64);
        // Of the original and the other, and in double precision of one row a thread.
        let logits = 4 * (kept + 2 * room.tokens as u64 * vocab);
        let options = subject.items.iter().flat_map(|item| &item.options);
        let all = options.map(|option| option.bytes).sum::<u64>();
        Self {
            weights: 4 * weights,
            statistics: statistics(subject, spec),
            codes: all.min(MOST_CODES as u64) + result,
            states: 4 * width * tokens(fitted) as u64 + paths + logits,
            running: LayerRunner::bytes(spec, room).0,
        }
    }

    pub(super) fn total(&self) -> Bytes {
        let Self { weights, statistics, codes, states, running } = self;
        Bytes(FIXED + weights + statistics + codes + states + running)
    }

    /// **Errors**: [`Error::MaxMemory`] where it is more than the cap.
    pub(super) fn check(&self, cap: Option<Bytes>) -> Result<(), Error> {
        match cap {
            Some(cap) if self.total() > cap => {
                Err(Error::MaxMemory { cap, needed: self.total(), parts: self.parts() })
            }
            _ => Ok(()),
        }
    }

    /// In a line, for the user.
    pub(super) fn words(&self) -> String {
        format!("at most {} of memory for the search: {}", self.total(), self.parts())
    }

    fn parts(&self) -> String {
        let Self { weights, statistics, codes, states, running } = self;
        format!(
            "weights {}, statistics {}, codes {}, hidden states and logits {}, activations {}",
            Bytes(*weights),
            Bytes(*statistics),
            Bytes(*codes),
            Bytes(*states),
            Bytes(*running)
        )
    }
}

fn largest_layer(spec: &Spec) -> u64 {
    let mut layers = vec![0; spec.layers.len()];
    for weight in spec.weights() {
        if let lathe_models::Role::Layer(layer, _) = weight.role {
            layers[layer] += weight.len() as u64;
        }
    }
    layers.into_iter().max().unwrap_or(0)
}

/// Of all stages when they are complete, and of a layer's while they are gathered.
fn statistics(subject: &Subject<'_>, spec: &Spec) -> u64 {
    let needs = subject.quantizer.needs().max(Needs::Importance);
    let done = |cols: usize| match needs {
        Needs::Hessian => 4 * (cols * (cols + 3)) as u64,
        _ => 12 * cols as u64,
    };
    let widths = |layer: &Layer| {
        let inputs = layer.inputs().into_iter();
        inputs.map(|inputs| layer.input_width(inputs, spec.width)).collect::<Vec<_>>()
    };
    let gathered = |layer: &Layer| {
        widths(layer).into_iter().map(|cols| Collector::bytes(cols, needs).0).sum::<u64>()
    };
    let all: u64 = spec.layers.iter().flat_map(widths).chain([spec.width]).map(done).sum();
    all + spec.layers.iter().map(gathered).max().unwrap_or(0)
}

/// Additions and multiplications that a search takes at most.
pub(super) fn operations(subject: &Subject<'_>, effort: Effort) -> f64 {
    let spec = subject.weights.spec();
    let tokens = |texts: &[Vec<u32>]| texts.iter().map(Vec::len).sum::<usize>() as f64;
    let (fitted, measured) = (tokens(&subject.texts.fitted), tokens(&subject.texts.measured));
    let forward = 2.0 * spec.active_parameters() as f64;
    let (alone, around) = measurements(subject, effort);
    // A change in the middle is computed from there on.
    let measuring = forward * measured * (1.0 + alone as f64 / 2.0 + around as f64);
    let solves = subject.quantizer.needs() == Needs::Hessian;
    let linears = spec.weights().into_iter().filter(|weight| weight.kind == Kind::Linear);
    let (mut products, mut solving) = (0.0, 0.0);
    for weight in linears {
        let (rows, cols) = (weight.rows as f64, weight.cols as f64);
        products += fitted * cols * cols / 2.0;
        solving += rows * cols * cols;
    }
    let options = subject.items.iter().map(|item| item.options.len()).max().unwrap_or(0) as f64;
    // The codes of all options, and those of the result once more, layer by layer.
    let coding = if solves { solving * options } else { 0.0 };
    measuring + forward * fitted + products + coding + 2.0 * forward * fitted + products + solving
}

/// How many are made of one matrix alone, and at most around the result: a step to each side, from
/// the latest model that was measured.
fn measurements(subject: &Subject<'_>, effort: Effort) -> (usize, usize) {
    let alone = subject.items.iter().map(|item| item.options.len().min(effort.anchors)).sum();
    (alone, 2 * subject.items.len() * effort.rounds)
}

/// The measurements that a search makes at most before it looks around its result, and what they
/// take if a run of the whole model takes `pass`: a change in the middle is computed from there on.
pub(super) fn words(subject: &Subject<'_>, effort: Effort, pass: Seconds) -> String {
    let (alone, around) = measurements(subject, effort);
    let least = Seconds(pass.0 * alone as f64 / 2.0);
    let rounds = match around {
        0 => String::new(),
        _ => format!(
            ", and up to {around} more around the result, {}",
            Seconds(pass.0 * around as f64)
        ),
    };
    format!(
        "{alone} measurements of some {} each, together about {least}{rounds}; coding the matrices \
         comes on top",
        Seconds(pass.0 / 2.0)
    )
}
