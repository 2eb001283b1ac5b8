use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, Rest, ValueKind},
};

use super::python;

/// Deeper values are refused: a template can nest lists without end.
const MAX_DEPTH: usize = 200;

/// The `tojson` filter of transformers: Python's `json.dumps` without ASCII escapes, where Jinja's
/// own escapes HTML. Takes `ensure_ascii`, `indent`, `separators` and `sort_keys`.
pub(super) fn to_json(value: &Value, rest: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(named.or_else(|| rest.get(place).cloned()).filter(|v| !v.is_none()))
    };
    let ascii = argument(0, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = argument(1, "indent")?.map(|v| match v.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(v.as_usize().unwrap_or(0).min(MAX_DEPTH)),
    });
    let (item, key) = match argument(2, "separators")? {
        Some(pair) => {
            let text = |i| pair.get_item_by_index(i).map(|v| v.to_string());
            (text(0)?, text(1)?)
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let sort = argument(3, "sort_keys")?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let style = Style { ascii, indent, item, key, sort };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

struct Style {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let refuse = |what: &str| Err(Error::new(ErrorKind::BadSerialization, what.to_owned()));
        if depth > MAX_DEPTH {
            return refuse("the value is nested too deeply for JSON");
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&match python::str(value).as_str() {
                "inf" => "Infinity".to_owned(),
                "-inf" => "-Infinity".to_owned(),
                "nan" => "NaN".to_owned(),
                number => number.to_owned(),
            }),
            ValueKind::String => self.quote(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item));
                self.container(['[', ']'], items, depth, out)?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                let pairs = keys.into_iter().map(|key| {
                    let item = value.get_item(&key).unwrap_or_default();
                    (Some(key), item)
                });
                self.container(['{', '}'], pairs, depth, out)?;
            }
            ValueKind::Undefined => return refuse("an undefined value has no JSON"),
            kind => return refuse(&format!("a value of the kind `{kind}` has no JSON")),
        }
        Ok(())
    }

    fn container(
        &self,
        brackets: [char; 2],
        items: impl Iterator<Item = (Option<Value>, Value)>,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        out.push(brackets[0]);
        let mut any = false;
        for (key, item) in items {
            if any {
                out.push_str(&self.item);
            }
            any = true;
            self.line(depth + 1, out);
            if let Some(key) = key {
                self.quote(&key_text(&key), out);
                out.push_str(&self.key);
            }
            self.write(&item, depth + 1, out)?;
        }
        if any {
            self.line(depth, out);
        }
        out.push(brackets[1]);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn quote(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) || (self.ascii && c == '\u{7f}') => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// Python writes keys that are not text as JSON writes their values.
fn key_text(key: &Value) -> String {
    match key.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
        _ => python::str(key),
    }
}
