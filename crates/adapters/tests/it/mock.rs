//! The mock behind HTTP, as a client that measures sees it.

use std::{net::TcpListener, sync::Arc, thread, time::Instant};

use lathe_adapters::{
    mock::{self, Distribution, Mock, serve},
    openai::{OpenAi, Options},
};
use lathe_api::{Engine, Event, Finish, Flow, Request};
use lathe_base::Seconds;

use crate::common::{generate, request};

/// Serves a mock in this process; a client of it.
fn client(options: mock::Options) -> OpenAi {
    let mock = Arc::new(Mock::new(options).unwrap());
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || serve(&mock, &listener));
    OpenAi::connect(&Options {
        name: "mock".into(),
        url,
        model: None,
        key_variable: None,
        context: 1 << 20,
        vocab: 1 << 20,
        patience: Seconds(10.0),
    })
    .unwrap()
}

#[test]
fn a_mock_server_gives_what_the_mock_gives() {
    let options = mock::Options { vocab: 64, sleepy: true, ..mock::Options::default() };
    let (expected, _) = generate(&Mock::new(options.clone()).unwrap(), &request(9));
    let (ids, usage) = generate(&client(options), &request(9));
    assert_eq!(ids, expected);
    let usage = usage.unwrap();
    assert_eq!((usage.generated_tokens, usage.finish), (9, Finish::Length));
}

#[test]
fn its_latencies_are_those_that_were_set_and_never_shorter() {
    let options = mock::Options {
        start: Seconds(0.05),
        decode: Seconds(0.01),
        distribution: Distribution::Uniform,
        vocab: 8,
        sleepy: true,
        ..mock::Options::default()
    };
    let engine = client(options);
    // An id far outside its vocabulary: whatever a client sends fits.
    let request = Request { prompt: vec![40_000], ..request(6) };
    let (start, mut stamps) = (Instant::now(), Vec::new());
    engine
        .generate(&request, &mut |event| {
            if let Event::Token { .. } = event {
                stamps.push(start.elapsed().as_secs_f64());
            }
            Flow::Continue
        })
        .unwrap();
    assert!((0.06..5.0).contains(&stamps[0]), "{stamps:?}");
    assert!(stamps[5] >= 0.11, "{stamps:?}");
}

#[test]
fn what_the_mock_refuses_its_server_refuses() {
    let engine = client(mock::Options { context: 8, ..mock::Options::default() });
    let (_, usage) = generate(&engine, &request(9));
    assert!(usage.unwrap_err().contains("the context holds 8"));
}
