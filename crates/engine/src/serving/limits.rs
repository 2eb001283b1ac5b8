/// How much a service takes on. What is beyond is refused when it is submitted, so that nothing
/// that was accepted ever runs out of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that wait for their start.
    pub waiting: usize,
    /// Tokens of their prompts together.
    pub waiting_tokens: usize,
    /// Sequences that run together; at most [`crate::Options::batch`], which is the default.
    pub sequences: Option<usize>,
    /// Tokens of one step, prompts and decoding together: more is faster for prompts, fewer keeps
    /// the time between tokens short. By default [`crate::Options::chunk`].
    pub step_tokens: Option<usize>,
    /// Texts of one request.
    pub n: usize,
    /// The likeliest tokens reported with each.
    pub top_log_probs: usize,
    /// Whether requests that begin alike share what was computed. Texts are the same without.
    pub share_prefixes: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            waiting: 256,
            waiting_tokens: 1 << 20,
            sequences: None,
            step_tokens: None,
            n: 16,
            top_log_probs: 20,
            share_prefixes: true,
        }
    }
}
