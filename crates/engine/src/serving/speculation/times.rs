/// What a pass takes, by the tokens in it: running estimates of what was measured.
///
/// Everything slows down together as texts grow or others use the machine, so each measurement
/// moves all estimates a little and its own more.
#[derive(Clone, Debug, Default)]
pub(crate) struct PassTimes {
    /// Seconds of a pass of index + 1 tokens, and how often it was measured.
    measured: Vec<Option<(f64, u32)>>,
}

/// Passes of more tokens than this are not told apart: nothing is guessed there.
pub(crate) const MOST_TOKENS: usize = 64;

/// What one more token is taken to add to a pass of one, before it is known.
const SLOPE: f64 = 0.25;

impl PassTimes {
    /// A pass of `tokens` tokens took so many seconds.
    pub(crate) fn measure(&mut self, tokens: usize, seconds: f64) {
        if !(1..=MOST_TOKENS).contains(&tokens) || seconds.is_nan() || seconds <= 0.0 {
            return;
        }
        if self.measured.is_empty() {
            self.measured.resize(MOST_TOKENS, None);
        }
        let Some((before, count)) = self.measured[tokens - 1] else {
            self.measured[tokens - 1] = Some((seconds, 1));
            return;
        };
        // A pass that was interrupted says little of the next.
        let ratio = (seconds / before).clamp(0.5, 2.0);
        let own = (1.0 / f64::from(count + 1)).max(0.15);
        for (at, other) in self.measured.iter_mut().enumerate() {
            if let Some((estimate, _)) = other {
                *estimate *= ratio.powf(if at + 1 == tokens { own } else { own / 4.0 });
            }
        }
        self.measured[tokens - 1] = Some((before * ratio.powf(own), count.saturating_add(1)));
    }

    /// The most tokens that a pass may have: twice as many as any before, so that nobody is surprised
    /// by what it takes.
    pub(crate) fn reach(&self) -> usize {
        2 * self.measured.iter().rposition(Option::is_some).map_or(0, |at| at + 1)
    }

    /// Seconds that a pass of so many tokens takes; `None` where nothing was measured yet.
    pub(crate) fn expect(&self, tokens: usize) -> Option<f64> {
        let known = |at: usize| self.measured.get(at - 1).copied().flatten().map(|(s, _)| s);
        let below = (1..=tokens.min(MOST_TOKENS)).rev().find_map(|at| Some((at, known(at)?)));
        let above = (tokens + 1..=MOST_TOKENS).find_map(|at| Some((at, known(at)?)));
        let line = |(a, of_a): (usize, f64), (b, of_b): (usize, f64)| {
            of_a + (of_b - of_a) * (tokens as f64 - a as f64) / (b as f64 - a as f64)
        };
        let alone = |(at, seconds): (usize, f64)| {
            let of = |tokens: usize| 1.0 + SLOPE * (tokens as f64 - 1.0);
            seconds * of(tokens) / of(at)
        };
        match (below, above) {
            (Some(below), _) if below.0 == tokens => Some(below.1),
            (Some(below), Some(above)) => Some(line(below, above)),
            (Some(below), None) => {
                let before = (1..below.0).rev().find_map(|at| Some((at, known(at)?)));
                // Not less than the pass that was measured.
                Some(before.map_or_else(|| alone(below), |b| line(b, below)).max(below.1))
            }
            (None, Some(above)) => Some(alone(above)),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_lies_between_or_beyond_what_was() {
        let mut times = PassTimes::default();
        assert_eq!((times.expect(3), times.reach()), (None, 0));
        times.measure(1, 1.0);
        assert_eq!(times.expect(1), Some(1.0));
        assert_eq!(times.expect(5), Some(1.0 + 4.0 * SLOPE));
        times.measure(5, 1.8);
        assert!((times.expect(3).unwrap() - 1.4).abs() < 1e-9);
        assert!((times.expect(6).unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(times.reach(), 10);
        times.measure(64, 9.0);
        assert!(times.expect(200).unwrap() >= 9.0);
        let mut times = PassTimes::default();
        times.measure(5, 2.0);
        assert!(times.expect(1).unwrap() < 2.0);
    }

    #[test]
    fn estimates_follow_a_machine_that_slows_down_and_shrug_off_one_hiccup() {
        let mut times = PassTimes::default();
        for _ in 0..30 {
            times.measure(1, 1.0);
        }
        times.measure(4, 1.3);
        times.measure(1, 50.0);
        assert!(times.expect(1).unwrap() < 1.15);
        for _ in 0..40 {
            times.measure(1, 2.0);
        }
        assert!((times.expect(1).unwrap() - 2.0).abs() < 0.1);
        // What was not measured meanwhile slowed down with it.
        assert!(times.expect(4).unwrap() > 1.5);
    }
}
