use lathe_base::Buf;
use lathe_files::{Checkpoint, gguf::Metadata};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The files that a tokenizer and its chat template are made from, before they are read.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// What messages call the model: its path.
    pub model: String,
    /// `tokenizer.json`.
    pub json: Option<Buf>,
    /// A SentencePiece `tokenizer.model`.
    pub sentencepiece: Option<Buf>,
    /// `tokenizer_config.json`.
    pub config: Option<Buf>,
    /// `special_tokens_map.json`.
    pub special_tokens: Option<Buf>,
    /// `added_tokens.json`.
    pub added_tokens: Option<Buf>,
    /// `generation_config.json`.
    pub generation: Option<Buf>,
    /// `chat_template.jinja`.
    pub template: Option<Buf>,
    /// `chat_template.json`.
    pub template_json: Option<Buf>,
    /// The model's `config.json`.
    pub model_config: Map<String, Value>,
    /// A GGUF's metadata.
    pub gguf: Option<Metadata>,
}

impl Source {
    /// Gathers the files of a checkpoint; nothing is parsed yet.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let read = |name: &str| checkpoint.folder.read(name).map_err(|e| Error::broken(name, e));
        Ok(Self {
            model: checkpoint.path.display().to_string(),
            json: read("tokenizer.json")?,
            sentencepiece: read("tokenizer.model")?,
            config: read("tokenizer_config.json")?,
            special_tokens: read("special_tokens_map.json")?,
            added_tokens: read("added_tokens.json")?,
            generation: read("generation_config.json")?,
            template: read("chat_template.jinja")?,
            template_json: read("chat_template.json")?,
            model_config: checkpoint.config.clone(),
            gguf: checkpoint.gguf.clone(),
        })
    }

    /// A file's bytes as a JSON object; an absent file is an empty object.
    pub(crate) fn object(file: &str, bytes: Option<&Buf>) -> Result<Map<String, Value>> {
        let Some(bytes) = bytes else { return Ok(Map::new()) };
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(map),
            Ok(_) => Err(Error::broken(file, "a JSON object was expected")),
            Err(e) => Err(Error::broken(file, e)),
        }
    }
}
