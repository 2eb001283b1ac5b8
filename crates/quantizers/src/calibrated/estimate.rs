use lathe_base::Bytes;
use lathe_engine::{LayerRunner, Room};
use lathe_models::{Kind, Part, Role, Spec};
use serde::Serialize;

use super::{Calibrated, collect::Collector};
use crate::{Error, Needs, recipe::is_dense};

/// What a calibrated job takes at its peak, known before it starts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The most memory at any time.
    pub peak: Bytes,
    /// Weights of one layer, as they are read and in f32 where a step needs that.
    pub weights: Bytes,
    /// Statistics of inputs, Hessians above all.
    pub statistics: Bytes,
    /// What quantizers and transforms work with.
    pub solver: Bytes,
    /// Activations of the sequences that are run at once.
    pub activations: Bytes,
    /// Room on disk for hidden states, beside the result.
    pub disk: Bytes,
    /// Tokens that are run at once.
    pub tokens: usize,
}

/// Code, stacks, tables, the plan, the tokenizer, and what an allocator keeps.
const FIXED: u64 = 48 << 20;

/// Sequences are run together up to so many tokens: more is no faster.
const MOST_TOKENS: usize = 1024;

impl Estimate {
    /// The estimate of a run with as many tokens at once as is worth it and the cap allows.
    ///
    /// **Errors**: [`Error::MaxMemory`], with the smallest cap that works.
    pub(super) fn new(run: &Calibrated<'_>) -> Result<Self, Error> {
        let longest = run.calibration.longest().max(1);
        let most = MOST_TOKENS.max(longest);
        let usual = Self::with(run, most);
        let Some(cap) = run.max_memory else { return Ok(usual) };
        let mut tokens = most;
        loop {
            let estimate = Self::with(run, tokens);
            if estimate.peak <= cap {
                return Ok(estimate);
            }
            if tokens <= longest {
                let Self { weights, statistics, solver, activations, .. } = estimate;
                return Err(Error::MaxMemory {
                    cap,
                    needed: estimate.peak,
                    parts: format!(
                        "weights {weights}, statistics {statistics}, solver {solver}, \
                         activations {activations}"
                    ),
                });
            }
            tokens = (tokens / 2).max(longest);
        }
    }

    fn with(run: &Calibrated<'_>, tokens: usize) -> Self {
        let spec = run.job.weights.spec();
        let sequences = run.calibration.sequences.len().min(tokens).max(1);
        let widest = |of: fn(&lathe_models::Layer) -> usize| {
            spec.layers.iter().map(of).max().unwrap_or(0) as u64
        };
        let inner = widest(inner_width);
        let width = spec.width as u64;
        // States are copied on their way in and out.
        let states = 4 * tokens as u64 * (width + inner) * 2;
        let activations = LayerRunner::bytes(spec, Room { tokens, sequences }).0 + states;
        let layers = (0..spec.layers.len()).map(|index| Layer::of(run, index).peak());
        let worst = layers.max_by_key(|layer| layer.total()).unwrap_or_default();
        let disk =
            run.calibration.bytes(2 * spec.width).0 + run.calibration.bytes(inner as usize).0;
        let streamed = streamed(run);
        let Peak { weights, statistics, solver } = worst;
        let together = weights + statistics + solver + activations;
        Self {
            peak: Bytes(FIXED + together.max(streamed)),
            weights: Bytes(weights),
            statistics: Bytes(statistics),
            solver: Bytes(solver),
            activations: Bytes(activations),
            disk: Bytes(disk),
            tokens,
        }
    }

    /// In a line, for the user.
    pub fn words(&self) -> String {
        let Self { peak, weights, statistics, solver, activations, disk, tokens } = self;
        format!(
            "at most {peak} of memory: weights {weights}, statistics {statistics}, solver {solver}, \
             activations of {tokens} tokens {activations}; {disk} on disk for hidden states"
        )
    }
}

/// What attention mixes or the gates give, whichever is wider.
pub(super) fn inner_width(layer: &lathe_models::Layer) -> usize {
    LayerRunner::inner_width(layer, 1).max(LayerRunner::inner_width(layer, 3))
}

/// Tensors outside of the layers: one is coded at a time, from rows that are read as needed, and
/// compared with its source.
fn streamed(run: &Calibrated<'_>) -> u64 {
    let outside = |planned: &&crate::Planned| {
        !planned.roles.iter().any(|role| matches!(role, Role::Layer(..)))
    };
    let tensors = run.job.plan.tensors.iter().filter(outside);
    let stored = |planned: &crate::Planned| {
        let size = |role: &Role| run.job.weights.model().find(*role).map(|l| l.weight.len() as u64);
        // Mapped pages of the source count while they are read.
        4 * planned.roles.iter().filter_map(size).sum::<u64>()
    };
    tensors.map(|planned| planned.bytes().0 + stored(planned)).max().unwrap_or(0)
}

/// Sizes of one layer's work.
struct Layer<'a> {
    run: &'a Calibrated<'a>,
    spec: &'a Spec,
    index: usize,
}

#[derive(Clone, Copy, Default)]
struct Peak {
    weights: u64,
    statistics: u64,
    solver: u64,
}

impl Peak {
    fn total(&self) -> u64 {
        self.weights + self.statistics + self.solver
    }
}

impl<'a> Layer<'a> {
    fn of(run: &'a Calibrated<'a>, index: usize) -> Self {
        Self { run, spec: run.job.weights.spec(), index }
    }

    /// The worst of the layer's phases.
    fn peak(&self) -> Peak {
        let (folds, rest) = (self.run.fold_needs(), self.run.stage_needs());
        let sequential = self.run.steps_by_stage();
        // In f32 all at once where transforms fold, and while a view of the weights is run.
        let viewed = (0..4).any(|stage| self.viewed(stage));
        let dense: u64 = (0..4).map(|stage| 4 * self.numbers(stage)).sum();
        let stored: u64 = (0..4).map(|stage| self.stored(stage)).sum();
        let coded: u64 = (0..4).map(|stage| self.coded(stage)).sum();
        let layer = if self.run.folds() { dense } else { 0 };
        let mut phases = Vec::new();
        let whole = if sequential { folds } else { folds.max(rest) };
        let all = |needs, bytes: fn(&Self, usize, Needs) -> u64| -> u64 {
            (0..4).map(|stage| bytes(self, stage, needs)).sum()
        };
        if whole > Needs::Nothing {
            let read = if viewed { dense } else { stored };
            phases.push(Peak { weights: read, statistics: all(whole, Self::gathered), solver: 0 });
            // One of them is turned into a full matrix at a time, at worst the last.
            let statistics = all(whole, Self::finished) + self.most(whole, Self::gathered);
            phases.push(Peak { weights: 0, statistics, solver: 0 });
            let solver = self.most(whole, Self::transforming);
            phases.push(Peak { weights: dense, statistics: all(whole, Self::finished), solver });
        }
        for stage in 0..4 {
            let needs = if sequential { rest } else { whole };
            let kept = if sequential { 0 } else { all(whole, Self::finished) };
            let own = |bytes: u64| if sequential { bytes } else { kept };
            // Before it is coded the stage before it runs, from its codes and a repacked copy.
            let before = if stage > 0 { 2 * self.coded(stage - 1) } else { 0 };
            let gathered = own(self.gathered(stage, needs));
            phases.push(Peak { weights: layer + before, statistics: gathered, solver: 0 });
            let full = own(self.gathered(stage, needs) + self.finished(stage, needs));
            phases.push(Peak { weights: layer, statistics: full, solver: 0 });
            let weights = match self.run.folds() || self.run.changes() {
                true => layer.max(4 * self.numbers(stage)) + 4 * self.numbers(stage),
                false => self.stored(stage),
            };
            let weights = weights + self.coded(stage) + if sequential { 0 } else { coded };
            let statistics = own(self.finished(stage, needs));
            let solver = self.solving(stage, needs);
            phases.push(Peak { weights, statistics, solver });
        }
        // All stages are run at once where none waits for the one before.
        phases.push(Peak { weights: 2 * coded, statistics: 0, solver: 0 });
        phases.into_iter().max_by_key(Peak::total).unwrap_or_default()
    }

    fn linears(&self, stage: usize) -> impl Iterator<Item = lathe_models::Weight> {
        let index = self.index;
        self.spec.weights().into_iter().filter(move |weight| {
            matches!(weight.role, Role::Layer(layer, part)
                if layer == index && part.step() == stage && weight.kind == Kind::Linear)
        })
    }

    fn cols(&self, stage: usize) -> usize {
        self.linears(stage).map(|weight| weight.cols).max().unwrap_or(0)
    }

    fn numbers(&self, stage: usize) -> u64 {
        self.linears(stage).map(|weight| weight.len() as u64).sum()
    }

    /// Whether the stage's numbers are computed.
    fn viewed(&self, stage: usize) -> bool {
        self.linears(stage).any(|weight| !self.run.job.weights.is_stored(weight.role))
    }

    /// What the stage's weights take as they are read.
    fn stored(&self, stage: usize) -> u64 {
        let bytes = |weight: lathe_models::Weight| {
            let tensor = self.run.job.weights.model().find(weight.role)?;
            let name = &tensor.tensor.name;
            let format = self.run.job.checkpoint.weight(name).ok()?.format;
            Some(format.bytes(weight.rows, weight.cols) as u64)
        };
        // Formats without a product of their own are repacked.
        self.linears(stage).filter_map(bytes).map(|bytes| 2 * bytes).sum()
    }

    fn coded(&self, stage: usize) -> u64 {
        let formats = self.run.formats(self.index);
        let bytes = |weight: lathe_models::Weight| {
            let Role::Layer(_, part) = weight.role else { return 0 };
            let format = formats.get(&part);
            format.map_or(0, |format| format.bytes(weight.rows, weight.cols) as u64)
        };
        self.linears(stage).map(bytes).sum()
    }

    /// Whether anything of the stage is quantized.
    fn quantizes(&self, stage: usize) -> bool {
        let formats = self.run.formats(self.index);
        self.linears(stage).any(|weight| {
            let part = |role: Role| -> Option<Part> {
                if let Role::Layer(_, part) = role { Some(part) } else { None }
            };
            part(weight.role).and_then(|p| formats.get(&p)).is_some_and(|f| !is_dense(*f))
        })
    }

    /// The columns of all inputs that are looked at: each expert's are by themselves.
    fn inputs(&self, stage: usize) -> impl Iterator<Item = usize> {
        let layer = &self.spec.layers[self.index];
        let inputs = layer.inputs().into_iter().filter(move |inputs| inputs.step == stage);
        inputs.map(|inputs| layer.input_width(inputs, self.spec.width))
    }

    fn gathered(&self, stage: usize, needs: Needs) -> u64 {
        self.inputs(stage).map(|cols| Collector::bytes(cols, needs).0).sum()
    }

    fn finished(&self, stage: usize, needs: Needs) -> u64 {
        let one = |cols: u64| match needs {
            Needs::Hessian => cols * cols + 3 * cols,
            _ => 3 * cols,
        };
        self.inputs(stage).map(|cols| 4 * one(cols as u64)).sum()
    }

    fn most(&self, needs: Needs, bytes: fn(&Self, usize, Needs) -> u64) -> u64 {
        (0..4).map(|stage| bytes(self, stage, needs)).max().unwrap_or(0)
    }

    fn transforming(&self, stage: usize, _: Needs) -> u64 {
        let rows = self.linears(stage).map(|weight| weight.rows).max().unwrap_or(0);
        let all = self.run.transforms.iter().filter(|transform| transform.folds());
        all.map(|transform| transform.room(rows, self.cols(stage)).0).max().unwrap_or(0)
    }

    fn solving(&self, stage: usize, needs: Needs) -> u64 {
        if !self.quantizes(stage) && needs == Needs::Nothing {
            return 0;
        }
        let rows = self.linears(stage).map(|weight| weight.rows).max().unwrap_or(0);
        let cols = self.cols(stage);
        let transforms = self.run.transforms.iter().filter(|transform| !transform.folds());
        let rooms = transforms.map(|transform| transform.room(rows, cols).0);
        rooms.chain([self.run.job.quantizer.room(rows, cols).0]).max().unwrap_or(0)
    }
}
