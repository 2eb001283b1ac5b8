//! A program that looks like llama.cpp's server and misbehaves on demand.
//!
//! It is the test's own binary: a script starts it with the one test that serves instead of
//! testing, and with the server's arguments in the environment.
#![allow(dead_code, reason = "each test that shares this file asks for a part of it")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio, exit},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Where the script puts the arguments, one a line.
const ARGUMENTS: &str = "FAKE_SERVER_ARGUMENTS";

const HELP: &str = "
-c,    --ctx-size N                     context
-np,   --parallel N                     slots
-fa,   --flash-attn [on|off|auto]       attention
--port PORT                             port
--fake MODE                             how to misbehave
";

/// What it leaves where it is started, as some forks of llama.cpp do.
pub(crate) const LOG: &str = "llama.log";

/// Tokens that the fake knows.
const VOCAB: u64 = 4096;

/// Writes the script; `test` is the path of the test that calls [`serve`].
pub(crate) fn program(folder: &Path, test: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\nARGS=\"\"\nfor word in \"$@\"; do ARGS=\"$ARGS$word\n\"; done\n\
         {ARGUMENTS}=\"$ARGS\" exec '{}' {test} --exact --ignored --nocapture\n",
        own.display()
    );
    executable(folder, "llama-server", &script)
}

/// Writes a script that can be started.
pub(crate) fn executable(folder: &Path, name: &str, script: &str) -> PathBuf {
    let path = folder.join(name);
    // Renamed into place: a file that is still open for writing cannot be executed.
    // By a process of its own: a file that this one has open for writing is open in whatever other
    // tests start meanwhile too, and cannot be executed.
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
    path
}

/// Serves until it is killed, where this process is such a server.
pub(crate) fn serve() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    let arguments: Vec<&str> = arguments.lines().collect();
    let value = |flag: &str| {
        let at = arguments.iter().position(|word| *word == flag)?;
        arguments.get(at + 1).map(|word| (*word).to_owned())
    };
    if arguments.contains(&"--help") {
        println!("{HELP}");
        exit(0);
    }
    if arguments.contains(&"--version") {
        eprintln!("version: fake 7\nbuilt for a test");
        exit(0);
    }
    if arguments.contains(&"--list-devices") {
        println!("Available devices:\n  (none)");
        exit(0);
    }
    fs::write(LOG, "started").unwrap();
    let fake = Fake {
        mode: value("--fake").unwrap_or_default(),
        alias: value("--alias").unwrap_or_default(),
        context: value("--ctx-size").and_then(|c| c.parse().ok()).unwrap_or(0u64)
            / value("--parallel").and_then(|p| p.parse().ok()).unwrap_or(1u64),
        start: Instant::now(),
    };
    if let Some(marker) = fake.mode.strip_prefix("port-taken:")
        && fs::remove_file(marker).is_ok()
    {
        eprintln!("main: couldn't bind HTTP server socket, hostname: 127.0.0.1");
        exit(1);
    }
    if fake.mode == "bad-model" {
        eprintln!("loading\nllama_model_load: error: tensor data is out of bounds");
        exit(1);
    }
    let port: u16 = value("--port").unwrap().parse().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    for stream in listener.incoming() {
        let fake = fake.clone();
        thread::spawn(move || fake.answer(stream.unwrap()));
    }
}

/// Serves in this process; the address.
pub(crate) fn listen(mode: &str) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (mode, alias) = (mode.to_owned(), "fake".to_owned());
    let fake = Fake { mode, alias, context: 0, start: Instant::now() };
    thread::spawn(move || {
        for stream in listener.incoming() {
            let fake = fake.clone();
            thread::spawn(move || fake.answer(stream.unwrap()));
        }
    });
    url
}

#[derive(Clone)]
struct Fake {
    mode: String,
    alias: String,
    context: u64,
    start: Instant,
}

impl Fake {
    fn answer(&self, mut stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let line = line.trim().to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(n) = line.strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let path = first.split(' ').nth(1).unwrap_or_default();
        let loading = self.mode == "never-ready"
            || self.mode == "slow-start" && self.start.elapsed() < Duration::from_millis(300);
        match path {
            "/health" if loading => whole(&mut stream, 503, &json!({"error": {"code": 503}})),
            "/health" => whole(&mut stream, 200, &json!({"status": "ok"})),
            "/v1/models" => {
                let vocab = if self.mode == "small-vocabulary" { 10 } else { VOCAB };
                let meta = json!({"n_vocab": vocab, "size": 1234});
                whole(&mut stream, 200, &json!({"data": [{"id": self.alias, "meta": meta}]}));
            }
            "/props" if self.mode != "older" => {
                let settings = json!({"n_ctx": self.context});
                whole(&mut stream, 200, &json!({"default_generation_settings": settings}));
            }
            "/completion" | "/v1/completions" | "/tokenize" | "/detokenize" | "/apply-template" => {
                let body: Value = serde_json::from_slice(&body).unwrap();
                match path {
                    _ if body["n_probs"].as_u64() > Some(0) => self.likely_next(&mut stream, &body),
                    "/completion" => self.complete(stream, &body),
                    _ if !body["prompt_logprobs"].is_null() => self.likely(&mut stream, &body),
                    "/v1/completions" => self.openai(stream, &body),
                    _ if self.mode == "older" => whole(&mut stream, 404, &json!({"error": {}})),
                    "/apply-template" => {
                        whole(&mut stream, 200, &json!({"prompt": rendered(&body)}));
                    }
                    "/tokenize" if self.mode == "llama.cpp" && body["content"].is_null() => {
                        whole(&mut stream, 200, &json!({"tokens": []}));
                    }
                    "/tokenize" => whole(&mut stream, 200, &json!({"tokens": tokens(&body)})),
                    _ => whole(&mut stream, 200, &json!({"prompt": text(&body)})),
                }
            }
            _ => whole(&mut stream, 404, &json!({"error": {"message": "no such page"}})),
        }
    }

    /// Token i is the sum of the prompt plus i.
    fn complete(&self, mut stream: TcpStream, body: &Value) {
        match self.mode.as_str() {
            "refuse" => {
                let error = json!({"code": 400, "message": "Prompt contains invalid tokens"});
                return whole(&mut stream, 400, &json!({"error": error}));
            }
            "broken" => {
                let error = json!({"code": 500, "message": "Compute error."});
                return whole(&mut stream, 500, &json!({"error": error}));
            }
            _ => {}
        }
        let sum: u64 =
            body["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).sum();
        let asked = body["n_predict"].as_u64().unwrap();
        let mut chunks = Chunks { stream, bytewise: self.mode == "bytewise" };
        chunks.head();
        for i in 1..=asked {
            let id = (sum + i) % VOCAB;
            match (self.mode.as_str(), i) {
                ("early-end", 3) => {
                    let end = json!({"stop": true, "stop_type": "eos", "tokens_predicted": 2});
                    chunks.event(&format!("data: {end}\n\n"));
                    return chunks.end();
                }
                ("breaks-off", 3) => return chunks.end(),
                ("malformed", 3) => return chunks.event("data: {\"content\": \"x\n\n"),
                ("error-event", 3) => {
                    chunks.event("error: {\"code\":500,\"message\":\"out of slots\"}\n\n");
                    return chunks.end();
                }
                ("crash", 3) => {
                    eprintln!("ggml_abort: not enough memory");
                    exit(9);
                }
                ("crash-at-eight", 3) if asked == 8 => {
                    eprintln!("ggml_abort: not enough memory");
                    exit(9);
                }
                // At the first request for eight tokens, of all servers that are told this file.
                (mode, 3) if mode.starts_with("crash-once:") && asked == 8 => {
                    let marker = mode.strip_prefix("crash-once:").unwrap_or_default();
                    if !Path::new(marker).exists() {
                        fs::write(marker, "crashed").unwrap();
                        eprintln!("killed in the middle");
                        exit(9);
                    }
                }
                ("hang", 3) => thread::sleep(Duration::from_secs(600)),
                (mode, _) if mode.starts_with("hang-and-tell:") => {
                    let marker = mode.strip_prefix("hang-and-tell:").unwrap_or_default();
                    fs::write(marker, std::process::id().to_string()).unwrap();
                    thread::sleep(Duration::from_secs(600));
                }
                ("slow", _) => thread::sleep(Duration::from_millis(20)),
                // The first of every two tokens is half a character.
                ("keeps-back", _) if i % 2 == 1 => continue,
                _ => {}
            }
            let mut event = json!({"content": format!(" {id}"), "stop": false});
            if self.mode != "older" {
                event["tokens"] = json!([id]);
                event["tokens_predicted"] = json!(i);
            }
            chunks.event(&format!("data: {event}\n\n"));
        }
        let end = json!({"stop": true, "stop_type": "limit", "tokens_predicted": asked});
        chunks.event(&format!("data: {end}\n\n"));
        chunks.end();
    }
}

impl Fake {
    /// As [`Fake::complete`], in OpenAI's words.
    fn openai(&self, mut stream: TcpStream, body: &Value) {
        let refused = match self.mode.as_str() {
            "refuse" => Some((400, "Prompt contains invalid tokens")),
            "broken" => Some((500, "Compute error.")),
            _ => None,
        };
        if let Some((status, message)) = refused {
            return whole(&mut stream, status, &json!({"error": {"message": message}}));
        }
        let sum: u64 =
            body["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).sum();
        let asked = body["max_tokens"].as_u64().unwrap();
        let mut chunks = Chunks { stream, bytewise: self.mode == "bytewise" };
        chunks.head();
        for i in 1..=asked {
            match (self.mode.as_str(), i) {
                ("breaks-off", 3) => return chunks.end(),
                ("malformed", 3) => return chunks.event("data: {\"choices\": \n\n"),
                ("hang", 3) => thread::sleep(Duration::from_secs(600)),
                _ => {}
            }
            let id = (sum + i) % VOCAB;
            let mut choice = json!({"text": format!(" {id}"), "finish_reason": null});
            if self.mode != "older" {
                choice["token_ids"] = json!([id]);
            }
            if i == asked {
                choice["finish_reason"] = "length".into();
            }
            chunks.event(&format!("data: {}\n\n", json!({"choices": [choice]})));
        }
        let usage = json!({"choices": [], "usage": {"completion_tokens": asked}});
        chunks.event(&format!("data: {usage}\n\ndata: [DONE]\n\n"));
        chunks.end();
    }
}

impl Fake {
    /// How likely each token is after these: the one that is their sum most of all, and each that
    /// follows it by a nat less.
    fn row(&self, tokens: &[Value]) -> impl Iterator<Item = (u64, f64)> + use<> {
        let sum: u64 = tokens.iter().map(|id| id.as_u64().unwrap()).sum();
        let count = if self.mode == "few-probabilities" { 20 } else { VOCAB };
        (0..count).map(move |i| ((sum + i) % VOCAB, -(i as f64)))
    }

    /// Those of the next token, in llama.cpp's words.
    fn likely_next(&self, stream: &mut TcpStream, body: &Value) {
        let row = self.row(body["prompt"].as_array().unwrap());
        let list: Vec<Value> = row.map(|(id, p)| json!({"id": id, "logprob": p})).collect();
        let places = json!([{"id": list[0]["id"], "top_logprobs": list}]);
        whole(stream, 200, &json!({"content": "x", "completion_probabilities": places}));
    }

    /// Those of a prompt's tokens, in vLLM's words.
    fn likely(&self, stream: &mut TcpStream, body: &Value) {
        let prompt = body["prompt"].as_array().unwrap();
        let place = |at: usize| -> Value {
            let row = self.row(&prompt[..at]);
            row.map(|(id, p)| (id.to_string(), json!({"logprob": p}))).collect()
        };
        let rows: Vec<Value> =
            (0..prompt.len()).map(|at| if at == 0 { Value::Null } else { place(at) }).collect();
        whole(stream, 200, &json!({"choices": [{"text": "x", "prompt_logprobs": rows}]}));
    }
}

/// A token for each byte of a text, or of a conversation, and one before them.
fn tokens(body: &Value) -> Vec<u64> {
    let text = ["content", "prompt"].iter().find_map(|key| body[key].as_str());
    let text = text.map_or_else(|| rendered(body), str::to_owned);
    [1].into_iter().chain(text.bytes().map(u64::from)).collect()
}

/// The text of such tokens.
fn text(body: &Value) -> String {
    let bytes = body["tokens"].as_array().unwrap().iter().skip(1);
    String::from_utf8(bytes.map(|id| id.as_u64().unwrap() as u8).collect()).unwrap()
}

fn rendered(body: &Value) -> String {
    let turns = body["messages"].as_array().unwrap().iter();
    turns.map(|turn| format!("<{}>{}", turn["role"], turn["content"])).collect()
}

/// An answer in chunks, as servers stream.
struct Chunks {
    stream: TcpStream,
    bytewise: bool,
}

impl Chunks {
    fn head(&mut self) {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        let _ = self.stream.write_all(head.as_bytes());
    }

    /// A client that went away is its own business.
    fn event(&mut self, text: &str) {
        let size = if self.bytewise { 1 } else { text.len() };
        for part in text.as_bytes().chunks(size) {
            let mut chunk = format!("{:x}\r\n", part.len()).into_bytes();
            chunk.extend(part);
            chunk.extend(b"\r\n");
            let _ = self.stream.write_all(&chunk);
        }
    }

    fn end(&mut self) {
        let _ = self.stream.write_all(b"0\r\n\r\n");
    }
}

fn whole(stream: &mut TcpStream, status: u16, body: &Value) {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all((head + &body).as_bytes());
}
