//! What an answer must be: a schema, an expression, a choice or a grammar.

use std::{fs, path::Path, path::PathBuf};

use anyhow::Context;
use clap::Args;
use lathe_api::{Finish, Grammar};
use lathe_base::Progress;

/// At most one of these: what the answer must be.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Structured output")]
#[group(id = "structure", multiple = false)]
pub(crate) struct StructureArgs {
    /// Answer with a JSON object
    #[arg(long)]
    json_object: bool,
    /// Answer with JSON that this JSON Schema describes: its file, or the schema itself
    #[arg(long, value_name = "FILE|JSON")]
    json_schema: Option<String>,
    /// Answer with a text that this regular expression matches from beginning to end
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// Answer with one of these texts. Given once for each
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
    /// Answer with a text of the grammar in this file: GBNF (.gbnf, as llama.cpp) or Lark (.lark)
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
}

impl StructureArgs {
    /// What was asked for, found fine: a mistake in it shows before a model is loaded.
    ///
    /// # Errors
    /// Names the option or file, and the place in it.
    pub(crate) fn grammar(&self) -> anyhow::Result<Option<Grammar>> {
        let Some((origin, grammar)) = self.read()? else { return Ok(None) };
        lathe_grammar::check(&grammar).context(origin)?;
        Ok(Some(grammar))
    }

    fn read(&self) -> anyhow::Result<Option<(String, Grammar)>> {
        let named = |option: &str, grammar| Ok(Some((option.to_owned(), grammar)));
        if self.json_object {
            return named("--json-object", Grammar::JsonObject);
        }
        if let Some(schema) = &self.json_schema {
            if schema.trim_start().starts_with('{') {
                return named("--json-schema", Grammar::JsonSchema(schema.clone()));
            }
            let text = text("--json-schema", Path::new(schema))?;
            return named(schema, Grammar::JsonSchema(text));
        }
        if let Some(regex) = &self.regex {
            return named("--regex", Grammar::Regex(regex.clone()));
        }
        if !self.choice.is_empty() {
            return named("--choice", Grammar::Choice(self.choice.clone()));
        }
        match &self.grammar {
            Some(path) => {
                let text = text("--grammar", path)?;
                named(&path.display().to_string(), notation(path, text))
            }
            None => Ok(None),
        }
    }
}

fn text(option: &str, path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path)
        .with_context(|| format!("{option}: {} cannot be read as a text", path.display()))
}

/// By the file's name, else by what only GBNF has.
fn notation(path: &Path, text: String) -> Grammar {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending.to_ascii_lowercase().as_str() {
        "gbnf" => Grammar::Gbnf(text),
        "lark" => Grammar::Lark(text),
        _ if text.contains("::=") => Grammar::Gbnf(text),
        _ => Grammar::Lark(text),
    }
}

/// Says that an answer with a structure was cut. It may be whole by chance: texts of many grammars
/// can end early.
pub(crate) fn remark(grammar: Option<&Grammar>, finish: Finish, progress: &dyn Progress) {
    if grammar.is_some() && finish == Finish::Length {
        progress.note(
            "The answer was cut, and may not be all that its grammar wants; allow more --max-tokens, \
             or a larger --context.",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grammars_notation_is_told_by_its_file_or_its_text() {
        let of = |name: &str, text: &str| notation(Path::new(name), text.to_owned());
        assert_eq!(of("a.GBNF", "x"), Grammar::Gbnf("x".into()));
        assert_eq!(of("a.lark", "x ::= y"), Grammar::Lark("x ::= y".into()));
        assert_eq!(of("a.txt", "root ::= y"), Grammar::Gbnf("root ::= y".into()));
        assert_eq!(of("a", "start: y"), Grammar::Lark("start: y".into()));
    }
}
