//! ONNX Runtime: its library in this process, on a graph with a KV cache. A trial is a process of
//! its own, so that a library that crashes costs that trial alone.

mod generate;
mod graph;
mod library;
mod scorer;

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use lathe_api::{Caps, Engine, Error, Event, Flow, Info, Request, Scorer, Usage};
use lathe_base::Seconds;
use ort::{
    ep,
    session::{Session, builder::GraphOptimizationLevel},
    value::TensorElementType,
};
use serde::{Deserialize, Serialize};

use graph::Graph;
pub use library::Library;

/// A graph that is to be loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    pub name: String,
    /// ONNX Runtime's library, and its version.
    pub library: PathBuf,
    pub version: String,
    /// A folder with a `model.onnx`, or such a file: inputs and outputs as optimum names them.
    pub model: PathBuf,
    pub threads: usize,
    pub provider: Provider,
    /// How the graph was made and is run, in a user's words: for records only.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// The longest sequence, and vocabulary size that prompts are drawn from.
    pub context: usize,
    pub vocab: usize,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    #[default]
    Cpu,
    /// The first GPU; an error where the library has no such provider.
    Cuda,
}

/// A graph in ONNX Runtime.
pub struct OnnxRuntime {
    graph: Mutex<Graph>,
    info: Info,
    load: Seconds,
}

impl OnnxRuntime {
    /// Loads the library and the graph.
    ///
    /// # Errors
    /// What the library says: it cannot be loaded, it does not know an operator, the graph's inputs
    /// and outputs are others.
    pub fn load_graph(options: &Options) -> Result<Self, Error> {
        let start = Instant::now();
        let failed = |why: String| Error::Failed { engine: options.name.clone(), why };
        let file = graph::file(&options.model);
        let bytes = weight_bytes(&file).map_err(|error| {
            failed(format!(
                "cannot read {}: {error}; `lathe convert MODEL --to onnx` makes such files",
                file.display()
            ))
        })?;
        let session = session(options, &file).map_err(failed)?;
        let graph = Graph::new(session).map_err(failed)?;
        if graph.vocab < options.vocab {
            return Err(failed(format!("it knows {} tokens of {}", graph.vocab, options.vocab)));
        }
        let float = if graph.float == TensorElementType::Float16 { "f16" } else { "f32" };
        let device = match options.provider {
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
        };
        let info = Info {
            engine: options.name.clone(),
            version: options.version.clone(),
            device: format!("{device}, {float}, {} threads", options.threads),
            vocab: graph.vocab,
            context: options.context,
            weight_bytes: bytes,
            caps: Caps { logits: true, batch: true, seed: true, grammar: false },
            found_running: false,
        };
        Ok(Self { graph: Mutex::new(graph), info, load: start.elapsed().into() })
    }

    /// Until the graph was ready: its optimization by ONNX Runtime included.
    pub fn load(&self) -> Seconds {
        self.load
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, why: impl ToString) -> Error {
        Error::Failed { engine: self.info.engine.clone(), why: why.to_string() }
    }
}

fn session(options: &Options, file: &std::path::Path) -> Result<Session, String> {
    let environment = library::environment(&options.library)?;
    let words = |error: ort::Error| error.to_string();
    let mut builder = Session::builder(&environment).map_err(words)?;
    let provider = match options.provider {
        Provider::Cpu => ep::CPU::default().build(),
        Provider::Cuda => ep::CUDA::default().build().error_on_failure(),
    };
    builder = builder.with_execution_providers([provider]).map_err(|e| e.to_string())?;
    builder = builder.with_intra_threads(options.threads).map_err(|e| e.to_string())?;
    builder =
        builder.with_optimization_level(GraphOptimizationLevel::All).map_err(|e| e.to_string())?;
    builder.commit_from_file(file).map_err(words)
}

/// What the graph and the files beside it that begin with its name take.
fn weight_bytes(file: &std::path::Path) -> std::io::Result<u64> {
    let graph = file.metadata()?.len();
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let beside = std::fs::read_dir(folder.unwrap_or(std::path::Path::new(".")))?.flatten();
    let data = beside.filter(|entry| {
        let other = entry.file_name().to_string_lossy().into_owned();
        other != name && other.starts_with(&name)
    });
    Ok(graph + data.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum::<u64>())
}

impl Engine for OnnxRuntime {
    fn info(&self) -> &Info {
        &self.info
    }

    fn generate(
        &self,
        request: &Request,
        on: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Usage, Error> {
        let usages = generate::run(self, std::slice::from_ref(request), &mut |_, event| on(event))?;
        usages.into_iter().next().ok_or_else(|| self.failed("it answered nothing"))
    }

    fn generate_batch(
        &self,
        requests: &[Request],
        on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
    ) -> Result<Vec<Usage>, Error> {
        generate::run(self, requests, on)
    }

    fn scorer(&self) -> Result<Box<dyn Scorer + '_>, Error> {
        Ok(Box::new(scorer::OneSequence::new(self)?))
    }
}
