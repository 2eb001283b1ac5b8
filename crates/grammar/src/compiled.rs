use std::{fmt, thread};

use lathe_api::Grammar;

use crate::{Error, Guide, Result, Vocabulary, limits};

/// A grammar ready to guide texts of one vocabulary.
pub struct Compiled {
    /// At the beginning of a text.
    fresh: Guide,
}

impl Compiled {
    /// # Errors
    /// Where and why the grammar cannot be used.
    pub fn new(grammar: &Grammar, vocabulary: &Vocabulary) -> Result<Self> {
        check_size(grammar)?;
        // Parsers of nested grammars recurse: here they have room to.
        let fresh = thread::scope(|scope| {
            let compile = || Guide::new(grammar, vocabulary);
            let thread = thread::Builder::new().stack_size(limits::STACK);
            let thread = thread.spawn_scoped(scope, compile).map_err(|error| {
                unusable(grammar, format!("there is no thread to be had: {error}"))
            })?;
            let panicked = |_| Err(unusable(grammar, "it cannot be read".to_owned()));
            thread.join().unwrap_or_else(panicked)
        })?;
        Ok(Self { fresh })
    }

    /// A guide from the beginning of a text.
    pub fn guide(&self) -> Guide {
        self.fresh.copy()
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled").finish_non_exhaustive()
    }
}

/// Whether a grammar can be used at all, without any model.
///
/// # Errors
/// As [`Compiled::new`].
pub fn check(grammar: &Grammar) -> Result<()> {
    Compiled::new(grammar, &Vocabulary::of_bytes()?).map(drop)
}

/// What users call a kind of grammar.
pub(crate) fn kind(grammar: &Grammar) -> &'static str {
    match grammar {
        Grammar::JsonObject | Grammar::JsonSchema(_) => "JSON schema",
        Grammar::Regex(_) => "regular expression",
        Grammar::Choice(_) => "list of choices",
        Grammar::Lark(_) => "Lark grammar",
        Grammar::Gbnf(_) => "GBNF grammar",
        _ => "grammar",
    }
}

pub(crate) fn unusable(grammar: &Grammar, why: String) -> Error {
    Error::Unusable { kind: kind(grammar), why }
}

fn check_size(grammar: &Grammar) -> Result<()> {
    let (bytes, depth) = match grammar {
        Grammar::JsonSchema(text)
        | Grammar::Regex(text)
        | Grammar::Lark(text)
        | Grammar::Gbnf(text) => (text.len(), depth(text)),
        Grammar::Choice(texts) => (texts.iter().map(|text| text.len() + 1).sum(), 0),
        _ => (0, 0),
    };
    let too_large = |why| Err(Error::TooLarge { kind: kind(grammar), why });
    if bytes > limits::SOURCE {
        return too_large(format!("it has {bytes} bytes, and {} are allowed", limits::SOURCE));
    }
    if depth > limits::DEPTH {
        return too_large(format!("its brackets are nested more than {} deep", limits::DEPTH));
    }
    Ok(())
}

/// How deep brackets are nested at most. Those in quotes count too: no sensible grammar quotes so
/// many that are never closed.
fn depth(text: &str) -> usize {
    let (mut now, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => now += 1,
            b')' | b']' | b'}' => now = now.saturating_sub(1),
            _ => {}
        }
        most = most.max(now);
    }
    most
}
