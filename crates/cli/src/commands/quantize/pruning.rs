//! `lathe quantize --prune` and `--drop-layers`: what goes before weights are coded.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use anyhow::Context;
use clap::Args;
use lathe_base::Progress;
use lathe_files::Checkpoint;
use lathe_models::{Kind, Model};
use lathe_quantizers::{Calibration, Done, Plan, Prune, Weights, keeps_zeros};

use crate::{change::Dropped, commands::calibration::CalibrationArgs, ui};

/// What a model is to lose.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pruning")]
pub(crate) struct PruningArgs {
    /// Zero weights first: METHOD is magnitude, wanda or sparsegpt (the latter two calibrate, the
    /// last one loses least), AMOUNT a share such as 50%, or 2:4, which keeps 2 of 4 neighbours
    #[arg(long, value_name = "METHOD:AMOUNT", value_parser = prune)]
    pub(super) prune: Option<Prune>,
    /// Leave out so many layers, those that change the calibration texts' states least; or the
    /// listed ones, counted from 0, as in 5,6 (one alone: 5,)
    #[arg(long, value_name = "N|LIST")]
    pub(super) drop_layers: Option<Layers>,
}

/// Which layers go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layers {
    /// So many, to be chosen by what they do.
    Least(usize),
    Listed(BTreeSet<usize>),
}

impl FromStr for Layers {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NEEDED: &str = "a number of layers is needed, such as 2, or a list such as 5,6";
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| NEEDED);
        if !text.contains(',') {
            return match number(text)? {
                0 => Err(NEEDED),
                count => Ok(Self::Least(count)),
            };
        }
        let listed = text.strip_suffix(',').unwrap_or(text).split(',');
        Ok(Self::Listed(listed.map(number).collect::<Result<_, _>>()?))
    }
}

pub(crate) fn prune(text: &str) -> Result<Prune, String> {
    text.parse().map_err(|error: lathe_quantizers::Error| error.to_string())
}

/// The model's calibration texts, drawn where they are needed.
pub(super) struct Texts<'a> {
    pub(super) args: &'a CalibrationArgs,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) model: &'a Model,
}

impl Texts<'_> {
    pub(super) fn draw(&self, progress: &dyn Progress) -> anyhow::Result<Calibration> {
        self.args.draw(self.checkpoint, self.model, progress)
    }
}

impl PruningArgs {
    /// Whether layers are chosen by what they do to texts.
    pub(super) fn compares_layers(&self) -> bool {
        matches!(self.drop_layers, Some(Layers::Least(_)))
    }

    /// The layers that are to be dropped, where any are.
    pub(super) fn dropped(
        &self,
        weights: &dyn Weights,
        texts: &Texts<'_>,
        threads: usize,
        progress: &dyn Progress,
    ) -> anyhow::Result<Option<Dropped>> {
        let dropped = match &self.drop_layers {
            None => return Ok(None),
            Some(Layers::Listed(layers)) => Dropped::listed(layers),
            Some(Layers::Least(count)) => {
                let drawn = texts.draw(progress)?;
                Dropped::least(*count, weights, drawn, threads, progress)
                    .context("--drop-layers")?
            }
        };
        Ok(Some(dropped))
    }
}

/// What a reader should know of zeros in the formats of `plan`.
pub(crate) fn notes(plan: &Plan) -> Vec<String> {
    let mut notes = vec![
        "a pruned file is neither smaller nor faster by itself: zeros are stored like other \
         weights, and only engines with kernels for sparse weights gain by them"
            .to_owned(),
    ];
    let linears = plan.tensors.iter().filter(|t| t.kind == Kind::Linear);
    let formats: BTreeMap<&str, _> = linears.map(|t| (t.format.name(), t.format)).collect();
    let without: Vec<&str> =
        formats.into_values().filter(|f| !keeps_zeros(*f)).map(|f| f.name()).collect();
    if !without.is_empty() {
        notes.push(format!(
            "{} cannot hold an exact zero: pruned weights are coded as the nearest there is, and \
             are not zero in the file",
            without.join(", ")
        ));
    }
    notes
}

/// How much of each kind of matrix is exactly zero in the result.
pub(super) fn sparsity(tensors: &[Done]) -> String {
    let mut kinds: BTreeMap<&str, (usize, f64, f64)> = BTreeMap::new();
    for tensor in tensors {
        let Some(zeros) = tensor.zeros else { continue };
        let kind = kinds.entry(kind(&tensor.name)).or_default();
        kind.0 += 1;
        kind.1 += tensor.shape.iter().product::<usize>() as f64;
        kind.2 += zeros as f64;
    }
    let rows: Vec<Vec<String>> = kinds
        .into_iter()
        .filter(|(_, (_, _, zeros))| *zeros > 0.0)
        .map(|(kind, (count, weights, zeros))| {
            vec![kind.to_owned(), count.to_string(), format!("{:.2} %", 100.0 * zeros / weights)]
        })
        .collect();
    ui::table(&["pruned", ">tensors", ">exact zeros"], &rows)
}

/// The last parts of a tensor's name, which matrices of the same use share.
fn kind(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let layer = name.rmatch_indices('.').find(|(at, _)| {
        let number = name[..*at].rsplit('.').next().unwrap_or("");
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    });
    layer.map_or(name, |(at, _)| &name[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_or_listed() {
        assert_eq!("2".parse(), Ok(Layers::Least(2)));
        assert_eq!("5,".parse(), Ok(Layers::Listed([5].into())));
        assert_eq!("6, 5,6".parse(), Ok(Layers::Listed([5, 6].into())));
        for bad in ["", "0", "x", "-1", "5,x", ",", "5,,6"] {
            assert!(bad.parse::<Layers>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tensors_of_the_same_use_are_one_kind() {
        assert_eq!(kind("model.layers.12.self_attn.q_proj.weight"), "self_attn.q_proj");
        assert_eq!(kind("blk.3.ffn_down.weight"), "ffn_down");
        assert_eq!(kind("lm_head.weight"), "lm_head");
    }
}
