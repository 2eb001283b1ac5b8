use std::collections::HashMap;

use crate::serving::speculation::{
    proposer::{Ask, Guess, Name, Price, Proposer},
    rates::CLASSES,
};

/// Prompt look-up: finds where the text's last tokens came before and guesses that it goes on as it
/// did there.
///
/// The longest such run of tokens decides, of equal ones the latest; a guess's class is its length,
/// which grows with each guess that is right. Runs are found as in LZ77 compressors, by a chain of
/// the places of each pair of tokens, so that a token costs the same however long the text is.
///
/// **Source**: Saxena 2023 (prompt lookup decoding), Yang et al. 2023 (arXiv 2304.04487).
#[derive(Debug, Default)]
pub(crate) struct Lookup(HashMap<Name, Index>);

/// Where the pairs of neighbouring tokens of one text are.
#[derive(Debug, Default)]
struct Index {
    /// The latest place of each pair: that of its second token.
    latest: HashMap<[u32; 2], u32>,
    /// For each place the one before it with the same pair.
    before: Vec<Option<u32>>,
}

/// Places looked at for one guess.
const TRIES: usize = 16;

impl Proposer for Lookup {
    fn price(&self, _: &[&mut Ask<'_>]) -> Price {
        Price::default()
    }

    fn propose(&mut self, asks: &mut [&mut Ask<'_>]) -> f64 {
        for ask in asks {
            let index = self.0.entry(ask.name).or_default();
            index.grow(ask.tokens);
            ask.guesses = index.guesses(ask.tokens, ask.most);
        }
        0.0
    }

    fn forget(&mut self, name: Name) {
        self.0.remove(&name);
    }

    fn usual(&self, class: u8) -> f32 {
        let length = f32::from(class);
        length / (length + 3.0)
    }
}

impl Index {
    /// Takes in what is new of a text.
    fn grow(&mut self, tokens: &[u32]) {
        for at in self.before.len()..tokens.len() {
            let pair = at.checked_sub(1).map(|first| [tokens[first], tokens[at]]);
            self.before.push(pair.and_then(|pair| self.latest.insert(pair, at as u32)));
        }
    }

    fn guesses(&self, tokens: &[u32], most: usize) -> Vec<Guess> {
        let Some((length, end)) = self.longest(tokens) else { return Vec::new() };
        let mut guesses: Vec<Guess> = Vec::with_capacity(most);
        for i in 0..most {
            // Past the end of the text its own continuation is copied.
            let from = end + 1 + i;
            let token = match tokens.get(from) {
                Some(token) => *token,
                None => guesses[from - tokens.len()].token,
            };
            guesses.push(Guess { token, class: (length + i).min(CLASSES - 1) as u8 });
        }
        guesses
    }

    /// The longest run of tokens that ends the text and came before: its length, as far as it
    /// matters, and where it ended.
    fn longest(&self, tokens: &[u32]) -> Option<(usize, usize)> {
        let last = tokens.len().checked_sub(1)?;
        let mut best = None;
        let mut place = self.before[last];
        for _ in 0..TRIES {
            let Some(end) = place.map(|end| end as usize) else { break };
            let pairs = tokens[..=end].iter().rev().zip(tokens.iter().rev());
            let length = pairs.take(CLASSES - 1).take_while(|(a, b)| a == b).count();
            if best.is_none_or(|(longest, _)| length > longest) {
                best = Some((length, end));
            }
            if length == CLASSES - 1 {
                break;
            }
            place = self.before[end];
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(tokens: &[u32], most: usize) -> Vec<(u32, u8)> {
        let mut index = Index::default();
        // As it grows, token by token.
        (0..=tokens.len()).for_each(|end| index.grow(&tokens[..end]));
        index.guesses(tokens, most).iter().map(|guess| (guess.token, guess.class)).collect()
    }

    #[test]
    fn nothing_is_guessed_where_the_last_two_tokens_are_new_together() {
        assert!(guess(&[], 4).is_empty());
        assert!(guess(&[1], 4).is_empty());
        assert!(guess(&[1, 2, 3, 2], 4).is_empty());
        assert!(guess(&[2, 2], 4).is_empty());
        assert!(guess(&[1, 2, 3, 1, 2], 0).is_empty());
    }

    #[test]
    fn the_longest_run_decides_and_of_equals_the_latest() {
        assert_eq!(guess(&[1, 2, 3, 4, 1, 2], 2), [(3, 2), (4, 3)]);
        assert_eq!(guess(&[1, 2, 3, 1, 2, 4, 1, 2], 1), [(4, 2)]);
        assert_eq!(guess(&[9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], 1), [(3, 3)]);
    }

    #[test]
    fn a_text_that_repeats_itself_goes_on_past_its_end() {
        let found = guess(&[1, 2, 3, 1, 2, 3, 1, 2], 5);
        assert_eq!(found, [(3, 5), (1, 6), (2, 7), (3, 8), (1, 9)]);
        let same = guess(&[7; 40], 3);
        assert_eq!(same, [(7, 15); 3]);
    }
}
