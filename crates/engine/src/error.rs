use lathe_base::Bytes;
use lathe_models::Role;

/// Why the native engine could not load a model or run it.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] lathe_models::Error),

    #[error(transparent)]
    Kernel(#[from] lathe_kernels::Error),

    /// The layers' attentions differ in a way that one cache cannot hold.
    #[error("layer {layer} has other KV heads than layer 0, which is not supported")]
    UnevenLayers { layer: usize },

    /// A weight that would turn every result into NaN.
    #[error("tensor `{tensor}` ({role}) holds {value} at {index}; the file is damaged")]
    NotFinite { tensor: String, role: Role, index: usize, value: f32 },

    #[error("{} of working memory cannot be allocated; lower --context or --batch", Bytes(*bytes as u64))]
    Memory { bytes: usize },

    /// Not even without its weights the model fits.
    #[error(
        "the KV cache and working memory take {}, which leaves nothing of the {} allowed; lower --context or --batch, or raise --max-memory",
        Bytes(*needed), Bytes(*allowed)
    )]
    NothingLeft { needed: u64, allowed: u64 },

    /// Weights that are converted as they are loaded cannot stay in their files.
    #[error(
        "the weights do not fit in the memory allowed, and these files hold them in a form that is converted at loading, so that they cannot be read from disk as they are used; make a GGUF file of the model (`lathe quantize`), or raise --max-memory"
    )]
    NoRoom,

    /// The sequence would grow beyond the context.
    #[error(
        "{needed} tokens are needed but the context holds {context}; shorten the prompt, ask for fewer tokens, or raise --context"
    )]
    Context { needed: usize, context: usize },

    /// All pages of the KV cache are in use.
    #[error(
        "{needed} pages of KV cache are needed but {free} are free; raise --batch or --context, or run fewer sequences at once"
    )]
    Pages { needed: usize, free: usize },

    /// Each sequence under way has a page of its own in full precision.
    #[error("too many sequences are under way; raise --batch, or run fewer sequences at once")]
    Sequences,

    /// A token that the model does not have.
    #[error(
        "token {id} is not in the vocabulary of {vocab}; does the tokenizer belong to this model?"
    )]
    Token { id: u32, vocab: usize },

    /// The model computed nothing that can be sampled.
    #[error("every logit is NaN or minus infinity; the model's weights are damaged")]
    NoLogits,

    /// A draft that cannot guess for this model.
    #[error("the draft does not fit the model: {0}")]
    Draft(String),

    #[error("{0}")]
    Request(String),

    /// A grammar that cannot be used, or that a text could not follow to its end.
    #[error(transparent)]
    Grammar(#[from] lathe_grammar::Error),

    /// A service takes on no more.
    #[error("{waiting} requests wait already, and {most} may; try again later")]
    QueueFull { waiting: usize, most: usize },

    /// A service takes on no prompt of that length now.
    #[error("with this prompt {waiting} tokens would wait, and {most} may; try again later")]
    QueueTokens { waiting: usize, most: usize },

    /// The service has ended or is about to.
    #[error("the service is shutting down")]
    Closed,

    /// The engine broke on this request; others go on.
    #[error("{why}")]
    Broken { why: String },
}

impl Error {
    /// From what a panic carries.
    pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        let why = text.unwrap_or_else(|| "a panic without words".to_owned());
        Self::Broken { why: format!("a bug in the engine: {why}") }
    }
}

impl From<Error> for lathe_api::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Context { needed, context } => Self::ContextExceeded { needed, context },
            Error::Token { .. } | Error::Request(_) => Self::BadRequest { what: error.to_string() },
            Error::Grammar(why) if why.is_before_text() => {
                Self::BadRequest { what: why.to_string() }
            }
            other => Self::Failed { engine: "native".to_owned(), why: other.to_string() },
        }
    }
}
