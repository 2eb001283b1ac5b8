//! What happens to a model as a whole before its weights are coded: what `quantize` and `optimize`
//! share.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use lathe_base::Progress;
use lathe_files::Checkpoint;
use lathe_quantizers::{
    Calibration, Measured, Rotated, Shortened, Similarity, Stored, Weights, measure_similarity,
};

/// Sequences that layers are compared on: angles of states need few.
const SEQUENCES: usize = 32;

/// Layers that go, and another basis for the rest.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) dropped: Option<Dropped>,
    /// The seed of a rotation.
    pub(crate) rotate: Option<u64>,
}

/// Layers that go.
#[derive(Debug)]
pub(crate) struct Dropped {
    layers: BTreeSet<usize>,
    /// Which and why, in a line.
    why: String,
}

impl Dropped {
    /// Those that were named.
    pub(crate) fn listed(layers: &BTreeSet<usize>) -> Self {
        let listed: Vec<_> = layers.iter().map(usize::to_string).collect();
        Self { layers: layers.clone(), why: format!("layers left out: {}", listed.join(", ")) }
    }

    /// As many as asked for, of `all`, whichever: what is left has the same size, if all layers
    /// have.
    pub(crate) fn any(count: usize, all: usize) -> anyhow::Result<Self> {
        check(count, all)?;
        Ok(Self::listed(&(0..count).collect()))
    }

    /// The `count` layers that change the texts' states least.
    pub(crate) fn least(
        count: usize,
        weights: &dyn Weights,
        mut calibration: Calibration,
        threads: usize,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let all = weights.spec().layers.len();
        check(count, all)?;
        calibration.sequences.truncate(SEQUENCES);
        let measured = Measured { weights, calibration: &calibration, head: false, threads };
        let similarity = measure_similarity(&measured, progress)?;
        let least = similarity.least(count).context("too few layers")?;
        let why = influences(&similarity, &least, all);
        Ok(Self { layers: least.into_iter().collect(), why })
    }
}

fn check(count: usize, all: usize) -> anyhow::Result<()> {
    if count == 0 || count >= all {
        bail!("{count} layers cannot be dropped: the model has {all}; leave at least one");
    }
    Ok(())
}

/// Which layers go, and what every one does.
fn influences(similarity: &Similarity, gone: &[usize], layers: usize) -> String {
    let of = |layer: usize| format!("{layer}: {:.4}", similarity.influence(layer));
    let go: Vec<_> = gone.iter().map(|layer| of(*layer)).collect();
    let stay = (0..layers).filter(|layer| !gone.contains(layer));
    let stay: Vec<_> = stay.map(of).collect();
    format!(
        "layers left out, with their influence (1 − mean cosine of the states before and after): \
         {}; those that stay: {}",
        go.join(", "),
        stay.join(", ")
    )
}

impl Change {
    /// Lets `act` see the changed model, and hands it what a reader should know of the change.
    pub(crate) fn view<T>(
        &self,
        stored: &Stored<'_>,
        checkpoint: &Checkpoint,
        threads: usize,
        act: impl FnOnce(&dyn Weights, Vec<String>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let shorten = |dropped: &Dropped| {
            let shortened = Shortened::new(stored, &checkpoint.config, &dropped.layers);
            shortened.context("layers to drop")
        };
        let shortened = self.dropped.as_ref().map(shorten).transpose()?;
        let weights: &dyn Weights = shortened.as_ref().map_or(stored, |shortened| shortened);
        let rotated = self.rotate.map(|seed| Rotated::new(weights, seed, threads)).transpose()?;
        let mut notes: Vec<_> = self.dropped.iter().map(|dropped| dropped.why.clone()).collect();
        notes.extend(rotated.iter().flat_map(Rotated::notes));
        act(rotated.as_ref().map_or(weights, |rotated| rotated), notes)
    }
}
