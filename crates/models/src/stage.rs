use crate::{Layer, Mlp, Norm, Part};

/// Linears of a layer that share one input, in the order of the forward pass.
///
/// What comes before them is linear in its gains or rows, so that a positive scale for each input
/// column can be moved from one side to the other without changing what the layer computes: see
/// [`Stage::folds`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// What the input is, in words.
    pub name: &'static str,
    pub linears: &'static [Part],
    pub before: Before,
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
    /// The four stages of a layer: what attention is fed, what its output projection is fed, and
    /// the same two of the perceptron.
    pub fn stages(&self) -> [Stage; 4] {
        let attention = self.attention();
        let Mlp::Gated { width, bias, .. } = self.mlp;
        let norm = |part, norm: &Norm| Before::Norm { part, offset: norm.offset };
        let values = Before::Rows {
            part: Part::V,
            bias: attention.biases.qkv.then_some(Part::VBias),
            run: attention.head_dim,
            repeat: attention.heads / attention.kv_heads,
        };
        // The gate is not linear, but what it multiplies is.
        let up = Before::Rows {
            part: Part::Up,
            bias: bias.then_some(Part::UpBias),
            run: width,
            repeat: 1,
        };
        let stage = |name, linears, before| Stage { name, linears, before };
        [
            stage(
                "attention input",
                &[Part::Q, Part::K, Part::V],
                norm(Part::MixerNorm, &self.norms.before_mixer),
            ),
            stage("attention output", &[Part::Out], values),
            stage(
                "mlp input",
                &[Part::Gate, Part::Up],
                norm(Part::MlpNorm, &self.norms.before_mlp),
            ),
            stage("mlp down", &[Part::Down], up),
        ]
    }
}

impl Part {
    /// Which of [`Layer::stages`] the part belongs to: a norm before a stage to that stage, a bias
    /// or a norm after a linear to the linear's.
    pub fn stage(self) -> usize {
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
            Self::MlpNorm | Self::Gate | Self::Up | Self::GateBias | Self::UpBias => 2,
            Self::Down | Self::DownBias | Self::MlpAfterNorm => 3,
        }
    }
}

impl Stage {
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
        let linears = self.linears.iter().map(|part| (*part, Fold::Columns(self.before)));
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
