use std::path::Path;

use serde_json::{Map, Value};

use crate::documents::{read_file, sha256, utf8};
use crate::jsonl::{bad, objects};
use crate::{ChoiceItem, Error};

/// Items of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceSet {
    /// The file's name.
    pub name: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    pub items: Vec<ChoiceItem>,
}

/// Reads multiple-choice items.
///
/// JSONL (`.jsonl`, `.ndjson`): one object per line with the question in `context`, `query` or
/// `question`, the strings `choices`, and the right one's index from 0 in `answer`, `gold` or
/// `label`. Any other file: six lines per item (context, index, four endings), the form in which
/// llama.cpp takes HellaSwag. A choice that does not begin with white space gets a space before it,
/// unless its context ends in white space.
///
/// # Errors
/// [`Error::BadLine`] with the line's number; [`Error::Read`], [`Error::NotUtf8`],
/// [`Error::NoText`].
pub fn read_choices(path: &Path) -> Result<ChoiceSet, Error> {
    let bytes = read_file(path)?;
    ChoiceSet::from_bytes(path, &bytes)
}

impl ChoiceSet {
    /// Reads items held in memory; `path` names them in errors and says the format.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let text = utf8(path, bytes)?;
        let json = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("ndjson"));
        let items = if json { from_objects(path, text)? } else { from_six_lines(path, text)? };
        if items.is_empty() {
            return Err(Error::NoText { path: path.to_owned() });
        }
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, sha256: sha256(bytes), items })
    }
}

fn from_objects(path: &Path, text: &str) -> Result<Vec<ChoiceItem>, Error> {
    objects(path, text)
        .map(|object| {
            let (line, object) = object?;
            item(&object, line).map_err(|why| bad(path, line, why))
        })
        .collect()
}

fn item(object: &Map<String, Value>, line: usize) -> Result<ChoiceItem, String> {
    let any = |names: &[&str]| names.iter().find_map(|n| object.get(*n));
    let context = any(&["context", "query", "question"])
        .and_then(Value::as_str)
        .ok_or("there is no string `context`")?;
    let choices = any(&["choices"])
        .and_then(Value::as_array)
        .and_then(|c| c.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>())
        .ok_or("there is no list of strings `choices`")?;
    let answer = any(&["answer", "gold", "label"])
        .and_then(Value::as_u64)
        .ok_or("there is no index `answer`")?;
    let id = match object.get("id") {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => line.to_string(),
    };
    checked(id, context, choices, answer)
}

fn from_six_lines(path: &Path, text: &str) -> Result<Vec<ChoiceItem>, Error> {
    let lines: Vec<&str> = text.lines().collect();
    let lines = lines.strip_suffix(&[""]).unwrap_or(&lines);
    let mut items = Vec::with_capacity(lines.len() / 6);
    for (i, group) in lines.chunks(6).enumerate() {
        let line = 6 * i + 1;
        let [context, answer, choices @ ..] = group else {
            return Err(bad(path, line, "an item needs six lines".into()));
        };
        if choices.len() != 4 {
            return Err(bad(path, line, "an item needs six lines".into()));
        }
        let answer = answer
            .trim()
            .parse()
            .map_err(|_| bad(path, line + 1, format!("{answer:?} is not an index")))?;
        let choices = choices.iter().map(|&c| c.to_owned()).collect();
        let item = checked((i + 1).to_string(), context, choices, answer);
        items.push(item.map_err(|why| bad(path, line, why))?);
    }
    Ok(items)
}

fn checked(
    id: String,
    context: &str,
    choices: Vec<String>,
    answer: u64,
) -> Result<ChoiceItem, String> {
    let count = choices.len();
    if count < 2 {
        return Err(format!("an item needs two choices or more but has {count}"));
    }
    if choices.iter().any(|c| c.trim().is_empty()) {
        return Err("a choice is empty".into());
    }
    let answer = usize::try_from(answer).ok().filter(|&a| a < count);
    let answer = answer.ok_or(format!("the answer is not an index from 0 to {}", count - 1))?;
    let spaced = context.is_empty() || context.ends_with(char::is_whitespace);
    let space = |c: String| match spaced || c.starts_with(char::is_whitespace) {
        true => c,
        false => format!(" {c}"),
    };
    let choices = choices.into_iter().map(space).collect();
    Ok(ChoiceItem { id, context: context.into(), choices, answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<ChoiceSet, Error> {
        ChoiceSet::from_bytes(Path::new(name), text.as_bytes())
    }

    #[test]
    fn reads_json_lines_under_their_usual_names() {
        let text = "{\"context\":\"A\",\"choices\":[\"b\",\" c\"],\"answer\":1,\"id\":\"q\"}\n\
                    {\"query\":\"A\\n\",\"choices\":[\"b\",\"c\",\"d\"],\"gold\":0}\n";
        let set = read("a.jsonl", text).unwrap();
        assert_eq!(set.items[0].choices, [" b", " c"]);
        assert_eq!((set.items[0].id.as_str(), set.items[0].answer), ("q", 1));
        assert_eq!(set.items[1].choices, ["b", "c", "d"]);
    }

    #[test]
    fn reads_six_lines_per_item() {
        let set = read("h.txt", "He ran\n2\na.\nb.\nc.\nd.\nShe sat\n0\na.\nb.\nc.\nd.\n").unwrap();
        assert_eq!(set.items.len(), 2);
        assert_eq!((set.items[0].answer, set.items[0].choices[2].as_str()), (2, " c."));
    }

    #[test]
    fn errors_name_the_line() {
        let error = |name, text| read(name, text).unwrap_err().to_string();
        assert!(error("a.jsonl", "{\"context\":\"A\"}").contains("line 1: there is no list"));
        let outside = "{\"context\":\"A\",\"choices\":[\"b\",\"c\"],\"answer\":2}";
        assert!(error("a.jsonl", outside).contains("not an index from 0 to 1"));
        assert!(error("h.txt", "x\n0\na\nb\nc\nd\ny\n").contains("line 7"));
        assert!(error("h.txt", "x\nzero\na\nb\nc\nd\n").contains("line 2"));
        assert!(matches!(read("h.txt", ""), Err(Error::NoText { .. })));
    }
}
