//! Other people's engines: how they are found, what they are given, and how a trial starts one.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use lathe_adapters::{
    llamacpp::{self, Installation, LlamaCpp, Settings},
    onnxruntime::{self, Library, OnnxRuntime},
    openai::{self, OpenAi},
    transformers::{self, Transformers},
    vllm,
};
use lathe_api::Engine;
use lathe_base::{Progress, Seconds};
use lathe_optimize::EngineChoice;
use lathe_preflight::{Device, EngineRules, Rules, check};
use lathe_tokens::{TokenKind, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::{
    graphs::{Wanted, exported},
    loading::obstacle_words,
};

/// An engine that a trial's process is to start: what `lathe_bench::Order::engine` holds where it
/// is not Lathe's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "peer", rename_all = "snake_case")]
pub(crate) enum PeerOrder {
    LlamaCpp(llamacpp::Options),
    Transformers(transformers::Options),
    Vllm(vllm::Options),
    #[serde(rename = "onnxruntime")]
    OnnxRuntime(onnxruntime::Options),
    Openai(openai::Options),
}

impl PeerOrder {
    /// Starts the engine; the time is from its start until it was ready.
    pub(crate) fn start(self) -> anyhow::Result<(Box<dyn Engine>, Seconds)> {
        match self {
            Self::LlamaCpp(options) => {
                let engine = LlamaCpp::start(&llamacpp::Options { guard: guard()?, ..options })?;
                let load = engine.load();
                Ok((Box::new(engine), load))
            }
            Self::Transformers(options) => {
                let options = transformers::Options { guard: guard()?, ..options };
                let engine = Transformers::start(&options)?;
                let load = engine.load();
                Ok((Box::new(engine), load))
            }
            Self::Vllm(options) => {
                let engine = vllm::start(&vllm::Options { guard: guard()?, ..options })?;
                let load = engine.load();
                Ok((Box::new(engine), load))
            }
            Self::OnnxRuntime(options) => {
                let engine = OnnxRuntime::load_graph(&options)?;
                let load = engine.load();
                Ok((Box::new(engine), load))
            }
            Self::Openai(options) => {
                let engine = OpenAi::connect(&options)?;
                let load = engine.load();
                Ok((Box::new(engine), load))
            }
        }
    }

    /// The command by which a person starts the same, where there is a program for it.
    pub(crate) fn command(&self) -> Option<String> {
        let (program, words) = match self {
            Self::LlamaCpp(options) => (&options.program, options.arguments.clone()),
            Self::Vllm(options) => (&options.python, vllm::words(options)),
            Self::Transformers(_) | Self::OnnxRuntime(_) | Self::Openai(_) => return None,
        };
        let words = std::iter::once(program.display().to_string()).chain(words);
        Some(words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" "))
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// `lathe guard`, where there is one: see [`crate::commands::guard`].
pub(crate) fn guard() -> anyhow::Result<Vec<OsString>> {
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
    kind: Kind,
    /// The user's own arguments.
    arguments: Vec<String>,
}

/// How an engine tells what it has.
pub(crate) enum Question<'a> {
    /// By a Python that runs this and prints one line of JSON.
    Script(&'a Path, &'static str),
    /// By a program's `--list-devices`.
    Devices(&'a Path),
    /// It is known.
    Known(Vec<String>),
}

/// What is started, or asked.
#[derive(Clone, Debug)]
enum Kind {
    LlamaServer(Installation),
    /// By a Python that has the package, of this version.
    Transformers(PathBuf, String),
    Vllm(PathBuf, String),
    /// A library.
    OnnxRuntime(Library),
    /// A server that runs already.
    Url(String),
}

/// Where to look and what to pass on, by engine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// `NAME=PATH`.
    pub(crate) paths: Vec<(String, String)>,
    /// `NAME=ARGUMENTS`.
    pub(crate) arguments: Vec<(String, String)>,
}

/// Engines that are looked for without being asked for.
const KNOWN: [&str; 5] = ["llama.cpp", "ik_llama.cpp", "onnxruntime", "transformers", "vllm"];

impl Places {
    /// Engines to look for: those that are known, and those that the user says where they are.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = KNOWN.to_vec();
        for (name, _) in &self.paths {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// What is said of one engine, to be kept with a run.
    pub(crate) fn choice(&self, name: String) -> EngineChoice {
        let (path, arguments) = (last(&self.paths, &name), last(&self.arguments, &name));
        // A run may be resumed from another folder.
        let absolute = |path: String| match std::path::absolute(&path) {
            Ok(found) if !path.contains("://") => found.display().to_string(),
            _ => path,
        };
        EngineChoice { name, path: path.map(absolute), arguments }
    }

    /// The same of engines of a run.
    pub(crate) fn of(choices: &[EngineChoice]) -> Self {
        let list = |of: fn(&EngineChoice) -> &Option<String>| {
            let named = choices.iter().filter_map(|c| Some((c.name.clone(), of(c).clone()?)));
            named.collect()
        };
        Self { paths: list(|choice| &choice.path), arguments: list(|choice| &choice.arguments) }
    }
}

/// What was said of an engine last.
fn last(list: &[(String, String)], name: &str) -> Option<String> {
    list.iter().rev().find(|(engine, _)| engine == name).map(|(_, value)| value.clone())
}

/// The program of a llama.cpp server, and folders below an installation where it may lie.
const LLAMA_SERVER: &str = "llama-server";
const FOLDERS: [&str; 4] = ["", "bin", "build/bin", "build/bin/Release"];

/// Engines that people know and that cannot be asked yet, with the reason.
const LATER: [(&str, &str); 1] =
    [("mistral.rs", "there is no adapter for it yet; its server can be asked by its address")];

impl Peer {
    /// Finds an engine and asks it what it is.
    pub(crate) fn find(name: &str, places: &Places) -> anyhow::Result<Self> {
        if name == "native" {
            bail!("--against native: Lathe's own engine is measured anyway");
        }
        if let Some((_, why)) = LATER.iter().find(|(later, _)| *later == name) {
            bail!("--against {name}: {why}");
        }
        let arguments = last(&places.arguments, name).unwrap_or_default();
        let arguments = arguments.split_whitespace().map(str::to_owned).collect();
        let given = last(&places.paths, name);
        let kind = match given.as_deref() {
            Some(url) if url.starts_with("http://") || url.starts_with("https://") => {
                Kind::Url(url.trim_end_matches('/').trim_end_matches("/v1").to_owned())
            }
            None if name == "openai" => {
                bail!("--against openai: say where it is by --engine-path openai=URL")
            }
            path => Kind::find(name, path)?,
        };
        Ok(Self { name: name.to_owned(), kind, arguments })
    }

    /// As [`Peer::find`], for another flag than `--against`.
    pub(crate) fn find_for(flag: &str, name: &str, places: &Places) -> anyhow::Result<Self> {
        Self::find(name, places)
            .map_err(|why| anyhow!(format!("{why:#}").replace("--against", flag)))
    }

    /// All that are found among those that are known, and those that the user says where they are.
    pub(crate) fn all(places: &Places) -> Vec<Self> {
        places.names().into_iter().filter_map(|name| Self::find(name, places).ok()).collect()
    }

    /// Whether it is started on files of ours.
    pub(crate) fn reads_files(&self) -> bool {
        !matches!(self.kind, Kind::Url(_))
    }

    /// Whether those may be a folder in Hugging Face's layout.
    pub(crate) fn reads_folders(&self) -> bool {
        !matches!(self.kind, Kind::Url(_) | Kind::LlamaServer(_))
    }

    /// How the graph is made that it is given in place of a model's files; `None` where it reads
    /// those.
    pub(crate) fn graph(&self) -> Option<anyhow::Result<lathe_onnx::Options>> {
        let wanted = || Ok(Wanted::read(&self.arguments)?.graph);
        matches!(self.kind, Kind::OnnxRuntime(_)).then(wanted)
    }

    /// How it is asked for what it has.
    pub(crate) fn question(&self) -> Question<'_> {
        match &self.kind {
            Kind::LlamaServer(found) => Question::Devices(&found.program),
            Kind::Transformers(python, _) => Question::Script(python, transformers::ABILITIES),
            Kind::Vllm(python, _) => Question::Script(python, vllm::ABILITIES),
            Kind::OnnxRuntime(library) => Question::Known(library.devices()),
            Kind::Url(_) => Question::Known(Vec::new()),
        }
    }

    /// What preflight's rules call it; nothing where they cannot know it.
    pub(crate) fn rules(&self) -> Option<&'static EngineRules> {
        let name = match self.kind {
            // Forks read what llama.cpp reads, and more.
            Kind::LlamaServer(_) => "llama.cpp",
            Kind::Transformers(..) => "transformers",
            Kind::Vllm(..) => "vllm",
            Kind::OnnxRuntime(_) => "onnxruntime",
            // It has loaded whatever it has loaded.
            Kind::Url(_) => return None,
        };
        Rules::built_in().engine(name).ok()
    }

    /// Where the engine is, and which version it is.
    pub(crate) fn place(&self) -> (String, String) {
        let at = |path: &Path, version: &str| (path.display().to_string(), version.to_owned());
        match &self.kind {
            Kind::LlamaServer(found) => at(&found.program, &found.version),
            Kind::Transformers(python, version) | Kind::Vllm(python, version) => {
                at(python, version)
            }
            Kind::OnnxRuntime(library) => at(&library.path, &library.version),
            Kind::Url(url) => (url.clone(), "as it answers".to_owned()),
        }
    }

    /// Why the engine cannot keep its KV cache in a type, as far as is known beforehand.
    pub(crate) fn refuses_kv(&self, kv: &str) -> Option<String> {
        let refused = (!self.chooses_kv()).then(|| self.own_cache(kv).err()).flatten();
        refused.map(|why| why.to_string())
    }

    /// Why the engine will not load such files, as far as is known beforehand.
    pub(crate) fn refuses(&self, artifact: &lathe_preflight::Artifact) -> Option<String> {
        let rules = &*self.rules()?.engine;
        let answer = check(Rules::built_in(), artifact, rules, Device::Cpu, 1).ok()?;
        let first = answer.obstacles.first()?;
        let mut why = obstacle_words(first, artifact.matrices.len());
        if matches!(self.kind, Kind::LlamaServer(_)) && artifact.layout != "gguf" {
            why += "; `lathe quantize MODEL --to FORMAT -o NEW.gguf` makes one";
        }
        Some(why)
    }

    /// The order by which a trial starts the engine.
    ///
    /// **Errors**: it cannot do what it is asked for.
    pub(crate) fn order(
        &self,
        served: &Served<'_>,
        progress: &dyn Progress,
    ) -> anyhow::Result<PeerOrder> {
        let name = self.name.clone();
        let Served { threads, context, streams, vocab, patience, .. } = *served;
        let (model, start_within) = (served.model.to_owned(), patience);
        Ok(match &self.kind {
            Kind::LlamaServer(found) => {
                let kv = served.kv.to_owned();
                let more = self.arguments.clone();
                let settings = Settings { model, threads, context, streams, kv, more };
                PeerOrder::LlamaCpp(llamacpp::Options {
                    name,
                    version: found.version.clone(),
                    program: found.program.clone(),
                    arguments: found.arguments(&settings)?,
                    guard: Vec::new(),
                    context,
                    streams,
                    vocab,
                    avoid: served.avoid.to_vec(),
                    start_within,
                    patience,
                })
            }
            Kind::Transformers(python, _) => {
                self.own_cache(served.kv)?;
                PeerOrder::Transformers(transformers::Options {
                    name,
                    python: python.clone(),
                    model,
                    threads,
                    dtype: self.arguments.first().map_or("auto", String::as_str).to_owned(),
                    context,
                    vocab,
                    guard: Vec::new(),
                    start_within,
                    patience,
                })
            }
            Kind::Vllm(python, _) => {
                self.own_cache(served.kv)?;
                PeerOrder::Vllm(vllm::Options {
                    name,
                    python: python.clone(),
                    model,
                    threads,
                    context,
                    streams,
                    vocab,
                    kv_bytes: served.kv_bytes,
                    arguments: self.arguments.clone(),
                    guard: Vec::new(),
                    start_within,
                    patience,
                })
            }
            Kind::OnnxRuntime(library) => {
                self.own_cache(served.kv)?;
                let wanted = Wanted::read(&self.arguments)?;
                PeerOrder::OnnxRuntime(onnxruntime::Options {
                    name,
                    library: library.path.clone(),
                    version: library.version.clone(),
                    model: exported(&model, wanted.graph, context, progress)?,
                    threads,
                    provider: wanted.provider,
                    arguments: wanted.words(),
                    context,
                    vocab,
                })
            }
            Kind::Url(url) => PeerOrder::Openai(openai::Options {
                name,
                url: url.clone(),
                model: self.arguments.first().cloned(),
                key_variable: Some(variable(&self.name) + "_KEY"),
                context,
                vocab,
                patience,
            }),
        })
    }

    /// Whether the type of its KV cache can be chosen.
    pub(crate) fn chooses_kv(&self) -> bool {
        matches!(self.kind, Kind::LlamaServer(_))
    }

    /// Refuses types of the KV cache that differ from what the engine uses by itself: the type that
    /// it computes in.
    fn own_cache(&self, kv: &str) -> anyhow::Result<()> {
        match kv {
            "f32" | "f16" | "bf16" => Ok(()),
            _ => bail!("{} keeps its KV cache in the model's own type, not in {kv}", self.name),
        }
    }
}

impl Kind {
    /// Finds the program that runs an engine, and asks it what it is.
    fn find(name: &str, path: Option<&str>) -> anyhow::Result<Self> {
        let place = |within: fn(&Path) -> Option<PathBuf>, program: &str| match path {
            Some(path) => within(Path::new(path))
                .with_context(|| format!("--engine-path {name}: there is no {program} at {path}")),
            None => search(name, within, program),
        };
        Ok(match name {
            "transformers" => {
                let python = place(python_within, "python3")?;
                let version = transformers::version(&python)?;
                Self::Transformers(python, version)
            }
            "vllm" => {
                let python = place(python_within, "python3")?;
                let version = vllm::version(&python)?;
                Self::Vllm(python, version)
            }
            "onnxruntime" => Self::OnnxRuntime(onnx_runtime(path)?),
            _ => {
                Self::LlamaServer(Installation::probe(name, &place(server_within, LLAMA_SERVER)?)?)
            }
        })
    }
}

/// Finds ONNX Runtime's library: where the user says, where the variables do, in the folder for
/// engines, and in the Python of PATH.
fn onnx_runtime(path: Option<&str>) -> anyhow::Result<Library> {
    const NAME: &str = "onnxruntime";
    let missing = |origin: &str, place: &Path| {
        format!(
            "{origin}: there is no libonnxruntime, and no Python that has it, at {}",
            place.display()
        )
    };
    if let Some(path) = path.map(Path::new) {
        return Library::within(path)
            .with_context(|| missing(&format!("--engine-path {NAME}"), path));
    }
    for variable in [variable(NAME), "ORT_DYLIB_PATH".to_owned()] {
        if let Some(path) = env::var_os(&variable).filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            return Library::within(&path).with_context(|| missing(&variable, &path));
        }
    }
    let own = engines_folder().map(|folder| folder.join(NAME));
    let folders = env::var_os("PATH").unwrap_or_default();
    let pythons = env::split_paths(&folders).map(|folder| folder.join("python3"));
    let first = pythons.into_iter().find(|python| python.is_file());
    own.into_iter().chain(first).find_map(|place| Library::within(&place)).with_context(|| {
        format!(
            "--against {NAME}: not found; say where its library, or a Python or virtual environment \
             that has it, is by --engine-path {NAME}=PATH, {} or ORT_DYLIB_PATH",
            variable(NAME)
        )
    })
}

/// What an engine is to serve.
pub(crate) struct Served<'a> {
    pub(crate) model: &'a Path,
    pub(crate) threads: usize,
    pub(crate) context: usize,
    pub(crate) streams: usize,
    pub(crate) kv: &'a str,
    /// What a KV cache for all streams takes.
    pub(crate) kv_bytes: u64,
    pub(crate) vocab: usize,
    pub(crate) avoid: &'a [u32],
    pub(crate) patience: Seconds,
}

/// Tokens that are no text of their own: those that end a text, and parts of characters.
pub(crate) fn avoided(tokenizer: &Tokenizer) -> Vec<u32> {
    let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    let is_part = |id: u32| std::str::from_utf8(&tokenizer.token_bytes(id)).is_err();
    let stops = tokenizer.stop_tokens();
    ids.filter(|&id| stops.contains(&id) || tokenizer.kind(id) == TokenKind::Control || is_part(id))
        .collect()
}

/// A server's program, or the one in an installation's folder.
fn server_within(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return Some(path.to_owned());
    }
    FOLDERS.iter().map(|folder| path.join(folder).join(LLAMA_SERVER)).find(|path| path.is_file())
}

/// A Python, or the one of a virtual environment.
fn python_within(path: &Path) -> Option<PathBuf> {
    let inside = path.join("bin/python");
    [path.to_owned(), inside].into_iter().find(|path| path.is_file())
}

/// Looks where the environment says, in the folder for engines, and in PATH; but not for forks of
/// llama.cpp, whose servers have its name.
fn search(
    name: &str,
    within: fn(&Path) -> Option<PathBuf>,
    program: &str,
) -> anyhow::Result<PathBuf> {
    let variable = variable(name);
    if let Some(path) = env::var_os(&variable).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return within(&path)
            .with_context(|| format!("{variable}: there is no {program} at {}", path.display()));
    }
    if let Some(found) = engines_folder().and_then(|folder| within(&folder.join(name))) {
        return Ok(found);
    }
    let in_path = ["llama.cpp", "transformers", "vllm"].contains(&name);
    let folders = env::var_os("PATH").filter(|_| in_path).unwrap_or_default();
    let found = env::split_paths(&folders).map(|folder| folder.join(program)).find(|p| p.is_file());
    found.with_context(|| {
        format!(
            "--against {name}: not found; say where its {program} is by --engine-path {name}=PATH \
             or {variable}"
        )
    })
}

/// Reads `ENGINE=VALUE`.
pub(crate) fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("an engine and a value are needed, as in llama.cpp=/opt/llama.cpp".to_owned()),
    }
}

/// `LATHE_LLAMA_CPP` for `llama.cpp`.
fn variable(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("LATHE_{}", name.chars().map(letter).collect::<String>())
}

/// Where a user's engines lie: `lathe/engines` in the folder for data.
pub(crate) fn engines_folder() -> Option<PathBuf> {
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
        assert_eq!(server_within(folder.path()), None);
        let bin = folder.path().join("build/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join(LLAMA_SERVER), "").unwrap();
        assert_eq!(server_within(folder.path()), Some(bin.join(LLAMA_SERVER)));
        assert_eq!(server_within(&bin.join(LLAMA_SERVER)), Some(bin.join(LLAMA_SERVER)));
    }

    #[test]
    fn engines_that_cannot_be_asked_yet_say_why() {
        let places = Places::default();
        let refused = Peer::find("mistral.rs", &places).unwrap_err().to_string();
        assert!(refused.contains("--against mistral.rs: there is no adapter"), "{refused}");
        let missing = Peer::find("some-fork", &places).unwrap_err().to_string();
        assert!(missing.contains("--engine-path some-fork=PATH or LATHE_SOME_FORK"), "{missing}");
    }
}
