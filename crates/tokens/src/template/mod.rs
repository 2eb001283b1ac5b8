//! Chat templates: Jinja, as Hugging Face renders it.

mod engine;
pub(crate) mod find;
mod formats;
mod json;
mod message;
mod python;

use lathe_files::Checkpoint;

pub use formats::{FORMATS, Format};
pub use message::{Message, Render};

use crate::{Error, Prompt, Result, Source, Tokenizer};
use engine::Special;

/// How a conversation is written for a model: by the model's own template, or by one of the
/// built-in [`FORMATS`].
#[derive(Clone, Debug)]
pub struct Template {
    /// Where it came from: a file's name or a format's.
    origin: String,
    /// By name; a model with only one calls it `default`.
    sources: Vec<(String, String)>,
    special: Special,
    stop_strings: Vec<String>,
    /// Whether bos and eos come on top of the text when it is encoded.
    add_special: bool,
}

/// The name of a model's template when it has only one.
const DEFAULT: &str = "default";
/// The name of the template for conversations with tools, where a model has several.
const TOOL_USE: &str = "tool_use";

impl Template {
    /// The model's own template if it has one, else the built-in format that was asked for.
    ///
    /// **Errors**: [`Error::NoTemplate`] where there is neither: nothing is assumed for a model.
    pub fn choose(
        checkpoint: &Checkpoint,
        tokenizer: &Tokenizer,
        format: Option<&str>,
    ) -> Result<Self> {
        match (Self::from_checkpoint(checkpoint, tokenizer), format) {
            (Err(Error::NoTemplate { .. }), Some(name)) => Self::by_name(name, tokenizer),
            (own, _) => own,
        }
    }

    /// The model's own template: `chat_template.jinja`, `chat_template.json`, the one in
    /// `tokenizer_config.json`, or a GGUF's.
    ///
    /// **Errors**: [`Error::NoTemplate`] where the model has none.
    pub fn from_checkpoint(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Self> {
        Self::from_source(&Source::of(checkpoint)?, tokenizer)
    }

    /// The same from the files themselves.
    pub fn from_source(source: &Source, tokenizer: &Tokenizer) -> Result<Self> {
        let (origin, sources) = find::own(source)?.ok_or_else(|| Error::NoTemplate {
            model: source.model.clone(),
            formats: formats::names(),
        })?;
        Self { origin, sources, special: Special::of(tokenizer), ..Self::empty() }.checked()
    }

    /// One of the built-in [`FORMATS`].
    ///
    /// **Errors**: [`Error::UnknownFormat`], which lists them.
    pub fn by_name(name: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let format = FORMATS.iter().find(|f| f.name == name).ok_or_else(|| {
            Error::UnknownFormat { name: name.to_owned(), formats: formats::names() }
        })?;
        let special = Special::of(tokenizer);
        let stop_strings = format.stop_strings.iter().map(|s| (*s).to_owned()).collect();
        let sources = vec![(DEFAULT.to_owned(), format.template.to_owned())];
        let origin = format!("the built-in format {name}");
        Self { origin, sources, special, stop_strings, add_special: format.add_special }.checked()
    }

    /// A template from its text, called `origin` in messages.
    ///
    /// **Errors**: where its syntax is wrong.
    pub fn from_text(origin: &str, text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let sources = vec![(DEFAULT.to_owned(), text.to_owned())];
        let special = Special::of(tokenizer);
        Self { origin: origin.to_owned(), sources, special, ..Self::empty() }.checked()
    }

    fn empty() -> Self {
        Self {
            origin: String::new(),
            sources: Vec::new(),
            special: Special::default(),
            stop_strings: Vec::new(),
            add_special: false,
        }
    }

    fn checked(self) -> Result<Self> {
        for (_, source) in &self.sources {
            engine::check(&self.origin, source)?;
        }
        Ok(self)
    }

    /// A conversation as the text that the model is given.
    ///
    /// **Errors**: [`Error::Refused`] with the template's own words where it does not take the
    /// conversation, [`Error::Template`] where it fails.
    pub fn render(&self, messages: &[Message], how: &Render) -> Result<String> {
        if messages.is_empty() {
            return Err(self.fails("the conversation is empty; give it at least one message"));
        }
        let source = self.pick(how)?;
        engine::render(&self.origin, source, &self.special, messages, how)
    }

    /// A conversation as text and ids, as [`Tokenizer::encode_prompt`] makes them.
    pub fn prompt(&self, messages: &[Message], how: &Render) -> Result<Prompt> {
        Ok(Prompt { text: self.render(messages, how)?, add_special: self.add_special })
    }

    /// Strings at which a reply in this format ends, beside the tokenizer's stop tokens.
    pub fn stop_strings(&self) -> &[String] {
        &self.stop_strings
    }

    /// Where the template came from: a file's name or a built-in format's.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The text of the template used for conversations without tools.
    pub fn text(&self) -> Option<&str> {
        let named = |name: &str| self.sources.iter().find(|(n, _)| n == name);
        named(DEFAULT).or(self.sources.first()).map(|(_, text)| text.as_str())
    }

    /// Every template of the model, by name.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.sources.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The template asked for by name, else the one for tools where there are tools, else the
    /// default one.
    fn pick(&self, how: &Render) -> Result<&str> {
        let named = |name: &str| self.sources.iter().find(|(n, _)| n == name);
        let tool_use = how.tools.as_ref().and_then(|_| named(TOOL_USE));
        let found = match &how.template {
            Some(name) => named(name),
            None => tool_use.or_else(|| named(DEFAULT)),
        };
        found.map(|(_, source)| source.as_str()).ok_or_else(|| {
            let names: Vec<&str> = self.sources.iter().map(|(n, _)| n.as_str()).collect();
            let wanted = how.template.as_deref().unwrap_or(DEFAULT);
            self.fails(&format!("it has no template `{wanted}`, but {}", names.join(", ")))
        })
    }

    fn fails(&self, why: &str) -> Error {
        Error::Template { origin: self.origin.clone(), why: why.to_owned() }
    }
}
