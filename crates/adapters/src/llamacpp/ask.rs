//! What llama.cpp's server says of texts, conversations and probabilities.

use lathe_api::{Error, Logits, Scorer, Turn};
use serde_json::{Value, json};

use super::{LlamaCpp, failed};

pub(super) fn tokenize(engine: &LlamaCpp, text: &str) -> Result<Vec<u32>, Error> {
    let body = json!({ "content": text, "add_special": true, "parse_special": false });
    let answer = engine.client.post_json("/tokenize", &body)?;
    crate::ids(&answer["tokens"]).ok_or_else(|| {
        failed(&engine.info.engine, format!("/tokenize answered without ids: {answer:.200}"))
    })
}

pub(super) fn render(engine: &LlamaCpp, turns: &[Turn<'_>]) -> Result<String, Error> {
    let answer = engine.client.post_json("/apply-template", &json!({ "messages": turns }))?;
    let text = answer["prompt"].as_str().map(str::to_owned);
    text.ok_or_else(|| {
        let why = format!("/apply-template answered without a prompt: {answer:.200}");
        failed(&engine.info.engine, why)
    })
}

/// A sequence of which the server is asked the next token's probabilities, position by position: it
/// tells those of what it generates only. It keeps the sequence from one question to the next.
pub(super) struct Sequence<'a> {
    engine: &'a LlamaCpp,
    tokens: Vec<u32>,
}

impl<'a> Sequence<'a> {
    pub(super) fn new(engine: &'a LlamaCpp) -> Self {
        Self { engine, tokens: Vec::new() }
    }

    /// Logarithms of the next token's probabilities, \[V\].
    fn next(&self) -> Result<Vec<f32>, Error> {
        let (engine, vocab) = (self.engine, self.engine.info.vocab);
        let body = json!({
            "prompt": self.tokens,
            "n_predict": 1,
            "cache_prompt": true,
            "n_probs": vocab,
            "post_sampling_probs": false,
            "samplers": ["top_k"],
            "top_k": 1,
            "temperature": 0.0,
        });
        let answer = engine.client.post_json("/completion", &body)?;
        let list = answer["completion_probabilities"][0]["top_logprobs"].as_array();
        let entry = |entry: &Value| {
            // JSON has no infinity: what is impossible is the least that it can say.
            Some((entry["id"].as_u64()?, entry["logprob"].as_f64().unwrap_or(f64::from(f32::MIN))))
        };
        let row = list.and_then(|list| crate::row(vocab, list.iter().map(entry)));
        row.ok_or_else(|| Error::Unsupported {
            engine: engine.info.engine.clone(),
            what: format!("tell the probabilities of all {vocab} tokens"),
        })
    }
}

impl Scorer for Sequence<'_> {
    fn feed(&mut self, tokens: &[u32]) -> Result<Logits, Error> {
        let (vocab, context) = (self.engine.info.vocab, self.engine.info.context);
        let needed = self.tokens.len() + tokens.len() + 1;
        if needed > context {
            return Err(Error::ContextExceeded { needed, context });
        }
        let mut values = Vec::new();
        for token in tokens {
            self.tokens.push(*token);
            values.extend(self.next()?);
        }
        Ok(Logits { vocab, values })
    }

    fn reset(&mut self) {
        self.tokens.clear();
    }
}
