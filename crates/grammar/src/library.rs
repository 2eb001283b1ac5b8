//! What the library does: everything but GBNF.

use lathe_api::Grammar;
use llguidance::{Matcher, api::TopLevelGrammar};
use serde_json::{Map, Value, json};

use crate::{
    Error, Result, Vocabulary,
    compiled::{kind, unusable},
    limits,
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
    check(grammar)?;
    match grammar {
        Grammar::JsonObject => Ok(schema(Map::from_iter([("type".to_owned(), "object".into())]))),
        Grammar::JsonSchema(text) => {
            let value = serde_json::from_str(text).map_err(|error| Error::At {
                kind: kind(grammar),
                line: error.line(),
                column: error.column(),
                why: without_place(&error.to_string()),
            })?;
            match value {
                Value::Object(object) => Ok(schema(object)),
                Value::Bool(true) => Ok(schema(Map::new())),
                Value::Bool(false) => Err(unusable(grammar, "it allows nothing".to_owned())),
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

/// Refuses, before the library sees it, what it is known to blow up on: it makes a state for each
/// remainder of a division.
fn check(grammar: &Grammar) -> Result<()> {
    let (text, starts): (_, Vec<usize>) = match grammar {
        Grammar::JsonSchema(text) => (text, vec![0]),
        Grammar::Lark(text) => {
            (text, text.match_indices("%json").map(|(at, mark)| at + mark.len()).collect())
        }
        _ => return Ok(()),
    };
    for start in starts {
        let mut schemas = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        // What is no JSON is told by who reads it.
        let Some(Ok(schema)) = schemas.next() else { continue };
        if let Some(multiple) = large_multiple(&schema) {
            let why = format!("a `multipleOf` of {multiple} has too many digits");
            return Err(Error::TooLarge { kind: kind(grammar), why });
        }
    }
    Ok(())
}

fn large_multiple(schema: &Value) -> Option<&Value> {
    match schema {
        Value::Array(all) => all.iter().find_map(large_multiple),
        Value::Object(all) => all.iter().find_map(|(key, value)| match value {
            Value::Number(_) if key == "multipleOf" && digits(value) > limits::DIGITS => {
                Some(value)
            }
            other => large_multiple(other),
        }),
        _ => None,
    }
}

/// Digits that count: without zeros at the ends.
fn digits(number: &Value) -> usize {
    let text = number.to_string();
    let text = text.split(['e', 'E']).next().unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.trim_matches('0').len()
}

/// Its own `x-guidance`, the library's options, is kept.
fn schema(mut schema: Map<String, Value>) -> TopLevelGrammar {
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

/// Characters of a library's message: some quote the whole grammar.
const MESSAGE: usize = 300;

/// A message of a library without its dumps and line breaks.
pub(crate) fn in_a_line(text: &str) -> String {
    let end =
        ["<non-verbose/>", "<state>", "<backtrace>"].iter().filter_map(|mark| text.find(mark));
    let text = &text[..end.min().unwrap_or(text.len())];
    let text = text.replace("Unimplemented keys", "keywords that are not supported");
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(MESSAGE) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// serde_json's message without the place at its end, which is told apart.
fn without_place(text: &str) -> String {
    text.split(" at line ").next().unwrap_or(text).to_owned()
}
