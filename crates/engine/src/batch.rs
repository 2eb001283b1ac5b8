use std::collections::VecDeque;

use lathe_api::{Event, Finish, Flow, Request, Usage};
use lathe_tokens::Tokenizer;

use crate::{
    Error,
    backend::Backend,
    executor::{Executor, Feed, Sequence, Want},
    reader::Reader,
    sampler::Sampler,
};

/// Requests that are decoded together.
///
/// Each step feeds one token of every sequence that decodes and, with what is left of the chunk,
/// the prompts of those that do not yet. A request starts when a place in the batch and all pages
/// that it may need are free, so that none ever runs out half way.
pub(crate) struct Batch<'a, B: Backend> {
    executor: &'a Executor<B>,
    tokenizer: Option<&'a Tokenizer>,
    most: usize,
}

/// What a batch tells its caller: which request, and what happened.
pub(crate) type OnEvent<'a> = dyn FnMut(usize, Event<'_>) -> Flow + 'a;

/// A request that is under way.
struct Active<'a> {
    index: usize,
    request: &'a Request,
    sequence: Sequence,
    sampler: Sampler,
    reader: Reader<'a>,
    /// Prompt and generation; the sequence holds the first of them.
    tokens: Vec<u32>,
    generated: usize,
    prefilled: bool,
    finish: Option<Finish>,
}

impl<'a, B: Backend> Batch<'a, B> {
    pub(crate) fn new(
        executor: &'a Executor<B>,
        tokenizer: Option<&'a Tokenizer>,
        most: usize,
    ) -> Self {
        Self { executor, tokenizer, most: most.max(1) }
    }

    /// Runs all requests to their ends.
    ///
    /// # Errors
    /// A request that cannot be run is refused before any is started.
    pub(crate) fn run(
        &self,
        requests: &'a [Request],
        on: &mut OnEvent<'_>,
    ) -> Result<Vec<Usage>, Error> {
        let samplers = requests
            .iter()
            .map(|request| self.admissible(request))
            .collect::<Result<Vec<_>, _>>()?;
        let mut waiting: VecDeque<_> = requests.iter().zip(samplers).enumerate().collect();
        let mut usages = vec![None; requests.len()];
        let mut active: Vec<Active<'a>> = Vec::new();
        let mut logits = Vec::new();
        while !(waiting.is_empty() && active.is_empty()) {
            self.admit(&mut waiting, &mut active)?;
            self.step(&mut active, &mut logits, on)?;
            active.retain(|one| match one.usage() {
                Some(usage) => {
                    usages[one.index] = Some(usage);
                    false
                }
                None => true,
            });
        }
        Ok(usages.into_iter().flatten().collect())
    }

    fn admissible(&self, request: &Request) -> Result<Sampler, Error> {
        if request.prompt.is_empty() {
            return Err(Error::Request("the prompt is empty; it needs at least one token".into()));
        }
        let vocab = self.executor.spec.vocab;
        if let Some(id) = request.prompt.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Token { id: *id, vocab });
        }
        let needed = request.prompt.len().saturating_add(request.max_tokens);
        if needed > self.executor.context {
            return Err(Error::Context { needed, context: self.executor.context });
        }
        if self.tokenizer.is_none() && !request.stop_strings.is_empty() {
            return Err(Error::Request("stop strings need a tokenizer".into()));
        }
        Sampler::new(&request.sampling, &request.prompt)
    }

    fn admit(
        &self,
        waiting: &mut VecDeque<(usize, (&'a Request, Sampler))>,
        active: &mut Vec<Active<'a>>,
    ) -> Result<(), Error> {
        while active.len() < self.most {
            let Some((index, (request, sampler))) = waiting.pop_front() else { break };
            let mut sequence = self.executor.sequence();
            if let Err(error) = sequence.reserve(request.prompt.len() + request.max_tokens) {
                // Pages come free when others end; alone, it never fits.
                if active.is_empty() {
                    return Err(error);
                }
                waiting.push_front((index, (request, sampler)));
                break;
            }
            active.push(Active {
                index,
                request,
                sequence,
                sampler,
                reader: Reader::new(self.tokenizer, &request.stop_strings),
                tokens: request.prompt.clone(),
                generated: 0,
                prefilled: false,
                finish: None,
            });
        }
        Ok(())
    }

    /// One forward pass for all, then a token for each sequence that is ready for one.
    fn step(
        &self,
        active: &mut [Active<'a>],
        logits: &mut Vec<f32>,
        on: &mut OnEvent<'_>,
    ) -> Result<(), Error> {
        let switch = self.executor.recompute_beyond();
        let mut left = self.executor.chunk;
        let mut feeds = Vec::with_capacity(active.len());
        let mut ready = Vec::with_capacity(active.len());
        for (at, one) in active.iter_mut().enumerate() {
            one.cross(switch);
            // Decoding sequences always go on: they cost one token each.
            let rest = one.tokens.len() - one.sequence.len();
            let count = if rest == 1 { 1 } else { rest.min(left) };
            if count == 0 {
                continue;
            }
            left = left.saturating_sub(count);
            let done = count == rest;
            if done {
                ready.push(at);
            }
            let Active { sequence, tokens, .. } = one;
            let start = sequence.len();
            feeds.push(Feed {
                sequence,
                tokens: &tokens[start..start + count],
                horizon: tokens.len(),
                want: if done { Want::Last } else { Want::None },
            });
        }
        logits.clear();
        self.executor.forward(&mut feeds, logits)?;
        let rows = logits.chunks_exact_mut(self.executor.spec.vocab);
        for (at, row) in ready.into_iter().zip(rows) {
            active[at].advance(row, on)?;
        }
        Ok(())
    }
}

impl Active<'_> {
    /// Starts over where the sequence grows past the length at which its rope changes.
    fn cross(&mut self, switch: Option<usize>) {
        if switch.is_some_and(|length| self.sequence.crosses(length, self.tokens.len())) {
            self.sequence.forget();
        }
    }

    /// Chooses the next token and reports it.
    fn advance(&mut self, logits: &mut [f32], on: &mut OnEvent<'_>) -> Result<(), Error> {
        if !self.prefilled {
            self.prefilled = true;
            let tokens = self.request.prompt.len();
            if on(self.index, Event::Prefilled { tokens }) == Flow::Stop {
                self.finish = Some(Finish::Cancelled);
                return Ok(());
            }
        }
        if self.request.max_tokens == 0 {
            self.finish = Some(Finish::Length);
            return Ok(());
        }
        let id = self.sampler.next(logits)?;
        if !self.request.ignore_stop && self.request.stop_tokens.contains(&id) {
            let text = self.reader.finish();
            self.finish = Some(Finish::Stop);
            if !text.is_empty() {
                // Text that was held back belongs to tokens before; there is no other event for it.
                self.report(id, &text, on);
            }
            return Ok(());
        }
        self.tokens.push(id);
        let mut piece = self.reader.push(id);
        if piece.stopped && !self.request.ignore_stop {
            self.finish = Some(Finish::Stop);
        } else if self.generated + 1 == self.request.max_tokens {
            piece.text.push_str(&self.reader.finish());
            self.finish = Some(Finish::Length);
        }
        self.report(id, &piece.text, on);
        Ok(())
    }

    fn report(&mut self, id: u32, text: &str, on: &mut OnEvent<'_>) {
        self.generated += 1;
        if on(self.index, Event::Token { id, text }) == Flow::Stop && self.finish.is_none() {
            self.finish = Some(Finish::Cancelled);
        }
    }

    fn usage(&self) -> Option<Usage> {
        self.finish.map(|finish| Usage {
            prompt_tokens: self.request.prompt.len(),
            generated_tokens: self.generated,
            finish,
        })
    }
}
