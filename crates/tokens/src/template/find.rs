use serde_json::Value;

use crate::{Error, Result, Source};

use super::{DEFAULT, TOOL_USE};

/// Where a template was found, and the templates by name.
pub(crate) type Found = (String, Vec<(String, String)>);

/// A model's own templates, from the first place that has any.
pub(crate) fn own(source: &Source) -> Result<Option<Found>> {
    if let Some(bytes) = &source.template {
        let file = "chat_template.jinja";
        let text = std::str::from_utf8(bytes).map_err(|e| Error::broken(file, e))?;
        return Ok(Some((file.to_owned(), vec![(DEFAULT.to_owned(), text.to_owned())])));
    }
    let json = [
        ("chat_template.json", source.template_json.as_ref()),
        ("tokenizer_config.json", source.config.as_ref()),
    ];
    for (file, bytes) in json {
        let object = Source::object(file, bytes)?;
        if let Some(value) = object.get("chat_template").filter(|v| !v.is_null()) {
            return Ok(Some((file.to_owned(), listed(file, value)?)));
        }
    }
    Ok(source.gguf.as_ref().and_then(|gguf| {
        let key = |name: &str| gguf.str(&format!("tokenizer.chat_template{name}"));
        let default = key("").map(|text| (DEFAULT.to_owned(), text.to_owned()));
        let tools = key(".tool_use").map(|text| (TOOL_USE.to_owned(), text.to_owned()));
        let all: Vec<_> = default.into_iter().chain(tools).collect();
        if all.is_empty() { None } else { Some(("the GGUF's metadata".to_owned(), all)) }
    }))
}

/// A template as a string, or several as a list of names and templates or as an object.
fn listed(file: &str, value: &Value) -> Result<Vec<(String, String)>> {
    let pair = |name: Option<&str>, text: Option<&str>| Some((name?.to_owned(), text?.to_owned()));
    let all: Option<Vec<_>> = match value {
        Value::String(text) => Some(vec![(DEFAULT.to_owned(), text.clone())]),
        Value::Array(list) => list
            .iter()
            .map(|v| pair(v.get("name")?.as_str(), v.get("template")?.as_str()))
            .collect(),
        Value::Object(map) => {
            map.iter().map(|(name, text)| pair(Some(name), text.as_str())).collect()
        }
        _ => None,
    };
    all.filter(|all| !all.is_empty())
        .ok_or_else(|| Error::broken(file, "its chat_template is neither text nor a list of them"))
}
