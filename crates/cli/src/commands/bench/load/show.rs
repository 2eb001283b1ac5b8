//! The tables for people.

use lathe_base::Seconds;
use lathe_bench::load::{Latency, LoadFigures, Objective};
use lathe_stats::{Interval, Verdict};

use super::{Measured, Report, Scenario, Tried};
use crate::ui;

pub(super) fn text(report: &Report, scenario: Option<Scenario>) -> String {
    let mut text = String::new();
    for measured in &report.engines {
        let Measured { engine, version, load, .. } = measured;
        text += &format!(
            "{} on {} {version}, ready after {load}\n",
            ui::bold(&report.model),
            ui::bold(engine)
        );
        match &measured.levels[..] {
            [] => {}
            [one] => text += &level(report, one),
            levels => text += &sweep(report, levels),
        }
        for (label, words) in conclusions(report, measured, scenario) {
            text += &format!("{} {words}\n", ui::dim(&format!("{label:<16}")));
        }
        text += "\n";
    }
    text += &ui::dim(&method(report));
    for warning in &report.warnings {
        text += &format!("{} {warning}\n", ui::yellow("warning:"));
    }
    if report.interrupted {
        let words = "interrupted: these are the figures of what had ended by then";
        text += &format!("{} {words}\n", ui::yellow("note:"));
    }
    text
}

/// One level in full.
fn level(report: &Report, tried: &Tried) -> String {
    let figures = &tried.level.figures;
    let mut rows = Vec::new();
    for (label, latency) in latencies(figures) {
        let Some(latency) = latency else { continue };
        let cell = |value: f64| Seconds(value).to_string();
        let quantiles = [latency.p50, latency.p90, latency.p95, latency.p99];
        let mut row = vec![label.to_owned(), cell(latency.mean)];
        row.extend(quantiles.iter().map(|q| cell(q.point)));
        rows.push(row);
        // An interval of less confidence than was asked for would look better than it is.
        let known = |q: &Interval| q.high < 1e300 && q.level >= report.level - 1e-9;
        if quantiles.iter().any(known) {
            let ends = |of: fn(&Interval) -> f64| {
                quantiles.iter().map(move |q| if known(q) { cell(of(q)) } else { String::new() })
            };
            let percent = 100.0 * report.level;
            let labels = [format!("  {percent:.0} % from"), "       to".to_owned()];
            let [from, to] = labels.map(|label| vec![label, String::new()]);
            rows.push(from.into_iter().chain(ends(|q| q.low)).collect());
            rows.push(to.into_iter().chain(ends(|q| q.high)).collect());
        }
    }
    let header = [tried.name.as_str(), ">mean", ">p50", ">p90", ">p95", ">p99"];
    let mut text = ui::table(&header, &rows);
    text += "\n";
    let rate = |interval: Option<Interval>, decimals: usize| {
        super::super::show::shown(interval, |x| format!("{:.decimals$}", x.min(1e12)))
    };
    let offered = figures.offered.map_or_else(String::new, |o| format!(", {o:.3} offered"));
    let mut facts = vec![
        ("requests/s".to_owned(), rate(figures.rate, 3) + &offered),
        ("output tokens/s".to_owned(), rate(figures.output, 1)),
        (
            "prompt tokens/s".to_owned(),
            figures.input.map_or_else(String::new, |x| format!("{x:.1}")),
        ),
        (
            "under way".to_owned(),
            format!("{:.1} on average, at most {}", figures.in_flight, figures.in_flight_most),
        ),
    ];
    if let Some(attained) = figures.attainment {
        let percent = super::super::show::shown(Some(attained), |x| format!("{:.1}", 100.0 * x));
        facts.push((format!("kept {}", report.objective), format!("{percent} % of requests")));
        facts.push(("goodput, requests/s".to_owned(), rate(figures.goodput, 3)));
    }
    facts.push(("requests".to_owned(), count(figures)));
    text += &ui::facts(&facts);
    text + &noted(tried)
}

fn count(figures: &LoadFigures) -> String {
    match figures.requests - figures.completed {
        0 => format!("{}, all completed", figures.requests),
        failed => format!("{}, of which {failed} failed", figures.requests),
    }
}

fn latencies(figures: &LoadFigures) -> [(&'static str, Option<Latency>); 4] {
    [
        ("time to first token", figures.ttft),
        ("inter-token latency", figures.itl),
        ("per further token", figures.tpot),
        ("end to end", figures.e2e),
    ]
}

/// A level a line.
fn sweep(report: &Report, levels: &[Tried]) -> String {
    let (header, rows) = self::levels(&report.objective, levels);
    let header: Vec<String> = header
        .into_iter()
        .enumerate()
        .map(|(index, name)| if index == 0 { name } else { format!(">{name}") })
        .collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    ui::table(&header, &rows) + &levels.iter().map(noted).collect::<String>()
}

/// The same for any table. Narrow enough for a terminal of 80 columns.
pub(super) fn levels(objective: &Objective, levels: &[Tried]) -> (Vec<String>, Vec<Vec<String>>) {
    let promised = !objective.promises.is_empty();
    let mut header = vec!["load", "req/s", "tok/s", "TTFT 50", "99", "TPOT 50", "99", "e2e 50"];
    if promised {
        header.extend(["kept", "good/s"]);
    }
    let time = |latency: Option<Latency>, of: fn(&Latency) -> Interval| {
        latency.map_or_else(String::new, |l| short(of(&l).point))
    };
    let rows = levels
        .iter()
        .map(|tried| {
            let f = &tried.level.figures;
            let rate = |i: Option<Interval>, decimals: usize| {
                i.map_or_else(String::new, |i| format!("{:.decimals$}", i.point))
            };
            let mut row = vec![
                tried.name.clone(),
                rate(f.rate, 2),
                rate(f.output, 0),
                time(f.ttft, |l| l.p50),
                time(f.ttft, |l| l.p99),
                time(f.tpot, |l| l.p50),
                time(f.tpot, |l| l.p99),
                time(f.e2e, |l| l.p50),
            ];
            if promised {
                let kept = f.attainment.map(|a| format!("{:.0}%", 100.0 * a.point));
                row.extend([kept.unwrap_or_default(), rate(f.goodput, 2)]);
            }
            row
        })
        .collect();
    (header.into_iter().map(str::to_owned).collect(), rows)
}

/// A time of at most seven letters.
fn short(seconds: f64) -> String {
    match seconds {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 10.0 => format!("{s:.1} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.1 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.01 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.2} ms", s * 1e3),
    }
}

/// What a reader must know of a level before believing its figures.
pub(super) fn notes(tried: &Tried) -> Vec<String> {
    let figures = &tried.level.figures;
    let mut list = Vec::new();
    for (why, words, count) in &figures.failed {
        list.push(format!("{count} × {}: {words}", why.name()));
    }
    if let Some(growth) = figures.growth.filter(|growth| growth.grows) {
        list.push(format!(
            "unstable: the queue grew by {:.2} requests/s, {:.0} % of what came; its latencies say \
             how long the run was, not what a user would see",
            growth.per_second,
            100.0 * growth.share
        ));
    }
    if !figures.client.valid && figures.completed > 0 {
        let client = &figures.client;
        list.push(format!(
            "invalid: this client was late by {:.1} % of the latency ({} at the 99th percentile); \
             ask for less, or from another machine",
            100.0 * client.share,
            Seconds(client.lag_p99),
        ));
    }
    let together = together(tried);
    if together > 0.1 {
        list.push(format!(
            "{:.0} % of tokens came together with the one before: the server held tokens \
             back, or this client read them late; gaps are those of events",
            100.0 * together
        ));
    }
    list.extend(tried.client_check.map(|check| check.words()));
    list.into_iter().map(|note| format!("{}: {note}", tried.name)).collect()
}

/// The share of gaps between tokens in which nothing but an event was taken apart.
fn together(tried: &Tried) -> f64 {
    const AT_ONCE: f64 = 20e-6;
    let gaps: Vec<f64> = tried.samples.iter().flat_map(|sample| sample.gaps()).collect();
    gaps.iter().filter(|gap| **gap < AT_ONCE).count() as f64 / gaps.len().max(1) as f64
}

fn noted(tried: &Tried) -> String {
    notes(tried).iter().map(|note| ui::note(note)).collect()
}

/// What a sweep, an objective or a scenario says in the end.
pub(super) fn conclusions(
    report: &Report,
    measured: &Measured,
    scenario: Option<Scenario>,
) -> Vec<(&'static str, String)> {
    let levels = &measured.levels;
    let name = |index: Option<usize>| index.and_then(|i| levels.get(i)).map(|l| l.name.as_str());
    let summary = &measured.summary;
    let mut list = Vec::new();
    let mut say = |label: &'static str, words: String| list.push((label, words));
    if levels.len() > 1 {
        if let Some(peak) = summary.peak.and_then(|i| levels.get(i)) {
            let rate = peak.level.figures.output.map_or(0.0, |rate| rate.point);
            say("most output", format!("{rate:.1} tokens/s at {}", peak.name));
        }
        if let Some(knee) = name(summary.knee) {
            let rule = "beyond it, latency grows faster than throughput";
            say("knee", format!("{knee}: {rule}"));
        }
    }
    if !report.objective.promises.is_empty() {
        let wanted = 100.0 * report.objective_share;
        let rule = format!("{wanted} % of requests keep {}", report.objective);
        match (levels.as_slice(), name(summary.meets), name(summary.fails)) {
            ([one], ..) => {
                let word = match one.level.verdict(report.objective_share) {
                    Some(Verdict::Meets) => "met",
                    Some(Verdict::Fails) => "not met",
                    _ => "undecided, send more requests",
                };
                say("objective", format!("{word}: {rule}"));
            }
            (_, Some(meets), fails) => {
                let until = fails.map_or(String::new(), |fails| format!("; not at {fails}"));
                say("highest load", format!("{meets}{until}: {rule}"));
            }
            (_, None, fails) => {
                let until = fails.map_or_else(
                    || "send more requests to decide".to_owned(),
                    |fails| format!("it is missed at {fails}, and below too few were sent to tell"),
                );
                say("highest load", format!("none is shown: {until}: {rule}"));
            }
        }
    }
    if let (Some(scenario), Some(tried)) = (scenario, levels.first()) {
        let words = match scenario_words(scenario, report, tried) {
            Some(words) => words,
            None => "no figure: too few requests".to_owned(),
        };
        say("MLPerf's metric", words);
    }
    list
}

/// MLPerf inference's metric of a scenario. It asks for more than is done here (its models, data
/// sets, accuracy and at least 600 s), so that this is no MLPerf result.
fn scenario_words(scenario: Scenario, report: &Report, tried: &Tried) -> Option<String> {
    let figures = &tried.level.figures;
    Some(match scenario {
        Scenario::SingleStream => {
            format!("{} latency, 90th percentile", Seconds(figures.e2e?.p90.point))
        }
        Scenario::Offline => {
            format!("{:.3} samples/s, {:.1} tokens/s", figures.rate?.point, figures.output?.point)
        }
        Scenario::Server => {
            let valid = match tried.level.verdict(report.objective_share) {
                None => "no --slo was given to hold it to",
                Some(Verdict::Meets) => "within --slo",
                Some(Verdict::Fails) => "not valid: misses --slo",
                Some(Verdict::Undecided) => "not shown to be valid: send more requests",
            };
            format!("{:.1} tokens/s, {valid}", figures.output?.point)
        }
    })
}

/// How it was measured, in a few lines.
pub(super) fn method(report: &Report) -> String {
    let work = &report.workload;
    let mut parts = vec![format!("prompts: {}", work.prompts)];
    if work.shared_prefix > 0 {
        parts.push(format!("the first {} the same", work.shared_prefix));
    }
    parts.push(format!("seed {}", work.seed));
    let window = &report.window;
    if window.settle.0 > 0.0 || window.cool.0 > 0.0 {
        let (settle, cool) = (window.settle, window.cool);
        parts.push(format!("{settle} left out at the start, {cool} at the end"));
    }
    let level = 100.0 * report.level;
    format!(
        "{}\nlatencies count from when a request was due; intervals of {level:.0} % over \
         neighbouring requests\n",
        parts.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use lathe_bench::load::{
        Failure, Level, LoadSample, Pattern, Spacing, Why, Window, load_figures,
    };

    use super::*;

    /// Half-second answers to `rate` requests a second, of which the last is `failed`.
    fn tried(rate: f64, wait: f64, failed: bool) -> Tried {
        let pattern = Pattern::Open { rate, spacing: Spacing::Poisson };
        let samples: Vec<LoadSample> = (0..200)
            .map(|number| {
                let due = number as f64 / rate;
                let first = due + 0.4 + wait * number as f64;
                let words = "it answered 503: busy".to_owned();
                LoadSample {
                    number,
                    prompt_tokens: 100,
                    asked: 2,
                    due: Seconds(due),
                    sent: Seconds(due + 2.0 * wait),
                    tokens: vec![Seconds(first), Seconds(first + 0.1)],
                    end: Seconds(first + 0.1),
                    failure: (failed && number == 199)
                        .then_some(Failure { why: Why::Broken, words }),
                }
            })
            .collect();
        let objective = promises();
        let figures = load_figures(&samples, &pattern, &Window::default(), &objective, 0.95);
        let name = super::super::shape::words(&pattern);
        Tried { name, level: Level { pattern, figures }, client_check: None, samples }
    }

    fn promises() -> Objective {
        "ttft=500ms,tpot=150ms".parse().unwrap()
    }

    #[test]
    fn a_sweep_fits_a_terminal_of_80_columns() {
        let tried = [tried(0.25, 0.0, false), tried(128.0, 3.0, false)];
        let (header, rows) = levels(&promises(), &tried);
        assert_eq!(rows[0][0], "poisson 0.25/s");
        let width: usize = (0..header.len())
            .map(|i| rows.iter().map(|row| row[i].len()).max().unwrap().max(header[i].len()) + 1)
            .sum();
        assert!(width <= 80, "{width}: {rows:?}");
    }

    #[test]
    fn what_spoils_a_level_is_said_beside_it() {
        assert_eq!(notes(&tried(2.0, 0.0, false)), Vec::<String>::new());
        let mut held = tried(2.0, 0.0, false);
        held.samples.iter_mut().for_each(|sample| sample.tokens[0] = sample.tokens[1]);
        assert!(notes(&held)[0].contains("100 % of tokens came together"), "{:?}", notes(&held));
        let spoilt = notes(&tried(2.0, 0.5, true)).join("\n");
        for told in ["1 × broken off: it answered 503: busy", "unstable: the queue grew", "invalid"]
        {
            assert!(spoilt.contains(told), "{told}: {spoilt}");
        }
    }

    #[test]
    fn times_have_few_letters() {
        for (seconds, text) in
            [(0.0001, "0.10 ms"), (0.0123, "12.3 ms"), (0.5, "500 ms"), (12.34, "12.3 s")]
        {
            assert_eq!(short(seconds), text);
        }
    }
}
