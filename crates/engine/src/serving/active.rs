use std::{cmp::Reverse, sync::Arc};

use lathe_api::{Finish, Sampling};
use lathe_grammar::Guide;
use lathe_kernels::PAGE_TOKENS;
use lathe_tokens::Tokenizer;

use crate::{
    Error,
    backend::Backend,
    executor::{Executor, Feed, Sequence, Want},
    prefix::{Entry, Link},
    reader::Reader,
    sampler::Sampler,
    serving::{
        log_probs::{Distribution, LogProbs, OfPrompt},
        speculation::{Ask, CLASSES, Guess, Name, Rates, Speculation},
        submission::{Submission, Update, derived_seed},
    },
};

/// Clients whose requests panic in tests: when a token is chosen, and in a pass.
#[cfg(test)]
pub(super) const PANICS: &str = "panics";
#[cfg(test)]
pub(super) const BREAKS: &str = "breaks";

/// One text of a submission: its tokens, what the cache holds of them, and how it goes on.
///
/// It can lose its pages at any time and be computed anew: nothing that decides on its text is in
/// the cache alone.
pub(crate) struct Active<'a> {
    /// Which submission, and which of its texts.
    pub(crate) id: u64,
    pub(crate) text: usize,
    pub(crate) submission: Arc<Submission>,
    pub(crate) sequence: Sequence,
    sampler: Sampler,
    /// What may come next, where the request has a grammar.
    guide: Option<Guide>,
    reader: Reader<'a>,
    /// Prompt and generation; the sequence holds the first of them.
    tokens: Vec<u32>,
    /// Log probabilities of the prompt, from when they are asked for until they are told.
    of_prompt: Option<OfPrompt>,
    /// Positions before this one are rotated as in a sequence of this length, each later one as if
    /// it were the last.
    horizon: usize,
    pub(crate) generated: usize,
    /// It has had pages before.
    pub(crate) begun: bool,
    /// Tokens of the next pass, guesses not counted.
    pub(crate) planned: usize,
    /// Guesses at what follows, computed with the last token in the next pass.
    pub(crate) guesses: Vec<Guess>,
    /// How often guesses were right.
    pub(crate) rates: Rates,
    /// What the next pass is fed where that is more than [`Active::tokens`].
    fed: Vec<u32>,
    pub(crate) finish: Option<Finish>,
}

impl<'a> Active<'a> {
    /// # Errors
    /// [`Error::Request`] names the option that makes no sense.
    pub(crate) fn new(
        (id, text): (u64, usize),
        submission: &Arc<Submission>,
        guide: Option<Guide>,
        sequence: Sequence,
        tokenizer: Option<&'a Tokenizer>,
    ) -> Result<Self, Error> {
        let request = &submission.request;
        if request.grammar.is_some() != guide.is_some() {
            return Err(Error::Request("the request's grammar was not compiled".into()));
        }
        let seed = derived_seed(request.sampling.seed, text);
        let sampling = Sampling { seed, ..request.sampling.clone() };
        // All texts have the same prompt; the first computes it.
        let of_prompt = submission.prompt_log_probs.filter(|_| text == 0).map(OfPrompt::new);
        Ok(Self {
            id,
            text,
            submission: Arc::clone(submission),
            sequence,
            sampler: Sampler::new(&sampling, &request.prompt)?,
            guide,
            reader: Reader::new(tokenizer, &request.stop_strings),
            tokens: request.prompt.clone(),
            of_prompt,
            horizon: request.prompt.len(),
            generated: 0,
            begun: false,
            planned: 0,
            guesses: Vec::new(),
            rates: Rates::of_text(),
            fed: Vec::new(),
            finish: None,
        })
    }

    /// Who goes first: the higher priority, then the older.
    pub(crate) fn rank(&self) -> (Reverse<i32>, u64, usize) {
        (Reverse(self.submission.priority), self.id, self.text)
    }

    pub(crate) fn name(&self) -> Name {
        (self.id, self.text)
    }

    /// Tokens that the next token waits for.
    pub(crate) fn rest(&self) -> usize {
        self.tokens.len() - self.sequence.len()
    }

    /// Whether each pass gives a token.
    pub(crate) fn decodes(&self) -> bool {
        self.rest() == 1
    }

    /// Positions that its cache must have room for, up to the end of its text.
    pub(crate) fn most(&self) -> usize {
        self.submission.request.prompt.len() + self.submission.request.max_tokens
    }

    /// Positions so far.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The last token.
    pub(crate) fn last(&self) -> u32 {
        self.tokens.last().copied().unwrap_or_default()
    }

    /// See [`Feed::horizon`].
    pub(crate) fn horizon(&self) -> usize {
        self.horizon
    }

    /// How many tokens may follow the next one.
    pub(crate) fn may_guess(&self) -> usize {
        self.most().saturating_sub(self.len() + 1)
    }

    /// What a proposer is asked.
    pub(crate) fn ask(&self, way: Speculation, most: usize) -> Ask<'_> {
        let Self { tokens, sampler, rates, .. } = self;
        Ask {
            name: self.name(),
            way,
            tokens,
            sampler,
            rates,
            most,
            left: self.may_guess(),
            chances: [0.0; CLASSES],
            floor: 0.0,
            guesses: Vec::new(),
        }
    }

    /// Starts over where the text grows past the length at which its rope changes: all its
    /// positions are rotated differently from there on.
    pub(crate) fn cross(&mut self, switch: Option<usize>, keep_pages: bool) {
        let Some(switch) = switch else { return };
        if self.tokens.len() > switch && self.horizon <= switch {
            self.horizon = switch + 1;
            if keep_pages { self.sequence.forget() } else { self.sequence.clear() }
        }
    }

    /// Positions that need not be computed, where somebody else has: those whose logits are not
    /// wanted. The last token's are always.
    fn findable(&self) -> usize {
        self.unseen().unwrap_or(self.tokens.len() - 1)
    }

    /// The first position of the prompt whose logits are wanted and were not seen yet.
    fn unseen(&self) -> Option<usize> {
        let end = self.submission.request.prompt.len() - 1;
        self.of_prompt.as_ref().map(OfPrompt::seen).filter(|seen| *seen < end)
    }

    /// Whether logits of the prompt are wanted that no pass has given yet.
    pub(crate) fn is_watched(&self) -> bool {
        self.unseen().is_some()
    }

    /// Rows of logits of the next pass that tell of the prompt. They come before the one that the
    /// next token is chosen from.
    pub(crate) fn watched(&self) -> usize {
        let done = self.planned == self.rest();
        if self.is_watched() { self.planned - usize::from(done) } else { 0 }
    }

    /// Takes in the first of the rows that [`Active::watched`] counted, after the pass.
    pub(crate) fn watch<'r>(&mut self, rows: impl Iterator<Item = &'r mut [f32]>) {
        let start = self.sequence.len() - self.planned;
        let prompt = &self.submission.request.prompt;
        if let Some(of_prompt) = &mut self.of_prompt {
            of_prompt.see(prompt, start, rows);
        }
    }

    /// Takes the log probabilities of the prompt, which is complete.
    pub(crate) fn told(&mut self) -> Option<Vec<LogProbs>> {
        self.of_prompt.take().map(OfPrompt::into_found)
    }

    /// Takes over what others have computed, of what need not be. Gives the tokens gained.
    pub(crate) fn adopt<B: Backend>(&mut self, executor: &Executor<B>) -> usize {
        let end = self.findable();
        let Self { sequence, tokens, horizon, .. } = self;
        let start = sequence.len();
        sequence.adopt((start..end).map(|at| entry(executor, tokens, *horizon, at)))
    }

    /// The page that it computes next, where others could take it over: which chain it continues,
    /// and with what.
    pub(crate) fn next_page<B: Backend>(
        &self,
        executor: &Executor<B>,
    ) -> Option<(Link, Vec<Entry>)> {
        let (known, link) = self.sequence.known();
        let entry = |at| entry(executor, &self.tokens, self.horizon, at);
        let page = known..known + PAGE_TOKENS;
        (page.end <= self.findable()).then(|| (link, page.map(entry).collect()))
    }

    /// Lets others use what it has computed.
    pub(crate) fn publish<B: Backend>(&mut self, executor: &Executor<B>) {
        let Self { sequence, tokens, horizon, .. } = self;
        sequence.publish(|at| entry(executor, tokens, *horizon, at));
    }

    /// Its part of the next pass.
    pub(crate) fn feed(&mut self) -> Feed<'_> {
        #[cfg(test)]
        assert!(&*self.submission.client != BREAKS, "a test wants it");
        let done = self.planned == self.rest();
        let watched = self.is_watched();
        let start = self.sequence.len();
        let own = &self.tokens[start..start + self.planned];
        let (tokens, want) = if watched {
            (own, Want::All)
        } else if self.guesses.is_empty() {
            (own, if done { Want::Last } else { Want::None })
        } else {
            self.fed.clear();
            self.fed.extend_from_slice(own);
            self.fed.extend(self.guesses.iter().map(|guess| guess.token));
            (&self.fed[..], Want::All)
        };
        Feed { sequence: &mut self.sequence, tokens, horizon: self.horizon, want }
    }

    /// Chooses the next token from its logits, which are changed. Gives what is to be reported, if
    /// anything is, and sets [`Active::finish`] where the text ends.
    ///
    /// # Errors
    /// [`Error::NoLogits`], [`Error::Grammar`].
    pub(crate) fn advance(&mut self, logits: &mut [f32]) -> Result<Option<Update>, Error> {
        #[cfg(test)]
        assert!(&*self.submission.client != PANICS, "a test wants it");
        let request = &self.submission.request;
        if request.max_tokens == 0 {
            self.finish = Some(Finish::Length);
            return Ok(None);
        }
        if self.guide.as_ref().is_some_and(Guide::is_over) {
            self.finish = Some(Finish::Stop);
            return Ok(None);
        }
        let wanted = self.submission.log_probs;
        let models = wanted.is_some_and(|wanted| wanted.of == Distribution::Model);
        let computed = models.then(|| logits.to_vec());
        if let Some(guide) = &mut self.guide {
            guide.restrict(logits, if request.ignore_stop { &[] } else { &request.stop_tokens })?;
        }
        let id = match self.sampler.next(logits) {
            // What is left was banned by a bias, or the model gives it no chance at all.
            Err(Error::NoLogits) if self.guide.is_some() => {
                return Err(lathe_grammar::Error::DeadEnd.into());
            }
            chosen => chosen?,
        };
        let log_probs = wanted.map(|wanted| match &computed {
            Some(computed) => LogProbs::of_model(computed, id, wanted.top),
            None => LogProbs::of_sampled(&self.sampler, logits, id, wanted.top),
        });
        if !request.ignore_stop && request.stop_tokens.contains(&id) {
            self.finish = Some(Finish::Stop);
            // Text that was held back belongs to tokens before; there is no other update for it.
            let piece = self.reader.finish();
            return Ok((!piece.is_empty()).then(|| self.report(id, piece, log_probs)));
        }
        let mut whole = false;
        if let Some(guide) = &mut self.guide {
            guide.take(id)?;
            whole = guide.is_over();
        }
        self.tokens.push(id);
        let mut piece = self.reader.push(id);
        if piece.stopped && !request.ignore_stop {
            self.finish = Some(Finish::Stop);
        } else if whole {
            piece.text.push_str(&self.reader.finish());
            self.finish = Some(Finish::Stop);
        } else if self.generated + 1 == request.max_tokens {
            piece.text.push_str(&self.reader.finish());
            self.finish = Some(Finish::Length);
        }
        Ok(Some(self.report(id, piece.text, log_probs)))
    }

    fn report(&mut self, id: u32, piece: String, log_probs: Option<LogProbs>) -> Update {
        self.generated += 1;
        Update::Token { text: self.text, id, piece, log_probs }
    }
}

fn entry<B: Backend>(executor: &Executor<B>, tokens: &[u32], horizon: usize, at: usize) -> Entry {
    Entry { token: tokens[at], rotation: executor.rotation(horizon.max(at + 1)) }
}
