//! `lathe bench --load`: many requests at once, on engines in turn.

mod ask;
mod client;
mod page;
mod run;
mod shape;
mod show;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use lathe_base::{AtomicFile, Seconds};
use lathe_bench::load::{Lengths, Level, Limits, LoadSample, Objective, Summary, Window};
use lathe_machine::Machine;
use serde::Serialize;

use super::{BenchArgs, at_least_two};
use crate::{
    args::Global,
    commands::optimize::{at_least_one, share},
    exit::Ended,
    ui,
};
use shape::{Scenario, Shape, shape, window};

/// How an engine is put under load.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Load (see docs/load.md)")]
pub(crate) struct LoadArgs {
    /// Send requests together instead of one after another: closed:USERS, or by a timetable
    /// constant:RATE, poisson:RATE, gamma:BURSTINESS:RATE (requests per second; lists such as
    /// poisson:1,2,4 are a sweep), sweep (rates until the engine is full), trace:FILE (Azure's CSV,
    /// Mooncake's JSON lines), or MLPerf's single-stream, server:RATE, offline
    #[arg(long, value_name = "SHAPE", value_parser = shape)]
    load: Option<Shape>,
    /// Measure the OpenAI-compatible server that runs at this address instead of Lathe's own engine;
    /// MODEL is then what counts its tokens
    #[arg(long, value_name = "URL", requires = "load")]
    url: Option<String>,
    /// Send requests for so long, at each level [default: 30s, or until --max-requests are sent, or
    /// the trace ends]
    #[arg(long, value_name = "TIME", requires = "load", value_parser = some_time)]
    duration: Option<Seconds>,
    /// Send at most so many, at each level
    #[arg(long, value_name = "N", requires = "load", value_parser = at_least_one)]
    max_requests: Option<usize>,
    /// Wait so long for answers after the last request was sent; what is missing then has failed
    #[arg(long, value_name = "TIME", default_value = "10m", requires = "load")]
    drain: Seconds,
    /// What is promised of every request: ttft (time to first token), tpot (time per further
    /// token), itl (the longest gap between tokens), e2e (the whole), as in ttft=500ms,tpot=50ms
    #[arg(long, value_name = "LIST", requires = "load")]
    slo: Option<Objective>,
    /// The share of requests that must keep the promises
    #[arg(long, value_name = "SHARE", default_value = "0.99", requires = "slo", value_parser = part)]
    slo_share: f64,
    /// Leave out requests that are due this soon after the start, while the engine fills
    #[arg(long, value_name = "TIME", default_value = "0s", requires = "load")]
    settle: Seconds,
    /// Leave out what is due or comes this close before the last request is due, and all later
    #[arg(long, value_name = "TIME", default_value = "0s", requires = "load")]
    cool_down: Seconds,
    /// Lengths of prompts: 128, uniform:64:256, normal:512:128, lognormal:512:0.8
    /// [default: --prompt-tokens]
    #[arg(long, value_name = "LENGTHS", requires = "load")]
    prompt_lengths: Option<Lengths>,
    /// Lengths of answers, likewise [default: --new-tokens]
    #[arg(long, value_name = "LENGTHS", requires = "load")]
    new_lengths: Option<Lengths>,
    /// Take prompts, and lengths of answers, from conversations in ShareGPT's JSON
    #[arg(long, value_name = "FILE", requires = "load", conflicts_with_all = ["prompt_lengths", "new_lengths", "text"])]
    dataset: Option<PathBuf>,
    /// Tokens with which every prompt begins
    #[arg(long, value_name = "N", default_value = "0", requires = "load")]
    shared_prefix: usize,
    /// Part of a trace, from its first request on: 10m..11m
    #[arg(long, value_name = "FROM..TO", default_value = "..", requires = "load", value_parser = window)]
    window: (f64, f64),
    /// Replay a trace so many times as fast
    #[arg(long, value_name = "X", default_value = "1", requires = "load", value_parser = above_zero)]
    speed: f64,
    /// Multiply the lengths of a trace by this
    #[arg(long, value_name = "X", default_value = "1", requires = "load", value_parser = above_zero)]
    scale: f64,
    /// Cut longer prompts of a trace or data set
    #[arg(long, value_name = "N", requires = "load", value_parser = at_least_one)]
    most_prompt: Option<usize>,
    /// Ask for no longer answers than this in a trace or data set
    #[arg(long, value_name = "N", requires = "load", value_parser = at_least_two)]
    most_new: Option<usize>,
    /// Sequences that an engine of ours runs together [default: the users of a closed loop, else 8]
    #[arg(long, value_name = "N", requires = "load", value_parser = at_least_one)]
    sequences: Option<usize>,
    /// Let Lathe's own engine keep what prompts have in common
    #[arg(long, requires = "load")]
    share_prefixes: bool,
    /// Repeat each level against a mock server with the latencies that were measured, to see what
    /// this client adds to them
    #[arg(long, requires = "load")]
    check_client: bool,
    /// Write a page with charts (.html), or a chart alone (.svg)
    #[arg(long, value_name = "FILE", requires = "load")]
    report: Option<PathBuf>,
}

impl LoadArgs {
    pub(super) fn is_asked_for(&self) -> bool {
        self.load.is_some()
    }
}

/// Everything that was measured, with all stamps.
#[derive(Serialize)]
struct Report {
    model: String,
    load: String,
    workload: Workload,
    objective: Objective,
    /// The share of requests that must keep it.
    objective_share: f64,
    limits: Limits,
    window: Window,
    level: f64,
    /// By engine.
    engines: Vec<Measured>,
    /// Stopped by the user: what is here was complete.
    interrupted: bool,
    warnings: Vec<String>,
    machine: Machine,
}

/// What was asked for, in words and numbers.
#[derive(Serialize)]
struct Workload {
    prompts: String,
    shared_prefix: usize,
    warmup: usize,
    seed: u64,
    /// Sequences at a time in engines that we start.
    sequences: usize,
}

/// One engine under every level of load.
#[derive(Serialize)]
struct Measured {
    engine: String,
    version: String,
    load: Seconds,
    levels: Vec<Tried>,
    summary: Summary,
}

/// A level with its samples.
#[derive(Serialize)]
struct Tried {
    name: String,
    #[serde(flatten)]
    level: Level,
    /// What the client adds at this load.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_check: Option<client::ClientCheck>,
    samples: Vec<LoadSample>,
}

pub(super) fn run(args: &BenchArgs, global: &Global) -> anyhow::Result<Ended> {
    let Some(load) = &args.load.load else { bail!("--load is missing") };
    if let Some(path) = &args.load.report {
        page::check(path)?;
    }
    let bar = ui::Bar::new(global.quiet);
    let report = run::run(args, load, &bar)?;
    bar.clear();
    if let Some(path) = &args.save {
        AtomicFile::write_all(path, &serde_json::to_vec(&report)?)
            .with_context(|| format!("--save: cannot write {}", path.display()))?;
    }
    if let Some(path) = args.load.report.as_ref().filter(|_| !report.engines.is_empty()) {
        page::write(path, &report, load.scenario)?;
    }
    if global.json {
        ui::json(&report)?;
    } else {
        ui::out(&show::text(&report, load.scenario))?;
    }
    if report.interrupted {
        return Err(lathe_base::Cancelled.into());
    }
    let none = |measured: &Measured| {
        measured.levels.iter().all(|tried| tried.level.figures.completed == 0)
    };
    if report.engines.iter().all(none) {
        let why = report.warnings.first().map_or("", String::as_str);
        bail!("no request came to its end: {why}");
    }
    Ok(Ended::Well)
}

/// A share of requests that can be shown to keep a promise: all of them cannot.
fn part(text: &str) -> Result<f64, String> {
    match share(text)? {
        part if part > 0.0 && part < 1.0 => Ok(part),
        _ => Err("a share between 0 and 1 is needed, such as 99% or 0.99".to_owned()),
    }
}

fn some_time(text: &str) -> Result<Seconds, String> {
    let time: Seconds =
        text.parse().map_err(|error: lathe_base::ParseUnitError| error.to_string())?;
    if time.0 > 0.0 && time.0 < 1e6 { Ok(time) } else { Err("a time above 0 is needed".to_owned()) }
}

fn above_zero(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(x) if x > 0.0 && x.is_finite() => Ok(x),
        _ => Err("a number above 0 is needed".to_owned()),
    }
}
