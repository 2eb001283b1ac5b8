//! Values as Python writes them, and the methods of Python's that templates call.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Rest, ValueKind},
};

/// Deeper values are cut short: a template can nest lists without end.
const MAX_DEPTH: usize = 200;

/// JSON as the values that a template sees, objects in their order.
pub(super) fn from_json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (_, Some(n)) => Value::from(n),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), from_json(v)))),
    }
}

/// `str(value)`.
pub(super) fn str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => value.to_string(),
        _ => {
            let mut out = String::new();
            repr(value, 0, &mut out);
            out
        }
    }
}

fn repr(value: &Value, depth: usize, out: &mut String) {
    if depth > MAX_DEPTH {
        return out.push_str("...");
    }
    match value.kind() {
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.push_str(&float(number)),
            Err(_) => out.push_str(&value.to_string()),
        },
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Seq => {
            let brackets = if value.is_tuple() { ["(", ")"] } else { ["[", "]"] };
            let items: Vec<Value> = value.try_iter().into_iter().flatten().collect();
            out.push_str(brackets[0]);
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(item, depth + 1, out);
            }
            if value.is_tuple() && items.len() == 1 {
                out.push(',');
            }
            out.push_str(brackets[1]);
        }
        ValueKind::Map if value.len().is_some() => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&key, depth + 1, out);
                out.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), depth + 1, out);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// `repr(float)`: the shortest text that reads back as the same number, with an exponent below
/// 1e-4 and from 1e16 on.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = number.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

/// `repr(str)`: single quotes, unless only they are inside.
fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => out.extend(['\\', c]),
            c if c < ' ' || ('\u{7f}'..'\u{a1}').contains(&c) || c == '\u{ad}' => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push(mark);
}

/// Jinja's `escape`, as MarkupSafe writes it.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// Jinja's `truncate(length=255, killwords=false, end='...', leeway=5)`.
pub(super) fn truncate(text: &str, rest: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(named.or_else(|| rest.get(place).cloned()))
    };
    let length = argument(0, "length")?.and_then(|v| v.as_usize()).unwrap_or(255);
    let kill_words = argument(1, "killwords")?.is_some_and(|v| v.is_true());
    let end = argument(2, "end")?.map_or_else(|| "...".to_owned(), |v| str(&v));
    let leeway = argument(3, "leeway")?.and_then(|v| v.as_usize()).unwrap_or(5);
    kwargs.assert_all_used()?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let room = length.checked_sub(end.chars().count()).ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, "truncate: the end is longer than the length")
    })?;
    let cut: String = text.chars().take(room).collect();
    let cut =
        if kill_words { cut.as_str() } else { cut.rsplit_once(' ').map_or(&*cut, |(a, _)| a) };
    Ok(format!("{cut}{end}"))
}

/// Jinja's `wordcount`: runs of letters, digits and underscores.
pub(super) fn word_count(text: &str) -> usize {
    let between = |c: char| !(c.is_alphanumeric() || c == '_');
    text.split(between).filter(|word| !word.is_empty()).count()
}

/// A method that a value lacks in minijinja but has in Python.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let (Some(text), "removeprefix" | "removesuffix", [part]) = (value.as_str(), name, arguments)
    {
        let part = part.as_str().unwrap_or_default();
        let cut = match name {
            "removeprefix" => text.strip_prefix(part),
            _ => text.strip_suffix(part),
        };
        return Ok(Value::from(cut.unwrap_or(text)));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (1.5e-5, "1.5e-05"),
            (1e-4, "0.0001"),
            (-0.0, "-0.0"),
            (1e300, "1e+300"),
            (f64::INFINITY, "inf"),
        ];
        for (number, text) in cases {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn strings_inside_lists_are_quoted_as_python_quotes_them() {
        let value = Value::from(vec!["a", "it's", "say \"x\"", "both ' and \"", "\n\u{7f}é"]);
        assert_eq!(str(&value), r#"['a', "it's", 'say "x"', 'both \' and "', '\n\x7fé']"#);
    }

    #[test]
    fn truncation_keeps_whole_words_unless_told_otherwise() {
        let kwargs = || Kwargs::from_iter(Vec::<(String, Value)>::new());
        let call = |text, length: usize, kill: bool| {
            let rest = [Value::from(length), kill.into(), "...".into(), 0.into()];
            truncate(text, Rest(rest.to_vec()), kwargs())
        };
        let cut = |kill| call("one two three four", 12, kill);
        assert_eq!(cut(false).unwrap(), "one two...");
        assert_eq!(cut(true).unwrap(), "one two t...");
        assert!(call("one two three", 2, false).is_err());
    }
}
