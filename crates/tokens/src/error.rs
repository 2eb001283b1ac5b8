/// Why a tokenizer or template could not be made or used.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model comes without any tokenizer.
    #[error(
        "{model} has no tokenizer; put its tokenizer.json or tokenizer.model beside the weights"
    )]
    Missing { model: String },

    /// A file that is damaged, or not what its name says.
    #[error("{file}: {why}; download the file again, or save it again with its own tool")]
    Broken { file: String, why: String },

    /// A sound file that asks for something that is not implemented.
    #[error("{file}: {what} is not supported")]
    Unsupported { file: String, what: String },

    /// A text that the tokenizer has no ids for.
    #[error("{file}: the tokenizer could not encode the text: {why}")]
    Encode { file: String, why: String },

    /// The model has no chat template, and none was asked for.
    #[error(
        "{model} has no chat template; say how it was trained to read conversations with --prompt-format and one of: {formats}"
    )]
    NoTemplate { model: String, formats: String },

    /// No built-in prompt format has this name.
    #[error("there is no prompt format `{name}`; --prompt-format takes one of: {formats}")]
    UnknownFormat { name: String, formats: String },

    /// A chat template that is not Jinja, or fails on this conversation.
    #[error("the chat template of {origin}: {why}")]
    Template { origin: String, why: String },

    /// A chat template that refuses this conversation, in its own words.
    #[error("the chat template of {origin} does not take this conversation: {why}")]
    Refused { origin: String, why: String },
}

impl Error {
    pub(crate) fn broken(file: &str, why: impl ToString) -> Self {
        Self::Broken { file: file.to_owned(), why: why.to_string() }
    }

    pub(crate) fn unsupported(file: &str, what: impl ToString) -> Self {
        Self::Unsupported { file: file.to_owned(), what: what.to_string() }
    }
}
