use std::fmt;

use crate::{Experts, Layer, Mlp, Norm, Part};

/// Linears of a layer that are fed by the same channels, in the order of the forward pass.
///
/// What comes before them is linear in its gains or rows, so that a positive scale for each input
/// column can be moved from one side to the other without changing what the layer computes: see
/// [`Stage::folds`].
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// What the input is, in words.
    pub name: &'static str,
    /// What of the stage's inputs can be looked at while the layer runs.
    pub inputs: Inputs,
    pub linears: Vec<Part>,
    /// What else is multiplied with the same inputs, and is no linear: routers.
    pub routers: Vec<Part>,
    pub before: Before,
}

/// What a linear is multiplied with: the inputs of one of the four steps of a layer, those of all
/// tokens or of the tokens that an expert is chosen for.
///
/// The steps are attention's projections, its output, the perceptron's gate and up, and its down
/// projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inputs {
    pub step: usize,
    pub expert: Option<usize>,
}

/// The operation that the inputs of a [`Stage`] come from. Its outputs are called *channels*:
/// there is a free scale for each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Before {
    /// A norm: channel c is column c, and its gain is the stored weight plus `offset`.
    Norm { part: Part, offset: f32 },
    /// A linear whose rows are the channels, and its bias where it has one.
    ///
    /// Each run of `run` channels feeds `repeat` runs of columns, one after another: a value head
    /// and the query heads that share it. Where heads are not grouped, `repeat` is 1.
    Rows { part: Part, bias: Option<Part>, run: usize, repeat: usize },
}

/// How one weight changes when the channels of a stage are divided by scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fold {
    /// Each column of a matrix is multiplied by its channel's scale, so that products stay.
    Columns(Before),
    /// Each row of a matrix is divided by its scale; a bias has one number to a row.
    Rows,
    /// Each gain is divided by its scale; stored are gains less `offset`.
    Gains { offset: f32 },
}

impl Layer {
    /// The stages of a layer: what attention is fed, what its output projection is fed, and the
    /// same two of the perceptron. Where it has experts they share the former, and each has the
    /// latter for itself.
    pub fn stages(&self) -> Vec<Stage> {
        let attention = self.attention();
        let norm = |part, norm: &Norm| Before::Norm { part, offset: norm.offset };
        let values = Before::Rows {
            part: Part::V,
            bias: attention.biases.qkv.then_some(Part::VBias),
            run: attention.head_dim,
            repeat: attention.heads / attention.kv_heads,
        };
        let queries = vec![Part::Q, Part::K, Part::V];
        let mut stages = vec![
            Stage::new(0, queries, norm(Part::MixerNorm, &self.norms.before_mixer)),
            Stage::new(1, vec![Part::Out], values),
        ];
        let normed = norm(Part::MlpNorm, &self.norms.before_mlp);
        match &self.mlp {
            Mlp::Gated { width, bias, .. } => {
                let up = up(Part::Up, bias.then_some(Part::UpBias), *width);
                stages.push(Stage::new(2, vec![Part::Gate, Part::Up], normed));
                stages.push(Stage::new(3, vec![Part::Down], up));
            }
            Mlp::Experts(experts) => stages.extend(of_experts(experts, normed)),
        }
        stages
    }

    /// What can be looked at while the layer runs, in the order of the steps.
    pub fn inputs(&self) -> Vec<Inputs> {
        let step = |step| Inputs { step, expert: None };
        let mut inputs = vec![step(0), step(1)];
        let Some(experts) = self.mlp.experts() else {
            inputs.extend([step(2), step(3)]);
            return inputs;
        };
        for step in [2, 3] {
            inputs.extend((0..experts.count).map(|e| Inputs { step, expert: Some(e) }));
            // All tokens' inputs of the experts are what the norm before them gives.
            if step == 2 || experts.shared.is_some() {
                inputs.push(Inputs { step, expert: None });
            }
        }
        inputs
    }

    /// The columns of the inputs of a step.
    pub fn input_width(&self, inputs: Inputs, width: usize) -> usize {
        match (inputs.step, &self.mlp) {
            (1, _) => self.attention().q_width(),
            (3, Mlp::Gated { width, .. }) => *width,
            (3, Mlp::Experts(experts)) => match inputs.expert {
                Some(_) => experts.width,
                None => experts.shared.unwrap_or(0),
            },
            _ => width,
        }
    }
}

/// Up feeds down, channel by channel. The gate is not linear, but what it multiplies is.
fn up(part: Part, bias: Option<Part>, width: usize) -> Before {
    Before::Rows { part, bias, run: width, repeat: 1 }
}

fn of_experts(experts: &Experts, normed: Before) -> Vec<Stage> {
    let mut input = Stage::new(2, experts.inputs(), normed);
    input.routers = vec![Part::Router];
    input.routers.extend(experts.shared.map(|_| Part::SharedRouter));
    let mut stages = vec![input];
    stages.extend((0..experts.count).map(|e| {
        let up = up(Part::ExpertUp(e), None, experts.width);
        Stage::new(3, vec![Part::ExpertDown(e)], up)
    }));
    stages.extend(experts.shared.map(|width| {
        let up = up(Part::SharedUp, None, width);
        Stage::new(3, vec![Part::SharedDown], up)
    }));
    stages
}

impl Part {
    /// Which of the four steps of a layer the part belongs to: a norm before a step to that step,
    /// a bias or a norm after a linear to the linear's.
    pub fn step(self) -> usize {
        match self {
            Self::MixerNorm
            | Self::Q
            | Self::K
            | Self::V
            | Self::QBias
            | Self::KBias
            | Self::VBias
            | Self::QNorm
            | Self::KNorm => 0,
            Self::Out | Self::OutBias | Self::MixerAfterNorm => 1,
            Self::MlpNorm
            | Self::Gate
            | Self::Up
            | Self::GateBias
            | Self::UpBias
            | Self::Router
            | Self::SharedRouter
            | Self::ExpertGate(_)
            | Self::ExpertUp(_)
            | Self::SharedGate
            | Self::SharedUp => 2,
            Self::Down
            | Self::DownBias
            | Self::ExpertDown(_)
            | Self::SharedDown
            | Self::MlpAfterNorm => 3,
        }
    }

    /// What the part, a linear, is multiplied with.
    pub fn inputs(self) -> Inputs {
        Inputs { step: self.step(), expert: self.expert() }
    }
}

impl fmt::Display for Inputs {
    /// In words, for messages: `mlp down of expert 3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STEPS.get(self.step).copied().unwrap_or("end"))?;
        self.expert.map_or(Ok(()), |expert| write!(f, " of expert {expert}"))
    }
}

/// The steps of a layer, in words.
const STEPS: [&str; 4] = ["attention input", "attention output", "mlp input", "mlp down"];

impl Stage {
    fn new(step: usize, linears: Vec<Part>, before: Before) -> Self {
        let expert = linears.first().and_then(|part| part.expert()).filter(|_| step == 3);
        let inputs = Inputs { step, expert };
        Self { name: STEPS[step], inputs, linears, routers: Vec::new(), before }
    }

    /// The stage's linears by what they are multiplied with: one stage for all of them, unless
    /// they belong to several experts.
    pub fn by_inputs(&self) -> Vec<Self> {
        let mut stages: Vec<Self> = Vec::new();
        for part in &self.linears {
            match stages.iter_mut().find(|stage| stage.inputs == part.inputs()) {
                Some(stage) => stage.linears.push(*part),
                None => {
                    let (inputs, linears) = (part.inputs(), vec![*part]);
                    stages.push(Self { inputs, linears, routers: Vec::new(), ..self.clone() });
                }
            }
        }
        stages
    }

    /// Every weight that changes when each channel is divided by a scale, and how: what comes
    /// before first, then the linears. With all of them applied the layer computes what it did.
    pub fn folds(&self) -> Vec<(Part, Fold)> {
        let before = match self.before {
            Before::Norm { part, offset } => vec![(part, Fold::Gains { offset })],
            Before::Rows { part, bias, .. } => {
                let bias = bias.map(|bias| (bias, Fold::Rows));
                [(part, Fold::Rows)].into_iter().chain(bias).collect()
            }
        };
        let linears = self.linears.iter().chain(&self.routers);
        let linears = linears.map(|part| (*part, Fold::Columns(self.before)));
        before.into_iter().chain(linears).collect()
    }
}

impl Before {
    /// Columns that each channel feeds.
    pub fn repeat(&self) -> usize {
        match self {
            Self::Norm { .. } => 1,
            Self::Rows { repeat, .. } => *repeat,
        }
    }

    /// The channel that feeds a column.
    pub fn channel(&self, column: usize) -> usize {
        match self {
            Self::Norm { .. } => column,
            Self::Rows { run, repeat, .. } => column / (run * repeat) * run + column % run,
        }
    }

    /// For each column what its channel has, from a list by channel.
    pub fn by_column(&self, channels: &[f32]) -> Vec<f32> {
        (0..channels.len() * self.repeat()).map(|column| channels[self.channel(column)]).collect()
    }
}

impl Fold {
    /// Changes `weight`, a row-major matrix or a vector, for channels divided by `scales`.
    pub fn apply(&self, scales: &[f32], weight: &mut [f32]) {
        match self {
            Self::Columns(before) => {
                let scales = before.by_column(scales);
                for row in weight.chunks_exact_mut(scales.len().max(1)) {
                    row.iter_mut().zip(&scales).for_each(|(w, scale)| *w *= scale);
                }
            }
            Self::Rows => {
                let cols = weight.len() / scales.len().max(1);
                for (row, scale) in weight.chunks_exact_mut(cols.max(1)).zip(scales) {
                    row.iter_mut().for_each(|w| *w /= scale);
                }
            }
            Self::Gains { offset } => {
                for (gain, scale) in weight.iter_mut().zip(scales) {
                    *gain = (*gain + offset) / scale - offset;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPED: Before = Before::Rows { part: Part::V, bias: None, run: 2, repeat: 3 };

    #[test]
    fn a_value_head_feeds_the_columns_of_every_query_head_that_shares_it() {
        let channels: Vec<_> = (0..12).map(|column| GROUPED.channel(column)).collect();
        assert_eq!(channels, [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]);
        assert_eq!(
            GROUPED.by_column(&[1.0, 2.0, 3.0, 4.0]),
            channels.iter().map(|c| *c as f32 + 1.0).collect::<Vec<_>>()
        );
    }

    #[test]
    fn folding_divides_before_and_multiplies_after() {
        let scales = [2.0, 4.0];
        let mut rows = [2.0, 4.0, 8.0, 16.0];
        Fold::Rows.apply(&scales, &mut rows);
        assert_eq!(rows, [1.0, 2.0, 2.0, 4.0]);
        let mut bias = [2.0, 8.0];
        Fold::Rows.apply(&scales, &mut bias);
        assert_eq!(bias, [1.0, 2.0]);
        let mut gains = [1.0, 3.0];
        Fold::Gains { offset: 1.0 }.apply(&scales, &mut gains);
        assert_eq!(gains, [0.0, 0.0]);
        let mut columns = [1.0; 12];
        Fold::Columns(GROUPED).apply(&scales, &mut columns);
        assert_eq!(columns, [2.0, 4.0].repeat(6)[..]);
    }
}
