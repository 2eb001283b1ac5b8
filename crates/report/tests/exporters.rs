//! Every exporter on one report: what a person would open, checked for what must hold.

use std::collections::BTreeMap;

use lathe_base::{Bytes, Seconds};
use lathe_report::{
    Agreement, Check, Conformance, Csv, Dropped, EXPORTERS, Exporter, Html, Markdown, NoiseFloor,
    Outcome, Pick, Point, Report, Requirement, Row, Timeline, Verdict, Weights, charts, files, png,
};
use lathe_stats::{Interval, Method, Verdict as Says};

fn around(point: f64, share: f64) -> Interval {
    Interval {
        low: point * (1.0 - share),
        point,
        high: point * (1.0 + share),
        level: 0.95,
        n: 5,
        method: Method::StudentTOnLogs,
    }
}

fn row(id: &str, label: &str, bits: f64, speed: f64, kl: f64) -> Row {
    let base = id == "base";
    let size = (4.2e6 * bits / 8.0) as u64;
    Row {
        id: id.to_owned(),
        label: label.to_owned(),
        engine: "native".to_owned(),
        format: id.to_owned(),
        kv: "f16".to_owned(),
        size: Bytes(size),
        bits_per_weight: bits,
        peak_memory: Some(Bytes(size + 9_000_000)),
        needed_memory: Some(Bytes(size + 10_000_000)),
        planned_memory: Some(Bytes(size + 4_000_000)),
        load: Some(around(0.012, 0.1)),
        decode: Some(around(speed, 0.03)),
        prefill: Some(around(speed * 6.0, 0.05)),
        ttft: Some(around(40.0 / speed, 0.04)),
        itl_p50: Some(around(1.0 / speed, 0.02)),
        itl_p90: Some(around(1.2 / speed, 0.02)),
        itl_p99: Some(around(1.9 / speed, 0.1)),
        requests: Some(around(speed / 70.0, 0.1)),
        batch: vec![(2, around(speed * 1.7, 0.05)), (4, around(speed * 2.6, 0.05))],
        speed_ratio: Some(around(speed / 600.0, 0.02)),
        perplexity: Some(around(12.0 * (1.0 + kl), 0.06)),
        perplexity_ratio: (!base).then(|| around(1.0 + kl, 0.003)),
        kl: Some(if base { Interval::exact(0.0) } else { around(kl, 0.08) }),
        top1: Some(around(1.0 - kl.sqrt() / 3.0, 0.004)),
        accuracy: Some(around(0.71, 0.05)),
        flips: (!base).then(|| around(kl * 2.0 + 0.004, 0.5)),
        conventions: BTreeMap::from([("context 512 (llama.cpp)".to_owned(), 11.5 + kl)]),
        cost_per_million: Some(around(1.2 / (speed * 2.6 * 3600.0) * 1e6, 0.05)),
        verdicts: vec![Verdict {
            requirement: "max-kl".to_owned(),
            outcome: if kl < 0.02 { Says::Meets } else { Says::Fails },
            text: format!("KL divergence {kl} nats/token, at most 0.0200 nats/token required"),
        }],
        pareto_quality_size: bits < 5.0 || kl < 0.001,
        pareto_speed_memory: speed > 900.0,
        balance: Some(0.7),
        sample: Some("Once upon a time there was a <b>dog</b> & a cat.".to_owned()),
        notes: Vec::new(),
        make: format!("lathe quantize model --to {id} -o out"),
        run: "lathe chat out".to_owned(),
        conformance: None,
    }
}

fn report() -> Report {
    let points = (0..400)
        .map(|i| Point {
            at: Seconds(f64::from(i) * 0.2),
            cpu: 0.5 + 0.4 * (i as f32 / 20.0).sin(),
            others: Some(0.03),
            memory: Bytes(2 << 30),
            ours: Some(Bytes(30_000_000)),
            mhz: Some(3000.0 + (i % 7) as f32 * 20.0),
            gpu: None,
            gpu_memory: None,
        })
        .collect();
    Report {
        model: "a <model> | with \"quotes\"".to_owned(),
        created: "2026-01-02T03:04:05Z".to_owned(),
        command: "lathe optimize --max-kl 0.02".to_owned(),
        recheck: "lathe report RUN".to_owned(),
        headline: "Deploy GGUF Q8_0: it meets every requirement.".to_owned(),
        outcome: Outcome::Met,
        model_facts: vec![("Parameters".to_owned(), "4.20 million".to_owned())],
        machine_facts: vec![("CPU".to_owned(), "a processor, 2 cores".to_owned())],
        method_facts: vec![("Speed".to_owned(), "5 rounds".to_owned())],
        requirements: vec![Requirement {
            name: "max-kl".to_owned(),
            text: "KL divergence at most 0.0200 nats/token".to_owned(),
        }],
        baseline: "base".to_owned(),
        rows: vec![
            row("base", "BF16 (base)", 16.0, 600.0, 0.0),
            row("q8_0", "GGUF Q8_0", 8.5, 900.0, 0.000_3),
            row("int8", "INT8 per channel", 8.03, 880.0, 0.002),
            row("q5_0", "GGUF Q5_0", 5.5, 940.0, 0.012),
            row("q4_0", "GGUF Q4_0", 4.5, 1150.0, 0.061),
            row("int4_g32", "INT4 g32", 4.5, 1120.0, 0.058),
            row("int4_asym_g128", "INT4 g128 asymmetric", 4.19, 1130.0, 0.08),
            row("nf4", "NF4", 4.5, 1010.0, 0.049),
            row("nf4_dq", "NF4 double quant", 4.13, 1000.0, 0.05),
        ],
        dropped: vec![Dropped {
            label: "F32".to_owned(),
            reason: "needs 17 MiB, more than the 16 MiB allowed".to_owned(),
        }],
        picks: vec![Pick {
            kind: "requirements".to_owned(),
            title: "Best for the requirements".to_owned(),
            row: "q8_0".to_owned(),
            why: "meets every requirement".to_owned(),
        }],
        noise_floor: Some(NoiseFloor {
            kl: around(0.000_05, 0.1),
            top1: around(0.998, 0.001),
            text: "Rounding alone gives 0.00005.".to_owned(),
        }),
        cost_per_hour: Some(1.2),
        weights: Weights::default(),
        timeline: Timeline {
            points,
            spans: vec![(Seconds(1.0), Seconds(20.0), "make q8_0".to_owned())],
        },
        warnings: vec!["other programs took 20 % of the CPU".to_owned()],
    }
}

fn empty() -> Report {
    let mut report = report();
    report.rows.clear();
    report.picks.clear();
    report.noise_floor = None;
    report.timeline = Timeline::default();
    report.outcome = Outcome::Unmet;
    report
}

fn text(exporter: &dyn Exporter, report: &Report) -> String {
    String::from_utf8(exporter.render(report).unwrap()).unwrap()
}

#[test]
fn every_exporter_renders_full_and_empty_reports_the_same_each_time() {
    for exporter in EXPORTERS {
        for report in [report(), empty()] {
            let first = exporter.render(&report).unwrap();
            assert!(!first.is_empty(), "{}", exporter.file());
            assert_eq!(first, exporter.render(&report).unwrap(), "{}", exporter.file());
        }
    }
}

#[test]
fn the_page_loads_nothing_and_runs_nothing_of_the_model_s() {
    let html = text(&Html, &report());
    for forbidden in ["http://", "https://", "src=", "@import", "url(", "<b>dog"] {
        let namespace = "http://www.w3.org/2000/svg";
        assert!(!html.replace(namespace, "").contains(forbidden), "{forbidden}");
    }
    assert!(html.contains("a &lt;model&gt; | with &quot;quotes&quot;"));
    assert!(html.contains("prefers-color-scheme: dark") && html.contains("@media print"));
}

#[test]
fn every_row_and_verdict_stands_on_the_page() {
    let report = report();
    let html = text(&Html, &report);
    for row in &report.rows {
        assert!(html.matches(&row.label).count() >= 3, "{} is missing somewhere", row.label);
    }
    assert!(html.contains("<b>meets</b>") && html.contains("<b>fails</b>"));
}

#[test]
fn the_table_of_the_csv_is_rectangular() {
    let csv = text(&Csv, &report());
    let mut lines = csv.lines();
    let columns = lines.next().unwrap().split(',').count();
    let mut rows = 0;
    for line in lines {
        assert_eq!(line.split(',').count(), columns, "{line}");
        rows += 1;
    }
    assert_eq!(rows, report().rows.len());
    assert!(csv.contains("decode_4_streams_tokens_per_s"));
}

#[test]
fn the_words_name_the_choice_and_escape_the_rest() {
    let markdown = text(&Markdown, &report());
    assert!(markdown.contains("**Best for the requirements: GGUF Q8\\_0.**"), "{markdown}");
    assert!(markdown.starts_with("# a \\<model> \\| with"));
    let table: Vec<&str> = markdown.lines().filter(|l| l.starts_with("| ")).collect();
    assert!(table.len() > report().rows.len());
}

#[test]
fn the_charts_are_pictures() {
    let charts = charts(&report());
    assert_eq!(charts.len(), 9);
    for chart in &charts {
        let picture = png(&chart.svg).unwrap();
        assert_eq!(&picture[..8], b"\x89PNG\r\n\x1a\n", "{}", chart.name);
        assert!(!chart.svg.contains("NaN") && !chart.svg.contains("inf"), "{}", chart.name);
    }
    assert!(lathe_report::charts(&empty()).is_empty());
}

#[test]
fn the_files_of_a_report_have_one_name_each() {
    let files = files(&report()).unwrap();
    let mut names: Vec<&String> = files.iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), files.len());
    if let Ok(folder) = std::env::var("LATHE_TEST_REPORT") {
        for (name, bytes) in files {
            lathe_base::AtomicFile::write_all(std::path::Path::new(&folder).join(name), &bytes)
                .unwrap();
        }
    }
}

#[test]
fn an_engine_that_computes_something_else_is_marked_in_words() {
    let mut report = report();
    let check = |what: &str, outcome, words: &str| Check {
        what: what.to_owned(),
        outcome,
        words: words.to_owned(),
        kl: (what == "logits").then_some(0.017),
    };
    let found = Conformance {
        version: Some("7".to_owned()),
        failed: None,
        checks: vec![
            check("tokens", Agreement::Same, "8 texts"),
            check("weights", Agreement::Unasked, "it cannot tell them"),
            check("logits", Agreement::Deviates, "KL 1.7e-2 nats"),
        ],
        limit: 0.001,
    };
    assert!(found.deviates());
    assert_eq!(found.verdict(), "deviates: logits");
    let other =
        Row { conformance: Some(found), ..row("q4_0@other", "Q4_0 on other", 4.5, 900.0, 0.05) };
    let text = |exporter: &dyn Exporter, report: &Report| {
        String::from_utf8(exporter.render(report).unwrap()).unwrap()
    };
    let before = text(&Html, &report);
    assert!(!before.contains("Computes") && !before.contains("compute the same"));
    report.rows.push(other);
    for page in [text(&Html, &report), text(&Markdown, &report)] {
        assert!(page.contains("Computes") && page.contains("deviates: logits"), "{page}");
        assert!(page.contains("Whether engines compute the same"), "{page}");
        assert!(page.contains("version 7; tokens same (8 texts)"), "{page}");
        assert!(page.contains("logits DEVIATES (KL 1.7e-2 nats)"), "{page}");
    }
    let (failed, nothing) = (
        Conformance { failed: Some("gone".to_owned()), ..Conformance::default() },
        Conformance::default(),
    );
    assert!(failed.deviates() && !nothing.deviates());
    assert_eq!(nothing.verdict(), "nothing could be asked");
}
