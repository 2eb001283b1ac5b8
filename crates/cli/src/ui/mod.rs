//! What people see: progress, tables, colours. Figures go to stdout, everything else to stderr.

mod progress;
mod style;
mod table;

pub(crate) use progress::Bar;
pub(crate) use style::{bold, dim, green, red, yellow};
pub(crate) use table::{facts, table};

use std::io::{self, Write};

use serde::Serialize;

/// Prints to stdout; a closed pipe (`lathe … | head`) ends the program quietly.
pub(crate) fn out(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// A line that says what a reader should know.
pub(crate) fn note(text: &str) -> String {
    format!("{} {text}\n", yellow("note:"))
}

/// Prints a value as JSON, indented.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    out(&(serde_json::to_string_pretty(value)? + "\n"))
}
