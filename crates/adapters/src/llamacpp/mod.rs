//! llama.cpp's server, or another that speaks its API, such as ik_llama.cpp's: the real program as
//! a child process, asked over loopback.
//!
//! Tokens go in and come out as ids; nothing is cached between requests. Differences between
//! versions are found in what a server says (its `--help`, its answers), never guessed from a name.

mod ask;
mod generate;
mod installation;
mod wire;

use std::{
    ffi::OsString,
    path::PathBuf,
    time::{Duration, Instant},
};

use lathe_api::{Caps, Engine, Error, Event, Flow, Info, Request, Scorer, Turn, Usage};
use lathe_base::Seconds;
use serde::{Deserialize, Serialize};

pub use installation::{Installation, Settings};

use crate::{
    Program, Server,
    http::Client,
    server::{Ready, free_port, port_was_taken, wait},
};

/// A server that is to be started for one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// What the engine is called in figures and errors.
    pub name: String,
    pub version: String,
    pub program: PathBuf,
    /// Everything but where to listen, from [`Installation::arguments`].
    pub arguments: Vec<String>,
    /// As in [`Program::guard`].
    #[serde(default)]
    pub guard: Vec<OsString>,
    /// The longest sequence, and sequences at once.
    pub context: usize,
    pub streams: usize,
    /// Vocabulary size that prompts are drawn from.
    pub vocab: usize,
    /// Tokens that are not generated where a request goes on past the end of the text: those that
    /// end it, and those that are no whole characters, which the server would keep back until the
    /// rest of the character comes.
    pub avoid: Vec<u32>,
    /// What it may take until it is ready, and what it may be silent for in a request.
    pub start_within: Seconds,
    pub patience: Seconds,
}

/// A model in a running server.
pub struct LlamaCpp {
    pub(crate) server: Server,
    pub(crate) client: Client,
    info: Info,
    load: Seconds,
    avoid: Vec<u32>,
}

/// Ports are tried so often: somebody else may take a free one first.
const TRIES: usize = 5;

impl LlamaCpp {
    /// Starts the server and waits until it has loaded the model.
    ///
    /// # Errors
    /// A program that cannot be started, ends or is not ready in time, with what it said last; a
    /// vocabulary or context smaller than was asked for.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let mut taken = String::new();
        for _ in 0..TRIES {
            match Self::on_a_port(options)? {
                Ok(engine) => return Ok(engine),
                Err(words) => taken = words,
            }
        }
        Err(failed(&options.name, format!("every port was taken {TRIES} times: {taken}")))
    }

    /// From the start of the process until it was ready.
    pub fn load(&self) -> Seconds {
        self.load
    }

    /// The server's process id.
    pub fn process(&self) -> u32 {
        self.server.process()
    }

    /// `Ok(Err(_))` where the port was taken meanwhile.
    fn on_a_port(options: &Options) -> Result<Result<Self, String>, Error> {
        let name = &options.name;
        let port = free_port().map_err(|e| failed(name, format!("no port is free: {e}")))?;
        // Whoever answers on the port must answer with this name.
        let alias = format!("lathe-{}-{port}", std::process::id());
        let mut arguments: Vec<OsString> = options.arguments.iter().map(OsString::from).collect();
        for word in ["--host", "127.0.0.1", "--port", &port.to_string(), "--alias", &alias] {
            arguments.push(word.into());
        }
        let program = Program {
            path: options.program.clone(),
            arguments,
            environment: Vec::new(),
            guard: options.guard.clone(),
        };
        let start = Instant::now();
        let server = Server::start(&program).map_err(|error| {
            failed(name, format!("cannot start {}: {error}", options.program.display()))
        })?;
        let base = format!("http://127.0.0.1:{port}");
        let patience = Duration::from_secs_f64(options.patience.0.clamp(0.1, 1e6));
        let client = Client::new(name, &base, patience);
        let within = Duration::from_secs_f64(options.start_within.0.clamp(0.1, 1e6));
        if let Ready::Ended(ended) = wait(&server, name, &base, within)? {
            return match port_was_taken(&server.errors()) {
                true => Ok(Err(ended)),
                false => Err(failed(name, ended)),
            };
        }
        let load = start.elapsed().into();
        let models = client.get_json("/v1/models")?;
        let model = &models["data"][0];
        if model["id"].as_str().is_some_and(|id| id != alias) {
            return Ok(Err(format!("another server answers on port {port}")));
        }
        let info = info(options, model, &client)?;
        let avoid = options.avoid.clone();
        Ok(Ok(Self { server, client, info, load, avoid }))
    }
}

/// What the server says of itself and its model; both are told by newer versions only.
fn info(options: &Options, model: &serde_json::Value, client: &Client) -> Result<Info, Error> {
    let name = &options.name;
    let props = client.get_json("/props").unwrap_or_default();
    let meta = &model["meta"];
    if let Some(vocab) = meta["n_vocab"].as_u64().filter(|v| *v < options.vocab as u64) {
        let why = format!("it knows {vocab} tokens of {}", options.vocab);
        return Err(failed(name, why));
    }
    let room = props["default_generation_settings"]["n_ctx"].as_u64();
    if let Some(room) = room.filter(|room| *room < options.context as u64) {
        let why = format!("a stream has room for {room} tokens, {} are needed", options.context);
        return Err(failed(name, why));
    }
    Ok(Info {
        engine: name.clone(),
        version: options.version.clone(),
        device: "cpu".to_owned(),
        vocab: options.vocab,
        context: options.context,
        weight_bytes: meta["size"].as_u64().unwrap_or(0),
        caps: Caps { logits: true, batch: options.streams > 1, seed: true, grammar: false },
        found_running: false,
    })
}

fn failed(engine: &str, why: String) -> Error {
    Error::Failed { engine: engine.to_owned(), why }
}

impl Engine for LlamaCpp {
    fn info(&self) -> &Info {
        &self.info
    }

    fn generate(
        &self,
        request: &Request,
        on: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Usage, Error> {
        generate::one(self, request, on)
    }

    fn generate_batch(
        &self,
        requests: &[Request],
        on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
    ) -> Result<Vec<Usage>, Error> {
        crate::together::run(requests, &|request, on| generate::one(self, request, on), on)
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, Error> {
        ask::tokenize(self, text)
    }

    fn render(&self, turns: &[Turn<'_>]) -> Result<String, Error> {
        ask::render(self, turns)
    }

    fn scorer(&self) -> Result<Box<dyn Scorer + '_>, Error> {
        Ok(Box::new(ask::Sequence::new(self)))
    }
}
