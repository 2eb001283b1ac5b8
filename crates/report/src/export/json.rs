use super::Exporter;
use crate::{Error, Report};

/// The report as JSON: every figure with its interval.
#[derive(Clone, Copy, Debug)]
pub struct Json;

impl Exporter for Json {
    fn file(&self) -> &'static str {
        "report.json"
    }

    fn render(&self, report: &Report) -> Result<Vec<u8>, Error> {
        let mut text = serde_json::to_vec_pretty(report)?;
        text.push(b'\n');
        Ok(text)
    }
}
