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
}

impl Error {
    pub(crate) fn broken(file: &str, why: impl ToString) -> Self {
        Self::Broken { file: file.to_owned(), why: why.to_string() }
    }

    pub(crate) fn unsupported(file: &str, what: impl ToString) -> Self {
        Self::Unsupported { file: file.to_owned(), what: what.to_string() }
    }
}
