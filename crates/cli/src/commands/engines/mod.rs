//! `lathe engines`: which are here, and what they run.

mod asked;
mod follow;
mod install;
mod packages;
mod probe;
mod record;
mod samples;
mod source;
mod tried;

use clap::{Args, Subcommand};
use serde::Serialize;

use record::{Probed, Record};
use samples::KINDS;

use crate::{
    args::Global,
    exit::Ended,
    peers::{Peer, Places, named},
    ui,
};

/// Options of `lathe engines`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  lathe engines
  lathe engines --engine-path ik_llama.cpp=../ik_llama.cpp/build
  lathe engines install onnxruntime
  lathe engines probe
  lathe engines --json

An engine is looked for where --engine-path says, where its variable does (LATHE_LLAMA_CPP), in the
user's folder for engines (~/.local/share/lathe/engines/NAME) and, but for forks, in PATH; ONNX
Runtime also where ORT_DYLIB_PATH says. Which formats each of them loads: `lathe preflight MODEL` by
rules, `lathe engines probe` by trying.")]
pub(crate) struct EnginesArgs {
    /// Where an engine's program or folder is. May be given several times
    #[arg(long, value_name = "ENGINE=PATH", value_parser = named)]
    engine_path: Vec<(String, String)>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Set an engine up in an environment of its own
    Install(install::InstallArgs),
    /// Take away what was installed
    Remove(install::RemoveArgs),
    /// Try which files each engine runs
    Probe(probe::ProbeArgs),
}

#[derive(Serialize)]
struct Engine {
    name: String,
    /// Where it is, and which version; both are missing where it is not there.
    place: Option<String>,
    version: Option<String>,
    /// What is missing.
    missing: Option<String>,
    /// What it was seen to run, in this version.
    probed: Option<Probed>,
}

impl Engine {
    fn here(name: &str, (place, version): (String, String), record: &Record) -> Self {
        let probed = record.of(name, &place, &version).cloned();
        let (name, missing) = (name.to_owned(), None);
        Self { name, place: Some(place), version: Some(version), missing, probed }
    }

    fn missing(name: String, why: String) -> Self {
        Self { name, place: None, version: None, missing: Some(why), probed: None }
    }
}

pub(crate) fn run(args: &EnginesArgs, global: &Global) -> anyhow::Result<Ended> {
    match &args.action {
        Some(Action::Install(install)) => install::install(install, global),
        Some(Action::Remove(remove)) => install::uninstall(remove),
        Some(Action::Probe(probe)) => probe::probe(probe, global),
        None => list(args, global),
    }
}

fn list(args: &EnginesArgs, global: &Global) -> anyhow::Result<Ended> {
    let record = Record::read()?;
    let own = ("built in".to_owned(), native_version());
    let mut engines = vec![Engine::here("native", own, &record)];
    let places = Places { paths: args.engine_path.clone(), arguments: Vec::new() };
    engines.extend(found(&places).into_iter().map(|(name, peer)| match peer {
        Ok(peer) => Engine::here(&name, peer.place(), &record),
        Err(why) => {
            let why = format!("{why:#}");
            let why = why.strip_prefix(&format!("--against {name}: ")).unwrap_or(&why).to_owned();
            Engine::missing(name, why)
        }
    }));
    if global.json {
        ui::json(&engines)?;
        return Ok(Ended::Well);
    }
    ui::out(&engines.iter().map(words).collect::<String>())?;
    Ok(Ended::Well)
}

/// Every engine that is known or has a place, with what it is or why it is not there.
fn found(places: &Places) -> Vec<(String, anyhow::Result<Peer>)> {
    let find = |name: &str| (name.to_owned(), Peer::find(name, places));
    places.names().into_iter().map(find).collect()
}

fn native_version() -> String {
    format!("{}, {}", env!("CARGO_PKG_VERSION"), lathe_kernels::isa_name())
}

fn words(engine: &Engine) -> String {
    let Engine { name, place, version, missing, probed } = engine;
    let mut lines: Vec<String> = match (place, version, missing) {
        (Some(place), Some(version), _) => vec![version.clone(), ui::dim(place)],
        (_, _, Some(missing)) => vec![ui::dim(missing)],
        _ => Vec::new(),
    };
    if let Some(probed) = probed {
        lines.extend(probed_words(probed));
    }
    format!("{} {}\n", ui::bold(&format!("{name:13}")), lines.join("\n    "))
}

/// What an engine was seen to run, when, and what it says of itself.
fn probed_words(probed: &Probed) -> Vec<String> {
    let names = |runs: bool| -> String {
        let which = KINDS.iter().filter(|kind| {
            probed
                .files
                .get(kind.name)
                .is_some_and(|outcome| outcome.settled() && outcome.runs() == runs)
        });
        which.map(|kind| kind.name).collect::<Vec<_>>().join(", ")
    };
    let day = probed.when.split('T').next().unwrap_or_default();
    let mut lines = Vec::new();
    for (runs, what) in [(true, "runs"), (false, "does not run")] {
        let names = names(runs);
        if !names.is_empty() {
            lines.push(format!("{what} {names} {}", ui::dim(&format!("(tried {day})"))));
        }
    }
    if !probed.devices.is_empty() {
        let architectures = probed
            .architectures
            .as_ref()
            .map_or_else(String::new, |has| format!("; has {} architectures", has.len()));
        lines.push(format!("computes on {}{architectures}", probed.devices.join(", ")));
    }
    lines
}
