//! A run's report in the terminal and on disk.

use std::path::Path;

use anyhow::Context;
use lathe_base::AtomicFile;
use lathe_report::{Outcome, Report, Row};
use lathe_stats::{Interval, Verdict};

use crate::{exit::Ended, ui};

/// Writes a report's files into a run's folder.
pub(crate) fn write(folder: &Path, files: &[(String, Vec<u8>)]) -> anyhow::Result<()> {
    for (name, bytes) in files {
        let path = folder.join(name);
        AtomicFile::write_all(&path, bytes)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The exit code that a report stands for.
pub(crate) fn ended(report: &Report) -> Ended {
    match report.outcome {
        Outcome::Explored | Outcome::Met => Ended::Well,
        Outcome::Unmet => Ended::Unmet,
        Outcome::Undecided => Ended::Undecided,
    }
}

/// Prints the table, the picks and where the rest is.
pub(crate) fn summary(report: &Report, folder: &Path) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = report.rows.iter().map(|row| line(report, row)).collect();
    let header = [
        "",
        "configuration",
        ">size",
        ">memory",
        ">decode/s",
        ">× base",
        ">KL",
        ">top-1",
        ">perplexity",
    ];
    let mut text = ui::table(&header, &rows);
    if let Some(floor) = &report.noise_floor {
        text += &ui::dim(&format!("bf16 rounding alone: KL {}\n", nats(floor.kl.point)));
    }
    if !report.requirements.is_empty() {
        text += "\n";
        text += &verdicts(report);
    }
    text += "\n";
    for pick in &report.picks {
        let label = report.rows.iter().find(|r| r.id == pick.row).map_or("", |r| r.label.as_str());
        text += &format!(
            "{} {}: {}\n",
            ui::dim(&format!("{:<26}", pick.title)),
            ui::bold(label),
            pick.why
        );
    }
    for dropped in &report.dropped {
        text += &format!("{} {}: {}\n", ui::dim("not measured"), dropped.label, dropped.reason);
    }
    for warning in &report.warnings {
        text += &format!("{} {warning}\n", ui::yellow("note:"));
    }
    let tag = match report.outcome {
        Outcome::Explored => ui::green("Trade-offs measured."),
        Outcome::Met => ui::green("Requirements met."),
        Outcome::Unmet => ui::red("Requirements not met."),
        Outcome::Undecided => ui::yellow("Undecided."),
    };
    let page = folder.join("report.html");
    text += &format!("\n{tag} {}\n{}\n", report.headline, ui::bold(&page.display().to_string()));
    ui::out(&text)
}

fn line(report: &Report, row: &Row) -> Vec<String> {
    let point = |i: Option<Interval>, show: fn(f64) -> String| {
        i.map_or_else(String::new, |i| show(i.point))
    };
    let mark = if report.chosen() == Some(row.id.as_str()) { "▶" } else { "" };
    let change = row.perplexity_ratio.filter(|_| row.id != report.baseline);
    let perplexity = point(row.perplexity, |v| format!("{v:.3}"));
    vec![
        mark.to_owned(),
        row.label.clone(),
        row.size.to_string(),
        row.needed_memory.map_or_else(String::new, |m| m.to_string()),
        row.decode.map_or_else(String::new, |d| with_half_width(&d)),
        point(row.speed_ratio.filter(|_| row.id != report.baseline), |v| format!("{v:.2}")),
        point(row.kl, nats),
        point(row.top1, |v| format!("{:.1} %", v * 100.0)),
        match change {
            Some(ratio) => format!("{perplexity} ({:+.2} %)", (ratio.point - 1.0) * 100.0),
            None => perplexity,
        },
    ]
}

/// `1150 ± 30`: half of the interval, where there is one; `1150 ± ?` where it says nothing, as after
/// two rounds that differ.
fn with_half_width(interval: &Interval) -> String {
    let digits = if interval.point >= 100.0 { 0 } else { 1 };
    let point = interval.point;
    if interval.high < 1e300 && interval.is_vague() {
        return format!("{point:.digits$} ± ?");
    }
    if interval.high > interval.low && interval.high < 1e300 {
        return format!("{point:.digits$} ± {:.digits$}", interval.half_width());
    }
    format!("{point:.digits$}")
}

fn nats(value: f64) -> String {
    if value >= 0.001 || value == 0.0 { format!("{value:.4}") } else { format!("{value:.1e}") }
}

fn verdicts(report: &Report) -> String {
    let mut text = String::new();
    for row in &report.rows {
        let joint = Verdict::all(row.verdicts.iter().map(|v| v.outcome));
        let word = match joint {
            Verdict::Meets => ui::green("✓ meets all"),
            Verdict::Fails => ui::red("✗ fails"),
            Verdict::Undecided => ui::yellow("? undecided"),
        };
        let missed: Vec<&str> = row
            .verdicts
            .iter()
            .filter(|v| v.outcome != Verdict::Meets)
            .map(|v| v.text.as_str())
            .collect();
        text += &format!("{word} {}", row.label);
        text +=
            &if missed.is_empty() { "\n".to_owned() } else { format!(": {}\n", missed.join("; ")) };
    }
    text
}
