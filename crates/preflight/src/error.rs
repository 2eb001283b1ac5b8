/// Why a question could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No rules for this engine.
    #[error("there are no rules for the engine `{found}`; known: {known}")]
    UnknownEngine { found: String, known: String },
    /// A device that has no meaning here.
    #[error(
        "`{found}` is no device; use cpu, a compute capability such as sm80 or sm90, or one of {known}"
    )]
    UnknownDevice { found: String, known: String },
    /// Rules that cannot be read.
    #[error("the rules are malformed: {0}")]
    Rules(#[from] serde_json::Error),
}
