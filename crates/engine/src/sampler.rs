use std::{cmp::Ordering, collections::HashMap};

use lathe_api::Sampling;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::Error;

/// Chooses tokens from logits, as [`Sampling`] says and in its order.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    rng: ChaCha12Rng,
    /// The tokens of prompt and generation, and how often each was generated.
    seen: HashMap<u32, u32>,
}

/// A token that may be drawn: its id and logit, later its weight.
type Candidate = (u32, f32);

/// How many of the likeliest tokens are sorted before all are.
const FIRST_SORTED: usize = 512;

impl Sampler {
    /// # Errors
    /// [`Error::Request`] names the option that makes no sense.
    pub(crate) fn new(sampling: &Sampling, prompt: &[u32]) -> Result<Self, Error> {
        check(sampling)?;
        let seen = prompt.iter().map(|id| (*id, 0)).collect();
        let rng = ChaCha12Rng::seed_from_u64(sampling.seed);
        Ok(Self { sampling: sampling.clone(), rng, seen })
    }

    /// The next token, which counts as seen from then on. The logits are changed.
    ///
    /// # Errors
    /// [`Error::NoLogits`] where no logit is above minus infinity.
    pub(crate) fn next(&mut self, logits: &mut [f32]) -> Result<u32, Error> {
        self.adjust(logits);
        let best = argmax(logits).ok_or(Error::NoLogits)?;
        let id = match self.sampling.temperature > 0.0 {
            true => self.draw(logits, logits[best as usize]),
            false => best,
        };
        *self.seen.entry(id).or_default() += 1;
        Ok(id)
    }

    /// Logarithms of the weights of all tokens that could be drawn, where `logits` are as
    /// [`Sampler::next`] left them when it gave `chosen`.
    pub(crate) fn log_weights(&self, logits: &[f32], chosen: u32) -> Vec<(u32, f32)> {
        match argmax(logits) {
            Some(best) if self.sampling.temperature > 0.0 => {
                let candidates = self.candidates(logits, logits[best as usize]);
                candidates.into_iter().map(|(id, weight)| (id, weight.ln())).collect()
            }
            _ => vec![(chosen, 0.0)],
        }
    }

    /// Bias, then penalties.
    fn adjust(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } =
            self.sampling;
        for (id, bias) in &self.sampling.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        for (id, generated) in &self.seen {
            let Some(logit) = logits.get_mut(*id as usize) else { continue };
            if *logit > 0.0 {
                *logit /= repetition_penalty;
            } else {
                *logit *= repetition_penalty;
            }
            if *generated > 0 {
                *logit -= presence_penalty + frequency_penalty * *generated as f32;
            }
        }
    }

    fn draw(&mut self, logits: &[f32], highest: f32) -> u32 {
        let candidates = self.candidates(logits, highest);
        let total: f64 = candidates.iter().map(|(_, w)| f64::from(*w)).sum();
        let mut left = self.rng.random::<f64>() * total;
        for (id, weight) in &candidates {
            left -= f64::from(*weight);
            if left < 0.0 {
                return *id;
            }
        }
        // Rounding may leave a sliver at the end.
        candidates.last().map_or(0, |(id, _)| *id)
    }

    /// The tokens that may be drawn, with weights relative to the likeliest.
    fn candidates(&self, logits: &[f32], highest: f32) -> Vec<Candidate> {
        let temperature = self.sampling.temperature;
        // An infinite logit outweighs all others; finite arithmetic says the same.
        let finite = |logit: f32| logit.min(f32::MAX);
        let highest = finite(highest);
        let weight = |logit: f32| ((finite(logit) - highest) / temperature).exp();
        let mut candidates: Vec<Candidate> = (0..)
            .zip(logits)
            .map(|(id, logit)| (id, weight(*logit)))
            // NaN and what can never be drawn fall away here.
            .filter(|(_, weight)| *weight > 0.0)
            .collect();
        self.cut(&mut candidates);
        candidates
    }

    /// Top-k, then top-p of what is left, then min-p. Tokens end up in a fixed order.
    fn cut(&self, candidates: &mut Vec<Candidate>) {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, likelier);
            candidates.truncate(top_k);
            candidates.sort_unstable_by(likelier);
        }
        if top_p < 1.0 {
            keep_mass(candidates, f64::from(top_p));
        }
        if min_p > 0.0 {
            // Weights are relative to the likeliest token, whose weight is 1.
            candidates.retain(|(_, weight)| *weight >= min_p);
        }
    }
}

/// Keeps the fewest tokens, likeliest first, whose share of the weight reaches `share`.
fn keep_mass(candidates: &mut Vec<Candidate>, share: f64) {
    let total: f64 = candidates.iter().map(|(_, w)| f64::from(*w)).sum();
    let enough = |sorted: &[Candidate]| {
        let mut mass = 0.0;
        let reaches = |(_, w): &Candidate| {
            mass += f64::from(*w);
            mass >= share * total
        };
        sorted.iter().position(reaches).map(|last| last + 1)
    };
    // Sorting a whole vocabulary is slow, and a few hundred tokens nearly always suffice.
    if candidates.len() > FIRST_SORTED {
        candidates.select_nth_unstable_by(FIRST_SORTED - 1, likelier);
        candidates[..FIRST_SORTED].sort_unstable_by(likelier);
        if let Some(count) = enough(&candidates[..FIRST_SORTED]) {
            candidates.truncate(count);
            return;
        }
    }
    candidates.sort_unstable_by(likelier);
    let count = enough(candidates).unwrap_or(candidates.len());
    candidates.truncate(count.max(1));
}

/// Likelier first; ties by id, so that the order is one and the same everywhere.
fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The first of the highest logits; NaN is never the highest.
fn argmax(logits: &[f32]) -> Option<u32> {
    /// Maxima side by side: one alone would wait for itself at every logit.
    const LANES: usize = 16;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *logit);
        }
    }
    let highest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    let found = logits.iter().position(|logit| *logit == highest && highest > f32::NEG_INFINITY);
    found.and_then(|id| u32::try_from(id).ok())
}

fn check(s: &Sampling) -> Result<(), Error> {
    let rule = |fine: bool, what: &str| match fine {
        true => Ok(()),
        false => Err(Error::Request(what.to_owned())),
    };
    let finite = |x: f32| x.is_finite();
    rule(finite(s.temperature) && s.temperature >= 0.0, "temperature must be 0 or more")?;
    rule((0.0..=1.0).contains(&s.top_p), "top_p must be between 0 and 1; 1 turns it off")?;
    rule((0.0..=1.0).contains(&s.min_p), "min_p must be between 0 and 1")?;
    rule(
        finite(s.repetition_penalty) && s.repetition_penalty > 0.0,
        "repetition_penalty must be above 0; 1 turns it off",
    )?;
    rule(finite(s.presence_penalty), "presence_penalty must be a number; 0 turns it off")?;
    rule(finite(s.frequency_penalty), "frequency_penalty must be a number; 0 turns it off")?;
    // Minus infinity bans a token: a common way to do so.
    let bias_is_fine = |(_, b): &(u32, f32)| !b.is_nan() && *b < f32::INFINITY;
    rule(s.logit_bias.iter().all(bias_is_fine), "logit_bias must hold numbers")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 0.0];

    fn draws(sampling: Sampling, count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(&sampling, &[]).unwrap();
        (0..count).map(|_| sampler.next(&mut LOGITS.clone()).unwrap()).collect()
    }

    fn hot() -> Sampling {
        Sampling { temperature: 1.0, seed: 7, ..Sampling::default() }
    }

    #[test]
    fn the_highest_is_the_first_of_them_and_never_nan() {
        assert_eq!(argmax(&[]), None);
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), None);
        for place in [0, 7, 15, 16, 31, 32, 39] {
            let mut logits = [-3.0; 40];
            logits[place] = -1.0;
            logits[39] = -1.0;
            logits[(place + 1) % 40] = f32::NAN;
            assert_eq!(argmax(&logits), Some(place as u32), "{place}");
        }
        assert_eq!(argmax(&[f32::NAN, f32::INFINITY, f32::INFINITY]), Some(1));
    }

    #[test]
    fn greedy_takes_the_first_of_the_highest() {
        let mut sampler = Sampler::new(&Sampling::default(), &[]).unwrap();
        assert_eq!(sampler.next(&mut [0.0, 2.0, 2.0]).unwrap(), 1);
        assert_eq!(sampler.next(&mut [f32::NAN, -5.0, f32::NAN]).unwrap(), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let counts = draws(hot(), 20_000).iter().fold([0usize; 5], |mut counts, id| {
            counts[*id as usize] += 1;
            counts
        });
        let total: f32 = LOGITS.iter().map(|l| l.exp()).sum();
        for (count, logit) in counts.iter().zip(LOGITS) {
            let (got, expected) = (*count as f32 / 20_000.0, logit.exp() / total);
            // Four standard errors of a share of 20,000 draws are below 0.0142.
            assert!((got - expected).abs() < 0.0142, "{got} is not {expected}");
        }
    }

    #[test]
    fn chains_of_settings_leave_what_transformers_leaves() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../goldens/sampling/cases.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let numbers = |value: &Value| -> Vec<f32> {
            value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
        };
        let history: Vec<u32> = numbers(&golden["history"]).iter().map(|id| *id as u32).collect();
        let cases = golden["cases"].as_array().unwrap();
        let mut compared = 0;
        for case in cases {
            let mut settings = case["settings"].clone();
            if settings.get("temperature").is_none() {
                settings["temperature"] = 1.0.into();
            }
            let sampler =
                Sampler::new(&serde_json::from_value(settings).unwrap(), &history).unwrap();
            let mut logits = numbers(&golden["logits"][case["logits"].as_str().unwrap()]);
            sampler.adjust(&mut logits);
            let mut sorted = logits.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let k = sampler.sampling.top_k;
            if (1..sorted.len()).contains(&k) && sorted[k - 1] == sorted[k] {
                // Of equals at its edge, transformers' top-k keeps all; ours keeps k.
                continue;
            }
            let best = argmax(&logits).unwrap();
            let kept = sampler.candidates(&logits, logits[best as usize]);
            let total: f64 = kept.iter().map(|(_, w)| f64::from(*w)).sum();
            let mut found: Vec<f64> = kept.iter().map(|(_, w)| f64::from(*w) / total).collect();
            found.sort_by(f64::total_cmp);
            // Which of equal tokens is kept is ours to choose, so probabilities are compared.
            let mut expected = numbers(&case["probabilities"]);
            expected.sort_by(f32::total_cmp);
            assert_eq!(found.len(), expected.len(), "{case}");
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - f64::from(expected)).abs() < 1e-6, "{found} {expected}: {case}");
            }
            compared += 1;
        }
        assert!(compared > 60, "{compared} cases");
    }

    #[test]
    fn the_same_seed_draws_the_same_and_another_does_not() {
        assert_eq!(draws(hot(), 50), draws(hot(), 50));
        assert_ne!(draws(hot(), 50), draws(Sampling { seed: 8, ..hot() }, 50));
    }

    #[test]
    fn top_k_top_p_and_min_p_leave_only_the_likeliest() {
        let drawn = |sampling| {
            let mut ids = draws(sampling, 2000);
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(drawn(hot()), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(Sampling { top_k: 2, ..hot() }), [1, 2]);
        // Shares are .642 .236 .087 .032 .012 / 1.009.
        assert_eq!(drawn(Sampling { top_p: 0.6, ..hot() }), [1]);
        assert_eq!(drawn(Sampling { top_p: 0.8, ..hot() }), [1, 2]);
        assert_eq!(drawn(Sampling { min_p: 0.1, ..hot() }), [0, 1, 2]);
        assert_eq!(drawn(Sampling { min_p: 1.0, ..hot() }), [1]);
    }

    #[test]
    fn top_p_over_a_large_vocabulary_is_the_same_as_over_a_sorted_one() {
        // Flat enough that the first sorted tokens do not suffice.
        let mut flat: Vec<Candidate> =
            (0..2000).map(|i| (i, 1.0 + (i % 7) as f32 * 0.01)).collect();
        keep_mass(&mut flat, 0.5);
        assert!((980..1000).contains(&flat.len()), "{}", flat.len());
        assert!(flat.is_sorted_by(|a, b| likelier(a, b) != Ordering::Greater));
        let mut peaked: Vec<Candidate> = (0..2000).map(|i| (i, 0.5f32.powi(i as i32))).collect();
        keep_mass(&mut peaked, 0.9);
        assert_eq!(peaked.len(), 4);
    }

    #[test]
    fn penalties_and_bias_act_in_their_order() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(0, 1.0), (9, 5.0)],
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(&sampling, &[0, 3]).unwrap();
        sampler.seen.insert(1, 2);
        let mut logits = LOGITS;
        sampler.adjust(&mut logits);
        assert_eq!(logits, [1.0, 3.0 / 2.0 - 0.5 - 0.5, 2.0, -2.0, 0.0]);
    }

    #[test]
    fn a_banned_token_is_never_drawn_and_infinity_always() {
        let sampling = Sampling { logit_bias: vec![(1, f32::NEG_INFINITY)], ..hot() };
        assert!(!draws(sampling, 500).contains(&1));
        let mut sampler = Sampler::new(&hot(), &[]).unwrap();
        assert_eq!(sampler.next(&mut [0.0, f32::INFINITY, f32::NAN]).unwrap(), 1);
    }

    #[test]
    fn logits_without_a_number_are_an_error() {
        let mut sampler = Sampler::new(&hot(), &[]).unwrap();
        let nothing = sampler.next(&mut [f32::NAN, f32::NEG_INFINITY]);
        assert!(matches!(nothing, Err(Error::NoLogits)));
    }

    #[test]
    fn rejects_options_that_make_no_sense() {
        let bad = [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { temperature: f32::NAN, ..Sampling::default() },
            Sampling { top_p: 1.5, ..Sampling::default() },
            Sampling { min_p: 1.5, ..Sampling::default() },
            Sampling { repetition_penalty: 0.0, ..Sampling::default() },
            Sampling { logit_bias: vec![(0, f32::NAN)], ..Sampling::default() },
        ];
        for sampling in bad {
            assert!(Sampler::new(&sampling, &[]).is_err(), "{sampling:?}");
        }
    }
}
