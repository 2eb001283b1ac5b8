use std::{
    io,
    sync::{Arc, Mutex},
};

use jiff::{Zoned, civil::DateTime};
use minijinja::{Environment, ErrorKind, Value, syntax::SyntaxConfig, value::Kwargs};

use crate::{Error, Result, Tokenizer};

use super::{Message, Render, json::to_json, python};

/// Instructions that a template may run: a conversation of a thousand turns takes about a million.
const FUEL: u64 = 20_000_000;
/// The longest text that a template may give, beside what the messages bring with them.
const MAX_TEXT: usize = 16 << 20;
/// The longest template read; the longest published ones have some 20 kB.
const MAX_TEMPLATE: usize = 1 << 20;
/// Marks where a message to be continued ends.
const END_OF_MESSAGE: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The special tokens that a template can name.
#[derive(Clone, Debug, Default)]
pub(super) struct Special(Vec<(&'static str, String)>);

impl Special {
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let named = [
            ("bos_token", tokenizer.bos()),
            ("eos_token", tokenizer.eos()),
            ("unk_token", tokenizer.unk()),
            ("pad_token", tokenizer.pad()),
        ];
        let text = |id: Option<u32>| tokenizer.token_text(id?).map(str::to_owned);
        Self(named.into_iter().filter_map(|(name, id)| Some((name, text(id)?))).collect())
    }
}

/// Refuses a template that is too long or not Jinja.
pub(super) fn check(origin: &str, source: &str) -> Result<()> {
    if source.len() > MAX_TEMPLATE {
        let why = format!("it has {} bytes, more than {MAX_TEMPLATE}", source.len());
        return Err(Error::Template { origin: origin.to_owned(), why });
    }
    let source = without_generation_tags(source);
    let checked =
        environment(DateTime::default(), &Refusal::default()).template_from_str(&source).map(drop);
    checked.map_err(|e| explain(origin, &e, None))
}

/// Renders a conversation.
pub(super) fn render(
    origin: &str,
    source: &str,
    special: &Special,
    messages: &[Message],
    how: &Render,
) -> Result<String> {
    let mut messages: Vec<serde_json::Value> = messages.iter().map(Message::plain).collect();
    let open =
        if how.continue_final_message { Some(mark_end(origin, &mut messages, how)?) } else { None };
    let mut limit = MAX_TEXT;
    limit += serde_json::to_string(&messages).map_or(0, |text| text.len() * 4);

    let refusal = Refusal::default();
    let now = how.now.unwrap_or_else(|| Zoned::now().datetime());
    let source = without_generation_tags(source);
    let environment = environment(now, &refusal);
    let mut out = Limited { bytes: Vec::new(), limit };
    let context = context(special, &messages, how);
    let done = environment
        .template_from_str(&source)
        .and_then(|t| t.render_captured_to(context, &mut out).map(drop));
    if let Err(e) = done {
        return Err(explain(origin, &e, refusal.said()));
    }
    let text = String::from_utf8_lossy(&out.bytes).into_owned();
    match open {
        Some(last) => cut_at_end(origin, text, &last),
        None => Ok(text),
    }
}

fn context(special: &Special, messages: &[serde_json::Value], how: &Render) -> Value {
    let mut pairs: Vec<(String, Value)> = Vec::new();
    let mut put = |name: &str, value: Value| pairs.push((name.to_owned(), value));
    for (name, text) in &special.0 {
        put(name, Value::from(text.as_str()));
    }
    let list =
        |items: &[serde_json::Value]| items.iter().map(python::from_json).collect::<Vec<_>>();
    put("messages", Value::from(list(messages)));
    put("tools", how.tools.as_deref().map(list).into());
    put("documents", how.documents.as_deref().map(list).into());
    put("add_generation_prompt", Value::from(how.add_generation_prompt));
    for (name, value) in &how.extras {
        put(name, python::from_json(value));
    }
    Value::from_pairs(pairs)
}

/// The words with which a template refused a conversation.
#[derive(Clone, Debug, Default)]
struct Refusal(Arc<Mutex<Option<String>>>);

impl Refusal {
    fn say(&self, words: String) {
        if let Ok(mut said) = self.0.lock() {
            *said = Some(words);
        }
    }

    fn said(&self) -> Option<String> {
        self.0.lock().ok()?.take()
    }
}

/// Jinja as transformers sets it up: blocks trimmed, no escaping, Python's methods and its JSON.
fn environment(now: DateTime, refusal: &Refusal) -> Environment<'static> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    if let Ok(syntax) = syntax.build() {
        env.set_syntax(syntax);
    }
    env.set_fuel(Some(FUEL));
    env.set_debug(true);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(python::method);
    env.set_formatter(|out, _, value| Ok(out.write_str(&python::str(value))?));
    env.add_filter("tojson", to_json);
    env.add_filter("string", |value: &Value| python::str(value));
    env.add_filter("truncate", python::truncate);
    env.add_filter("wordcount", python::word_count);
    env.add_filter("escape", |value: &Value| python::escape(&python::str(value)));
    env.add_filter("e", |value: &Value| python::escape(&python::str(value)));
    env.add_function("strftime_now", move |format: &str| {
        jiff::fmt::strtime::format(format, now)
            .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
    });
    env.add_function("dict", |kwargs: Kwargs| -> Result<Value, minijinja::Error> {
        kwargs.args().map(|key| Ok((key.to_owned(), kwargs.get::<Value>(key)?))).collect()
    });
    let refusal = refusal.clone();
    env.add_function("raise_exception", move |words: &Value| -> Result<Value, minijinja::Error> {
        refusal.say(python::str(words));
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "the template raised an exception"))
    });
    env
}

fn explain(origin: &str, error: &minijinja::Error, refusal: Option<String>) -> Error {
    let origin = origin.to_owned();
    if let Some(why) = refusal {
        return Error::Refused { origin, why };
    }
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it does not come to an end".to_owned(),
        ErrorKind::WriteFailure => format!("it gives more than {MAX_TEXT} bytes of text"),
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
    Error::Template { origin, why: format!("{what}{line}") }
}

/// Takes text up to a limit.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::other("too much text"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes out `{% generation %}` and its end, which transformers uses to find the model's own
/// words for training; they leave no trace in the text but the trimming that any block does.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            out.push_str(tag);
            return out;
        };
        let (tag, after) = tag.split_at(end + 2);
        let inner = &tag[2..tag.len() - 2];
        let word = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Puts the mark at the end of the last message; gives that message's text.
fn mark_end(origin: &str, messages: &mut [serde_json::Value], how: &Render) -> Result<String> {
    let fails = |why: &str| Error::Template { origin: origin.to_owned(), why: why.to_owned() };
    if how.add_generation_prompt {
        return Err(fails("a message cannot be continued and replied to at once"));
    }
    let content = messages.last_mut().and_then(|m| m.get_mut("content"));
    let text = match content {
        Some(serde_json::Value::Array(parts)) => {
            parts.iter_mut().rev().find_map(|part| part.get_mut("text"))
        }
        other => other,
    };
    match text {
        Some(serde_json::Value::String(text)) => {
            let last = text.clone();
            text.push_str(END_OF_MESSAGE);
            Ok(last)
        }
        _ => Err(fails("the last message has no text to continue")),
    }
}

/// Ends the text where the mark is.
fn cut_at_end(origin: &str, mut text: String, last: &str) -> Result<String> {
    let mark = text.rfind(END_OF_MESSAGE.trim_end()).filter(|_| text.contains(last.trim()));
    let Some(at) = mark else {
        let why = "it does not show the last message as it is, so that cannot be continued";
        return Err(Error::Template { origin: origin.to_owned(), why: why.to_owned() });
    };
    let whole = text[at..].starts_with(END_OF_MESSAGE);
    text.truncate(at);
    if !whole {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::without_generation_tags;

    #[test]
    fn generation_tags_become_blocks_that_do_nothing() {
        let cases = [
            ("{% generation %}a{% endgeneration %}", "{% if true %}a{% endif %}"),
            ("{%- generation -%}a{%+ endgeneration%}", "{%- if true -%}a{%+ endif%}"),
            ("{% if generation %}{{ '%}' }}{%", "{% if generation %}{{ '%}' }}{%"),
        ];
        for (from, to) in cases {
            assert_eq!(without_generation_tags(from), to);
        }
    }
}
