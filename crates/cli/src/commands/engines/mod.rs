mod install;

use clap::{Args, Subcommand};
use serde::Serialize;

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
  lathe engines --json

An engine is looked for where --engine-path says, where its variable does (LATHE_LLAMA_CPP), in the
user's folder for engines (~/.local/share/lathe/engines/NAME) and, but for forks, in PATH; ONNX
Runtime also where ORT_DYLIB_PATH says. Which formats each of them loads: `lathe preflight MODEL`.")]
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
}

/// Engines that are looked for without being asked for.
pub(crate) const KNOWN: [&str; 5] =
    ["llama.cpp", "ik_llama.cpp", "onnxruntime", "transformers", "vllm"];

#[derive(Serialize)]
struct Engine {
    name: String,
    /// Where it is, and which version; both are missing where it is not there.
    place: Option<String>,
    version: Option<String>,
    /// What is missing.
    missing: Option<String>,
}

pub(crate) fn run(args: &EnginesArgs, global: &Global) -> anyhow::Result<Ended> {
    match &args.action {
        Some(Action::Install(install)) => return install::install(install, global),
        Some(Action::Remove(remove)) => return install::uninstall(remove),
        None => {}
    }
    let mut names: Vec<&str> = KNOWN.to_vec();
    names.extend(args.engine_path.iter().map(|(name, _)| name.as_str()));
    let mut seen: Vec<&str> = Vec::new();
    let places = Places { paths: args.engine_path.clone(), arguments: Vec::new() };
    let mut engines = vec![Engine {
        name: "native".to_owned(),
        place: Some("built in".to_owned()),
        version: Some(format!("{}, {}", env!("CARGO_PKG_VERSION"), lathe_kernels::isa_name())),
        missing: None,
    }];
    for name in names {
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        let name = name.to_owned();
        engines.push(match Peer::find(&name, &places) {
            Ok(peer) => {
                let (place, version) = peer.place();
                Engine { name, place: Some(place), version: Some(version), missing: None }
            }
            Err(why) => {
                let why = format!("{why:#}");
                let why = why.strip_prefix(&format!("--against {name}: ")).unwrap_or(&why);
                let missing = Some(why.to_owned());
                Engine { name, place: None, version: None, missing }
            }
        });
    }
    if global.json {
        ui::json(&engines)?;
        return Ok(Ended::Well);
    }
    let mut text = String::new();
    for Engine { name, place, version, missing } in &engines {
        let words = match (place, version, missing) {
            (Some(place), Some(version), _) => format!("{version}\n    {}", ui::dim(place)),
            (_, _, Some(missing)) => ui::dim(missing),
            _ => String::new(),
        };
        text += &format!("{} {words}\n", ui::bold(&format!("{name:13}")));
    }
    ui::out(&text)?;
    Ok(Ended::Well)
}
