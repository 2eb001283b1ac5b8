/// Why an engine did not do what it was asked.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine has no such ability.
    #[error("{engine} cannot {what}")]
    Unsupported { engine: String, what: String },

    /// Prompt and generation do not fit the context.
    #[error(
        "{needed} tokens are needed but the context holds {context}; shorten the prompt, ask for fewer tokens, or raise --context"
    )]
    ContextExceeded { needed: usize, context: usize },

    /// A request that makes no sense, such as a negative temperature.
    #[error("{what}")]
    BadRequest { what: String },

    /// The engine broke.
    #[error("{engine} failed: {why}")]
    Failed { engine: String, why: String },
}
