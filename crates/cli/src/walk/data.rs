use std::path::{Path, PathBuf};

use lathe_eval::{
    ChoiceSet, Convention, Encoder, Plan, ReadOptions, Texts, read_choices, read_texts,
};
use lathe_optimize::{DataFacts, Settings};
use lathe_tokens::{Message, Render, Template, Tokenizer};
use serde::{Deserialize, Serialize};

/// Where a run's model and texts came from, kept so that it can be resumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// A path, or `demo`.
    pub(crate) model: PathBuf,
    /// The built-in stories where `None`.
    pub(crate) data: Option<PathBuf>,
    pub(crate) choices: Option<PathBuf>,
}

impl Source {
    pub(crate) fn to_value(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::to_value(self)?)
    }
}

/// What quality is measured on.
pub(crate) struct Data {
    pub(crate) texts: Texts,
    pub(crate) plan: Plan,
    pub(crate) choices: Option<ChoiceSet>,
    pub(crate) facts: DataFacts,
}

impl Data {
    /// Reads and tokenizes; keeps whole documents up to the run's `max_tokens`.
    pub(crate) fn read(
        source: &Source,
        demo: bool,
        tokenizer: &Tokenizer,
        template: Option<&Template>,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let render = |messages: &serde_json::Value| render(template, messages);
        let options = ReadOptions { render: Some(&render), ..ReadOptions::default() };
        let mut texts = match &source.data {
            Some(path) => read_texts(path, &options)?,
            None => {
                let name = Path::new("the built-in stories.jsonl");
                Texts::from_jsonl(name, lathe_demo::stories().as_bytes(), &options)?
            }
        };
        let encode = |text: &str| tokenizer.encode(text, false).map_err(|e| e.to_string());
        let encoder = Encoder { encode: &encode, bos: tokenizer.prefix().first().copied() };
        shorten(&mut texts, encoder, settings.max_tokens)?;
        let plan = Plan::new(Convention::Documents, &texts, encoder, settings.context)?;
        let choices = match &source.choices {
            Some(path) => Some(read_choices(path)?),
            None if demo && source.data.is_none() => {
                let name = Path::new("choices.jsonl");
                Some(ChoiceSet::from_bytes(name, lathe_demo::choices().as_bytes())?)
            }
            None => None,
        };
        let facts = DataFacts {
            name: texts.name.clone(),
            documents: texts.documents.len(),
            tokens: plan.scored(),
            sha256: texts.sha256.clone(),
            items: choices.as_ref().map_or(0, |set| set.items.len()),
            items_sha256: choices.as_ref().map(|set| set.sha256.clone()),
        };
        Ok(Self { texts, plan, choices, facts })
    }
}

/// Drops the documents behind the one that fills `most` tokens.
fn shorten(texts: &mut Texts, encoder: Encoder<'_>, most: usize) -> anyhow::Result<()> {
    let mut tokens = 0;
    let mut keep = 0;
    for document in &texts.documents {
        keep += 1;
        tokens += (encoder.encode)(&document.text)
            .map_err(|why| anyhow::anyhow!("{} cannot be tokenized: {why}", texts.name))?
            .len();
        if tokens >= most {
            break;
        }
    }
    texts.documents.truncate(keep);
    Ok(())
}

/// A chat as the model would see it.
fn render(template: Option<&Template>, messages: &serde_json::Value) -> Result<String, String> {
    let template =
        template.ok_or("the model has no chat template; use a text with `text` fields")?;
    let messages: Vec<Message> =
        serde_json::from_value(messages.clone()).map_err(|error| error.to_string())?;
    template.render(&messages, &Render::default()).map_err(|error| error.to_string())
}
