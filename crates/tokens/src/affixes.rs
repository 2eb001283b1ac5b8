use std::collections::HashMap;

use serde_json::Value;

use crate::{Error, Result};

/// The ids put before and after every text: bos, eos and the like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Affixes {
    pub(crate) before: Vec<u32>,
    pub(crate) after: Vec<u32>,
}

impl Affixes {
    /// Reads the `post_processor` of a `tokenizer.json`, for a single text.
    pub(crate) fn read(file: &str, value: &Value, vocab: &HashMap<String, u32>) -> Result<Self> {
        let kind = value.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind {
            _ if value.is_null() => Ok(Self::default()),
            "ByteLevel" => Ok(Self::default()),
            "TemplateProcessing" => Self::template(file, value, vocab),
            "BertProcessing" | "RobertaProcessing" => {
                let id = |key: &str| {
                    let id = value.get(key).and_then(|v| v.get(1)).and_then(Value::as_u64);
                    id.and_then(|id| u32::try_from(id).ok())
                        .ok_or_else(|| Error::broken(file, format!("post_processor has no {key}")))
                };
                Ok(Self { before: vec![id("cls")?], after: vec![id("sep")?] })
            }
            "Sequence" => {
                let parts = value.get("processors").and_then(Value::as_array);
                let mut all = Self::default();
                for part in parts.into_iter().flatten() {
                    let part = Self::read(file, part, vocab)?;
                    all.before.splice(0..0, part.before);
                    all.after.extend(part.after);
                }
                Ok(all)
            }
            other => Err(Error::unsupported(file, format!("the post-processor `{other}`"))),
        }
    }

    fn template(file: &str, value: &Value, vocab: &HashMap<String, u32>) -> Result<Self> {
        let mut affixes = Self::default();
        let mut seen_text = false;
        for piece in value.get("single").and_then(Value::as_array).into_iter().flatten() {
            if piece.get("Sequence").is_some() {
                seen_text = true;
                continue;
            }
            let name = piece.pointer("/SpecialToken/id").and_then(Value::as_str);
            let name = name.ok_or_else(|| Error::broken(file, "post_processor is malformed"))?;
            let side = if seen_text { &mut affixes.after } else { &mut affixes.before };
            match value.get("special_tokens").and_then(|t| t.get(name)?.get("ids")?.as_array()) {
                Some(ids) => {
                    let ids = ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok());
                    side.extend(ids);
                }
                None => side.push(*vocab.get(name).ok_or_else(|| {
                    Error::broken(file, format!("post_processor names an unknown token `{name}`"))
                })?),
            }
        }
        Ok(affixes)
    }
}
