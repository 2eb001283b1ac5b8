use std::fmt::Write;

use super::{Exporter, page};
use crate::{Chart, Error, Outcome, Report, Row, chart::svg::escape, charts};

/// One self-contained page: no scripts from elsewhere, no fonts, no pictures to load.
#[derive(Clone, Copy, Debug)]
pub struct Html;

impl Exporter for Html {
    fn file(&self) -> &'static str {
        "report.html"
    }

    fn render(&self, report: &Report) -> Result<Vec<u8>, Error> {
        let charts = charts(report);
        let main: Vec<&Chart> = charts.iter().filter(|c| c.name != "machine").collect();
        let machine: Vec<&Chart> = charts.iter().filter(|c| c.name == "machine").collect();
        let sections = [
            verdict(report),
            requirements(report),
            picks(report),
            pictures("Trade-offs", &main),
            table(report),
            samples(report),
            facts("Whether engines compute the same", &page::conformance(report)),
            dropped(report),
            facts("Model", &report.model_facts),
            facts("Machine", &report.machine_facts),
            pictures("", &machine),
            facts("How it was measured", &report.method_facts),
            conventions(report),
        ];
        let title = escape(&report.model);
        let page = format!(
            r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Lathe: {title}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
{}
<footer>Made on {} by <code>{}</code>. <code>{}</code> rebuilds every figure and verdict from the raw samples in run.json.</footer>
</main>
<script>
{SCRIPT}</script>
</body>
</html>
"#,
            sections.concat(),
            escape(&report.created),
            escape(&report.command),
            escape(&report.recheck),
        );
        Ok(page.into_bytes())
    }
}

/// Light, dark and paper; no information by colour alone.
pub(crate) const STYLE: &str = include_str!("style.css");

/// Sorts the table by a clicked column; without scripts the page reads just as well.
const SCRIPT: &str = include_str!("sort.js");

fn verdict(report: &Report) -> String {
    let (word, class) = match report.outcome {
        Outcome::Explored => ("Trade-offs measured", "good"),
        Outcome::Met => ("Requirements met", "good"),
        Outcome::Unmet => ("Requirements not met", "bad"),
        Outcome::Undecided => ("Undecided", "open"),
    };
    let mut html = format!(
        "<header>\n<p class=\"tag {class}\">{word}</p>\n<h1>{}</h1>\n<p class=\"lead\">{}</p>\n",
        escape(&report.model),
        escape(&report.headline)
    );
    if let Some(row) = report.chosen_row() {
        let _ =
            writeln!(html, "<pre class=\"do\">{}\n{}</pre>", escape(&row.make), escape(&row.run));
    }
    if !report.warnings.is_empty() {
        html += "<ul class=\"warn\">\n";
        for warning in &report.warnings {
            let _ = writeln!(html, "<li>{}</li>", escape(warning));
        }
        html += "</ul>\n";
    }
    html + "</header>\n"
}

fn requirements(report: &Report) -> String {
    if report.requirements.is_empty() {
        return String::new();
    }
    let mut html = section("Requirements");
    html += "<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Configuration</th>";
    for requirement in &report.requirements {
        let _ = write!(html, "<th scope=\"col\">{}</th>", escape(&requirement.text));
    }
    html += "</tr></thead>\n<tbody>\n";
    for row in &report.rows {
        let _ =
            write!(html, "<tr{}><th scope=\"row\">{}</th>", mark(report, row), escape(&row.label));
        for requirement in &report.requirements {
            let verdict = row.verdicts.iter().find(|v| v.requirement == requirement.name);
            match verdict {
                Some(v) => {
                    let word = page::verdict_word(v.outcome);
                    let _ = write!(
                        html,
                        "<td class=\"v {word}\"><b>{word}</b><small>{}</small></td>",
                        escape(&v.text)
                    );
                }
                None => html += "<td></td>",
            }
        }
        html += "</tr>\n";
    }
    html + "</tbody></table></div>\n</section>\n"
}

fn picks(report: &Report) -> String {
    if report.picks.is_empty() {
        return String::new();
    }
    let mut html = section("Recommendations");
    html += "<div class=\"cards\">\n";
    for pick in &report.picks {
        let row = report.rows.iter().find(|row| row.id == pick.row);
        let label = row.map_or(pick.row.as_str(), |row| row.label.as_str());
        let chosen = report.chosen_pick().is_some_and(|chosen| chosen.kind == pick.kind);
        let _ = writeln!(
            html,
            "<article{}><h3>{}</h3><p class=\"name\">{}</p><p>{}</p></article>",
            if chosen { " class=\"chosen\"" } else { "" },
            escape(&pick.title),
            escape(label),
            escape(&pick.why)
        );
    }
    html + "</div>\n</section>\n"
}

fn pictures(title: &str, charts: &[&Chart]) -> String {
    if charts.is_empty() {
        return String::new();
    }
    let mut html = if title.is_empty() { "<section>\n".to_owned() } else { section(title) };
    html += "<div class=\"charts\">\n";
    for chart in charts {
        let _ = writeln!(html, "<figure id=\"{}\">{}</figure>", chart.name, chart.svg);
    }
    html + "</div>\n</section>\n"
}

fn table(report: &Report) -> String {
    if report.rows.is_empty() {
        return String::new();
    }
    let columns = page::columns(report);
    let mut html = section("Configurations");
    html += "<p>Small print: the interval; ± ? where it is wider than the figure itself. Click a heading to sort.</p>\n";
    html += "<div class=\"scroll\"><table class=\"sort\">\n<thead><tr>";
    for column in &columns {
        let _ = write!(
            html,
            "<th scope=\"col\" title=\"{}\">{}</th>",
            escape(column.help),
            escape(column.name)
        );
    }
    html += "</tr></thead>\n<tbody>\n";
    for row in &report.rows {
        let _ = write!(html, "<tr{}>", mark(report, row));
        for (index, column) in columns.iter().enumerate() {
            let cell = (column.cell)(row);
            let tag = if index == 0 { "th scope=\"row\"" } else { "td" };
            let end = if index == 0 { "th" } else { "td" };
            let key = cell.key.map_or_else(String::new, |k| format!(" data-key=\"{k}\""));
            let _ = write!(
                html,
                "<{tag}{key}>{}<small>{}</small></{end}>",
                escape(&cell.text),
                escape(&cell.small)
            );
        }
        html += "</tr>\n";
    }
    html += "</tbody></table></div>\n";
    if let Some(floor) = &report.noise_floor {
        let _ = writeln!(html, "<p class=\"floor\">{}</p>", escape(&floor.text));
    }
    for row in report.rows.iter().filter(|row| !row.notes.is_empty()) {
        let notes = row.notes.join("; ");
        let _ = writeln!(html, "<p class=\"note\">{}: {}</p>", escape(&row.label), escape(&notes));
    }
    html + "</section>\n"
}

fn samples(report: &Report) -> String {
    let rows: Vec<&Row> = report.rows.iter().filter(|row| row.sample.is_some()).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut html = section("What they write");
    html +=
        "<p>The same request to each, the likeliest token every time.</p>\n<dl class=\"texts\">\n";
    for row in rows {
        let text = row.sample.as_deref().unwrap_or_default();
        let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escape(&row.label), escape(text));
    }
    html + "</dl>\n</section>\n"
}

fn dropped(report: &Report) -> String {
    let items: Vec<(String, String)> =
        report.dropped.iter().map(|d| (d.label.clone(), d.reason.clone())).collect();
    facts("Not measured, and why", &items)
}

fn facts(title: &str, facts: &[(String, String)]) -> String {
    if facts.is_empty() {
        return String::new();
    }
    let mut html = section(title) + "<dl class=\"facts\">\n";
    for (label, value) in facts {
        let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escape(label), escape(value));
    }
    html + "</dl>\n</section>\n"
}

/// Perplexity by convention, so that figures can be held against published ones.
fn conventions(report: &Report) -> String {
    let mut labels: Vec<&String> = report.rows.iter().flat_map(|r| r.conventions.keys()).collect();
    labels.sort();
    labels.dedup();
    if labels.is_empty() {
        return String::new();
    }
    let mut html = section("Perplexity by convention");
    html += "<p>The conventions differ in windows and context; figures of one must not be compared with another's.</p>\n";
    html += "<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Configuration</th>";
    for label in &labels {
        let _ = write!(html, "<th scope=\"col\">{}</th>", escape(label));
    }
    html += "</tr></thead>\n<tbody>\n";
    for row in &report.rows {
        let _ = write!(html, "<tr><th scope=\"row\">{}</th>", escape(&row.label));
        for label in &labels {
            let value = row.conventions.get(*label).map_or_else(String::new, |v| format!("{v:.3}"));
            let _ = write!(html, "<td>{value}</td>");
        }
        html += "</tr>\n";
    }
    html + "</tbody></table></div>\n</section>\n"
}

fn section(title: &str) -> String {
    format!("<section>\n<h2>{}</h2>\n", escape(title))
}

fn mark(report: &Report, row: &Row) -> &'static str {
    if report.chosen() == Some(row.id.as_str()) {
        " class=\"chosen\""
    } else if row.id == report.baseline {
        " class=\"baseline\""
    } else {
        ""
    }
}
