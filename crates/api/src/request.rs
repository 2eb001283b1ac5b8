use serde::{Deserialize, Serialize};

use crate::Grammar;

/// A prompt and how to continue it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The prompt as token ids, special tokens included.
    pub prompt: Vec<u32>,
    /// The most tokens to generate.
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// Token ids that end the text (end of sequence, end of turn). Not reported as events.
    pub stop_tokens: Vec<u32>,
    /// Strings that end the text; the text ends before them.
    pub stop_strings: Vec<String>,
    /// Go on past `stop_tokens`: for measuring speed with a fixed count of tokens.
    pub ignore_stop: bool,
    /// What the text must be, whatever the settings of sampling: only tokens that can still lead
    /// there are drawn, and the text ends at the latest where nothing can follow, whatever
    /// `ignore_stop` says. `max_tokens` may cut it before.
    #[serde(default)]
    pub grammar: Option<Grammar>,
}

/// What somebody says in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Turn<'a> {
    /// `system`, `user` or `assistant`.
    pub role: &'a str,
    pub content: &'a str,
}

/// How the next token is chosen from the logits.
///
/// Applied in this order: logit bias, repetition / presence / frequency penalties, temperature,
/// top-k, top-p, min-p, and a draw. A temperature of 0 is greedy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// 0 chooses the likeliest token; 1 draws from the model's distribution.
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set whose probability reaches p; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen (CTRL); 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each token generated so far; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time it was generated; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same text, at any thread count.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// The id of a token whose engine tells its text only, or that it came.
pub const UNKNOWN_TOKEN: u32 = u32::MAX;

/// What happens while a request runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// The prompt is processed. Comes once, before the first token, where the engine tells.
    Prefilled { tokens: usize },
    /// One more token. `text` is what became printable with it: empty while a character is
    /// incomplete or a stop string may be starting, more than the token's own text afterwards.
    /// `id` is [`UNKNOWN_TOKEN`] where the engine does not tell.
    Token { id: u32, text: &'a str },
}

/// Whether the caller wants more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    Stop,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// `max_tokens` were generated.
    Length,
    /// A stop token or stop string came, or the grammar was complete.
    Stop,
    /// The caller said [`Flow::Stop`].
    Cancelled,
}

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub generated_tokens: usize,
    pub finish: Finish,
}
