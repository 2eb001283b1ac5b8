//! Engines side by side, model by model.

use lathe_base::Seconds;
use lathe_bench::{Figures, Measure, Workload};
use lathe_kernels::Peaks;
use lathe_optimize::NATIVE;
use lathe_stats::Interval;

use super::{
    Advantage, Bench, Measured,
    roofs::spread,
    show::{method, shown},
};
use crate::ui;

/// For each model a table of figures, an engine a column, and one of ratios.
pub(super) fn text(bench: &Bench) -> String {
    let mut text = String::new();
    for own in bench.models.iter().filter(|model| model.engine == NATIVE) {
        let engines: Vec<&Measured> =
            bench.models.iter().filter(|model| model.model == own.model).collect();
        text += &format!("{} ({})\n", ui::bold(&own.model), own.size);
        text += &figures(bench, &engines);
        let ratios = ratios(bench, own, &engines);
        if !ratios.is_empty() {
            text += &format!("\n{}{ratios}", ui::dim("how many times as good native is:\n"));
        }
        text += "\n";
    }
    text += &ui::dim(&(method(bench) + "\n"));
    text += &ui::dim(&roofs(&bench.roofs));
    for engine in engines(bench) {
        text += &ui::dim(&engine);
    }
    text
}

/// Medians, an engine a column.
fn figures(bench: &Bench, engines: &[&Measured]) -> String {
    let mut header = vec![String::new()];
    header.extend(engines.iter().map(|engine| format!(">{}", engine.engine)));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut rows = Vec::new();
    let mut add = |label: String, of: &dyn Fn(&Measured) -> Option<String>| {
        let cells: Vec<String> =
            engines.iter().map(|engine| of(engine).unwrap_or_default()).collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            rows.push(std::iter::once(label).chain(cells).collect());
        }
    };
    for measure in measures(&bench.workload) {
        add(label(measure), &|engine| point(measure, &engine.figures));
        let share = |of: Option<f64>| of.map(|share| format!("{:.0} %", 100.0 * share));
        match measure {
            Measure::Prefill => {
                add("  of arithmetic peak".to_owned(), &|e| share(e.shares?.prefill));
            }
            Measure::Decode => {
                add("  of memory bandwidth".to_owned(), &|e| share(e.shares?.decode));
            }
            _ => {}
        }
    }
    ui::table(&header, &rows)
}

/// Ratios with their intervals, an engine a column.
fn ratios(bench: &Bench, own: &Measured, engines: &[&Measured]) -> String {
    let others: Vec<&&Measured> = engines.iter().filter(|e| e.engine != NATIVE).collect();
    let find = |measure: Measure, other: &Measured| -> Option<Interval> {
        let own = |a: &&Advantage| a.measure == measure && a.of == own.name && a.over == other.name;
        bench.advantages.iter().find(own).map(|advantage| advantage.times)
    };
    let rows: Vec<Vec<String>> = measures(&bench.workload)
        .into_iter()
        .map(|measure| {
            let cells = others.iter().map(|other| shown(find(measure, other), times));
            let name = match measure {
                Measure::PeakMemory => "less memory".to_owned(),
                Measure::Load => "faster load".to_owned(),
                _ => label(measure),
            };
            std::iter::once(name).chain(cells).collect()
        })
        .filter(|row: &Vec<String>| row[1..].iter().any(|cell| !cell.is_empty()))
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut header = vec![String::new()];
    header.extend(others.iter().map(|other| format!(">against {}", other.engine)));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    ui::table(&header, &rows)
}

/// What engines are compared in, in the order in which it is shown.
pub(super) fn measures(workload: &Workload) -> Vec<Measure> {
    let mut list =
        vec![Measure::Ttft, Measure::Prefill, Measure::ItlP50, Measure::ItlP99, Measure::Decode];
    let streams = workload.streams.iter().filter(|streams| **streams > 1);
    list.extend(streams.map(|streams| Measure::Batch(*streams)));
    list.extend([Measure::Load, Measure::PeakMemory]);
    list
}

fn label(measure: Measure) -> String {
    match measure {
        Measure::Load => "load".to_owned(),
        Measure::Ttft => "time to first token".to_owned(),
        Measure::Prefill => "prefill, tokens/s".to_owned(),
        Measure::Decode => "decode, tokens/s".to_owned(),
        Measure::ItlP50 => "inter-token p50".to_owned(),
        Measure::ItlP90 => "inter-token p90".to_owned(),
        Measure::ItlP99 => "inter-token p99".to_owned(),
        Measure::Batch(streams) => format!("{streams} streams, tokens/s"),
        Measure::PeakMemory => "peak memory".to_owned(),
    }
}

fn point(measure: Measure, figures: &Figures) -> Option<String> {
    let time = |interval: Option<Interval>| Some(Seconds(interval?.point).to_string());
    let rate = |interval: Option<Interval>| Some(format!("{:.1}", interval?.point));
    match measure {
        Measure::Load => time(figures.load),
        Measure::Ttft => time(figures.ttft),
        Measure::Prefill => rate(figures.prefill),
        Measure::Decode => rate(figures.decode),
        Measure::ItlP50 => time(figures.itl_p50),
        Measure::ItlP90 => time(figures.itl_p90),
        Measure::ItlP99 => time(figures.itl_p99),
        Measure::Batch(streams) => {
            rate(figures.batch.iter().find(|(n, _)| *n == streams).map(|(_, rate)| *rate))
        }
        Measure::PeakMemory => Some(figures.peak_memory?.to_string()),
    }
}

/// A long line as several, those behind the first set in.
fn wrapped(words: &str) -> String {
    const WIDTH: usize = 98;
    let (mut text, mut length) = (String::new(), 0);
    for word in words.split(' ') {
        let own = word.chars().count();
        if length > 0 && length + 1 + own > WIDTH {
            text += "\n  ";
            length = 2;
        } else if length > 0 {
            text.push(' ');
            length += 1;
        }
        text += word;
        length += own;
    }
    text + "\n"
}

/// A ratio; one that few disturbed rounds leave wide open needs no digits.
fn times(ratio: f64) -> String {
    if ratio < 1000.0 { format!("{ratio:.2}") } else { format!("{ratio:.0e}") }
}

/// The roofs in a line, and how far they moved from trial to trial.
fn roofs(roofs: &[Peaks]) -> String {
    if roofs.is_empty() {
        return String::new();
    }
    let span = |of: fn(&Peaks) -> f64| {
        let (low, middle, high) = spread(roofs, of);
        format!("{:.0} ({:.0} to {:.0})", middle / 1e9, low / 1e9, high / 1e9)
    };
    wrapped(&format!(
        "peaks before, between and after the trials: memory {} GB/s, int8 {} GOPS, bf16 {} and f32 {} GFLOPS",
        span(|p| p.read),
        span(|p| p.int8),
        span(|p| p.bf16),
        span(|p| p.f32)
    ))
}

/// Which programs were asked, and how they were started, each once.
fn engines(bench: &Bench) -> Vec<String> {
    let mut seen = Vec::new();
    let mut lines = Vec::new();
    for model in bench.models.iter().filter(|model| model.engine != NATIVE) {
        if seen.contains(&&model.engine) {
            continue;
        }
        seen.push(&model.engine);
        let word = |key: &str| model.order[key].as_str().unwrap_or_default();
        let arguments: Vec<&str> = model.order["arguments"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|a| a.as_str())
            .collect();
        // A model's path comes first and differs from model to model.
        let own = if arguments.first() == Some(&"--model") { 2 } else { 0 };
        let arguments = arguments.get(own..).unwrap_or_default().join(" ");
        let place = ["program", "python", "library", "url"].map(word).concat();
        let version = model.version.as_deref().unwrap_or("unknown");
        let words = format!("{}: {place}, version {version}, {arguments}", model.engine);
        lines.push(wrapped(words.trim_end_matches([',', ' '])));
    }
    lines
}
