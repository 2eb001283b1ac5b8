//! What the library does: everything but GBNF.

use lathe_api::Grammar;
use llguidance::{Matcher, api::TopLevelGrammar};
use serde_json::{Map, Value, json};

use crate::{
    Error, Result, Vocabulary,
    compiled::{kind, unusable},
};

/// White space between the parts of JSON: none, one space, or a new line and its indentation. A
/// model that is drawn from freely would write spaces without end otherwise.
const SPACE: &str = r" |\n[ \t]{0,20}";

pub(crate) fn compile(grammar: &Grammar, vocabulary: &Vocabulary) -> Result<Matcher> {
    let source = source(grammar)?;
    let parser = vocabulary.factory.create_parser(source);
    let mut matcher = Matcher::new(parser);
    // Looks whether anything can follow at all.
    let begun = matcher.consume_tokens(&[]);
    begun.map_err(|error| unusable(grammar, in_a_line(&error.to_string())))?;
    Ok(matcher)
}

fn source(grammar: &Grammar) -> Result<TopLevelGrammar> {
    match grammar {
        Grammar::JsonObject => Ok(schema(json!({ "type": "object" }))),
        Grammar::JsonSchema(text) => {
            let value = serde_json::from_str(text).map_err(|error| Error::At {
                kind: kind(grammar),
                line: error.line(),
                column: error.column(),
                why: without_place(&error.to_string()),
            })?;
            match value {
                Value::Object(_) | Value::Bool(_) => Ok(schema(value)),
                _ => Err(unusable(grammar, "it must be a JSON object".to_owned())),
            }
        }
        Grammar::Regex(text) => regex(grammar, text),
        Grammar::Choice(texts) if texts.is_empty() => {
            Err(unusable(grammar, "it must have at least one text".to_owned()))
        }
        Grammar::Choice(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| regex_syntax::escape(text)).collect();
            Ok(TopLevelGrammar::from_regex(&texts.join("|")))
        }
        Grammar::Lark(text) => Ok(TopLevelGrammar::from_lark(text.clone())),
        _ => Err(unusable(grammar, "this kind is not known".to_owned())),
    }
}

/// Its own `x-guidance`, the library's options, is kept.
fn schema(value: Value) -> TopLevelGrammar {
    let mut schema = match value {
        Value::Object(schema) => schema,
        // `true` and `false` are schemas, too.
        Value::Bool(true) => Map::new(),
        other => Map::from_iter([("not".to_owned(), json!({})), ("const".to_owned(), other)]),
    };
    schema.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": SPACE }));
    TopLevelGrammar::from_json_schema(Value::Object(schema))
}

/// The whole text is matched: `^` at the beginning and `$` at the end say nothing.
fn regex(grammar: &Grammar, text: &str) -> Result<TopLevelGrammar> {
    use regex_syntax::hir::HirKind;
    let parse = |text: &str| {
        let mut parser = regex_syntax::ParserBuilder::new().nest_limit(100).build();
        parser.parse(text).map_err(|error| unusable(grammar, in_a_line(&error.to_string())))
    };
    let hir = parse(text)?;
    let mut inner = text;
    if let HirKind::Concat(parts) = hir.kind() {
        let looks = |part: Option<&regex_syntax::hir::Hir>| {
            part.is_some_and(|part| matches!(part.kind(), HirKind::Look(_)))
        };
        if looks(parts.first()) {
            inner = inner.strip_prefix('^').or(inner.strip_prefix(r"\A")).unwrap_or(inner);
        }
        if looks(parts.last()) {
            inner = inner.strip_suffix('$').or(inner.strip_suffix(r"\z")).unwrap_or(inner);
        }
    }
    if !parse(inner)?.properties().look_set().is_empty() {
        let why = "`^`, `$` and `\\b` inside of it are not supported; the whole text is matched";
        return Err(unusable(grammar, why.to_owned()));
    }
    Ok(TopLevelGrammar::from_regex(inner))
}

/// A message of a library without its dumps and line breaks.
pub(crate) fn in_a_line(text: &str) -> String {
    let end =
        ["<non-verbose/>", "<state>", "<backtrace>"].iter().filter_map(|mark| text.find(mark));
    let text = &text[..end.min().unwrap_or(text.len())];
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// serde_json's message without the place at its end, which is told apart.
fn without_place(text: &str) -> String {
    text.split(" at line ").next().unwrap_or(text).to_owned()
}
