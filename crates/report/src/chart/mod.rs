//! Charts of a report as SVG.

mod bars;
mod frame;
mod latency;
pub(crate) mod load;
mod scale;
mod scatter;
mod streams;
pub(crate) mod svg;
mod timeline;

use lathe_base::{Bytes, Seconds};
use lathe_stats::Interval;

use crate::{Report, Row};
use bars::{Bar, Bars, Style};
use latency::Latency;
use scale::{byte_unit, tick_label};
use scatter::{Axis, Dot, Scatter};
use streams::Line;
use svg::Ink;

/// A picture of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chart {
    /// File name without extension.
    pub name: &'static str,
    pub title: &'static str,
    pub svg: String,
}

/// All charts for which the report has figures.
///
/// Quality is of files: other engines that run the same are not drawn there.
pub fn charts(report: &Report) -> Vec<Chart> {
    let mut report = report.clone();
    for row in report.rows.iter_mut().filter(|row| row.deviates()) {
        row.label += " (deviates)";
    }
    let mut of_files = report.clone();
    of_files.rows.retain(|row| row.conformance.is_none());
    [
        quality_size(&of_files),
        speed_memory(&report),
        throughput(&report),
        memory(&report),
        token_latency(&report),
        perplexity(&of_files),
        divergence(&of_files),
        by_streams(&report),
        machine(&report),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn chart(
    name: &'static str,
    title: &'static str,
    svg: impl FnOnce(&str) -> String,
) -> Option<Chart> {
    Some(Chart { name, title, svg: svg(title) })
}

fn ink(report: &Report, row: &Row) -> Ink {
    if row.id == report.baseline {
        Ink::Base
    } else if report.chosen() == Some(row.id.as_str()) {
        Ink::Pick
    } else {
        Ink::Main
    }
}

/// The ends of an interval worth drawing. One of very few rounds may reach anywhere: it is cut where
/// it would leave no room for the figures.
fn ends(interval: &Interval) -> Option<(f64, f64)> {
    const MOST: f64 = 2.0;
    let known = interval.high > interval.low && interval.high < 1e300;
    known.then(|| {
        let (least, most) = (interval.point / MOST, interval.point * MOST);
        (interval.low.max(least), interval.high.min(most))
    })
}

/// An interval as far as it is drawn.
fn drawn(interval: Interval) -> Interval {
    ends(&interval).map_or(interval, |(low, high)| Interval { low, high, ..interval })
}

/// Whether values are so far apart that the small ones would fall together on a linear scale.
fn far_apart(values: impl Iterator<Item = f64>) -> bool {
    const TIMES: f64 = 20.0;
    let (low, high) = values
        .filter(|value| *value > 0.0)
        .fold((f64::INFINITY, 0f64), |(low, high), value| (low.min(value), high.max(value)));
    high > low * TIMES
}

/// The largest amount of memory in a column.
fn largest(report: &Report, of: impl Fn(&Row) -> Option<Bytes>) -> f64 {
    report.rows.iter().filter_map(of).max().unwrap_or_default().0 as f64
}

fn nats(value: f64) -> String {
    tick_label(value)
}

fn quality_size(report: &Report) -> Option<Chart> {
    let (unit, name) = byte_unit(largest(report, |row| Some(row.size)));
    let dots: Vec<Dot> = report
        .rows
        .iter()
        .filter_map(|row| {
            let kl = row.kl.filter(|kl| kl.point > 0.0)?;
            Some(Dot {
                label: row.label.clone(),
                ink: ink(report, row),
                x: row.size.0 as f64 / unit,
                y: kl.point,
                y_ends: ends(&kl),
                x_ends: None,
                frontier: row.pareto_quality_size,
            })
        })
        .collect();
    if dots.is_empty() {
        return None;
    }
    let floor = report.noise_floor.as_ref().filter(|f| f.kl.point > 0.0);
    chart("quality-size", "Quality against size", |title| {
        scatter::scatter(&Scatter {
            title,
            subtitle: "Down and left is better. The line joins what nothing beats in both.",
            x: Axis { label: &format!("size on disk, {name}"), log: false, tick: tick_label },
            y: Axis { label: "KL divergence, nats per token (log)", log: true, tick: nats },
            dots,
            floor: floor.map(|f| (f.kl.point, "bf16 rounding alone".to_owned())),
        })
    })
}

fn speed_memory(report: &Report) -> Option<Chart> {
    let (unit, name) = byte_unit(largest(report, |row| row.needed_memory));
    let dots: Vec<Dot> = report
        .rows
        .iter()
        .filter_map(|row| {
            let decode = row.decode?;
            Some(Dot {
                label: row.label.clone(),
                ink: ink(report, row),
                x: row.needed_memory?.0 as f64 / unit,
                y: decode.point,
                y_ends: ends(&decode),
                x_ends: None,
                frontier: row.pareto_speed_memory,
            })
        })
        .collect();
    if dots.is_empty() {
        return None;
    }
    let x_log = far_apart(dots.iter().map(|dot| dot.x));
    let y_log = far_apart(dots.iter().map(|dot| dot.y));
    let log = |is: bool| if is { " (log)" } else { "" };
    chart("speed-memory", "Speed against memory", |title| {
        scatter::scatter(&Scatter {
            title,
            subtitle: "Up and left is better. The line joins what nothing beats in both.",
            x: Axis {
                label: &format!("memory while it runs, {name}{}", log(x_log)),
                log: x_log,
                tick: tick_label,
            },
            y: Axis {
                label: &format!("decode, tokens per second{}", log(y_log)),
                log: y_log,
                tick: tick_label,
            },
            dots,
            floor: None,
        })
    })
}

/// Rows with an interval, best first.
fn sorted(
    report: &Report,
    of: impl Fn(&Row) -> Option<Interval>,
    higher_first: bool,
) -> Vec<(&Row, Interval)> {
    let mut rows: Vec<(&Row, Interval)> =
        report.rows.iter().filter_map(|row| Some((row, of(row)?))).collect();
    rows.sort_by(|a, b| a.1.point.total_cmp(&b.1.point));
    if higher_first {
        rows.reverse();
    }
    rows
}

fn throughput(report: &Report) -> Option<Chart> {
    let rows = sorted(report, |row| row.decode, true);
    let bars: Vec<Bar> = rows
        .into_iter()
        .map(|(row, decode)| Bar {
            label: row.label.clone(),
            ink: ink(report, row),
            value: drawn(decode),
            inner: None,
            text: match row.speed_ratio.filter(|_| row.id != report.baseline) {
                Some(ratio) => format!("{} ({:.2}×)", short(decode.point), ratio.point),
                None => short(decode.point),
            },
        })
        .collect();
    if bars.is_empty() {
        return None;
    }
    chart("throughput", "Decode throughput", |title| {
        bars::bars(&Bars {
            title,
            subtitle: "Tokens per second of one stream, with its interval; longer is better. × is the ratio to the base.",
            bars,
            style: Style::Bars,
            mark: None,
            tick: bars::plain,
        })
    })
}

fn memory(report: &Report) -> Option<Chart> {
    let (unit, name) = byte_unit(largest(report, |row| row.needed_memory));
    let in_unit = |row: &Row| Some(Interval::exact(row.needed_memory?.0 as f64 / unit));
    let rows = sorted(report, in_unit, false);
    let bars: Vec<Bar> = rows
        .into_iter()
        .map(|(row, memory)| Bar {
            label: row.label.clone(),
            ink: ink(report, row),
            value: memory,
            inner: Some(row.size.0 as f64 / unit),
            text: format!("{} ({})", row.needed_memory.unwrap_or_default(), row.size),
        })
        .collect();
    if bars.is_empty() {
        return None;
    }
    chart("memory", "Memory", |title| {
        bars::bars(&Bars {
            title,
            subtitle: &format!(
                "Peak resident memory of a fresh process in {name}; thin bar and brackets: size on disk. Shorter is better."
            ),
            bars,
            style: Style::Bars,
            mark: None,
            tick: bars::plain,
        })
    })
}

fn token_latency(report: &Report) -> Option<Chart> {
    let ms = |interval: Option<Interval>| interval.map(|i| i.point * 1e3);
    let rows: Vec<Latency> = sorted(report, |row| row.itl_p50, false)
        .into_iter()
        .filter_map(|(row, _)| {
            Some(Latency {
                label: row.label.clone(),
                ink: ink(report, row),
                p50: ms(row.itl_p50)?,
                p90: ms(row.itl_p90)?,
                p99: ms(row.itl_p99)?,
            })
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    chart("latency", "Latency per token", |title| {
        let subtitle = "Time between tokens: dot median, bars 90th and 99th percentile (ms, right). Shorter is better.";
        latency::latency(title, subtitle, &rows)
    })
}

fn perplexity(report: &Report) -> Option<Chart> {
    let rows = sorted(report, |row| row.perplexity, false);
    let base = report.rows.iter().find(|row| row.id == report.baseline)?.perplexity;
    // Each row's own interval is dominated by the choice of documents, which all rows share: what
    // differs between rows is the ratio to the base, so that is what is drawn, in perplexity.
    let bars: Vec<Bar> = rows
        .into_iter()
        .map(|(row, own)| {
            let value = match (row.perplexity_ratio, base) {
                (Some(ratio), Some(base)) if row.id != report.baseline => {
                    ratio.map(|r| r * base.point)
                }
                _ => Interval::exact(own.point),
            };
            let change = row.perplexity_ratio.filter(|_| row.id != report.baseline);
            let text = match change {
                Some(ratio) => format!("{:.3} ({:+.2} %)", own.point, (ratio.point - 1.0) * 100.0),
                None => format!("{:.3}", own.point),
            };
            Bar { label: row.label.clone(), ink: ink(report, row), value, inner: None, text }
        })
        .collect();
    if bars.is_empty() {
        return None;
    }
    chart("perplexity", "Perplexity", |title| {
        bars::bars(&Bars {
            title,
            subtitle: "Per document, with the interval of the difference to the base (paired); further left is better.",
            bars,
            style: Style::Dots,
            mark: base.map(|b| (b.point, "base".to_owned())),
            tick: bars::plain,
        })
    })
}

fn divergence(report: &Report) -> Option<Chart> {
    let rows = sorted(report, |row| row.kl.filter(|kl| kl.point > 0.0), false);
    let bars: Vec<Bar> = rows
        .into_iter()
        .map(|(row, kl)| Bar {
            label: row.label.clone(),
            ink: ink(report, row),
            value: kl,
            inner: None,
            text: match row.top1 {
                Some(top1) => {
                    format!("{} (top-1 {:.1} %)", nats_short(kl.point), top1.point * 100.0)
                }
                None => nats_short(kl.point),
            },
        })
        .collect();
    if bars.is_empty() {
        return None;
    }
    let floor = report.noise_floor.as_ref().filter(|f| f.kl.point > 0.0);
    chart("divergence", "Distance from the base model", |title| {
        bars::bars(&Bars {
            title,
            subtitle: "KL divergence in nats per token (log), and how often the likeliest token stays the same; further left is better.",
            bars,
            style: Style::LogDots,
            mark: floor.map(|f| (f.kl.point, "bf16 rounding alone".to_owned())),
            tick: nats,
        })
    })
}

fn by_streams(report: &Report) -> Option<Chart> {
    let lines: Vec<Line> = report
        .rows
        .iter()
        .filter(|row| !row.batch.is_empty())
        .enumerate()
        .map(|(nth, row)| {
            let one = row.decode.map(|rate| (1.0, rate.point));
            let more = row.batch.iter().map(|(n, rate)| (*n as f64, rate.point));
            let points = one.into_iter().chain(more).collect();
            let ink = match ink(report, row) {
                Ink::Main => Ink::Series(nth),
                own => own,
            };
            Line { label: row.label.clone(), ink, points }
        })
        .collect();
    if lines.is_empty() {
        return None;
    }
    chart("streams", "Throughput by number of streams", |title| {
        let subtitle = "Tokens per second of all streams together; up is better.";
        streams::streams(title, subtitle, &lines)
    })
}

fn machine(report: &Report) -> Option<Chart> {
    if report.timeline.points.len() < 2 {
        return None;
    }
    let end = report.timeline.points.last().map_or(Seconds(0.0), |p| p.at);
    chart("machine", "The machine during the run", |title| {
        let subtitle = format!("{end} in all; the strip at the bottom shows what ran when.");
        timeline::timeline(title, &subtitle, &report.timeline)
    })
}

fn short(rate: f64) -> String {
    if rate >= 100.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

fn nats_short(kl: f64) -> String {
    if kl >= 0.001 { format!("{kl:.4}") } else { format!("{kl:.1e}") }
}
