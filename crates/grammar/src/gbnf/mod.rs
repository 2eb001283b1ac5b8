//! GBNF, the notation of llama.cpp's grammars.
//!
//! It has no lexer: characters are matched one by one, whatever rules they belong to, which a
//! parser with a greedy lexer cannot do. So it has a machine of its own: [`parse`] reads the rules,
//! [`check`] refuses those that cannot be followed, [`Program`] is their code for bytes, and
//! [`Machine`] follows a text through all its readings at once.
//!
//! **Source**: llama.cpp's `grammars/README.md`.

mod check;
mod machine;
mod parse;
mod program;

use std::sync::Arc;

pub(crate) use machine::Machine;
use program::Program;

use crate::{Error, Result};

/// What messages call it.
const KIND: &str = "GBNF grammar";

/// A machine at the beginning of a text.
pub(crate) fn compile(text: &str) -> Result<Machine> {
    let rules = parse::parse(text)?;
    check::check(&rules)?;
    Machine::new(Arc::new(Program::new(&rules)?))
}

/// The rules by number, `root` anywhere among them.
#[derive(Debug)]
struct Rules {
    all: Vec<Rule>,
    root: usize,
}

#[derive(Debug)]
struct Rule {
    name: String,
    /// Where it is defined.
    at: Place,
    body: Node,
}

/// A line and a column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
}

impl Place {
    fn error(self, why: impl Into<String>) -> Error {
        Error::At { kind: KIND, line: self.line, column: self.column, why: why.into() }
    }
}

/// What a rule is made of.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    /// One character of these ranges.
    Class(Vec<(char, char)>),
    Rule(usize),
    /// One after the other; none is the empty text.
    Sequence(Vec<Node>),
    /// One of them.
    Choice(Vec<Node>),
    /// So many times, without end where there is no most.
    Repeat {
        node: Box<Node>,
        least: usize,
        most: Option<usize>,
    },
}

fn too_large(why: String) -> Error {
    Error::TooLarge { kind: KIND, why }
}
