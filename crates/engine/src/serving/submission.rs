use std::sync::Arc;

use lathe_api::{Finish, Request};
use lathe_kernels::PAGE_TOKENS;
use lathe_tokens::Tokenizer;

use crate::{
    Error,
    backend::Backend,
    executor::Executor,
    sampler::Sampler,
    serving::{
        log_probs::{LogProbs, LogProbsWanted},
        speculation::Speculation,
    },
};

/// A request and how it is to be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    pub request: Request,
    /// How many texts are wanted. All share the prompt's keys and values; text i is what the same
    /// request gives with the seed [`derived_seed`]`(seed, i)`.
    pub n: usize,
    /// Log probabilities to report with each token.
    pub log_probs: Option<LogProbsWanted>,
    /// Log probabilities of the prompt's own tokens, and of how many of the likeliest in the place
    /// of each ([`Update::Prefilled`]). Nothing of such a prompt is taken from the cache before its
    /// logits were seen, and its passes are shorter.
    pub prompt_log_probs: Option<usize>,
    /// Higher goes first, and may take the place of lower ones; 0 is the usual.
    pub priority: i32,
    /// Whose it is. Clients of the same priority get shares of the same size.
    pub client: Arc<str>,
    /// Who guesses how the text goes on; by default as the model was loaded
    /// ([`crate::Options::speculation`]).
    pub speculation: Option<Speculation>,
}

impl From<Request> for Submission {
    /// One text, without log probabilities of anything, at priority 0, of the client without a name,
    /// speculating as usual.
    fn from(request: Request) -> Self {
        Self {
            request,
            n: 1,
            log_probs: None,
            prompt_log_probs: None,
            priority: 0,
            client: Arc::from(""),
            speculation: None,
        }
    }
}

impl Submission {
    /// Whether it can be run at all.
    ///
    /// # Errors
    /// [`Error::Request`], [`Error::Token`], [`Error::Context`].
    pub(crate) fn check<B: Backend>(
        &self,
        executor: &Executor<B>,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<(), Error> {
        let request = &self.request;
        if request.prompt.is_empty() {
            return Err(Error::Request("the prompt is empty; it needs at least one token".into()));
        }
        let vocab = executor.spec.vocab;
        if let Some(id) = request.prompt.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Token { id: *id, vocab });
        }
        let needed = request.prompt.len().saturating_add(request.max_tokens);
        let context = executor.context.min(executor.pages.counts().all * PAGE_TOKENS);
        if needed > context {
            return Err(Error::Context { needed, context });
        }
        if tokenizer.is_none() && !request.stop_strings.is_empty() {
            return Err(Error::Request("stop strings need a tokenizer".into()));
        }
        if self.n == 0 {
            return Err(Error::Request("n must be at least 1".into()));
        }
        Sampler::new(&request.sampling, &[]).map(|_| ())
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
        /// Where they were asked for: the model's log probabilities of the second token of the
        /// prompt after the first, of the third after both, and so on. The first has none.
        log_probs: Option<Vec<LogProbs>>,
    },
    /// One more token, as [`lathe_api::Event::Token`].
    Token { text: usize, id: u32, piece: String, log_probs: Option<LogProbs> },
    /// One text has ended.
    Finished { text: usize, finish: Finish, generated: usize },
    /// All of it has ended; nothing comes after.
    Done(Result<Served, Error>),
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
