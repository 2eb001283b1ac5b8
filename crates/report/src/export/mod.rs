//! The forms in which a report is written; each a pure function of it.

mod csv;
mod html;
mod json;
mod markdown;
mod page;

pub use csv::Csv;
pub use html::Html;
pub(crate) use html::STYLE;
pub use json::Json;
pub use markdown::Markdown;

use crate::{Error, Report, charts, png};

/// A form of a report: a pure function from its figures to a file's bytes.
pub trait Exporter: Sync {
    /// Name of the file in a run's folder.
    fn file(&self) -> &'static str;

    /// The file's content.
    fn render(&self, report: &Report) -> Result<Vec<u8>, Error>;
}

/// Every form of one file. Charts are many: see [`files`].
pub static EXPORTERS: &[&dyn Exporter] = &[&Csv, &Html, &Json, &Markdown];

/// Every file of a report, by its path in the run's folder.
pub fn files(report: &Report) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let mut files = Vec::new();
    for exporter in EXPORTERS {
        files.push((exporter.file().to_owned(), exporter.render(report)?));
    }
    for chart in charts(report) {
        files.push((format!("charts/{}.png", chart.name), png(&chart.svg)?));
        files.push((format!("charts/{}.svg", chart.name), chart.svg.into_bytes()));
    }
    Ok(files)
}
