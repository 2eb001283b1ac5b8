//! The adapter for OpenAI's interface against a server that can do everything wrong.

use lathe_adapters::openai::{OpenAi, Options};
use lathe_api::{Engine, Finish, Request, UNKNOWN_TOKEN, Usage};
use lathe_base::Seconds;

use crate::{
    common::{generate, request, tells},
    fake,
};

fn options(mode: &str) -> Options {
    Options {
        name: "server".into(),
        url: fake::listen(mode),
        model: None,
        key_variable: None,
        context: 64,
        vocab: 4096,
        patience: Seconds(0.5),
    }
}

fn ask(mode: &str, request: &Request) -> (Vec<u32>, Result<Usage, String>) {
    generate(&OpenAi::connect(&options(mode)).unwrap(), request)
}

#[test]
fn tokens_are_counted_with_and_without_ids() {
    for mode in ["", "bytewise"] {
        let (ids, usage) = ask(mode, &request(4));
        assert_eq!(ids, [7, 8, 9, 10], "{mode}");
        assert_eq!(usage.unwrap().finish, Finish::Length);
    }
    assert_eq!(ask("older", &request(4)).0, [UNKNOWN_TOKEN; 4]);
    let stop = Request { stop_tokens: vec![9], ignore_stop: false, ..request(8) };
    let (ids, usage) = ask("", &stop);
    assert_eq!((ids, usage.unwrap().finish), (vec![7, 8], Finish::Stop));
}

#[test]
fn what_goes_wrong_is_told_in_the_servers_words() {
    for (mode, told) in [
        ("refuse", "refused the request (400): Prompt contains invalid tokens"),
        ("broken", "it answered 500: Compute error."),
        ("breaks-off", "its answer broke off after 2 of 6 tokens"),
        ("malformed", "it sent an event that is no JSON"),
        ("hang", "it said nothing for 500 ms"),
    ] {
        let error = ask(mode, &request(6)).1.unwrap_err();
        assert!(error.contains("server") && error.contains(told), "{mode}: {error}");
    }
}

#[test]
fn a_model_that_is_not_served_is_named() {
    let asked = Options { model: Some("other".into()), ..options("") };
    let error = OpenAi::connect(&asked).err().unwrap().to_string();
    assert!(error.contains("it has no model other; it has fake"), "{error}");
    let nobody = Options { url: "http://127.0.0.1:1".into(), ..options("") };
    let error = OpenAi::connect(&nobody).err().unwrap().to_string();
    assert!(error.contains("no answer from http://127.0.0.1:1"), "{error}");
}

#[test]
fn texts_conversations_and_probabilities_are_told() {
    let connect = |mode| OpenAi::connect(&options(mode)).unwrap();
    tells(&connect(""));
    tells(&connect("llama.cpp"));
    assert!(connect("older").tokenize("a").unwrap_err().to_string().contains("(404)"));
    let error = connect("few-probabilities").scorer().unwrap().feed(&[1]).unwrap_err().to_string();
    assert!(error.contains("cannot tell the probabilities of all 4096 tokens"), "{error}");
}
