use lathe_base::Seconds;
use lathe_optimize::NATIVE;
use lathe_stats::Interval;

use super::{Bench, Measured, Refused, against};
use crate::ui;

/// A figure of one model, for people.
type Cell<'a> = Box<dyn Fn(&Measured) -> String + 'a>;

/// The tables for people.
pub(super) fn text(bench: &Bench) -> String {
    let mut text = match bench.models.iter().all(|model| model.engine == NATIVE) {
        true => plain(bench),
        false => against::text(bench),
    };
    for refused in &bench.refused {
        let Refused { model, engine, reason } = refused;
        text += &format!("{} {model} on {engine}: {reason}\n", ui::dim("not measured"));
    }
    for warning in &bench.warnings {
        text += &format!("{} {warning}\n", ui::yellow("warning:"));
    }
    text
}

/// A figure a line, a model a column.
fn plain(bench: &Bench) -> String {
    let mut header = vec![String::new()];
    header.extend(bench.models.iter().map(|model| format!(">{}", model.name)));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> = rows(bench)
        .into_iter()
        .map(|(label, cell)| std::iter::once(label).chain(bench.models.iter().map(&cell)).collect())
        .filter(|row: &Vec<String>| row[1..].iter().any(|text| !text.is_empty()))
        .collect();
    format!("{}\n{}\n", ui::table(&header, &rows), ui::dim(&method(bench)))
}

/// How it was measured, in a line.
pub(super) fn method(bench: &Bench) -> String {
    let workload = &bench.workload;
    let from = workload.text.as_ref().map_or_else(String::new, |text| format!(" of {}", text.name));
    format!(
        "{} prompt{from} and {} new tokens, {} threads, {} trials of {} requests each; medians \
         with {:.0} % intervals",
        workload.prompt_tokens,
        workload.new_tokens,
        bench.threads,
        bench.models.first().map_or(0, |m| m.figures.rounds + m.figures.failed),
        workload.requests,
        100.0 * bench.level
    )
}

fn rows(bench: &Bench) -> Vec<(String, Cell<'_>)> {
    fn time(interval: Option<Interval>) -> String {
        shown(interval, |s| Seconds(s).to_string())
    }
    fn rate(interval: Option<Interval>, decimals: usize) -> String {
        shown(interval, |r| format!("{r:.decimals$}"))
    }
    let mut rows: Vec<(String, Cell<'_>)> = vec![
        ("size".to_owned(), Box::new(|m| m.size.to_string())),
        ("load".to_owned(), Box::new(|m| time(m.figures.load))),
        ("time to first token".to_owned(), Box::new(|m| time(m.figures.ttft))),
        ("inter-token latency p50".to_owned(), Box::new(|m| time(m.figures.itl_p50))),
        ("inter-token latency p90".to_owned(), Box::new(|m| time(m.figures.itl_p90))),
        ("inter-token latency p99".to_owned(), Box::new(|m| time(m.figures.itl_p99))),
        ("prefill, tokens/s".to_owned(), Box::new(|m| rate(m.figures.prefill, 1))),
        ("decode, tokens/s".to_owned(), Box::new(|m| rate(m.figures.decode, 1))),
        ("requests/s".to_owned(), Box::new(|m| rate(m.figures.requests, 3))),
    ];
    for &streams in bench.workload.streams.iter().filter(|n| **n > 1) {
        rows.push((
            format!("{streams} streams, tokens/s"),
            Box::new(move |m| {
                let batch = m.figures.batch.iter().find(|(n, _)| *n == streams);
                rate(batch.map(|(_, rate)| *rate), 1)
            }),
        ));
    }
    let peak = |m: &Measured| m.figures.peak_memory.map_or_else(String::new, |b| b.to_string());
    rows.push(("peak memory".to_owned(), Box::new(peak)));
    let first = bench.models.first().map_or("", |m| m.name.as_str());
    rows.push((format!("decode, × {first}"), Box::new(|m| rate(m.ratio, 3))));
    rows
}

/// A point with its interval, where the rounds give one.
pub(crate) fn shown(interval: Option<Interval>, show: impl Fn(f64) -> String) -> String {
    match interval {
        None => String::new(),
        // A single round bounds nothing.
        Some(one) if one.n < 2 => show(one.point),
        Some(i) => format!("{} ({} to {})", show(i.point), show(i.low), show(i.high)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_round_is_shown_without_an_interval() {
        let one = Interval { high: f64::MAX, n: 1, ..Interval::exact(2.0) };
        assert_eq!(shown(Some(one), |x| format!("{x:.1}")), "2.0");
        let two = Interval { low: 1.0, high: 3.0, n: 5, ..Interval::exact(2.0) };
        assert_eq!(shown(Some(two), |x| format!("{x:.1}")), "2.0 (1.0 to 3.0)");
    }
}
