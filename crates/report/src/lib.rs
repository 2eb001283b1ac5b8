//! What a reader is told about a run, and the forms it is told in: an HTML page, Markdown, CSV,
//! JSON, and charts as SVG and PNG. Every form is a pure function of a [`Report`].

mod chart;
mod error;
mod export;
mod load;
mod model;
mod png;

pub use chart::{Chart, charts};
pub use error::Error;
pub use export::{Csv, EXPORTERS, Exporter, Html, Json, Markdown, files};
pub use load::{LoadCurve, LoadPage, LoadPoint};
pub use model::{
    Agreement, Check, Conformance, Dropped, NoiseFloor, Outcome, Pick, Point, Report, Requirement,
    Row, Timeline, Verdict, Weights,
};
pub use png::png;
