//! What this client adds to latencies: the same load on a mock server whose latencies are set.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, bail};
use lathe_adapters::openai::{OpenAi, Options};
use lathe_api::Engine;
use lathe_base::{Progress, Seconds};
use lathe_bench::load::{Latency, Limits, LoadFigures, LoadSample, Pattern, Source, drive};
use serde::Serialize;

/// What was set, and what was measured above it, in seconds. The mock's own lateness is in it: it is
/// a bound.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ClientCheck {
    pub(super) requests: usize,
    /// Of the mock: as the engine's medians were.
    pub(super) ttft: f64,
    pub(super) itl: f64,
    /// Means of what came on top.
    pub(super) ttft_more: f64,
    pub(super) itl_more: f64,
    /// On top at the 99th percentile.
    pub(super) ttft_more_p99: f64,
    /// The mean of what came on top of a whole request, as a share of the request.
    pub(super) share: f64,
}

/// Repeats a level against a mock server with the medians that were measured.
pub(super) fn check(
    figures: &LoadFigures,
    pattern: &Pattern,
    source: &Arc<Source>,
    limits: &Limits,
    progress: &dyn Progress,
) -> anyhow::Result<Option<ClientCheck>> {
    let Some(ttft) = figures.ttft.map(|latency| latency.p50.point) else { return Ok(None) };
    let itl = figures.tpot.map_or(0.0, |latency: Latency| latency.p50.point);
    let decode = itl.min(ttft).max(1e-6);
    let mock = Mock::start(ttft - decode, decode)?;
    let engine: Arc<dyn Engine> = Arc::new(OpenAi::connect(&Options {
        name: "mock".to_owned(),
        url: mock.url.clone(),
        model: None,
        key_variable: None,
        context: usize::MAX / 2,
        vocab: source.tokens.vocab,
        patience: Seconds(600.0),
    })?);
    let (samples, interrupted) = drive(&engine, pattern, source, limits, "client", progress);
    if interrupted {
        return Ok(None);
    }
    Ok(added(&samples, ttft, decode))
}

fn added(samples: &[LoadSample], ttft: f64, itl: f64) -> Option<ClientCheck> {
    let done: Vec<&LoadSample> = samples.iter().filter(|sample| sample.completed()).collect();
    let firsts: Vec<f64> = done.iter().filter_map(|s| Some(s.ttft()? - ttft)).collect();
    let further: Vec<f64> = done.iter().filter_map(|s| Some(s.tpot()? - itl)).collect();
    let set = |s: &LoadSample| ttft + itl * (s.tokens.len() as f64 - 1.0);
    let shares: Vec<f64> =
        done.iter().filter_map(|s| Some((s.end_to_end()? - set(s)) / set(s))).collect();
    Some(ClientCheck {
        requests: done.len(),
        ttft,
        itl,
        ttft_more: lathe_stats::mean(&firsts).ok()?,
        itl_more: lathe_stats::mean(&further).unwrap_or(0.0),
        ttft_more_p99: lathe_stats::quantile(&firsts, 0.99).ok()?,
        share: lathe_stats::mean(&shares).ok()?,
    })
}

impl ClientCheck {
    /// In a line.
    pub(super) fn words(&self) -> String {
        let time = |s: f64| Seconds(s).to_string();
        format!(
            "this client adds {:.2} % to a request: {} to a time to first token of {} ({} at the \
             99th percentile), {} to {} per further token",
            100.0 * self.share,
            time(self.ttft_more),
            time(self.ttft),
            time(self.ttft_more_p99),
            time(self.itl_more),
            time(self.itl),
        )
    }
}

/// A mock server in a process of its own. Ends when dropped.
struct Mock {
    child: Child,
    url: String,
}

impl Mock {
    fn start(start: f64, decode: f64) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot find the lathe program itself")?;
        let seconds = |x: f64| format!("{:.9}s", x.max(0.0));
        let mut child = Command::new(own)
            .args(["mock", "--start", &seconds(start), "--decode", &seconds(decode)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the mock server")?;
        let mut line = String::new();
        let read = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
        let mock = Self { child, url: line.trim().to_owned() };
        match read {
            Some(Ok(_)) if mock.url.starts_with("http://") => Ok(mock),
            _ => bail!("the mock server did not start"),
        }
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        // What has ended already needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
