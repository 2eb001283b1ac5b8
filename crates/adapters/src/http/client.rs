use std::{collections::VecDeque, io::Read, time::Duration};

use lathe_api::Error;
use lathe_base::Seconds;
use serde_json::Value;
use ureq::{Agent, BodyReader, RequestBuilder, http::Response};

use super::sse::{Event, Parser};

/// What is read of an answer that is no stream.
const ANSWER_CAP: u64 = 256 << 20;
/// What is shown of an answer that is no JSON.
const SHOWN: usize = 300;

/// An engine's HTTP interface.
pub(crate) struct Client {
    agent: Agent,
    base: String,
    engine: String,
    patience: Duration,
    key: Option<String>,
}

/// An answer that is no stream.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Client {
    /// A client of `base` (`http://host:port`), which gives up where the engine says nothing for
    /// as long as `patience`.
    pub(crate) fn new(engine: &str, base: &str, patience: Duration) -> Self {
        let base = base.trim_end_matches('/').to_owned();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("lathe/", env!("CARGO_PKG_VERSION")))
            // A connection for each request: none was closed meanwhile by an idle server.
            .max_idle_connections(0)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_per_read(Some(patience));
        if ["http://127.", "http://localhost", "http://[::1]"].iter().any(|l| base.starts_with(l)) {
            config = config.proxy(None);
        }
        Self { agent: config.build().into(), base, engine: engine.to_owned(), patience, key: None }
    }

    /// Sends `key` as bearer token with every request.
    pub(crate) fn with_key(self, key: Option<String>) -> Self {
        Self { key, ..self }
    }

    /// Asks for a page and reads all of it.
    pub(crate) fn get(&self, path: &str) -> Result<Answer, Error> {
        let request = self.agent.get(format!("{}{path}", self.base));
        let answer = self.signed(request).call().map_err(|error| self.broken(&error))?;
        self.read(answer)
    }

    /// As [`Client::get`], of an answer that must be JSON.
    pub(crate) fn get_json(&self, path: &str) -> Result<Value, Error> {
        let answer = self.get(path)?;
        if !(200..300).contains(&answer.status) {
            return Err(self.refusal(&answer));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| self.failed(format!("{path} did not answer with JSON ({error})")))
    }

    /// Sends JSON; the answer must be JSON.
    pub(crate) fn post_json(&self, path: &str, body: &Value) -> Result<Value, Error> {
        let request = self.agent.post(format!("{}{path}", self.base));
        let request = self.signed(request).header("content-type", "application/json");
        let answer = request.send(body.to_string()).map_err(|error| self.broken(&error))?;
        let answer = self.read(answer)?;
        if !(200..300).contains(&answer.status) {
            return Err(self.refusal(&answer));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| self.failed(format!("{path} did not answer with JSON ({error})")))
    }

    /// Sends JSON; the answer is a stream of events.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Result<Stream, Error> {
        let text = body.to_string();
        let request = self.agent.post(format!("{}{path}", self.base));
        let request = self.signed(request).header("content-type", "application/json");
        let answer = request.send(text).map_err(|error| self.broken(&error))?;
        if !answer.status().is_success() {
            return Err(self.refusal(&self.read(answer)?));
        }
        Ok(Stream {
            engine: self.engine.clone(),
            patience: self.patience,
            reader: answer.into_body().into_reader(),
            parser: Parser::default(),
            ready: VecDeque::new(),
            buffer: vec![0; 1 << 16],
        })
    }

    fn signed<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn read(&self, mut answer: Response<ureq::Body>) -> Result<Answer, Error> {
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(ANSWER_CAP).read_to_vec();
        Ok(Answer { status, body: body.map_err(|error| self.broken(&error))? })
    }

    /// What an answer that is no success says.
    fn refusal(&self, answer: &Answer) -> Error {
        let (engine, status, words) = (&self.engine, answer.status, words(&answer.body));
        if (400..500).contains(&status) {
            return Error::BadRequest {
                what: format!("{engine} refused the request ({status}): {words}"),
            };
        }
        self.failed(format!("it answered {status}: {words}"))
    }

    fn broken(&self, error: &ureq::Error) -> Error {
        self.failed(match error {
            ureq::Error::Timeout(_) => silent(self.patience),
            _ => format!("no answer from {}: {error}", self.base),
        })
    }

    fn failed(&self, why: String) -> Error {
        Error::Failed { engine: self.engine.clone(), why }
    }
}

fn silent(patience: Duration) -> String {
    format!("it said nothing for {}", Seconds::from(patience))
}

/// Events as they come. Dropping it closes the connection, which ends the request.
pub(crate) struct Stream {
    engine: String,
    patience: Duration,
    reader: BodyReader<'static>,
    parser: Parser,
    ready: VecDeque<Event>,
    buffer: Vec<u8>,
}

impl Stream {
    /// The next event; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let failed = |why| Error::Failed { engine: self.engine.clone(), why };
            let read = self.reader.read(&mut self.buffer);
            let count = read.map_err(|error| {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
                failed(match inner {
                    Some(ureq::Error::Timeout(_)) => silent(self.patience),
                    _ => format!("the connection broke: {error}"),
                })
            })?;
            if count == 0 {
                return Ok(None);
            }
            let ready = &mut self.ready;
            let pushed =
                self.parser.push(&self.buffer[..count], &mut |event| ready.push_back(event));
            pushed.map_err(|_| failed("it sent an event without an end".to_owned()))?;
        }
    }
}

/// What an error says: the message within JSON, where it is JSON.
fn words(body: &[u8]) -> String {
    if let Ok(value) = serde_json::from_slice::<Value>(body)
        && let Some(message) = message(&value)
    {
        return message;
    }
    let text = String::from_utf8_lossy(body);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None if text.is_empty() => "no explanation".to_owned(),
        None => text,
    }
}

/// The message of an error as servers write it: `{"error": {"message"}}`, `{"error"}`,
/// `{"message"}` or `{"detail"}`.
pub(crate) fn message(value: &Value) -> Option<String> {
    let error = value.get("error").unwrap_or(value);
    if let Some(text) = error.as_str() {
        return Some(text.to_owned());
    }
    ["message", "detail"].iter().find_map(|key| match error.get(key)? {
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_the_servers_own_words() {
        for (body, told) in [
            (r#"{"error": {"code": 400, "message": "too long"}}"#, "too long"),
            (r#"{"error": "no such model"}"#, "no such model"),
            (r#"{"detail": [{"loc": 1}]}"#, r#"[{"loc":1}]"#),
            ("<h1>Bad\n gateway</h1>", "<h1>Bad gateway</h1>"),
            ("", "no explanation"),
        ] {
            assert_eq!(words(body.as_bytes()), told, "{body}");
        }
    }
}
