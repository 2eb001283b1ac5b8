use std::path::Path;

use serde_json::{Map, Value};

use crate::{Document, Error, ReadOptions};

/// The documents of a JSONL text: one object per line with the text in a field, or with
/// `messages` for the caller to render. `id`, where there is one, names the document.
pub(crate) fn documents(
    path: &Path,
    text: &str,
    options: &ReadOptions<'_>,
) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    for object in objects(path, text) {
        let (line, object) = object?;
        if options.max_documents.is_some_and(|most| documents.len() >= most) {
            break;
        }
        let text = body(&object, options).map_err(|why| bad(path, line, why))?;
        if text.trim().is_empty() {
            return Err(bad(path, line, "the text is empty".into()));
        }
        let id = match object.get("id") {
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            _ => line.to_string(),
        };
        documents.push(Document { id, text });
    }
    Ok(documents)
}

/// Each line that is not blank as an object, with its number from 1.
pub(crate) fn objects<'a>(
    path: &'a Path,
    text: &'a str,
) -> impl Iterator<Item = Result<(usize, Map<String, Value>), Error>> + 'a {
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(move |(i, line)| {
        match serde_json::from_str(line) {
            Ok(Value::Object(object)) => Ok((i + 1, object)),
            Ok(_) => Err(bad(path, i + 1, "not a JSON object".into())),
            Err(e) => Err(bad(path, i + 1, format!("not JSON ({e})"))),
        }
    })
}

pub(crate) fn bad(path: &Path, line: usize, why: String) -> Error {
    Error::BadLine { path: path.to_owned(), line, why }
}

fn body(object: &Map<String, Value>, options: &ReadOptions<'_>) -> Result<String, String> {
    if let Some(value) = object.get(&options.field) {
        let text = value.as_str();
        return text.map(str::to_owned).ok_or(format!("`{}` is not a string", options.field));
    }
    match (object.get("messages"), options.render) {
        (Some(messages), Some(render)) => render(messages),
        (Some(_), None) => {
            Err("it has `messages` but the model has no chat template; give --prompt-format".into())
        }
        (None, _) => {
            let present: Vec<&str> = object.keys().map(String::as_str).take(8).collect();
            let field = &options.field;
            Err(format!("there is no `{field}` or `messages`, only: {}", present.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Texts;

    fn read(text: &str, options: &ReadOptions<'_>) -> Result<Texts, Error> {
        Texts::from_jsonl(Path::new("a.jsonl"), text.as_bytes(), options)
    }

    #[test]
    fn reads_text_ids_and_messages() {
        let render = |m: &Value| Ok(format!("{} messages", m.as_array().map_or(0, Vec::len)));
        let options = ReadOptions { render: Some(&render), ..ReadOptions::default() };
        let text =
            "{\"text\":\"a\",\"id\":\"x\"}\n\n{\"text\":\"b\"}\n{\"messages\":[{},{}],\"id\":7}\n";
        let texts = read(text, &options).unwrap();
        let got: Vec<(&str, &str)> =
            texts.documents.iter().map(|d| (d.id.as_str(), d.text.as_str())).collect();
        assert_eq!(got, [("x", "a"), ("3", "b"), ("7", "2 messages")]);
        assert_eq!(texts.joined(), "a\n\nb\n\n2 messages");
    }

    #[test]
    fn errors_name_the_line_and_what_is_there_instead() {
        let options = ReadOptions::default();
        let error = |text| read(text, &options).unwrap_err().to_string();
        assert_eq!(
            error("{\"text\":\"a\"}\n{\"content\":\"b\"}"),
            "a.jsonl line 2: there is no `text` or `messages`, only: content"
        );
        assert!(error("{\"text\":\"a\"}\n{").starts_with("a.jsonl line 2: not JSON"));
        assert!(error("[1]").contains("line 1: not a JSON object"));
        assert!(error("{\"text\":3}").contains("`text` is not a string"));
        assert!(error("{\"messages\":[]}").contains("--prompt-format"));
        assert!(error("{\"text\":\" \"}").contains("empty"));
    }
}
