//! `--report`: a page, or a chart.

use std::path::Path;

use anyhow::{Context, bail};
use lathe_base::AtomicFile;
use lathe_bench::load::{Latency, LoadFigures};
use lathe_report::{LoadCurve, LoadPage, LoadPoint};

use super::{Report, Scenario, show};

/// Refuses a file that cannot be written before anything is measured.
pub(super) fn check(path: &Path) -> anyhow::Result<()> {
    match path.extension().and_then(|end| end.to_str()) {
        Some("html" | "svg") => Ok(()),
        _ => bail!("--report {}: a name that ends in .html or .svg is needed", path.display()),
    }
}

/// Writes the page, or the chart of time to first token alone.
pub(super) fn write(
    path: &Path,
    report: &Report,
    scenario: Option<Scenario>,
) -> anyhow::Result<()> {
    let page = page(report, scenario);
    let text = match path.extension().and_then(|end| end.to_str()) {
        Some("svg") => match page.charts().into_iter().next() {
            Some(chart) => chart.svg,
            None => bail!("--report {}: there is nothing to draw", path.display()),
        },
        _ => page.html(),
    };
    AtomicFile::write_all(path, text.as_bytes())
        .with_context(|| format!("--report: cannot write {}", path.display()))
}

fn page(report: &Report, scenario: Option<Scenario>) -> LoadPage {
    let curves = |of: fn(&LoadFigures) -> Option<Latency>| -> Vec<LoadCurve> {
        let curve = |measured: &super::Measured| LoadCurve {
            label: measured.engine.clone(),
            points: measured
                .levels
                .iter()
                .filter_map(|tried| {
                    let figures = &tried.level.figures;
                    let latency = of(figures)?;
                    let (p50, p99) = (latency.p50, latency.p99);
                    Some(LoadPoint { throughput: figures.output?.point, p50, p99 })
                })
                .collect(),
        };
        report.engines.iter().map(curve).collect()
    };
    let mut page = LoadPage {
        title: format!("{} under load", report.model),
        ttft: curves(|figures| figures.ttft),
        tpot: curves(|figures| figures.tpot),
        ..LoadPage::default()
    };
    for measured in &report.engines {
        page.lead.extend(
            show::conclusions(report, measured, scenario)
                .into_iter()
                .map(|(label, words)| format!("{}: {label}: {words}", measured.engine)),
        );
        let (header, rows) = show::levels(&report.objective, &measured.levels);
        page.header = std::iter::once("engine".to_owned()).chain(header).collect();
        page.rows.extend(
            rows.into_iter()
                .map(|row| std::iter::once(measured.engine.clone()).chain(row).collect()),
        );
        let notes = measured.levels.iter().flat_map(show::notes);
        page.warnings.extend(notes.map(|note| format!("{}, {note}", measured.engine)));
    }
    page.warnings.extend(report.warnings.iter().cloned());
    if report.interrupted {
        page.warnings.push("interrupted: these are the figures of what had ended by then".into());
    }
    page.facts = vec![
        ("load".to_owned(), report.load.clone()),
        ("requests".to_owned(), show::method(report)),
        ("processor".to_owned(), report.machine.cpu.name.clone()),
    ];
    page
}
