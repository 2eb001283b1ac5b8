use crate::serving::speculation::{proposer::Price, times::PassTimes};

/// How many of each text's guesses to check in a pass of `plain` tokens besides, `most` in all, so
/// that tokens come fastest; `chances` says for each guess how likely it and all before it are
/// right.
///
/// A guess is worth its chance in tokens, so the likeliest are taken first; what a pass takes with
/// one more decides how many. 0 for all where guessing does not pay.
pub(crate) fn choose(
    times: &PassTimes,
    plain: usize,
    most: usize,
    chances: &[Vec<f32>],
) -> Vec<usize> {
    let mut best = vec![0; chances.len()];
    let Some(alone) = times.expect(plain) else { return best };
    let mut taken = best.clone();
    let mut tokens = plain as f64;
    let mut rate = tokens / alone;
    for guesses in 1..=most.min(times.reach().saturating_sub(plain)) {
        let next = |at: usize| chances[at].get(taken[at]).copied();
        let likelier = |a: &usize, b: &usize| {
            next(*a).unwrap_or(-1.0).total_cmp(&next(*b).unwrap_or(-1.0)).then(b.cmp(a))
        };
        let Some(at) = (0..chances.len()).max_by(likelier) else { break };
        let Some(chance) = next(at) else { break };
        taken[at] += 1;
        tokens += f64::from(chance);
        let Some(seconds) = times.expect(plain + guesses) else { break };
        if tokens / seconds > rate {
            rate = tokens / seconds;
            best.clone_from(&taken);
        }
    }
    best
}

/// How far to guess.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Depth {
    /// Guesses at each text.
    pub(crate) guesses: usize,
    /// Those of them, at all texts together, that are expected to be right.
    pub(crate) right: f64,
    /// Seconds that this is expected to save with each pass.
    pub(crate) saved: f64,
}

/// How many guesses to make at each text, so that tokens come fastest, where guessing has its price;
/// `chances` says for each text how likely any guess is right. The rest as [`choose`].
pub(crate) fn depth(
    times: &PassTimes,
    (plain, most): (usize, usize),
    price: Price,
    chances: &[f32],
) -> Depth {
    let mut best = Depth::default();
    let Some(alone) = times.expect(plain) else { return best };
    let mut rate = plain as f64 / alone;
    let (mut right, usual) = (0.0, rate);
    let most = most.min(times.reach().saturating_sub(plain));
    for guesses in 1..=most / chances.len().max(1) {
        let power = i32::try_from(guesses).unwrap_or(i32::MAX);
        right += chances.iter().map(|chance| f64::from(*chance).powi(power)).sum::<f64>();
        let Some(pass) = times.expect(plain + guesses * chances.len()) else { break };
        let seconds = pass + price.start + guesses as f64 * price.each;
        let tokens = plain as f64 + right;
        if tokens / seconds > rate {
            rate = tokens / seconds;
            best = Depth { guesses, right, saved: tokens / usual - seconds };
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(all: &[(usize, f64)]) -> PassTimes {
        let mut times = PassTimes::default();
        all.iter().for_each(|(tokens, seconds)| times.measure(*tokens, *seconds));
        times
    }

    fn falling(by: f32) -> Vec<f32> {
        (1..=16).map(|i| by.powi(i)).collect()
    }

    #[test]
    fn where_a_token_more_costs_a_pass_nothing_is_guessed() {
        let dear = times(&[(1, 1.0), (2, 2.0), (17, 17.0)]);
        assert_eq!(choose(&dear, 1, 16, &[falling(0.9)]), [0]);
        let cheap = times(&[(1, 1.0), (2, 1.02), (17, 1.32)]);
        assert_eq!(choose(&cheap, 1, 16, &[falling(0.99)]), [16]);
        assert_eq!(choose(&cheap, 1, 5, &[falling(0.99)]), [5]);
        assert_eq!(choose(&cheap, 1, 16, &[falling(0.01)]), [0]);
        // Nobody knows what 17 tokens take.
        let new = times(&[(1, 1.0), (3, 1.0)]);
        assert_eq!(choose(&new, 1, 16, &[falling(0.99)]), [5]);
    }

    #[test]
    fn as_many_are_guessed_as_give_the_most_tokens_per_second() {
        // 1.7 / 1.1, 2.19 / 1.2, 2.533 / 1.3, 2.773 / 1.4, 2.941 / 1.5, 3.059 / 1.6 …
        let passes = times(&[(1, 1.0), (2, 1.1), (17, 2.6)]);
        assert_eq!(choose(&passes, 1, 16, &[falling(0.7)]), [4]);
        // The step that only pays with more behind it is taken too.
        let steps = times(&[(1, 1.0), (2, 1.9), (3, 1.9), (4, 1.9), (5, 1.9), (6, 9.0)]);
        assert_eq!(choose(&steps, 1, 16, &[falling(0.9)]), [4]);
    }

    #[test]
    fn a_draft_goes_as_far_as_its_own_time_allows() {
        let passes = times(&[(1, 1.0), (2, 1.1), (17, 2.6)]);
        let deep = |each| depth(&passes, (1, 16), Price { each, ..Price::default() }, &[0.7]);
        assert_eq!(deep(0.0).guesses, 4);
        let (cheap, dear) = (deep(0.1), deep(0.5));
        assert_eq!(cheap.guesses, 3);
        assert!((cheap.right - 1.533).abs() < 1e-3);
        assert!((cheap.saved - (2.533 - 1.3 - 0.3)).abs() < 1e-3);
        // 1.7 tokens in 1.6 passes still pay.
        assert_eq!(dear.guesses, 1);
        assert_eq!(deep(0.7), Depth::default());
        let start = Price { start: 0.7, ..Price::default() };
        assert_eq!(depth(&passes, (1, 1), start, &[0.7]), Depth::default());
        // Two texts, each of whose guesses is a token of the pass.
        assert!(depth(&passes, (2, 5), Price::default(), &[0.9, 0.9]).guesses <= 2);
    }

    #[test]
    fn the_likelier_text_has_more_guesses_checked() {
        let passes = times(&[(2, 1.0), (3, 1.1), (18, 2.6)]);
        let both = choose(&passes, 2, 16, &[falling(0.9), falling(0.3), vec![]]);
        assert!(both[0] > both[1] && both[2] == 0, "{both:?}");
        assert_eq!(choose(&PassTimes::default(), 1, 16, &[falling(0.9)]), [0]);
    }
}
