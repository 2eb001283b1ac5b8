use lathe_kernels::PAGE_TOKENS;

/// A prompt that is to be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) priority: i32,
    /// Positions that the cache has.
    pub(crate) start: usize,
    /// Tokens that are missing.
    pub(crate) rest: usize,
}

/// How many tokens of each prompt to compute in a step of `budget` tokens; `prompts` are in the
/// order of their rank.
///
/// A higher priority takes what it needs. Among equals the first has half of the budget, so that
/// prompts are finished one after the other, and the rest is shared out evenly, so that a short
/// prompt does not wait for a long one.
pub(crate) fn shares(prompts: &[Prompt], budget: usize) -> Vec<usize> {
    let mut shares = vec![0; prompts.len()];
    let mut left = budget;
    let mut from = 0;
    while from < prompts.len() {
        let alike = |prompt: &&Prompt| prompt.priority == prompts[from].priority;
        let end = from + prompts[from..].iter().take_while(alike).count();
        let others: usize = prompts[from + 1..end].iter().map(|prompt| prompt.rest).sum();
        let most = left.div_ceil(2).max(left.saturating_sub(others));
        shares[from] = whole(&prompts[from], most);
        left -= shares[from];
        let mut order: Vec<usize> = (from + 1..end).collect();
        order.sort_by_key(|at| prompts[*at].rest);
        for (done, at) in order.iter().enumerate() {
            shares[*at] = whole(&prompts[*at], left / (order.len() - done));
            left -= shares[*at];
        }
        // What the others could not use.
        let more = whole(&prompts[from], shares[from] + left);
        left -= more.saturating_sub(shares[from]);
        shares[from] = more.max(shares[from]);
        from = end;
    }
    shares
}

/// At most so many tokens, up to the end of a page where the prompt goes on after them.
fn whole(prompt: &Prompt, most: usize) -> usize {
    if most >= prompt.rest {
        return prompt.rest;
    }
    let end = (prompt.start + most) / PAGE_TOKENS * PAGE_TOKENS;
    if end > prompt.start { end - prompt.start } else { most }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(all: &[(i32, usize, usize)]) -> Vec<Prompt> {
        let prompt = |&(priority, start, rest)| Prompt { priority, start, rest };
        all.iter().map(prompt).collect()
    }

    #[test]
    fn one_prompt_has_the_whole_budget() {
        assert_eq!(shares(&prompts(&[(0, 0, 1000)]), 256), [256]);
        assert_eq!(shares(&prompts(&[(0, 0, 100)]), 256), [100]);
        assert_eq!(shares(&prompts(&[(0, 5, 100)]), 10), [10]);
        assert!(shares(&[], 256).is_empty());
    }

    #[test]
    fn short_prompts_pass_a_long_one_that_came_before() {
        assert_eq!(shares(&prompts(&[(0, 0, 5000), (0, 0, 20), (0, 0, 30)]), 256), [192, 20, 30]);
        assert_eq!(shares(&prompts(&[(0, 0, 5000), (0, 0, 5000)]), 256), [128, 128]);
    }

    #[test]
    fn a_higher_priority_takes_what_it_needs() {
        assert_eq!(shares(&prompts(&[(1, 0, 300), (0, 0, 20)]), 256), [256, 0]);
        assert_eq!(shares(&prompts(&[(1, 0, 200), (0, 0, 20), (0, 0, 90)]), 256), [200, 20, 32]);
    }

    #[test]
    fn no_more_is_given_than_there_is() {
        for budget in 0..200 {
            let all = prompts(&[(1, 7, 33), (0, 0, 70), (0, 31, 12), (0, 64, 2), (-3, 1, 90)]);
            let shares = shares(&all, budget);
            assert!(shares.iter().sum::<usize>() <= budget);
            assert!(shares.iter().zip(&all).all(|(share, prompt)| *share <= prompt.rest));
            assert!(budget == 0 || shares.iter().any(|share| *share > 0));
        }
    }
}
