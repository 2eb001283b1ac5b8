//! Any server with OpenAI's `/v1/completions`, by its address.
//!
//! Prompts are token ids, which the interface allows. What it does not have (going on past the end
//! of the text, ids of generated tokens) is asked for by the names that vLLM, SGLang and llama.cpp
//! gave it; a server that ignores them shows in the count of tokens.

mod ask;
mod wire;

use std::time::{Duration, Instant};

use lathe_api::{
    Caps, Engine, Error, Event, Finish, Flow, Info, Request, Scorer, Turn, UNKNOWN_TOKEN, Usage,
};
use lathe_base::Seconds;
use serde::{Deserialize, Serialize};

use crate::{Server, http::Client};

/// A server that runs already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// What the engine is called in figures and errors.
    pub name: String,
    /// Up to, and without, `/v1`.
    pub url: String,
    /// The model to ask for; the first that the server lists by default.
    pub model: Option<String>,
    /// The environment variable that holds the key, where one is needed: keys are not written down.
    pub key_variable: Option<String>,
    /// The longest sequence, and vocabulary size that prompts are drawn from.
    pub context: usize,
    pub vocab: usize,
    /// What it may be silent for in a request.
    pub patience: Seconds,
}

/// A model behind such an interface.
pub struct OpenAi {
    client: Client,
    model: String,
    info: Info,
    load: Seconds,
    /// The server's process, where it is ours.
    server: Option<Server>,
}

impl OpenAi {
    /// Asks a running server which models it has.
    ///
    /// # Errors
    /// It does not answer, or does not have the model.
    pub fn connect(options: &Options) -> Result<Self, Error> {
        let start = Instant::now();
        let key = options.key_variable.as_ref().and_then(|name| std::env::var(name).ok());
        let patience = Duration::from_secs_f64(options.patience.0.clamp(0.1, 1e6));
        let client = Client::new(&options.name, &options.url, patience).with_key(key);
        let listed = client.get_json("/v1/models")?;
        let ids: Vec<&str> = listed["data"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|m| m["id"].as_str())
            .collect();
        let failed = |why| Error::Failed { engine: options.name.clone(), why };
        let model = match &options.model {
            Some(model) if ids.contains(&model.as_str()) => model.clone(),
            Some(model) => {
                let why = format!("it has no model {model}; it has {}", ids.join(", "));
                return Err(failed(why));
            }
            None => ids
                .first()
                .map(|id| (*id).to_owned())
                .ok_or_else(|| failed(format!("{}/v1/models lists no model", options.url)))?,
        };
        // What servers tell of themselves differs; where they tell nothing, nothing is known.
        let version = client.get_json("/version").unwrap_or_default();
        let version = version["version"].as_str().unwrap_or("unknown").to_owned();
        let info = Info {
            engine: options.name.clone(),
            version,
            device: options.url.clone(),
            vocab: options.vocab,
            context: options.context,
            weight_bytes: 0,
            caps: Caps { logits: false, batch: true, seed: true, grammar: false },
            found_running: true,
        };
        Ok(Self { client, model, info, load: start.elapsed().into(), server: None })
    }

    /// As a server that was started by us, and took `load` until it was ready.
    pub(crate) fn of_server(self, server: Server, load: Seconds) -> Self {
        // Probabilities are told by the names that the servers which we start have for them.
        let caps = Caps { logits: true, ..self.info.caps };
        let info = Info { caps, found_running: false, ..self.info };
        Self { server: Some(server), load, info, ..self }
    }

    /// Until it was ready: for a server that ran already, until it answered.
    pub fn load(&self) -> Seconds {
        self.load
    }

    fn one(
        &self,
        request: &Request,
        on: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Usage, Error> {
        crate::check(&self.info, request)?;
        let failed = |why| Error::Failed { engine: self.info.engine.clone(), why };
        // Where the connection broke because the process is gone, that is what has to be told.
        let explained =
            |error: Error| match (error, self.server.as_ref().and_then(Server::ended_soon)) {
                (Error::Failed { .. }, Some(ended)) => failed(ended),
                (error, _) => error,
            };
        let body = wire::body(&self.model, request);
        let mut stream = self.client.stream("/v1/completions", &body).map_err(explained)?;
        let mut tokens = Tokens { request, seen: 0, on };
        let mut finish = None;
        loop {
            let event = stream.next().map_err(explained)?;
            let Some(event) = event.filter(|event| event.data != "[DONE]") else {
                // A stream ends by itself only after it has said why.
                let finish = finish.ok_or_else(|| {
                    let (seen, asked) = (tokens.seen, request.max_tokens);
                    explained(failed(format!(
                        "its answer broke off after {seen} of {asked} tokens"
                    )))
                })?;
                let (prompt_tokens, generated_tokens) = (request.prompt.len(), tokens.seen);
                return Ok(Usage { prompt_tokens, generated_tokens, finish });
            };
            let update = wire::Update::read(&event.data).map_err(failed)?;
            if let Some(ended) = tokens.add(&update) {
                let (prompt_tokens, generated_tokens) = (request.prompt.len(), tokens.seen);
                return Ok(Usage { prompt_tokens, generated_tokens, finish: ended });
            }
            finish = update.finish.or(finish);
        }
    }
}

/// The tokens of a request as they are told.
struct Tokens<'a, 'b> {
    request: &'a Request,
    seen: usize,
    on: &'b mut dyn FnMut(Event<'_>) -> Flow,
}

impl Tokens<'_, '_> {
    /// Tells what an event adds; a reason to end, where there is one.
    fn add(&mut self, update: &wire::Update) -> Option<Finish> {
        let count = match (&update.ids, update.text.is_empty()) {
            (Some(ids), _) => ids.len(),
            (None, true) => 0,
            (None, false) => 1,
        };
        // The last event may count tokens that no event told, such as parts of characters.
        let untold = update.count.map_or(0, |all| all.saturating_sub(self.seen + count));
        for i in 0..count + untold {
            let id = update.ids.as_ref().and_then(|ids| ids.get(i)).copied();
            let stops = !self.request.ignore_stop
                && id.is_some_and(|id| self.request.stop_tokens.contains(&id));
            if stops {
                return Some(Finish::Stop);
            }
            let text = if i == 0 { update.text.as_str() } else { "" };
            self.seen += 1;
            let token = Event::Token { id: id.unwrap_or(UNKNOWN_TOKEN), text };
            if (self.on)(token) == Flow::Stop {
                return Some(Finish::Cancelled);
            }
        }
        None
    }
}

impl Engine for OpenAi {
    fn info(&self) -> &Info {
        &self.info
    }

    fn generate(
        &self,
        request: &Request,
        on: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Usage, Error> {
        self.one(request, on)
    }

    fn generate_batch(
        &self,
        requests: &[Request],
        on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
    ) -> Result<Vec<Usage>, Error> {
        crate::together::run(requests, &|request, on| self.one(request, on), on)
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
