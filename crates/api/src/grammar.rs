use serde::{Deserialize, Serialize};

/// What a generated text must be, as its author wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Grammar {
    /// A JSON object, whatever is in it.
    JsonObject,
    /// JSON that this JSON Schema describes.
    JsonSchema(String),
    /// A text that this regular expression matches from beginning to end.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar in Lark's notation; its rule is `start`.
    Lark(String),
    /// A text of this grammar in GBNF, the notation of llama.cpp; its rule is `root`.
    Gbnf(String),
}
