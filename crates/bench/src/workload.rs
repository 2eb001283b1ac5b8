use std::time::Instant;

use lathe_api::{Engine, Event, Flow, Request, Sampling};
use lathe_base::{Progress, Seconds};
use lathe_machine::{peak_resident, peak_resident_of_children};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{BatchSample, Error, RequestSample, Trial};

/// What an engine is asked to do while it is timed.
///
/// Prompts are drawn token by token from the vocabulary by the seed, as llama-bench does: every
/// engine gets the same ids, no tokenizer is involved, and a dense model's speed does not depend
/// on what they say, unless it guesses how texts go on: then they are pieces of a [`Text`]. Generation is greedy and runs past end-of-text tokens, so that every
/// candidate makes the same number of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub prompt_tokens: usize,
    pub new_tokens: usize,
    /// Requests in a trial, one after another, after the warm-up; more where they take less than
    /// `at_least` together, so that a small model's figures do not hang on a few milliseconds.
    pub requests: usize,
    pub at_least: Seconds,
    /// Requests before that, not counted.
    pub warmup: usize,
    /// Numbers of streams to decode together; 1 is measured by `requests`.
    pub streams: Vec<usize>,
    pub seed: u64,
    /// Prompts are drawn from the first so many tokens, where engines may differ in how many they
    /// know; from all that the engine knows by default.
    #[serde(default)]
    pub vocab: Option<usize>,
    /// Prompts are pieces of this text, from places that are drawn by the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Text>,
}

/// What people write, in a model's tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    pub name: String,
    /// At least [`Workload::prompt_tokens`].
    pub ids: Vec<u32>,
}

/// However fast an engine is, its samples must fit a record that people can keep.
const MOST_REQUESTS: usize = 64;

impl Workload {
    /// The longest sequence that the workload makes.
    pub fn context(&self) -> usize {
        self.prompt_tokens + self.new_tokens
    }

    fn request(&self, vocab: usize, number: u64) -> Request {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(number));
        let prompt = if let Some(Text { ids, .. }) = &self.text {
            let start = rng.random_range(0..=ids.len().saturating_sub(self.prompt_tokens));
            ids[start..].iter().take(self.prompt_tokens).copied().collect()
        } else {
            let vocab = self.vocab.map_or(vocab, |most| most.min(vocab));
            let vocab = u32::try_from(vocab.max(1)).unwrap_or(u32::MAX);
            (0..self.prompt_tokens).map(|_| rng.random_range(0..vocab)).collect()
        };
        Request {
            prompt,
            max_tokens: self.new_tokens,
            sampling: Sampling::default(),
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            ignore_stop: true,
            grammar: None,
        }
    }
}

/// Runs a workload on a loaded engine, stamping every event with one clock.
///
/// # Errors
/// The engine's own, or [`Error::ShortAnswer`] where it generated less than it was asked.
pub fn measure(
    engine: &dyn Engine,
    load: Seconds,
    workload: &Workload,
    progress: &dyn Progress,
) -> Result<Trial, Error> {
    let vocab = engine.info().vocab;
    let mut requests = Vec::with_capacity(workload.requests);
    for number in 0..workload.warmup {
        progress.check()?;
        single(engine, &workload.request(vocab, number as u64))?;
    }
    let mut spent = 0.0;
    while requests.len() < workload.requests
        || (spent < workload.at_least.0 && requests.len() < MOST_REQUESTS)
    {
        progress.check()?;
        let number = workload.warmup + requests.len();
        let sample = single(engine, &workload.request(vocab, number as u64))?;
        spent += sample.end.0;
        requests.push(sample);
    }
    let mut batches = Vec::new();
    for &streams in workload.streams.iter().filter(|&&n| n > 1 && engine.info().caps.batch) {
        progress.check()?;
        batches.push(batch(engine, workload, streams)?);
    }
    let info = engine.info().clone();
    // An engine that runs in processes of its own is not charged for the one that asks it.
    let ours = || peak_resident_of_children().or_else(peak_resident);
    let peak_memory = if info.found_running { None } else { ours() };
    Ok(Trial { info, load, peak_memory, requests, batches })
}

/// The time since `start` in tenths of a microsecond: finer is below the clock's own noise, and
/// would double the size of the record.
fn stamp(start: Instant) -> Seconds {
    Seconds((start.elapsed().as_nanos() / 100) as f64 / 1e7)
}

fn single(engine: &dyn Engine, request: &Request) -> Result<RequestSample, Error> {
    let mut tokens = Vec::with_capacity(request.max_tokens);
    let mut prefilled = None;
    let start = Instant::now();
    engine.generate(request, &mut |event| {
        let at = stamp(start);
        match event {
            Event::Prefilled { .. } => prefilled = Some(at),
            Event::Token { .. } => tokens.push(at),
        }
        Flow::Continue
    })?;
    let end = stamp(start);
    complete(request.max_tokens, tokens.len())?;
    Ok(RequestSample { prompt_tokens: request.prompt.len(), prefilled, tokens, end })
}

fn batch(engine: &dyn Engine, workload: &Workload, streams: usize) -> Result<BatchSample, Error> {
    let vocab = engine.info().vocab;
    let requests: Vec<Request> =
        (0..streams).map(|n| workload.request(vocab, 1000 + n as u64)).collect();
    let mut tokens = vec![Vec::with_capacity(workload.new_tokens); streams];
    let start = Instant::now();
    engine.generate_batch(&requests, &mut |index, event| {
        if let Event::Token { .. } = event {
            tokens[index].push(stamp(start));
        }
        Flow::Continue
    })?;
    let end = stamp(start);
    for stream in &tokens {
        complete(workload.new_tokens, stream.len())?;
    }
    Ok(BatchSample { streams, prompt_tokens: workload.prompt_tokens, tokens, end })
}

fn complete(asked: usize, generated: usize) -> Result<(), Error> {
    if generated == asked { Ok(()) } else { Err(Error::ShortAnswer { asked, generated }) }
}
