//! The mock behind OpenAI's `/v1/completions`: what a client that measures adds by itself is seen
//! against it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use lathe_api::{Engine, Event, Finish, Flow, Request, Sampling};
use serde_json::{Value, json};

use super::Mock;

/// The longest request that is taken.
const MOST_BODY: u64 = 64 << 20;
/// A thread that waits needs little.
const STACK: usize = 256 << 10;

/// Answers requests, each in a thread of its own, for as long as the listener does.
///
/// As a stream where that is asked for, else as a whole; prompts as text or as ids (which are taken modulo the mock's vocabulary, so that any
/// client's fit), one connection for each request.
///
/// # Errors
/// The listener's.
pub fn serve(mock: &Arc<Mock>, listener: &TcpListener) -> io::Result<()> {
    for stream in listener.incoming() {
        let (stream, mock) = (stream?, Arc::clone(mock));
        let answer = move || {
            // A client that went away is nobody to tell.
            let _ = answer(&mock, stream);
        };
        thread::Builder::new().stack_size(STACK).spawn(answer)?;
    }
    Ok(())
}

fn answer(mock: &Mock, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length) = (String::new(), 0u64);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = Vec::new();
    reader.take(length.min(MOST_BODY)).read_to_end(&mut body)?;
    match first.split(' ').nth(1).unwrap_or_default() {
        "/health" => whole(&mut stream, "200 OK", &json!({})),
        "/version" => whole(&mut stream, "200 OK", &json!({"version": mock.info().version})),
        "/v1/models" => whole(&mut stream, "200 OK", &json!({"data": [{"id": "mock"}]})),
        "/v1/completions" => match request(mock, &body) {
            Ok((request, true)) => complete(mock, &request, &mut stream),
            Ok((request, false)) => match at_once(mock, &request) {
                Ok(answer) => whole(&mut stream, "200 OK", &answer),
                Err(why) => whole(&mut stream, "500 Failed", &json!({"error": {"message": why}})),
            },
            Err(why) => whole(&mut stream, "400 Bad Request", &json!({"error": {"message": why}})),
        },
        _ => whole(&mut stream, "404 Not Found", &json!({"error": {"message": "no such page"}})),
    }
}

fn whole(stream: &mut TcpStream, status: &str, body: &Value) -> io::Result<()> {
    let text = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        text.len()
    );
    stream.write_all((head + &text).as_bytes())
}

/// What is asked for, and whether as a stream.
fn request(mock: &Mock, body: &[u8]) -> Result<(Request, bool), String> {
    let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let vocab = mock.info().vocab as u64;
    let id = |id: &Value| id.as_u64().map(|id| (id % vocab) as u32);
    let prompt = match &body["prompt"] {
        Value::Array(ids) => {
            ids.iter().map(id).collect::<Option<_>>().ok_or("a token id is no number")?
        }
        // A token a word, whatever it is.
        Value::String(text) => text.split_whitespace().map(|_| 0).collect(),
        _ => return Err("the prompt must be a text or a list of token ids".to_owned()),
    };
    let request = Request {
        prompt,
        max_tokens: body["max_tokens"].as_u64().unwrap_or(16) as usize,
        sampling: Sampling::default(),
        stop_tokens: Vec::new(),
        stop_strings: Vec::new(),
        ignore_stop: true,
        grammar: None,
    };
    Ok((request, body["stream"] == true))
}

fn at_once(mock: &Mock, request: &Request) -> Result<Value, String> {
    let (mut ids, mut all) = (Vec::new(), String::new());
    let usage = mock.generate(request, &mut |event| {
        if let Event::Token { id, text } = event {
            ids.push(id);
            all.push_str(text);
        }
        Flow::Continue
    });
    let usage = usage.map_err(|error| error.to_string())?;
    let choice = json!({"text": all, "token_ids": ids, "finish_reason": reason(usage.finish)});
    Ok(json!({"choices": [choice], "usage": {"completion_tokens": usage.generated_tokens}}))
}

fn reason(finish: Finish) -> &'static str {
    if finish == Finish::Length { "length" } else { "stop" }
}

fn complete(mock: &Mock, request: &Request, stream: &mut TcpStream) -> io::Result<()> {
    // Without a length the answer ends with the connection.
    stream.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
    )?;
    let mut broken = None;
    let ended = mock.generate(request, &mut |event| {
        let Event::Token { id, text } = event else { return Flow::Continue };
        let choice = json!({"text": text, "token_ids": [id], "finish_reason": null});
        match stream.write_all(format!("data: {}\n\n", json!({"choices": [choice]})).as_bytes()) {
            Ok(()) => Flow::Continue,
            Err(error) => {
                broken = Some(error);
                Flow::Stop
            }
        }
    });
    if let Some(error) = broken {
        return Err(error);
    }
    let last = match ended {
        Ok(usage) => {
            let choice = json!({"text": "", "finish_reason": reason(usage.finish)});
            let count = json!({"completion_tokens": usage.generated_tokens});
            format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [choice], "usage": count}))
        }
        Err(error) => format!("data: {}\n\n", json!({"error": {"message": error.to_string()}})),
    };
    stream.write_all(last.as_bytes())
}
