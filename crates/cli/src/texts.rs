//! Texts and multiple-choice items to measure quality on: the user's, or those of the demo model.

use std::path::Path;

use anyhow::{Context, anyhow};
use lathe_eval::{ChoiceSet, Encoder, ReadOptions, Split, Texts, read_choices, read_texts};
use lathe_tokens::{Message, Render, Template, Tokenizer};
use serde_json::Value;

/// Reads the user's text, or else the built-in stories. A template makes text of `messages`.
pub(crate) fn texts(
    data: Option<&Path>,
    split: Split,
    template: Option<&Template>,
) -> anyhow::Result<Texts> {
    let render = |messages: &Value| render(template, messages);
    let options = ReadOptions { split, render: Some(&render), ..ReadOptions::default() };
    Ok(match data {
        Some(path) => read_texts(path, &options).context("--data")?,
        None => {
            let name = Path::new("the built-in stories.jsonl");
            Texts::from_jsonl(name, lathe_demo::stories().as_bytes(), &options)?
        }
    })
}

/// Reads the user's items, or else those of the demo model where it is measured on its own text.
pub(crate) fn choices(choices: Option<&Path>, built_in: bool) -> anyhow::Result<Option<ChoiceSet>> {
    Ok(match choices {
        Some(path) => Some(read_choices(path).context("--choices")?),
        None if built_in => {
            let name = Path::new("the built-in choices.jsonl");
            Some(ChoiceSet::from_bytes(name, lathe_demo::choices().as_bytes())?)
        }
        None => None,
    })
}

/// Runs `then` with the tokenizer as evaluation wants it: no special tokens but the one that
/// begins a text.
pub(crate) fn with_encoder<T>(tokenizer: &Tokenizer, then: impl FnOnce(Encoder<'_>) -> T) -> T {
    let encode = |text: &str| tokenizer.encode(text, false).map_err(|error| error.to_string());
    then(Encoder { encode: &encode, bos: tokenizer.prefix().first().copied() })
}

/// Drops the documents behind the one that fills `most` tokens.
pub(crate) fn shorten(texts: &mut Texts, encoder: Encoder<'_>, most: usize) -> anyhow::Result<()> {
    let (mut tokens, mut keep) = (0, 0);
    for document in &texts.documents {
        keep += 1;
        tokens += (encoder.encode)(&document.text)
            .map_err(|why| anyhow!("{} cannot be tokenized: {why}", texts.name))?
            .len();
        if tokens >= most {
            break;
        }
    }
    texts.documents.truncate(keep);
    Ok(())
}

/// A chat as the model would see it.
fn render(template: Option<&Template>, messages: &Value) -> Result<String, String> {
    let template = template.ok_or(
        "the model has no chat template; use texts with a `text` field instead of `messages`",
    )?;
    let messages: Vec<Message> =
        serde_json::from_value(messages.clone()).map_err(|error| error.to_string())?;
    template.render(&messages, &Render::default()).map_err(|error| error.to_string())
}
