use std::fmt::Write;

use lathe_stats::Interval;

use crate::{
    Chart,
    chart::{load, svg::escape},
    export::STYLE,
};

/// What engines did under load, for a page of its own.
#[derive(Clone, Debug, Default)]
pub struct LoadPage {
    pub title: String,
    /// What it says in the end.
    pub lead: Vec<String>,
    /// Latency against throughput: time to first token, and time per further token.
    pub ttft: Vec<LoadCurve>,
    pub tpot: Vec<LoadCurve>,
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// What a reader must know before believing a figure.
    pub warnings: Vec<String>,
    pub facts: Vec<(String, String)>,
}

/// One engine at growing load.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadCurve {
    pub label: String,
    pub points: Vec<LoadPoint>,
}

/// One level: output tokens per second, and latencies in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadPoint {
    pub throughput: f64,
    pub p50: Interval,
    pub p99: Interval,
}

impl LoadPage {
    /// The charts for which there are points.
    pub fn charts(&self) -> Vec<Chart> {
        let subtitle = "Whole lines and dots: medians with intervals. Thin lines and rings: 99th percentiles. Down and right is better.";
        [
            ("load-ttft", "Time to first token under load", &self.ttft),
            ("load-tpot", "Time per further token under load", &self.tpot),
        ]
        .into_iter()
        .filter(|(_, _, curves)| curves.iter().any(|curve| !curve.points.is_empty()))
        .map(|(name, title, curves)| Chart {
            name,
            title,
            svg: load::load(title, subtitle, curves),
        })
        .collect()
    }

    /// One self-contained page.
    pub fn html(&self) -> String {
        let mut html = format!(
            r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Lathe: {title}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
"#,
            title = escape(&self.title)
        );
        for line in &self.lead {
            let _ = writeln!(html, "<p class=\"lead\">{}</p>", escape(line));
        }
        if !self.warnings.is_empty() {
            html += "<ul class=\"warn\">\n";
            for warning in &self.warnings {
                let _ = writeln!(html, "<li>{}</li>", escape(warning));
            }
            html += "</ul>\n";
        }
        html +=
            "</header>\n<section>\n<h2>Latency against throughput</h2>\n<div class=\"charts\">\n";
        for chart in self.charts() {
            let _ = writeln!(html, "<figure id=\"{}\">{}</figure>", chart.name, chart.svg);
        }
        html += "</div>\n</section>\n<section>\n<h2>Levels</h2>\n<div class=\"scroll\"><table>\n<thead><tr>";
        for name in &self.header {
            let _ = write!(html, "<th scope=\"col\">{}</th>", escape(name));
        }
        html += "</tr></thead>\n<tbody>\n";
        for row in &self.rows {
            html += "<tr>";
            for (index, cell) in row.iter().enumerate() {
                let _ = match index {
                    0 => write!(html, "<th scope=\"row\">{}</th>", escape(cell)),
                    _ => write!(html, "<td>{}</td>", escape(cell)),
                };
            }
            html += "</tr>\n";
        }
        html += "</tbody></table></div>\n</section>\n<section>\n<h2>How it was measured</h2>\n<dl class=\"facts\">\n";
        for (label, value) in &self.facts {
            let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escape(label), escape(value));
        }
        html + "</dl>\n</section>\n</main>\n</body>\n</html>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> LoadPage {
        let at =
            |ms: f64| Interval { low: ms / 1.1e3, high: ms / 900.0, ..Interval::exact(ms / 1e3) };
        let point = |throughput, p50, p99| LoadPoint { throughput, p50: at(p50), p99: at(p99) };
        let points =
            vec![point(10.0, 50.0, 80.0), point(20.0, 60.0, 400.0), point(19.0, 900.0, 4000.0)];
        LoadPage {
            title: "a <model>".to_owned(),
            ttft: vec![LoadCurve { label: "native".to_owned(), points }],
            header: vec!["load".to_owned()],
            rows: vec![vec!["poisson 1/s".to_owned()]],
            warnings: vec!["unstable & slow".to_owned()],
            ..LoadPage::default()
        }
    }

    #[test]
    fn only_what_was_measured_is_drawn() {
        let charts = page().charts();
        let [chart] = &charts[..] else { panic!("{}", charts.len()) };
        assert_eq!((chart.name, chart.svg.matches("<circle").count()), ("load-ttft", 6));
        assert!(chart.svg.contains("native p50") && chart.svg.contains("native p99"));
        assert!(LoadPage::default().charts().is_empty());
    }

    #[test]
    fn a_page_shows_what_is_said_as_text() {
        let html = page().html();
        assert!(html.contains("a &lt;model&gt;") && html.contains("unstable &amp; slow"));
        assert!(html.contains("poisson 1/s") && !html.contains("<script"));
    }
}
