//! One answer of a model, as it comes: text, ids, and when each token came.

use std::time::Instant;

use anyhow::Context;
use lathe_api::{Flow, Usage};
use lathe_base::{Progress, Seconds};
use lathe_engine::{
    Native,
    serving::{LogProbs, Snapshot, Submission, Update},
};
use serde::Serialize;

/// What a model answered.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) usage: Usage,
    pub(crate) timings: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) speculation: Option<Guessed>,
    /// Where they were asked for: of the prompt's tokens after the first, and of the text's.
    #[serde(skip)]
    pub(crate) of_prompt: Option<Vec<LogProbs>>,
    #[serde(skip)]
    pub(crate) of_text: Option<Vec<LogProbs>>,
}

/// What came of guessing how the text goes on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Guessed {
    /// Tokens that were guessed, and those that were right.
    pub(crate) proposed: u64,
    pub(crate) accepted: u64,
    /// Passes over the weights, the prompt's included.
    pub(crate) passes: u64,
}

impl Guessed {
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
    engine: &Native,
    submission: Submission,
    progress: &dyn Progress,
    show: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let (mut text, mut ids, mut stamps) = (String::new(), Vec::new(), Vec::new());
    let (mut prefilled, mut usage, mut trouble) = (None, None, None);
    let mut of_prompt = None;
    let mut of_text = submission.log_probs.map(|_| Vec::new());
    let prompt_tokens = submission.request.prompt.len();
    let start = Instant::now();
    let served = engine.submit(submission, &mut |update| {
        match update {
            Update::Prefilled { log_probs, .. } => {
                prefilled = Some(start.elapsed().as_secs_f64());
                of_prompt = log_probs;
            }
            Update::Token { id, piece, log_probs, .. } => {
                stamps.push(start.elapsed().as_secs_f64());
                ids.push(id);
                text.push_str(&piece);
                if let Some(all) = &mut of_text {
                    all.extend(log_probs);
                }
                trouble = show(&piece).err();
            }
            Update::Finished { finish, generated, .. } => {
                usage = Some(Usage { prompt_tokens, generated_tokens: generated, finish });
            }
            _ => {}
        }
        if trouble.is_some() || progress.cancelled() { Flow::Stop } else { Flow::Continue }
    });
    served.map_err(lathe_api::Error::from)?;
    let total = start.elapsed().as_secs_f64();
    if let Some(error) = trouble {
        return Err(error);
    }
    let usage = usage.context("the text ended without saying how")?;
    let timings = Timings::new(prompt_tokens, prefilled, &stamps, total);
    Ok(Answer { text, ids, usage, timings, speculation: None, of_prompt, of_text })
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
            let Guessed { proposed, accepted, passes } = guesses;
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
