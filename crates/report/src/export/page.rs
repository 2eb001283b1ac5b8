//! What the table of configurations shows, for HTML and Markdown alike.

use lathe_base::Seconds;
use lathe_stats::{Interval, Verdict};

use crate::{Agreement, Report, Row};

/// A column of the table of configurations.
pub(super) struct Column {
    pub(super) name: &'static str,
    /// What it is, for those who point at it.
    pub(super) help: &'static str,
    pub(super) cell: fn(&Row) -> Cell,
}

/// A value and what stands below it in small print.
#[derive(Default)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) small: String,
    /// For sorting.
    pub(super) key: Option<f64>,
}

/// The columns that any row of the report fills.
pub(super) fn columns(report: &Report) -> Vec<Column> {
    let all = [
        Column {
            name: "Configuration",
            help: "weight format, KV cache",
            cell: |r| Cell {
                text: r.label.clone(),
                small: format!("{}, KV {}", r.engine, r.kv),
                key: None,
            },
        },
        Column {
            name: "Computes",
            help: "whether the engine computes what Lathe's own does on these files",
            cell: |r| {
                let Some(found) = &r.conformance else { return Cell::default() };
                let kl = found.checks.iter().find_map(|check| check.kl);
                Cell {
                    text: found.verdict(),
                    small: kl.map_or_else(String::new, |kl| format!("KL {kl:.0e}")),
                    key: None,
                }
            },
        },
        Column {
            name: "Size",
            help: "on disk; bits per weight",
            cell: |r| Cell {
                text: r.size.to_string(),
                small: format!("{:.2} bits", r.bits_per_weight),
                key: Some(r.size.0 as f64),
            },
        },
        Column {
            name: "Memory",
            help: "peak resident memory, KV cache at the context asked for",
            cell: |r| {
                let memory = r.needed_memory;
                Cell {
                    text: memory.map_or_else(String::new, |m| m.to_string()),
                    small: String::new(),
                    key: memory.map(|m| m.0 as f64),
                }
            },
        },
        Column {
            name: "Decode",
            help: "tokens per second of one stream",
            cell: |r| interval(r.decode, rate),
        },
        Column {
            name: "× base",
            help: "decode speed over the base's, paired by round",
            cell: |r| interval(r.speed_ratio, |v| format!("{v:.2}")),
        },
        Column {
            name: "Prefill",
            help: "prompt tokens per second",
            cell: |r| interval(r.prefill, rate),
        },
        Column { name: "TTFT", help: "time to first token", cell: |r| interval(r.ttft, time) },
        Column {
            name: "ITL p50",
            help: "median time between tokens",
            cell: |r| interval(r.itl_p50, time),
        },
        Column {
            name: "ITL p99",
            help: "99th percentile of the time between tokens",
            cell: |r| interval(r.itl_p99, time),
        },
        Column {
            name: "Load",
            help: "from the start of reading the model until it answers",
            cell: |r| interval(r.load, time),
        },
        Column {
            name: "Perplexity",
            help: "per document; change against the base below",
            cell: |r| Cell {
                text: r.perplexity.map_or_else(String::new, |i| format!("{:.3}", i.point)),
                small: r.perplexity_ratio.map_or_else(String::new, change),
                key: r.perplexity.map(|i| i.point),
            },
        },
        Column {
            name: "KL",
            help: "divergence from the base, nats per token",
            cell: |r| interval(r.kl, nats),
        },
        Column {
            name: "Top-1",
            help: "positions where the likeliest token is the base's",
            cell: |r| interval(r.top1, percent),
        },
        Column {
            name: "Choices",
            help: "multiple-choice accuracy; answers that flipped below",
            cell: |r| Cell {
                text: r.accuracy.map_or_else(String::new, |i| percent(i.point)),
                small: r
                    .flips
                    .map_or_else(String::new, |i| format!("{} flipped", percent(i.point))),
                key: r.accuracy.map(|i| i.point),
            },
        },
        Column {
            name: "Cost / 1M",
            help: "price of a million generated tokens at the best throughput",
            cell: |r| interval(r.cost_per_million, |v| format!("{v:.4}")),
        },
        Column {
            name: "Balance",
            help: "weighted throughput, memory and quality, 1 at best",
            cell: |r| Cell {
                text: r.balance.map_or_else(String::new, |b| format!("{b:.3}")),
                small: String::new(),
                key: r.balance,
            },
        },
    ];
    let filled = |column: &Column| report.rows.iter().any(|r| !(column.cell)(r).text.is_empty());
    all.into_iter().filter(filled).collect()
}

/// A verdict in a word.
pub(super) fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Meets => "meets",
        Verdict::Fails => "fails",
        Verdict::Undecided => "undecided",
    }
}

fn interval(value: Option<Interval>, show: fn(f64) -> String) -> Cell {
    let Some(i) = value else { return Cell::default() };
    let small = match i {
        i if i.high <= i.low || i.high >= 1e300 => String::new(),
        i if i.is_vague() => "± ?".to_owned(),
        i => format!("{}–{}", show(i.low), show(i.high)),
    };
    Cell { text: show(i.point), small, key: Some(i.point) }
}

fn change(ratio: Interval) -> String {
    let percent = |v: f64| format!("{:+.2}", (v - 1.0) * 100.0);
    if ratio.high <= ratio.low {
        return String::new();
    }
    format!("{} % ({} to {})", percent(ratio.point), percent(ratio.low), percent(ratio.high))
}

fn rate(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn time(value: f64) -> String {
    Seconds(value).to_string()
}

fn percent(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}

fn nats(value: f64) -> String {
    if value >= 0.001 || value == 0.0 { format!("{value:.4}") } else { format!("{value:.1e}") }
}

/// What engines were asked before they were compared: configuration, and each check's words.
pub(super) fn conformance(report: &Report) -> Vec<(String, String)> {
    let words = |row: &Row| {
        let found = row.conformance.as_ref()?;
        let version = found.version.iter().map(|version| format!("version {version}"));
        let failed = found.failed.iter().cloned();
        let checks = found.checks.iter().map(|check| {
            let outcome = match check.outcome {
                Agreement::Same => "same",
                Agreement::Deviates => "DEVIATES",
                Agreement::Unasked => "not asked",
            };
            format!("{} {outcome} ({})", check.what, check.words)
        });
        let all: Vec<String> = version.chain(failed).chain(checks).collect();
        Some((row.label.clone(), all.join("; ")))
    };
    report.rows.iter().filter_map(words).collect()
}
