use std::fmt::Write;

use super::{Exporter, page};
use crate::{Error, Report, Row};

/// The recommendations in words, with the figures behind them.
#[derive(Clone, Copy, Debug)]
pub struct Markdown;

impl Exporter for Markdown {
    fn file(&self) -> &'static str {
        "recommendations.md"
    }

    fn render(&self, report: &Report) -> Result<Vec<u8>, Error> {
        let mut text = format!("# {}\n\n{}\n", safe(&report.model), safe(&report.headline));
        requirements(&mut text, report);
        picks(&mut text, report);
        configurations(&mut text, report);
        if let Some(floor) = &report.noise_floor {
            let _ = writeln!(text, "\n{}", safe(&floor.text));
        }
        let asked = page::conformance(report);
        let asked = asked.iter().map(|(label, words)| (label, words));
        list(&mut text, "Whether engines compute the same", asked);
        list(&mut text, "Not measured", report.dropped.iter().map(|d| (&d.label, &d.reason)));
        if !report.warnings.is_empty() {
            text += "\n## Before you trust the figures\n\n";
            for warning in &report.warnings {
                let _ = writeln!(text, "- {}", safe(warning));
            }
        }
        for (title, facts) in [
            ("Model", &report.model_facts),
            ("Machine", &report.machine_facts),
            ("How it was measured", &report.method_facts),
        ] {
            list(&mut text, title, facts.iter().map(|(label, value)| (label, value)));
        }
        let _ = write!(
            text,
            "\nMade by `{}` on {}; `{}` rebuilds every figure from the raw samples.\n",
            report.command, report.created, report.recheck
        );
        Ok(text.into_bytes())
    }
}

fn requirements(text: &mut String, report: &Report) {
    if report.requirements.is_empty() {
        return;
    }
    *text += "\n## Requirements\n\n";
    for requirement in &report.requirements {
        let _ = writeln!(text, "- {}", safe(&requirement.text));
    }
    *text += "\n| Configuration | Verdict |\n|---|---|\n";
    for row in &report.rows {
        let verdicts: Vec<String> = row
            .verdicts
            .iter()
            .map(|v| format!("{}: {}", page::verdict_word(v.outcome), safe(&v.text)))
            .collect();
        let _ = writeln!(text, "| {} | {} |", safe(&row.label), verdicts.join("<br>"));
    }
}

fn picks(text: &mut String, report: &Report) {
    if report.picks.is_empty() {
        return;
    }
    *text += "\n## Recommendations\n\n";
    for pick in &report.picks {
        let row = report.rows.iter().find(|row| row.id == pick.row);
        let label = row.map_or(pick.row.as_str(), |row| row.label.as_str());
        let _ =
            writeln!(text, "- **{}: {}.** {}.", pick.title, safe(label), capital(&safe(&pick.why)));
    }
    if let Some(row) = report.chosen_row() {
        let _ = write!(text, "\n```sh\n{}\n{}\n```\n", row.make, row.run);
    }
}

fn configurations(text: &mut String, report: &Report) {
    if report.rows.is_empty() {
        return;
    }
    let columns = page::columns(report);
    let names: Vec<&str> = columns.iter().map(|c| c.name).collect();
    let _ = write!(
        text,
        "\n## Configurations\n\n| {} |\n|---|{}\n",
        names.join(" | "),
        "--:|".repeat(names.len() - 1)
    );
    for row in &report.rows {
        let cells: Vec<String> = columns.iter().map(|c| safe(&cell(c, row))).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
}

fn cell(column: &page::Column, row: &Row) -> String {
    let cell = (column.cell)(row);
    if cell.small.is_empty() { cell.text } else { format!("{} ({})", cell.text, cell.small) }
}

fn list<'a>(text: &mut String, title: &str, items: impl Iterator<Item = (&'a String, &'a String)>) {
    let lines: Vec<String> =
        items.map(|(label, value)| format!("- {}: {}\n", safe(label), safe(value))).collect();
    if !lines.is_empty() {
        let _ = write!(text, "\n## {title}\n\n{}", lines.concat());
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

/// Text that Markdown does not read as markup or as a table's edge.
fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '*' | '_' | '`' | '<' | '[' | ']' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\n' | '\r' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
