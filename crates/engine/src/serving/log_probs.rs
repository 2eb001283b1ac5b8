use std::cmp::Ordering;

use crate::sampler::Sampler;

/// Which log probabilities are wanted with each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogProbsWanted {
    /// How many of the likeliest tokens, besides the chosen one.
    pub top: usize,
    pub of: Distribution,
}

/// Whose probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// The model's own: a softmax of its logits, before grammar, bias, penalties and temperature.
    /// What OpenAI's API means.
    #[default]
    Model,
    /// What the token was drawn from, after all of these and after top-k, top-p and min-p. A greedy
    /// choice has probability 1.
    Sampled,
}

/// Log probabilities in nats.
#[derive(Clone, Debug, PartialEq)]
pub struct LogProbs {
    /// Of the chosen token; minus infinity where the distribution does not have it.
    pub chosen: f32,
    /// The likeliest tokens, the likeliest first, ties by id.
    pub top: Vec<(u32, f32)>,
}

impl LogProbs {
    /// Of the model: `logits` are as computed.
    pub(crate) fn of_model(logits: &[f32], chosen: u32, top: usize) -> Self {
        let numbers = (0..).zip(logits.iter().copied()).filter(|(_, logit)| !logit.is_nan());
        Self::new(numbers.collect(), chosen, top)
    }

    /// Of what was drawn from: `logits` are as the sampler left them.
    pub(crate) fn of_sampled(sampler: &Sampler, logits: &[f32], chosen: u32, top: usize) -> Self {
        Self::new(sampler.log_weights(logits, chosen), chosen, top)
    }

    /// Of logarithms of weights that need not add up to anything.
    fn new(mut weights: Vec<(u32, f32)>, chosen: u32, top: usize) -> Self {
        let highest = weights.iter().fold(f32::NEG_INFINITY, |highest, (_, w)| highest.max(*w));
        let sum: f64 = weights.iter().map(|(_, w)| f64::from(w - highest).exp()).sum();
        let of = |weight: f32| (f64::from(weight - highest) - sum.ln()) as f32;
        let found = weights.iter().find(|(id, _)| *id == chosen);
        let chosen = found.map_or(f32::NEG_INFINITY, |(_, weight)| of(*weight));
        if top < weights.len() && top > 0 {
            weights.select_nth_unstable_by(top - 1, likelier);
        }
        weights.truncate(top);
        weights.sort_unstable_by(likelier);
        Self { chosen, top: weights.into_iter().map(|(id, weight)| (id, of(weight))).collect() }
    }
}

/// Log probabilities of a prompt's own tokens, as far as they are known.
#[derive(Debug)]
pub(crate) struct OfPrompt {
    /// How many of the likeliest, besides the prompt's own.
    top: usize,
    /// Of the tokens from the second on.
    found: Vec<LogProbs>,
}

impl OfPrompt {
    pub(crate) fn new(top: usize) -> Self {
        Self { top, found: Vec::new() }
    }

    /// Positions whose logits were seen.
    pub(crate) fn seen(&self) -> usize {
        self.found.len()
    }

    /// Takes in the model's logits after the positions from `start` on, of which some may have been
    /// seen before.
    pub(crate) fn see<'r>(
        &mut self,
        prompt: &[u32],
        start: usize,
        rows: impl Iterator<Item = &'r mut [f32]>,
    ) {
        for (at, row) in (start..).zip(rows) {
            if at == self.seen()
                && let Some(next) = prompt.get(at + 1)
            {
                self.found.push(LogProbs::of_model(row, *next, self.top));
            }
        }
    }

    pub(crate) fn into_found(self) -> Vec<LogProbs> {
        self.found
    }
}

fn likelier(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use lathe_api::Sampling;

    use super::*;

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, 2.0];

    fn close(found: f32, expected: f32) {
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }

    #[test]
    fn the_models_are_a_softmax_in_nats_with_ties_by_id() {
        let sum = (1.0 + 2.0 * 2f32.exp() + 1f32.exp()).ln();
        let of = LogProbs::of_model(&LOGITS, 2, 3);
        close(of.chosen, 1.0 - sum);
        assert_eq!(of.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
        close(of.top[0].1, 2.0 - sum);
        assert!(LogProbs::of_model(&LOGITS, 2, 0).top.is_empty());
        assert_eq!(LogProbs::of_model(&LOGITS, 2, 9).top.len(), 4);
    }

    #[test]
    fn those_of_what_was_drawn_from_count_temperature_and_cuts() {
        let sampling = Sampling { temperature: 2.0, top_k: 2, ..Sampling::default() };
        let mut sampler = Sampler::new(&sampling, &[]).unwrap();
        let mut logits = LOGITS;
        let chosen = sampler.next(&mut logits).unwrap();
        let of = LogProbs::of_sampled(&sampler, &logits, chosen, 5);
        close(of.chosen, 0.5f32.ln());
        assert_eq!(of.top.len(), 2);
        let mut greedy = Sampler::new(&Sampling::default(), &[]).unwrap();
        let chosen = greedy.next(&mut logits).unwrap();
        let of = LogProbs::of_sampled(&greedy, &logits, chosen, 5);
        assert_eq!((of.chosen, of.top), (0.0, vec![(1, 0.0)]));
    }
}
