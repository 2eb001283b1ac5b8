use lathe_base::Progress;
use lathe_engine::{LayerRunner, Room, Sequences};
use lathe_models::{Role, Weight};

use super::Similarity;
use crate::{Error, Measured, Weights, calibrated::unreadable};

/// Tokens of each sequence that are compared, evenly spread and with the last one.
const PER_SEQUENCE: usize = 16;

/// Measures how much each layer, and each run of layers, turns the residual stream.
///
/// Memory holds the activations of one sequence and, one stage at a time, the weights. A sequence
/// goes through the whole model before the next one.
///
/// **Errors**: texts without tokens; weights that cannot be read.
pub fn measure_similarity(
    measured: &Measured<'_>,
    progress: &dyn Progress,
) -> Result<Similarity, Error> {
    let (calibration, weights) = (measured.calibration, measured.weights);
    if calibration.about.tokens == 0 {
        return Err(Error::NoTexts { name: calibration.about.name.clone() });
    }
    let spec = weights.spec();
    let room = Room { tokens: calibration.longest(), sequences: 1 };
    let mut runner = LayerRunner::new(spec, room, measured.threads)?;
    let mut similarity = Similarity::new(spec.layers.len());
    let total = calibration.sequences.len() as u64;
    for (i, sequence) in calibration.sequences.iter().enumerate() {
        progress.check()?;
        progress.at("sequences", i as u64, total);
        add(&mut similarity, &mut runner, weights, sequence)?;
    }
    progress.at("sequences", total, total);
    Ok(similarity)
}

/// Takes the tokens of one sequence in.
fn add(
    similarity: &mut Similarity,
    runner: &mut LayerRunner,
    weights: &dyn Weights,
    sequence: &[u32],
) -> Result<(), Error> {
    let width = weights.spec().width;
    let places = spread(sequence.len());
    let table = weights.matrix(Role::Embed)?;
    let mut states = runner.embed(&table, &[sequence])?;
    let mut seen = vec![chosen(&states, &places, width)];
    for layer in 0..weights.spec().layers.len() {
        for stage in 0..4 {
            let source = &mut |weight: &Weight| weights.matrix(weight.role).map_err(unreadable);
            let entry = runner.entry(layer, stage, source)?;
            let linears = runner.linears(layer, stage, source)?;
            runner.advance((&entry, &linears), &mut states, &mut |_| {})?;
        }
        seen.push(chosen(&states, &places, width));
    }
    for at in 0..places.len() {
        let token: Vec<&[f32]> = seen.iter().map(|x| &x[at * width..][..width]).collect();
        similarity.add(&token);
    }
    Ok(())
}

/// Up to [`PER_SEQUENCE`] places of a sequence, the last one among them.
fn spread(length: usize) -> Vec<usize> {
    let count = PER_SEQUENCE.min(length);
    (1..=count).map(|i| i * length / count - 1).collect()
}

/// The states of some tokens, one after the other.
fn chosen(states: &Sequences, places: &[usize], width: usize) -> Vec<f32> {
    places.iter().flat_map(|at| &states.x[at * width..][..width]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_spread_evenly_and_end_with_the_last() {
        assert_eq!(spread(4), [0, 1, 2, 3]);
        assert_eq!(spread(512)[..2], [31, 63]);
        assert_eq!(spread(512).last(), Some(&511));
        assert_eq!(spread(20).len(), 16);
        assert!(spread(0).is_empty());
    }
}
