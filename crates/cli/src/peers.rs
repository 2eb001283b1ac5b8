//! Other people's engines: how they are found, what they are given, and how a trial starts one.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use lathe_adapters::llamacpp::{Installation, LlamaCpp, Options, Settings};
use lathe_api::Engine;
use lathe_base::Seconds;
use lathe_preflight::{Device, Rules, check};
use serde::{Deserialize, Serialize};

use crate::loading::obstacle_words;

/// An engine that a trial's process is to start: what `lathe_bench::Order::engine` holds where it
/// is not Lathe's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "peer", rename_all = "snake_case")]
pub(crate) enum PeerOrder {
    LlamaCpp(Options),
}

impl PeerOrder {
    /// Starts the engine; the time is from its start until it was ready.
    pub(crate) fn start(self) -> anyhow::Result<(Box<dyn Engine>, Seconds)> {
        match self {
            Self::LlamaCpp(options) => {
                let engine = LlamaCpp::start(&Options { guard: guard()?, ..options })?;
                let load = engine.load();
                Ok((Box::new(engine), load))
            }
        }
    }
}

/// `lathe guard`, where there is one: see [`crate::commands::guard`].
fn guard() -> anyhow::Result<Vec<OsString>> {
    if !cfg!(target_os = "linux") {
        return Ok(Vec::new());
    }
    let own = env::current_exe().context("cannot find the lathe program itself")?;
    Ok(vec![own.into(), "guard".into(), std::process::id().to_string().into()])
}

/// An engine that is here.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// As the user calls it.
    pub(crate) name: String,
    pub(crate) installation: Installation,
    /// The user's own arguments.
    pub(crate) arguments: Vec<String>,
}

/// Where to look and what to pass on, by engine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// `NAME=PATH`.
    pub(crate) paths: Vec<(String, String)>,
    /// `NAME=ARGUMENTS`.
    pub(crate) arguments: Vec<(String, String)>,
}

/// The program of a llama.cpp server, and folders below an installation where it may lie.
const LLAMA_SERVER: &str = "llama-server";
const FOLDERS: [&str; 4] = ["", "bin", "build/bin", "build/bin/Release"];

/// Engines that people know and that cannot be asked yet, with the reason.
const LATER: [(&str, &str); 4] = [
    ("onnxruntime", "Lathe cannot write ONNX files yet, so that there is nothing that both run"),
    ("vllm", "there is no adapter for it yet"),
    ("transformers", "there is no adapter for it yet"),
    ("mistral.rs", "there is no adapter for it yet"),
];

impl Peer {
    /// Finds an engine and asks it what it is.
    pub(crate) fn find(name: &str, places: &Places) -> anyhow::Result<Self> {
        if name == "native" {
            bail!("--against native: Lathe's own engine is measured anyway");
        }
        if let Some((_, why)) = LATER.iter().find(|(later, _)| *later == name) {
            bail!("--against {name}: {why}");
        }
        let of = |list: &[(String, String)]| -> Option<String> {
            list.iter().rev().find(|(engine, _)| engine == name).map(|(_, value)| value.clone())
        };
        let program = match of(&places.paths) {
            Some(path) => within(Path::new(&path))
                .with_context(|| format!("--engine-path {name}: there is no {path}"))?,
            None => search(name)?,
        };
        let installation = Installation::probe(name, &program)?;
        let arguments = of(&places.arguments).unwrap_or_default();
        let arguments = arguments.split_whitespace().map(str::to_owned).collect();
        Ok(Self { name: name.to_owned(), installation, arguments })
    }

    /// Why the engine will not load such files, as far as is known beforehand.
    pub(crate) fn refuses(&self, artifact: &lathe_preflight::Artifact) -> Option<String> {
        // Forks read what llama.cpp reads, and more.
        let answer = check(Rules::built_in(), artifact, "llama.cpp", Device::Cpu, 1).ok()?;
        let first = answer.obstacles.first()?;
        let mut why = obstacle_words(first, artifact.matrices.len());
        if artifact.layout != "gguf" {
            why += "; `lathe quantize MODEL --to FORMAT -o NEW.gguf` makes one";
        }
        Some(why)
    }

    /// The order by which a trial starts the engine.
    pub(crate) fn order(&self, served: &Served<'_>) -> anyhow::Result<PeerOrder> {
        let settings = Settings {
            model: served.model.to_owned(),
            threads: served.threads,
            context: served.context,
            streams: served.streams,
            kv: served.kv.to_owned(),
            more: self.arguments.clone(),
        };
        Ok(PeerOrder::LlamaCpp(Options {
            name: self.name.clone(),
            version: self.installation.version.clone(),
            program: self.installation.program.clone(),
            arguments: self.installation.arguments(&settings)?,
            guard: Vec::new(),
            context: served.context,
            streams: served.streams,
            vocab: served.vocab,
            avoid: served.avoid.to_vec(),
            start_within: served.patience,
            patience: served.patience,
        }))
    }
}

/// What an engine is to serve.
pub(crate) struct Served<'a> {
    pub(crate) model: &'a Path,
    pub(crate) threads: usize,
    pub(crate) context: usize,
    pub(crate) streams: usize,
    pub(crate) kv: &'a str,
    pub(crate) vocab: usize,
    pub(crate) avoid: &'a [u32],
    pub(crate) patience: Seconds,
}

/// A program, or the one in an installation's folder.
fn within(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return Some(path.to_owned());
    }
    FOLDERS.iter().map(|folder| path.join(folder).join(LLAMA_SERVER)).find(|path| path.is_file())
}

/// Looks where the environment says, in the folder for engines, and, for llama.cpp itself, in PATH:
/// the servers of its forks have the same name.
fn search(name: &str) -> anyhow::Result<PathBuf> {
    let variable = variable(name);
    if let Some(path) = env::var_os(&variable).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return within(&path)
            .with_context(|| format!("{variable}: there is no {}", path.display()));
    }
    if let Some(found) = engines_folder().and_then(|folder| within(&folder.join(name))) {
        return Ok(found);
    }
    if name == "llama.cpp" {
        let folders = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&folders).map(|folder| folder.join(LLAMA_SERVER));
        if let Some(found) = found.into_iter().find(|path| path.is_file()) {
            return Ok(found);
        }
        bail!(
            "--against {name}: no {LLAMA_SERVER} in PATH; say where it is by --engine-path \
             {name}=PATH or {variable}"
        );
    }
    bail!(
        "--against {name}: not found; say where its {LLAMA_SERVER} is by --engine-path \
         {name}=PATH or {variable}"
    )
}

/// `LATHE_LLAMA_CPP` for `llama.cpp`.
fn variable(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("LATHE_{}", name.chars().map(letter).collect::<String>())
}

/// Where a user's engines lie: `lathe/engines` in the folder for data.
fn engines_folder() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")))?;
    Some(data.join("lathe/engines"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_found_in_folders_and_by_their_variables() {
        assert_eq!(variable("ik_llama.cpp"), "LATHE_IK_LLAMA_CPP");
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(within(folder.path()), None);
        let bin = folder.path().join("build/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join(LLAMA_SERVER), "").unwrap();
        assert_eq!(within(folder.path()), Some(bin.join(LLAMA_SERVER)));
        assert_eq!(within(&bin.join(LLAMA_SERVER)), Some(bin.join(LLAMA_SERVER)));
    }

    #[test]
    fn engines_that_cannot_be_asked_yet_say_why() {
        let places = Places::default();
        let refused = Peer::find("onnxruntime", &places).unwrap_err().to_string();
        assert!(refused.contains("--against onnxruntime: Lathe cannot write ONNX"), "{refused}");
        let missing = Peer::find("some-fork", &places).unwrap_err().to_string();
        assert!(missing.contains("--engine-path some-fork=PATH or LATHE_SOME_FORK"), "{missing}");
    }
}
