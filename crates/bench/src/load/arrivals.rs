use lathe_base::Seconds;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::random::{exponential, gamma};

/// When requests come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Pattern {
    /// Closed loop: so many users, each of whom sends the next request when the last has ended.
    Closed { users: usize },
    /// Open loop: so many requests a second, however long answers take.
    Open { rate: f64, spacing: Spacing },
    /// All at once.
    Offline,
    /// At the times of a [`super::Trace`], in seconds since its first, in order.
    Timed { at: Vec<Seconds> },
}

/// How regularly requests come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// All gaps are the same.
    Constant,
    /// Users who know nothing of each other: exponential gaps.
    Poisson,
    /// Gaps of a gamma distribution of this shape: below 1 requests come in bursts, 1 is Poisson,
    /// above they are more regular. `vllm bench serve` calls it burstiness.
    Gamma(f64),
}

impl Pattern {
    /// Requests per second by the timetable, where there is one.
    pub fn rate(&self) -> Option<f64> {
        match self {
            Self::Closed { .. } | Self::Offline => None,
            Self::Open { rate, .. } => Some(*rate),
            Self::Timed { at } => {
                let span = at.last()?.0;
                (span > 0.0).then(|| (at.len() - 1) as f64 / span)
            }
        }
    }
}

/// The times, in seconds from the start, at which the first `count` requests are due; fewer where
/// `until` comes first. `None` for a closed loop, which has no timetable.
///
/// The same seed gives the same gaps in units of the mean gap at every rate, so that the levels of
/// a sweep differ by their speed only.
pub fn timetable(
    pattern: &Pattern,
    count: Option<usize>,
    until: Option<Seconds>,
    seed: u64,
) -> Option<Vec<Seconds>> {
    let most = count.unwrap_or(usize::MAX);
    match pattern {
        Pattern::Closed { .. } => None,
        Pattern::Offline => Some(vec![Seconds(0.0); count.unwrap_or(0)]),
        Pattern::Timed { at } => {
            let within = at.iter().take_while(|at| until.is_none_or(|end| at.0 < end.0));
            Some(within.take(most).copied().collect())
        }
        Pattern::Open { rate, spacing } => {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let (mut at, mut times) = (0.0, Vec::new());
            while times.len() < most && until.is_none_or(|end| at < end.0) {
                times.push(Seconds(at));
                let gap = match spacing {
                    Spacing::Constant => 1.0,
                    Spacing::Poisson => exponential(&mut rng),
                    Spacing::Gamma(shape) => gamma(&mut rng, *shape),
                };
                at += gap / rate;
            }
            Some(times)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(rate: f64, spacing: Spacing, seed: u64) -> Vec<f64> {
        let table = timetable(&Pattern::Open { rate, spacing }, Some(4001), None, seed).unwrap();
        table.iter().map(|at| at.0).collect()
    }

    #[test]
    fn rates_are_kept_and_bursts_are_what_gamma_makes_them() {
        for (spacing, variation) in [
            (Spacing::Constant, 0.0),
            (Spacing::Poisson, 1.0),
            (Spacing::Gamma(0.25), 2.0),
            (Spacing::Gamma(4.0), 0.5),
        ] {
            let at = open(8.0, spacing, 3);
            let gaps: Vec<f64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mean = lathe_stats::mean(&gaps).unwrap();
            let spread = lathe_stats::standard_deviation(&gaps).unwrap() / mean;
            assert!((mean * 8.0 - 1.0).abs() < 0.1, "{spacing:?}: {mean}");
            assert!((spread - variation).abs() < 0.1, "{spacing:?}: {spread}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_pattern_at_every_rate() {
        let (slow, fast) = (open(1.0, Spacing::Poisson, 5), open(4.0, Spacing::Poisson, 5));
        assert!(slow.iter().zip(&fast).all(|(s, f)| (s - 4.0 * f).abs() < 1e-6));
        assert_ne!(slow, open(1.0, Spacing::Poisson, 6));
    }

    #[test]
    fn a_timetable_ends_where_it_is_told() {
        let rate = Pattern::Open { rate: 2.0, spacing: Spacing::Constant };
        let times = timetable(&rate, None, Some(Seconds(3.0)), 1).unwrap();
        assert_eq!(times.len(), 6);
        let at = [0.0, 1.0, 5.0].map(Seconds).to_vec();
        let timed = Pattern::Timed { at };
        assert_eq!(timetable(&timed, None, Some(Seconds(5.0)), 1).unwrap().len(), 2);
        assert_eq!(timed.rate(), Some(0.4));
        assert_eq!(timetable(&Pattern::Offline, Some(3), None, 1).unwrap().len(), 3);
        assert_eq!(timetable(&Pattern::Closed { users: 2 }, Some(3), None, 1), None);
    }
}
