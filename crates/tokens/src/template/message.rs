use jiff::civil::DateTime;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// Text, or a list of parts, or nothing.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub content: Value,
    /// What else the template may use: `tool_calls`, `name`, `reasoning_content`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into().into(), more: Map::new() }
    }

    /// What a user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model says.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// What the model is told before all else.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// As transformers hands it to a template: fields without a value are not there, and a thought
    /// is found under each of the names that templates use.
    pub(super) fn plain(&self) -> Value {
        const THOUGHTS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
        let mut all = Map::new();
        let thought = THOUGHTS.iter().find_map(|k| self.more.get(*k).filter(|v| !v.is_null()));
        if let Some(thought) = thought {
            all.insert("thinking".to_owned(), thought.clone());
        }
        all.insert("role".to_owned(), self.role.clone().into());
        all.insert("content".to_owned(), self.content.clone());
        all.extend(self.more.clone());
        if let Some(thought) = thought {
            all.insert("reasoning_content".to_owned(), thought.clone());
        }
        all.retain(|_, value| !value.is_null());
        Value::Object(all)
    }
}

/// What a rendering is asked for.
#[derive(Clone, Debug, Default)]
pub struct Render {
    /// End with what makes the model reply.
    pub add_generation_prompt: bool,
    /// Leave the last message open, for the model to go on with.
    pub continue_final_message: bool,
    /// The tools that the model may call, as JSON schemas.
    pub tools: Option<Vec<Value>>,
    /// Documents to answer from.
    pub documents: Option<Vec<Value>>,
    /// More variables for the template, such as `enable_thinking`.
    pub extras: Map<String, Value>,
    /// Which of the model's templates; the default one, or the one for tools, if not given.
    pub template: Option<String>,
    /// What `strftime_now` takes for now; the local time if not given.
    pub now: Option<DateTime>,
}

impl Render {
    /// For a reply: with the generation prompt, and nothing else.
    pub fn reply() -> Self {
        Self { add_generation_prompt: true, ..Self::default() }
    }
}
