//! Hugging Face's transformers: a small worker in Python, spoken to in lines of JSON.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Write},
    ops::Range,
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout},
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use base64::Engine as _;
use lathe_api::{
    Caps, Engine, Error, Event, Finish, Flow, Info, Logits, Request, Scorer, Turn, Usage,
};
use lathe_base::Seconds;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Program, Server, python, server::absolute};

/// The worker's program.
const WORKER: &str = include_str!("worker.py");

/// For a Python that has transformers: prints a line of JSON with its `devices` and the
/// `architectures` of causal language models that it has.
pub const ABILITIES: &str = "
import json, torch
from transformers.models.auto import modeling_auto as auto
named = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
flat = {name for each in named for name in ([each] if isinstance(each, str) else each)}
gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
devices = ['cpu'] + [f'cuda:{i}: {torch.cuda.get_device_name(i)}' for i in gpus]
print(json.dumps({'devices': devices, 'architectures': sorted(flat)}))
";

/// A worker that is to be started for one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    pub name: String,
    /// The Python that has transformers and torch.
    pub python: PathBuf,
    /// A folder in Hugging Face's layout, or a GGUF file.
    pub model: PathBuf,
    pub threads: usize,
    /// What it computes in: `auto` for what the model's configuration says, or torch's name.
    pub dtype: String,
    /// The longest sequence, and vocabulary size that prompts are drawn from.
    pub context: usize,
    pub vocab: usize,
    /// As in [`Program::guard`].
    #[serde(default)]
    pub guard: Vec<OsString>,
    /// What it may take until it is ready, and what it may be silent for in a request.
    pub start_within: Seconds,
    pub patience: Seconds,
}

/// A model in a running worker.
pub struct Transformers {
    server: Server,
    pipes: Mutex<Pipes>,
    info: Info,
    load: Seconds,
    patience: Duration,
}

/// What goes to the worker, and its lines.
struct Pipes {
    orders: ChildStdin,
    lines: mpsc::Receiver<String>,
}

/// The versions of transformers and torch that a Python has.
///
/// # Errors
/// It lacks one of them.
pub fn version(python: &Path) -> Result<String, Error> {
    let code = "import importlib.metadata as m; \
                print(m.version('transformers') + ', torch ' + m.version('torch'))";
    python::version("transformers", python, code, "package transformers, or no torch")
}

impl Transformers {
    /// Starts the worker and waits until it has loaded the model.
    ///
    /// # Errors
    /// It ends, fails or is not ready in time, with what it said.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let name = &options.name;
        let failed = |why| Error::Failed { engine: name.clone(), why };
        let threads = options.threads.to_string();
        let mut arguments: Vec<OsString> = ["-c", WORKER].map(OsString::from).into();
        arguments.push(absolute(&options.model).into());
        arguments.extend([&threads, &options.dtype].map(OsString::from));
        let environment = [
            ("OMP_NUM_THREADS", threads.as_str()),
            ("HF_HUB_OFFLINE", "1"),
            ("TOKENIZERS_PARALLELISM", "false"),
        ];
        let program = Program {
            path: options.python.clone(),
            arguments,
            environment: environment.map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
            guard: options.guard.clone(),
        };
        let start = Instant::now();
        let (server, orders, answers) = Server::start_talking(&program).map_err(|error| {
            failed(format!("cannot start {}: {error}", options.python.display()))
        })?;
        let mut pipes = Pipes { orders, lines: lines(answers) };
        let within = Duration::from_secs_f64(options.start_within.0.clamp(0.1, 1e6));
        let answer = pipes.next(name, &server, within)?;
        let load = start.elapsed().into();
        let ready = &answer["ready"];
        let vocab = ready["vocab"].as_u64().unwrap_or(0) as usize;
        if vocab < options.vocab {
            return Err(failed(format!("it knows {vocab} tokens of {}", options.vocab)));
        }
        let text = |key: &str| ready[key].as_str().unwrap_or("unknown").to_owned();
        let info = Info {
            engine: name.clone(),
            version: text("version"),
            device: format!("cpu, {}", text("dtype")),
            vocab: options.vocab,
            context: options.context,
            weight_bytes: ready["bytes"].as_u64().unwrap_or(0),
            caps: Caps { logits: true, batch: true, seed: true, grammar: false },
            found_running: false,
        };
        let patience = Duration::from_secs_f64(options.patience.0.clamp(0.1, 1e6));
        Ok(Self { server, pipes: Mutex::new(pipes), info, load, patience })
    }

    /// From the start of the worker until it was ready: Python and its packages included.
    pub fn load(&self) -> Seconds {
        self.load
    }

    /// The worker makes whole batches only: prompts of one length, as many new tokens of each.
    fn run(
        &self,
        requests: &[Request],
        on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
    ) -> Result<Vec<Usage>, Error> {
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        for request in requests {
            crate::check(&self.info, request)?;
            self.suits(first, request)?;
        }
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        self.send(&mut pipes, &order(requests, first))?;
        let mut states = vec![State::default(); requests.len()];
        loop {
            let answer = pipes.next(&self.info.engine, &self.server, self.patience)?;
            if answer["done"] == true {
                let usage = |(request, state): (&Request, &State)| Usage {
                    prompt_tokens: request.prompt.len(),
                    generated_tokens: state.seen,
                    finish: state.finish.unwrap_or(Finish::Length),
                };
                return Ok(requests.iter().zip(&states).map(usage).collect());
            }
            let tokens = answer["tokens"].as_array().ok_or_else(|| {
                self.failed(format!("it answered with something else than tokens: {answer:.200}"))
            })?;
            for (index, (state, token)) in states.iter_mut().zip(tokens).enumerate() {
                let Some(id) = token.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                    continue;
                };
                if state.finish.is_some() {
                    continue;
                }
                let request = &requests[index];
                if !request.ignore_stop && request.stop_tokens.contains(&id) {
                    state.finish = Some(Finish::Stop);
                    continue;
                }
                state.seen += 1;
                if on(index, Event::Token { id, text: "" }) == Flow::Stop {
                    // The worker cannot be interrupted: the rest is not listened to.
                    state.finish = Some(Finish::Cancelled);
                }
            }
        }
    }

    /// Sends an order whose answer is one line.
    fn ask(&self, order: &Value) -> Result<Value, Error> {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        self.send(&mut pipes, order)?;
        pipes.next(&self.info.engine, &self.server, self.patience)
    }

    fn send(&self, pipes: &mut Pipes, order: &Value) -> Result<(), Error> {
        let sent = writeln!(pipes.orders, "{order}");
        sent.and_then(|()| pipes.orders.flush())
            .map_err(|error| self.failed(self.server.ended_soon().unwrap_or(error.to_string())))
    }

    /// Numbers in base64.
    fn numbers(&self, coded: &Value) -> Result<Vec<f32>, Error> {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(coded.as_str().unwrap_or_default())
            .map_err(|error| self.failed(format!("its numbers are no base64: {error}")))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn failed(&self, why: String) -> Error {
        Error::Failed { engine: self.info.engine.clone(), why }
    }

    fn suits(&self, first: &Request, request: &Request) -> Result<(), Error> {
        let cannot = |what: &str| {
            Err(Error::Unsupported { engine: self.info.engine.clone(), what: what.to_owned() })
        };
        let sampling = &request.sampling;
        if !request.stop_strings.is_empty() {
            return cannot("stop at strings");
        }
        if !sampling.logit_bias.is_empty()
            || sampling.presence_penalty != 0.0
            || sampling.frequency_penalty != 0.0
        {
            return cannot("change logits by bias, presence or frequency");
        }
        if (request.prompt.len(), request.max_tokens) != (first.prompt.len(), first.max_tokens) {
            return cannot("generate from prompts of several lengths in one batch");
        }
        Ok(())
    }
}

/// How far a request of a batch is.
#[derive(Clone, Copy, Default)]
struct State {
    seen: usize,
    finish: Option<Finish>,
}

fn order(requests: &[Request], first: &Request) -> Value {
    let sampling = &first.sampling;
    let drawn = (sampling.temperature > 0.0).then(|| {
        json!({
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
        })
    });
    let stop: &[u32] = if first.ignore_stop { &[] } else { &first.stop_tokens };
    json!({
        "prompts": requests.iter().map(|request| &request.prompt).collect::<Vec<_>>(),
        "new_tokens": first.max_tokens,
        "seed": sampling.seed & 0xffff_ffff,
        "sampling": drawn,
        "stop": stop,
    })
}

/// Reads lines as they come, so that waiting for one can end.
fn lines(answers: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(answers).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Pipes {
    /// The worker's next answer.
    fn next(&mut self, name: &str, server: &Server, within: Duration) -> Result<Value, Error> {
        let failed = |why| Error::Failed { engine: name.to_owned(), why };
        let line = self.lines.recv_timeout(within).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => {
                failed(format!("it said nothing for {}", Seconds::from(within)))
            }
            mpsc::RecvTimeoutError::Disconnected => {
                failed(server.ended_soon().unwrap_or_else(|| "it closed its output".to_owned()))
            }
        })?;
        let answer: Value = serde_json::from_str(&line)
            .map_err(|error| failed(format!("its answer is no JSON ({error}): {line:.200}")))?;
        match answer["error"].as_str() {
            Some(why) => Err(failed(why.to_owned())),
            None => Ok(answer),
        }
    }
}

impl Engine for Transformers {
    fn info(&self) -> &Info {
        &self.info
    }

    fn generate(
        &self,
        request: &Request,
        on: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Usage, Error> {
        let requests = std::slice::from_ref(request);
        let usages = self.run(requests, &mut |_, event| on(event))?;
        usages.into_iter().next().ok_or_else(|| Error::Failed {
            engine: self.info.engine.clone(),
            why: "it answered nothing".to_owned(),
        })
    }

    fn generate_batch(
        &self,
        requests: &[Request],
        on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
    ) -> Result<Vec<Usage>, Error> {
        self.run(requests, on)
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, Error> {
        let answer = self.ask(&json!({ "tokenize": text }))?;
        crate::ids(&answer["ids"])
            .ok_or_else(|| self.failed(format!("it answered without ids: {answer:.200}")))
    }

    fn render(&self, turns: &[Turn<'_>]) -> Result<String, Error> {
        let answer = self.ask(&json!({ "render": turns }))?;
        let text = answer["text"].as_str().map(str::to_owned);
        text.ok_or_else(|| self.failed(format!("it answered without a text: {answer:.200}")))
    }

    fn weights(&self, module: &str, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        let answer = self.ask(&json!({ "weights": module, "rows": [rows.start, rows.end] }))?;
        self.numbers(&answer["weights"])
    }

    fn scorer(&self) -> Result<Box<dyn Scorer + '_>, Error> {
        Ok(Box::new(Sequence { engine: self, tokens: Vec::new() }))
    }
}

/// A sequence that the worker is given as a whole each time.
struct Sequence<'a> {
    engine: &'a Transformers,
    tokens: Vec<u32>,
}

impl Scorer for Sequence<'_> {
    fn feed(&mut self, tokens: &[u32]) -> Result<Logits, Error> {
        let engine = self.engine;
        let (vocab, context) = (engine.info.vocab, engine.info.context);
        if self.tokens.len() + tokens.len() > context {
            let needed = self.tokens.len() + tokens.len();
            return Err(Error::ContextExceeded { needed, context });
        }
        self.tokens.extend_from_slice(tokens);
        let answer = engine.ask(&json!({ "score": self.tokens }))?;
        let all = engine.numbers(&answer["logits"])?;
        // Some models have more logits than the tokenizer has tokens.
        let width = all.len() / self.tokens.len().max(1);
        if width < vocab || all.len() != width * self.tokens.len() {
            let (found, tokens) = (all.len(), self.tokens.len());
            let why = format!("it gave {found} logits of {tokens} × {vocab}");
            return Err(engine.failed(why));
        }
        let fresh = &all[(self.tokens.len() - tokens.len()) * width..];
        let values = fresh.chunks_exact(width).flat_map(|row| &row[..vocab]).copied().collect();
        Ok(Logits { vocab, values })
    }

    fn reset(&mut self) {
        self.tokens.clear();
    }
}
