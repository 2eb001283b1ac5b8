/// Why a grammar could not be used or followed.
#[non_exhaustive]
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A grammar that is not written as its kind wants it, or that asks for what is not known.
    #[error("the {kind} cannot be used: {why}")]
    Unusable { kind: &'static str, why: String },

    /// The same where the place is known.
    #[error("the {kind}, line {line}, column {column}: {why}")]
    At { kind: &'static str, line: usize, column: usize, why: String },

    /// A grammar beyond a limit that is set so that one request cannot take the machine.
    #[error("the {kind} is too large: {why}")]
    TooLarge { kind: &'static str, why: String },

    /// A tokenizer whose tokens cannot be put into a tree.
    #[error("the tokenizer cannot be used with grammars: {why}")]
    Tokenizer { why: String },

    /// The grammar wants text that no token writes, or that a bias bans, or allows none at all.
    #[error(
        "no token can follow: the grammar allows no text here, or none of the model's tokens that are not banned writes it"
    )]
    DeadEnd,

    /// Finding out what may come next took more steps than are allowed.
    #[error("the grammar is too complex to follow: {why}")]
    TooComplex { why: String },
}

impl Error {
    /// Whether it is the grammar as it was written, and not what a text came to.
    pub fn is_before_text(&self) -> bool {
        !matches!(self, Self::DeadEnd | Self::TooComplex { .. })
    }
}
