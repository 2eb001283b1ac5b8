use lathe_base::Bytes;
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{Error, fingerprint::hex};

/// Token sequences that stand for what a model will be fed.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    pub sequences: Vec<Vec<u32>>,
    /// Where they come from.
    pub about: CalibrationData,
}

/// What was calibrated with: for the record.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CalibrationData {
    /// The name of the texts.
    pub name: String,
    /// SHA-256 of the texts, in hexadecimal.
    pub sha256: String,
    /// Documents that tokens were taken from.
    pub documents: usize,
    pub samples: usize,
    pub tokens: u64,
    pub seed: u64,
    /// SHA-256 of the token ids as they were used.
    pub tokens_sha256: String,
}

/// How sequences are drawn from texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Draw {
    /// Sequences.
    pub samples: usize,
    /// Tokens of each.
    pub length: usize,
    pub seed: u64,
}

impl Default for Draw {
    /// As many tokens as AWQ's authors use (128 × 512).
    fn default() -> Self {
        Self { samples: 128, length: 512, seed: 0 }
    }
}

impl Calibration {
    /// Draws sequences from tokenized documents.
    ///
    /// Documents take turns, in random order, each giving a run of at most `length` tokens from
    /// where its last one ended, the first from a random place; so a long document counts no more
    /// than a short one as long as the latter has tokens left. Runs follow one another in the
    /// sequences, which all have `length` tokens. Where the texts are too short for all samples
    /// there are fewer; the last sequence may then be shorter.
    ///
    /// **Errors**: texts without tokens.
    pub fn draw(
        documents: &[Vec<u32>],
        draw: &Draw,
        (name, sha256): (&str, &str),
    ) -> Result<Self, Error> {
        let length = draw.length.max(1);
        let wanted = draw.samples.max(1).saturating_mul(length);
        let mut random = ChaCha8Rng::seed_from_u64(draw.seed);
        let mut order: Vec<Turns<'_>> = documents
            .iter()
            .filter(|tokens| !tokens.is_empty())
            .map(|tokens| Turns::new(tokens, length, &mut random))
            .collect();
        order.shuffle(&mut random);
        let mut stream: Vec<u32> = Vec::new();
        while stream.len() < wanted {
            let before = stream.len();
            for document in &mut order {
                if stream.len() < wanted {
                    stream.extend_from_slice(document.next(length));
                }
            }
            if stream.len() == before {
                break;
            }
        }
        stream.truncate(wanted);
        if stream.is_empty() {
            return Err(Error::NoTexts { name: name.to_owned() });
        }
        let used = order.iter().filter(|document| document.used > 0).count();
        let sequences: Vec<Vec<u32>> = stream.chunks(length).map(<[u32]>::to_vec).collect();
        let mut calibration = Self::of(sequences, name);
        calibration.about.sha256 = sha256.to_owned();
        calibration.about.documents = used;
        calibration.about.seed = draw.seed;
        Ok(calibration)
    }

    /// Given sequences.
    pub fn of(sequences: Vec<Vec<u32>>, name: &str) -> Self {
        let mut hash = Sha256::new();
        for sequence in &sequences {
            hash.update((sequence.len() as u64).to_le_bytes());
            sequence.iter().for_each(|token| hash.update(token.to_le_bytes()));
        }
        let about = CalibrationData {
            name: name.to_owned(),
            documents: sequences.len(),
            samples: sequences.len(),
            tokens: sequences.iter().map(|s| s.len() as u64).sum(),
            tokens_sha256: hex(&hash.finalize()),
            ..CalibrationData::default()
        };
        Self { sequences, about }
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.sequences.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Bytes of f32 activations of `width` for all tokens.
    pub(crate) fn bytes(&self, width: usize) -> Bytes {
        Bytes(self.about.tokens * width as u64 * 4)
    }
}

/// A document that gives its tokens run by run.
struct Turns<'a> {
    tokens: &'a [u32],
    at: usize,
    used: usize,
}

impl<'a> Turns<'a> {
    /// Starts at a random place, but where a whole run still follows.
    fn new(tokens: &'a [u32], length: usize, random: &mut ChaCha8Rng) -> Self {
        let at = random.random_range(0..=tokens.len().saturating_sub(length));
        Self { tokens, at, used: 0 }
    }

    /// The next run; a document that is at its end goes on at its beginning, up to where it began.
    fn next(&mut self, length: usize) -> &'a [u32] {
        let left = self.tokens.len() - self.used;
        if self.at == self.tokens.len() {
            self.at = 0;
        }
        let end = (self.at + length.min(left)).min(self.tokens.len());
        let run = &self.tokens[self.at..end];
        self.used += run.len();
        self.at = end;
        run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(documents: &[Vec<u32>], samples: usize, length: usize) -> Calibration {
        let draw = Draw { samples, length, seed: 7 };
        Calibration::draw(documents, &draw, ("test", "")).unwrap()
    }

    #[test]
    fn a_long_document_counts_no_more_than_short_ones() {
        let documents = [vec![1; 10_000], vec![2; 100], vec![3; 100]];
        let drawn = draw(&documents, 12, 20);
        let count = |id| drawn.sequences.iter().flatten().filter(|token| **token == id).count();
        assert_eq!([count(1), count(2), count(3)], [80, 80, 80]);
        assert!(drawn.sequences.iter().all(|sequence| sequence.len() == 20));
    }

    #[test]
    fn every_token_is_used_once_before_the_texts_run_out() {
        let documents: Vec<Vec<u32>> = vec![(0..57).collect(), (100..103).collect(), vec![]];
        let drawn = draw(&documents, 100, 8);
        let mut all: Vec<u32> = drawn.sequences.concat();
        all.sort_unstable();
        assert_eq!(all, (0..57).chain(100..103).collect::<Vec<_>>());
        assert_eq!((drawn.about.documents, drawn.about.tokens, drawn.about.samples), (2, 60, 8));
    }

    #[test]
    fn the_seed_decides_and_texts_without_tokens_are_refused() {
        let documents: Vec<Vec<u32>> = (0..9).map(|i| (i * 100..i * 100 + 90).collect()).collect();
        assert_eq!(draw(&documents, 4, 16), draw(&documents, 4, 16));
        let other = Draw { samples: 4, length: 16, seed: 8 };
        let other = Calibration::draw(&documents, &other, ("test", "")).unwrap();
        assert_ne!(other.about.tokens_sha256, draw(&documents, 4, 16).about.tokens_sha256);
        let empty = Calibration::draw(&[vec![]], &Draw::default(), ("empty.txt", ""));
        assert!(empty.unwrap_err().to_string().contains("empty.txt"));
    }
}
