use std::path::PathBuf;

/// Why an evaluation did not come to a result.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },

    #[error("{} holds {bytes} bytes; evaluation reads at most {limit}: use a smaller extract", path.display())]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },

    #[error("{} is not UTF-8 text (byte {offset}); convert it or choose another file", path.display())]
    NotUtf8 { path: PathBuf, offset: usize },

    #[error("{} holds no text", path.display())]
    NoText { path: PathBuf },

    #[error("{} line {line}: {why}", path.display())]
    BadLine { path: PathBuf, line: usize, why: String },

    #[error(
        "{what} needs at least {needed} tokens of text but there are {found}; use a longer text"
    )]
    TooShort { what: String, needed: usize, found: usize },

    #[error("a context of {context} tokens is too short to score anything; raise --context")]
    ContextTooShort { context: usize },

    #[error("tokenizing {document}: {why}")]
    Tokenizer { document: String, why: String },

    #[error(
        "{model} has a vocabulary of {found} but {base} has {expected}: they are not the same kind of model"
    )]
    Vocabulary { base: String, model: String, expected: usize, found: usize },

    #[error("{model} returned {found} logits where {expected} belong; the engine is broken")]
    Shape { model: String, expected: usize, found: usize },

    #[error(
        "{model} gave logits that are not numbers (NaN or infinite) in {place}, token {position}; the weights or a kernel are broken"
    )]
    NotFinite { model: String, place: String, position: usize },

    #[error("{model}: {source}")]
    Engine { model: String, source: lathe_api::Error },

    /// Two measurements that were not made on the same tokens, or not against the same base.
    #[error("these measurements cannot be put together: {why}")]
    Mismatch { why: String },

    #[error(transparent)]
    Stats(#[from] lathe_stats::Error),

    #[error(transparent)]
    Cancelled(#[from] lathe_base::Cancelled),
}
