use std::sync::Arc;

use lathe_api::{Finish, Request};

use crate::serving::log_probs::{LogProbs, LogProbsWanted};

/// A request and how it is to be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    pub request: Request,
    /// How many texts are wanted. All share the prompt's keys and values; text i is what the same
    /// request gives with the seed [`derived_seed`]`(seed, i)`.
    pub n: usize,
    /// Log probabilities to report with each token.
    pub log_probs: Option<LogProbsWanted>,
    /// Higher goes first, and may take the place of lower ones; 0 is the usual.
    pub priority: i32,
    /// Whose it is. Clients of the same priority get shares of the same size.
    pub client: Arc<str>,
}

impl From<Request> for Submission {
    /// One text, without log probabilities, at priority 0, of the client without a name.
    fn from(request: Request) -> Self {
        Self { request, n: 1, log_probs: None, priority: 0, client: Arc::from("") }
    }
}

/// The seed of text `index` of a request that wants several. Text 0 has the request's own; the
/// others are far apart, so that they are not those of a request with a neighbouring seed.
pub fn derived_seed(seed: u64, index: usize) -> u64 {
    // Multiples of 2⁶⁴ / φ are spread evenly (Knuth, The Art of Computer Programming 3, 6.4).
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    seed.wrapping_add(STEP.wrapping_mul(index as u64))
}

/// What happens to a submission. `text` says which of its texts is meant.
#[derive(Debug)]
#[non_exhaustive]
pub enum Update {
    /// The prompt is processed. Comes once, before the first token.
    Prefilled {
        /// Tokens of the prompt.
        tokens: usize,
        /// Those of them that were computed before, for another request.
        cached: usize,
    },
    /// One more token, as [`lathe_api::Event::Token`].
    Token { text: usize, id: u32, piece: String, log_probs: Option<LogProbs> },
    /// One text has ended.
    Finished { text: usize, finish: Finish, generated: usize },
    /// All of it has ended; nothing comes after.
    Done(Result<Served, crate::Error>),
}

/// What a submission came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Tokens of the prompt, counted once for all texts.
    pub prompt_tokens: usize,
    /// Those of them whose keys and values were taken from the cache.
    pub cached_tokens: usize,
    /// Tokens of all texts.
    pub generated_tokens: usize,
}
