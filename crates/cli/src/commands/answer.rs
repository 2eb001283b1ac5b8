//! One answer of a model, as it comes: text, ids, and when each token came.

use std::time::Instant;

use lathe_api::{Engine, Event, Flow, Request, Usage};
use lathe_base::{Progress, Seconds};
use lathe_engine::serving::Snapshot;
use serde::Serialize;

/// What a model answered.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) usage: Usage,
    pub(crate) timings: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) speculation: Option<Guesses>,
}

/// What came of guessing how the text goes on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Guesses {
    /// Tokens that were guessed, and those that were right.
    pub(crate) proposed: u64,
    pub(crate) accepted: u64,
    /// Passes over the weights, the prompt's included.
    pub(crate) passes: u64,
}

impl Guesses {
    /// What was done between two looks at an engine, if anything was guessed.
    pub(crate) fn between(before: &Snapshot, after: &Snapshot) -> Option<Self> {
        let proposed = after.proposed_tokens - before.proposed_tokens;
        let accepted = after.accepted_tokens - before.accepted_tokens;
        let passes = after.steps - before.steps;
        (proposed > 0).then_some(Self { proposed, accepted, passes })
    }
}

/// When things came, by our own clock.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Timings {
    pub(crate) prefill_seconds: Option<f64>,
    pub(crate) first_token_seconds: Option<f64>,
    pub(crate) total_seconds: f64,
    pub(crate) prefill_tokens_per_second: Option<f64>,
    /// Over the tokens after the first.
    pub(crate) decode_tokens_per_second: Option<f64>,
}

/// Runs a request and hands on each piece of text as it comes. An interruption ends the text, not
/// the program.
pub(crate) fn answer(
    engine: &dyn Engine,
    request: &Request,
    progress: &dyn Progress,
    show: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let (mut text, mut ids, mut stamps) = (String::new(), Vec::new(), Vec::new());
    let (mut prefilled, mut trouble) = (None, None);
    let start = Instant::now();
    let usage = engine.generate(request, &mut |event| {
        match event {
            Event::Prefilled { .. } => prefilled = Some(start.elapsed().as_secs_f64()),
            Event::Token { id, text: piece } => {
                stamps.push(start.elapsed().as_secs_f64());
                ids.push(id);
                text.push_str(piece);
                trouble = show(piece).err();
            }
        }
        if trouble.is_some() || progress.cancelled() { Flow::Stop } else { Flow::Continue }
    })?;
    let total = start.elapsed().as_secs_f64();
    match trouble {
        Some(error) => Err(error),
        None => {
            let timings = Timings::new(request.prompt.len(), prefilled, &stamps, total);
            Ok(Answer { text, ids, usage, timings, speculation: None })
        }
    }
}

impl Timings {
    fn new(prompt: usize, prefilled: Option<f64>, stamps: &[f64], total: f64) -> Self {
        let rate = |tokens: usize, seconds: f64| {
            (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
        };
        let span = match stamps {
            [first, .., last] => last - first,
            _ => 0.0,
        };
        Self {
            prefill_seconds: prefilled,
            first_token_seconds: stamps.first().copied(),
            total_seconds: total,
            prefill_tokens_per_second: prefilled.and_then(|seconds| rate(prompt, seconds)),
            decode_tokens_per_second: rate(stamps.len().saturating_sub(1), span),
        }
    }
}

impl Answer {
    /// The figures in one line.
    pub(crate) fn stats(&self, load: Seconds) -> String {
        let rate =
            |rate: Option<f64>| rate.map_or("–".to_owned(), |r| format!("{r:.1} tokens/s"));
        let first = self.timings.first_token_seconds;
        let guesses = self.speculation.map_or_else(String::new, |guesses| {
            let Guesses { proposed, accepted, passes } = guesses;
            let passes = passes as f64 / self.usage.generated_tokens.max(1) as f64;
            format!(" · {accepted} of {proposed} guesses right, {passes:.2} passes per token")
        });
        format!(
            "load {load} · prompt {} tokens, {} · first token {} · {} new tokens, {}{guesses} · {}",
            self.usage.prompt_tokens,
            rate(self.timings.prefill_tokens_per_second),
            first.map_or("–".to_owned(), |s| Seconds(s).to_string()),
            self.usage.generated_tokens,
            rate(self.timings.decode_tokens_per_second),
            match self.usage.finish {
                lathe_api::Finish::Length => "stopped at --max-tokens",
                lathe_api::Finish::Stop => "ended by itself",
                lathe_api::Finish::Cancelled => "interrupted",
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_leave_the_first_token_out() {
        let t = Timings::new(10, Some(0.5), &[0.6, 0.7, 0.8], 0.8);
        assert_eq!(t.prefill_tokens_per_second, Some(20.0));
        assert!((t.decode_tokens_per_second.unwrap() - 10.0).abs() < 1e-9);
        assert_eq!(Timings::new(10, None, &[0.6], 0.6).decode_tokens_per_second, None);
    }
}
