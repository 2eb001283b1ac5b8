//! Two runs of `lathe optimize`: their configurations side by side.

use std::{collections::BTreeSet, path::Path};

use lathe_optimize::{Run, judge};
use lathe_report::{Report, Row};
use serde::Serialize;

use crate::{args::Global, ui};

#[derive(Serialize)]
struct Comparison<'a> {
    a: Side<'a>,
    b: Side<'a>,
    rows: Vec<Pair>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Side<'a> {
    path: &'a Path,
    model: String,
    created: String,
    chosen: Option<String>,
}

/// One configuration in both runs; ratios are B over A.
#[derive(Serialize)]
struct Pair {
    id: String,
    label: String,
    in_a: bool,
    in_b: bool,
    figures: Vec<Figure>,
}

#[derive(Serialize)]
struct Figure {
    name: &'static str,
    a: Option<f64>,
    b: Option<f64>,
    ratio: Option<f64>,
}

pub(super) fn compare(a: &Path, b: &Path, global: &Global) -> anyhow::Result<()> {
    let (first, second) = (judge(&Run::load(a)?), judge(&Run::load(b)?));
    let mut seen = BTreeSet::new();
    let ids = first.rows.iter().chain(&second.rows).map(|row| &row.id);
    let ids: Vec<&String> = ids.filter(|id| seen.insert(*id)).collect();
    let comparison = Comparison {
        a: side(a, &first),
        b: side(b, &second),
        rows: ids.into_iter().filter_map(|id| pair(id, &first, &second)).collect(),
        notes: notes(&first, &second),
    };
    if global.json { ui::json(&comparison) } else { ui::out(&text(&comparison)) }
}

fn side<'a>(path: &'a Path, report: &Report) -> Side<'a> {
    let chosen = report.chosen_row().map(|row| row.label.clone());
    Side { path, model: report.model.clone(), created: report.created.clone(), chosen }
}

fn notes(a: &Report, b: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    if a.model != b.model {
        notes.push(format!("the runs are about different models: {} and {}", a.model, b.model));
    }
    let machine = |report: &Report| {
        report.machine_facts.iter().find(|(label, _)| label == "CPU").map(|(_, cpu)| cpu.clone())
    };
    if machine(a) != machine(b) {
        notes
            .push("the runs were made on different machines: speeds cannot be compared".to_owned());
    }
    notes
}

fn pair(id: &str, a: &Report, b: &Report) -> Option<Pair> {
    let find = |report: &'_ Report| report.rows.iter().find(|row| row.id == id).cloned();
    let (a, b) = (find(a), find(b));
    let label = a.as_ref().or(b.as_ref())?.label.clone();
    let figure = |name, of: &dyn Fn(&Row) -> Option<f64>| {
        let (a, b) = (a.as_ref().and_then(of), b.as_ref().and_then(of));
        let ratio = a.zip(b).filter(|(a, _)| *a != 0.0).map(|(a, b)| b / a);
        Figure { name, a, b, ratio }
    };
    let figures = vec![
        figure("size", &|row| Some(row.size.0 as f64)),
        figure("memory", &|row| row.needed_memory.or(row.peak_memory).map(|m| m.0 as f64)),
        figure("decode", &|row| row.decode.map(|i| i.point)),
        figure("prefill", &|row| row.prefill.map(|i| i.point)),
        figure("ttft", &|row| row.ttft.map(|i| i.point)),
        figure("perplexity", &|row| row.perplexity.map(|i| i.point)),
        figure("kl", &|row| row.kl.map(|i| i.point)),
        figure("top1", &|row| row.top1.map(|i| i.point)),
    ];
    Some(Pair { id: id.to_owned(), label, in_a: a.is_some(), in_b: b.is_some(), figures })
}

fn text(all: &Comparison<'_>) -> String {
    let side = |side: &Side<'_>| {
        let chosen = side.chosen.as_deref().unwrap_or("none");
        format!("{}: {}, {}, chosen: {chosen}", side.path.display(), side.model, side.created)
    };
    let mut text = ui::facts(&[("A".to_owned(), side(&all.a)), ("B".to_owned(), side(&all.b))]);
    text += "\n";
    text += &ui::table(
        &[
            "configuration",
            "in",
            ">size",
            ">memory",
            ">decode/s",
            ">prefill/s",
            ">TTFT",
            ">perplexity",
            ">KL",
            ">top-1",
        ],
        &all.rows.iter().map(line).collect::<Vec<_>>(),
    );
    text += &format!("{}\n", ui::dim("Each as A → B (B / A)."));
    for note in &all.notes {
        text += &format!("{} {note}\n", ui::yellow("note:"));
    }
    text
}

fn line(pair: &Pair) -> Vec<String> {
    let place = match (pair.in_a, pair.in_b) {
        (true, true) => "both",
        (true, false) => "A",
        _ => "B",
    };
    let mut line = vec![pair.label.clone(), place.to_owned()];
    line.extend(pair.figures.iter().map(cell));
    line
}

fn cell(figure: &Figure) -> String {
    let show = |value: f64| match figure.name {
        "size" | "memory" => lathe_base::Bytes(value as u64).to_string(),
        "ttft" => lathe_base::Seconds(value).to_string(),
        "top1" => format!("{:.2} %", 100.0 * value),
        "kl" => format!("{value:.5}"),
        _ => format!("{value:.2}"),
    };
    match (figure.a, figure.b, figure.ratio) {
        (Some(a), Some(b), Some(ratio)) => format!("{} → {} (× {ratio:.2})", show(a), show(b)),
        (Some(a), Some(b), None) => format!("{} → {}", show(a), show(b)),
        (Some(one), None, _) | (None, Some(one), _) => show(one),
        (None, None, _) => String::new(),
    }
}
