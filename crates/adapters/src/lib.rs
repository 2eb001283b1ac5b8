//! Engines other than Lathe's own behind [`lathe_api::Engine`]: one folder each, which holds how it
//! is started, its wire types, and the engine.

mod http;
pub mod llamacpp;
pub mod mock;
pub mod onnxruntime;
pub mod openai;
mod python;
mod server;
mod together;
pub mod transformers;
pub mod vllm;

use lathe_api::{Error, Info, Request};

pub use server::{Program, Server};

/// Token ids in an answer; `None` where something else is there.
fn ids(value: &serde_json::Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// A list of log probabilities by token id as a row of logits, \[V\]; `None` where a token of the
/// vocabulary is missing.
fn row(vocab: usize, all: impl Iterator<Item = Option<(u64, f64)>>) -> Option<Vec<f32>> {
    let mut row = vec![f32::NAN; vocab];
    for entry in all {
        let (id, value) = entry?;
        // Models may have logits beyond the tokenizer's tokens.
        if let Some(place) = usize::try_from(id).ok().and_then(|id| row.get_mut(id)) {
            *place = value as f32;
        }
    }
    row.iter().all(|value| !value.is_nan()).then_some(row)
}

/// Refuses what an engine would refuse, in the same words for all.
fn check(info: &Info, request: &Request) -> Result<(), Error> {
    let needed = request.prompt.len().saturating_add(request.max_tokens);
    if needed > info.context {
        return Err(Error::ContextExceeded { needed, context: info.context });
    }
    let bad = |what: String| Err(Error::BadRequest { what });
    if request.prompt.is_empty() {
        return bad("the prompt has no tokens".to_owned());
    }
    if request.grammar.is_some() {
        let (engine, what) = (info.engine.clone(), "follow a grammar".to_owned());
        return Err(Error::Unsupported { engine, what });
    }
    let temperature = request.sampling.temperature;
    if !(temperature >= 0.0 && temperature.is_finite()) {
        return bad(format!("a temperature of {temperature} makes no sense; use 0 or above"));
    }
    match request.prompt.iter().find(|id| **id as usize >= info.vocab) {
        Some(id) => bad(format!("token {id} is outside the vocabulary of {}", info.vocab)),
        None => Ok(()),
    }
}
