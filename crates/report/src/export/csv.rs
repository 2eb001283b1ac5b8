use lathe_stats::Interval;

use super::Exporter;
use crate::{Conformance, Error, Report, Row};

/// One line per configuration, units in the column names (RFC 4180).
#[derive(Clone, Copy, Debug)]
pub struct Csv;

/// A column: its name and its value in a row.
type Column = (&'static str, fn(&Row) -> String);

/// A column for each part of an interval.
macro_rules! interval {
    ($name:literal, $field:ident) => {
        [
            ($name, (|r: &Row| number(r.$field.map(|i| i.point))) as fn(&Row) -> String),
            (concat!($name, "_low"), |r: &Row| low(r.$field)),
            (concat!($name, "_high"), |r: &Row| high(r.$field)),
        ]
    };
}

fn columns() -> Vec<Column> {
    let mut list: Vec<Column> = vec![
        ("id", |r| r.id.clone()),
        ("label", |r| r.label.clone()),
        ("engine", |r| r.engine.clone()),
        ("format", |r| r.format.clone()),
        ("kv", |r| r.kv.clone()),
        ("size_bytes", |r| r.size.0.to_string()),
        ("bits_per_weight", |r| number(Some(r.bits_per_weight))),
        ("needed_memory_bytes", |r| r.needed_memory.map_or_else(String::new, |b| b.0.to_string())),
        ("peak_memory_bytes", |r| r.peak_memory.map_or_else(String::new, |b| b.0.to_string())),
        ("planned_memory_bytes", |r| {
            r.planned_memory.map_or_else(String::new, |b| b.0.to_string())
        }),
    ];
    list.extend(interval!("load_s", load));
    list.extend(interval!("decode_tokens_per_s", decode));
    list.extend(interval!("decode_ratio_to_base", speed_ratio));
    list.extend(interval!("prefill_tokens_per_s", prefill));
    list.extend(interval!("ttft_s", ttft));
    list.extend(interval!("itl_p50_s", itl_p50));
    list.extend(interval!("itl_p90_s", itl_p90));
    list.extend(interval!("itl_p99_s", itl_p99));
    list.extend(interval!("requests_per_s", requests));
    list.extend(interval!("perplexity", perplexity));
    list.extend(interval!("perplexity_ratio_to_base", perplexity_ratio));
    list.extend(interval!("kl_nats_per_token", kl));
    list.extend(interval!("top1_agreement", top1));
    list.extend(interval!("choice_accuracy", accuracy));
    list.extend(interval!("choice_flips", flips));
    list.extend(interval!("cost_per_million_tokens", cost_per_million));
    list.push(("balance", |r| number(r.balance)));
    list.push(("computes_the_same", |r| {
        r.conformance.as_ref().map_or_else(String::new, Conformance::verdict)
    }));
    list.push(("pareto_quality_size", |r| r.pareto_quality_size.to_string()));
    list.push(("pareto_speed_memory", |r| r.pareto_speed_memory.to_string()));
    list
}

impl Exporter for Csv {
    fn file(&self) -> &'static str {
        "results.csv"
    }

    fn render(&self, report: &Report) -> Result<Vec<u8>, Error> {
        let columns = columns();
        let mut streams: Vec<usize> =
            report.rows.iter().flat_map(|r| r.batch.iter().map(|(n, _)| *n)).collect();
        streams.sort_unstable();
        streams.dedup();
        let names = columns.iter().map(|(name, _)| (*name).to_owned());
        let more = streams.iter().map(|n| format!("decode_{n}_streams_tokens_per_s"));
        let mut text = line(names.chain(more));
        for row in &report.rows {
            let values = columns.iter().map(|(_, value)| value(row));
            let more = streams.iter().map(|n| {
                number(row.batch.iter().find(|(m, _)| m == n).map(|(_, rate)| rate.point))
            });
            text += &line(values.chain(more));
        }
        Ok(text.into_bytes())
    }
}

fn number(value: Option<f64>) -> String {
    value.filter(|v| v.is_finite() && v.abs() < 1e300).map_or_else(String::new, |v| v.to_string())
}

fn low(interval: Option<Interval>) -> String {
    number(interval.map(|i| i.low))
}

fn high(interval: Option<Interval>) -> String {
    number(interval.map(|i| i.high))
}

fn line(cells: impl Iterator<Item = String>) -> String {
    cells.map(|cell| quoted(&cell)).collect::<Vec<_>>().join(",") + "\r\n"
}

/// Quotes what needs it, and disarms what a spreadsheet would run as a formula.
fn quoted(cell: &str) -> String {
    let formula = cell.starts_with(['=', '+', '-', '@']) && cell.parse::<f64>().is_err();
    let cell = if formula { format!("'{cell}") } else { cell.to_owned() };
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_and_formulas_disarmed() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(quoted("=1+1"), "'=1+1");
        assert_eq!(quoted("-1.5"), "-1.5");
    }
}
