//! How likely a model found tokens.

use lathe_engine::serving::LogProbs;
use lathe_tokens::Tokenizer;
use serde::Serialize;

use crate::ui;

/// A token, and what the model made of it.
#[derive(Serialize)]
pub(crate) struct Likely {
    #[serde(flatten)]
    token: Token,
    /// The likeliest tokens in its place, the likeliest first.
    likeliest: Vec<Token>,
}

#[derive(Serialize)]
struct Token {
    id: u32,
    text: String,
    /// Natural logarithm of its probability after all tokens before it. A text's first token has
    /// none.
    logprob: Option<f32>,
}

/// Of `ids`, the last of which were found so likely.
pub(crate) fn all(tokenizer: &Tokenizer, ids: &[u32], found: &[LogProbs]) -> Vec<Likely> {
    let token = |id: u32, logprob| {
        let text = String::from_utf8_lossy(&tokenizer.token_bytes(id)).into_owned();
        Token { id, text, logprob }
    };
    let unknown = ids.len().saturating_sub(found.len());
    let found = (0..unknown).map(|_| None).chain(found.iter().map(Some));
    ids.iter()
        .zip(found)
        .map(|(id, found)| Likely {
            token: token(*id, found.map(|found| found.chosen)),
            likeliest: found
                .iter()
                .flat_map(|found| &found.top)
                .map(|(id, logprob)| token(*id, Some(*logprob)))
                .collect(),
        })
        .collect()
}

/// A table for people.
pub(crate) fn text(of: &str, all: &[Likely]) -> String {
    let number = |token: &Token| token.logprob.map_or("–".to_owned(), |x| format!("{x:.4}"));
    let alternative = |token: &Token| format!("{:?} {}", token.text, number(token));
    let columns = if all.iter().all(|one| one.likeliest.is_empty()) { 3 } else { 4 };
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|Likely { token, likeliest }| {
            let likeliest: Vec<String> = likeliest.iter().map(alternative).collect();
            let text = format!("{:?}", token.text);
            let row = [token.id.to_string(), text, number(token), likeliest.join("  ")];
            row[..columns].to_vec()
        })
        .collect();
    let title = format!("token of the {of}");
    let header = [">id", title.as_str(), ">ln p", "likeliest"];
    format!("\n{}", ui::table(&header[..columns], &rows))
}
