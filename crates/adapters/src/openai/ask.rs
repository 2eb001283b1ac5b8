//! What servers say of texts and probabilities by the names that vLLM gave it: others refuse. Asked
//! so, llama.cpp's server says that a text has no tokens, and is asked again by its own names.

use lathe_api::{Error, Logits, Scorer, Turn};
use serde_json::{Value, json};

use super::OpenAi;

pub(super) fn tokenize(engine: &OpenAi, text: &str) -> Result<Vec<u32>, Error> {
    let body = json!({ "model": engine.model, "prompt": text, "add_special_tokens": true });
    let ids = tokens(engine, body)?;
    if !ids.is_empty() || text.is_empty() {
        return Ok(ids);
    }
    tokens(engine, json!({ "content": text, "add_special": true, "parse_special": false }))
}

/// A conversation is told as tokens, and those as a text.
pub(super) fn render(engine: &OpenAi, turns: &[Turn<'_>]) -> Result<String, Error> {
    let body = json!({ "model": engine.model, "messages": turns, "add_generation_prompt": true });
    let ids = tokens(engine, body)?;
    let (path, body) = match ids.is_empty() {
        true => ("/apply-template", json!({ "messages": turns })),
        false => ("/detokenize", json!({ "model": engine.model, "tokens": ids })),
    };
    let answer = engine.client.post_json(path, &body)?;
    let text = answer["prompt"].as_str().map(str::to_owned);
    text.ok_or_else(|| Error::Failed {
        engine: engine.info.engine.clone(),
        why: format!("{path} answered without a prompt: {answer:.200}"),
    })
}

fn tokens(engine: &OpenAi, body: Value) -> Result<Vec<u32>, Error> {
    let answer = engine.client.post_json("/tokenize", &body)?;
    crate::ids(&answer["tokens"]).ok_or_else(|| Error::Failed {
        engine: engine.info.engine.clone(),
        why: format!("/tokenize answered without ids: {answer:.200}"),
    })
}

/// A sequence that the server is given as a whole each time, with one token more: it tells how
/// likely the tokens of a prompt are, each after those before it.
pub(super) struct Sequence<'a> {
    engine: &'a OpenAi,
    tokens: Vec<u32>,
}

impl<'a> Sequence<'a> {
    pub(super) fn new(engine: &'a OpenAi) -> Self {
        Self { engine, tokens: Vec::new() }
    }
}

impl Scorer for Sequence<'_> {
    fn feed(&mut self, tokens: &[u32]) -> Result<Logits, Error> {
        let engine = self.engine;
        let (vocab, context) = (engine.info.vocab, engine.info.context);
        let before = self.tokens.len();
        // The token more, and the one that it has to generate.
        let needed = before + tokens.len() + 2;
        if needed > context {
            return Err(Error::ContextExceeded { needed, context });
        }
        self.tokens.extend_from_slice(tokens);
        let more = self.tokens.iter().chain(tokens.last()).collect::<Vec<_>>();
        let body = json!({
            "model": engine.model,
            "prompt": more,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": -1,
        });
        let answer = engine.client.post_json("/v1/completions", &body)?;
        let rows = &answer["choices"][0]["prompt_logprobs"];
        let mut values = Vec::new();
        for at in before..self.tokens.len() {
            let entry = |(id, entry): (&String, &Value)| {
                let value = entry["logprob"].as_f64().unwrap_or(f64::from(f32::MIN));
                Some((id.parse().ok()?, value))
            };
            let row = rows[at + 1].as_object();
            let row = row.and_then(|row| crate::row(vocab, row.iter().map(entry)));
            values.extend(row.ok_or_else(|| Error::Unsupported {
                engine: engine.info.engine.clone(),
                what: format!("tell the probabilities of all {vocab} tokens"),
            })?);
        }
        Ok(Logits { vocab, values })
    }

    fn reset(&mut self) {
        self.tokens.clear();
    }
}
