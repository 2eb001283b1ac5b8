use serde::Serialize;

/// A conversation as its template writes it, ready to be encoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Prompt {
    /// What the model reads.
    pub text: String,
    /// Whether bos and eos come on top of the text. Templates write their own, as a rule.
    pub add_special: bool,
}

impl Prompt {
    /// A text to be continued, without any template; bos comes with it where the model wants it.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), add_special: true }
    }
}

/// One token of a prompt, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    pub id: u32,
    /// What the token stands for; special tokens as their file writes them. Bytes that are only
    /// part of a character are shown as U+FFFD.
    pub text: String,
    /// Whether it stands for no text: bos, eos, the start or end of a turn.
    pub special: bool,
}
