//! Texts that must follow a grammar do, however they are drawn and whatever happens around them.

use std::{collections::HashSet, sync::Arc, thread};

use lathe_api::{Engine, Event, Finish, Flow, Grammar, Request, Sampling, Usage};
use lathe_base::Buf;
use lathe_engine::{
    Error, Native, Options,
    serving::{Distribution, Limits, LogProbsWanted, Response, Service, Submission, Update},
};
use lathe_files::Checkpoint;
use lathe_tokens::Tokenizer;
use serde_json::Value;

fn demo(options: &Options) -> Arc<Native> {
    let files: Vec<(&str, Buf)> =
        lathe_demo::files().iter().map(|(name, bytes)| (*name, Buf::from_static(bytes))).collect();
    let checkpoint = Checkpoint::from_memory(&files).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_checkpoint(&checkpoint).unwrap());
    Arc::new(Native::load(&checkpoint, tokenizer, options).unwrap())
}

fn options(batch: usize) -> Options {
    Options { threads: 2, context: Some(512), batch, ..Options::default() }
}

/// As wild as sampling gets: texts are what the grammar makes of them.
fn request(native: &Native, grammar: Grammar, seed: u64) -> Request {
    let tokenizer = native.tokenizer().unwrap();
    Request {
        prompt: tokenizer.encode("Tell me about the cat.", true).unwrap(),
        max_tokens: 400,
        sampling: Sampling { temperature: 1.5, seed, ..Sampling::default() },
        stop_tokens: tokenizer.stop_tokens().to_vec(),
        stop_strings: vec![],
        ignore_stop: false,
        grammar: Some(grammar),
    }
}

fn generate(native: &Native, request: &Request) -> (String, Usage) {
    let mut text = String::new();
    let on = &mut |event: Event<'_>| {
        if let Event::Token { text: piece, .. } = event {
            text.push_str(piece);
        }
        Flow::Continue
    };
    let usage = native.generate(request, on).unwrap();
    (text, usage)
}

/// Texts of a response, and how each ended.
fn read(response: Response) -> Result<Vec<(String, Option<Finish>)>, Error> {
    let mut texts: Vec<(String, Option<Finish>)> = Vec::new();
    for update in response {
        match update {
            Update::Token { text, piece, .. } => {
                texts.resize(texts.len().max(text + 1), Default::default());
                texts[text].0.push_str(&piece);
            }
            Update::Finished { text, finish, .. } => {
                texts.resize(texts.len().max(text + 1), Default::default());
                texts[text].1 = Some(finish);
            }
            Update::Done(served) => return served.map(|_| texts),
            _ => {}
        }
    }
    unreachable!("a response ends with Done");
}

const CAT: &str = r##"{
  "type": "object",
  "properties": {
    "name": { "type": "string", "maxLength": 12 },
    "age": { "type": "integer", "minimum": 0, "maximum": 30 },
    "colour": { "enum": ["black", "white", "ginger"] },
    "friends": { "type": "array", "items": { "$ref": "#/$defs/friend" }, "maxItems": 2 }
  },
  "required": ["name", "age", "colour", "friends"],
  "additionalProperties": false,
  "$defs": { "friend": { "type": "object", "properties": { "ok": { "type": "boolean" } },
    "required": ["ok"], "additionalProperties": false } }
}"##;

fn is_cat(text: &str) {
    let cat: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(cat.as_object().unwrap().len(), 4, "{text}");
    assert!(cat["name"].as_str().unwrap().chars().count() <= 12, "{text}");
    assert!((0..=30).contains(&cat["age"].as_i64().unwrap()), "{text}");
    assert!(["black", "white", "ginger"].contains(&cat["colour"].as_str().unwrap()), "{text}");
    let friends = cat["friends"].as_array().unwrap();
    assert!(friends.len() <= 2, "{text}");
    assert!(friends.iter().all(|friend| friend["ok"].is_boolean()), "{text}");
}

#[test]
fn wild_texts_are_what_the_schema_says() {
    let native = demo(&options(1));
    let mut different = HashSet::new();
    for seed in 0..40 {
        let request = request(&native, Grammar::JsonSchema(CAT.into()), seed);
        let (text, usage) = generate(&native, &request);
        assert_eq!(usage.finish, Finish::Stop, "{text}");
        is_cat(&text);
        different.insert(text);
    }
    assert!(different.len() > 30, "{different:?}");
}

#[test]
fn json_objects_choices_and_expressions_are_just_that() {
    let native = demo(&options(1));
    let tokenizer = native.tokenizer().unwrap();
    let choice = Grammar::Choice(vec!["yes".into(), "no".into(), "no way".into(), "[a|b]".into()]);
    let number = regex::Regex::new(r"^\d{3}-[é☃]{2,4}( 🐈)?$").unwrap();
    let mut seen = HashSet::new();
    let mut objects = 0;
    for seed in 0..25 {
        let (text, _) = generate(&native, &request(&native, choice.clone(), seed));
        assert!(["yes", "no", "no way", "[a|b]"].contains(&text.as_str()), "{text}");
        seen.insert(text);
        let grammar = Grammar::Regex(r"^\d{3}-[é☃]{2,4}( 🐈)?$".into());
        let (text, usage) = generate(&native, &request(&native, grammar, seed));
        // `\d` are the digits of all scripts.
        assert!(number.is_match(&text), "{text}");
        assert_eq!(usage.finish, Finish::Stop);
        let mut object = request(&native, Grammar::JsonObject, seed);
        // Such a model never comes to the end of a string by itself.
        let marks = ["\"", "}", "]"].iter().flat_map(|mark| tokenizer.encode(mark, false).unwrap());
        object.sampling.logit_bias = marks.map(|id| (id, 8.0)).collect();
        let (text, usage) = generate(&native, &object);
        if usage.finish == Finish::Stop {
            assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
            objects += 1;
        }
    }
    assert!(seen.len() >= 3, "{seen:?}");
    assert!(objects > 5, "{objects} of 25 objects were complete");
}

#[test]
fn a_grammar_of_all_texts_changes_none() {
    let native = demo(&options(1));
    for seed in 0..8 {
        // Of all tokens a few stand for no text, and their share would be drawn from as well.
        let sampling = Sampling { temperature: 1.0, top_k: 20, seed, ..Sampling::default() };
        let free = Request {
            grammar: None,
            max_tokens: 60,
            sampling,
            ..request(&native, Grammar::JsonObject, seed)
        };
        let grammar = Some(Grammar::Regex("(?s:.*)".into()));
        let (expected, ended) = generate(&native, &free);
        let (found, end) = generate(&native, &Request { grammar, ..free });
        // Only text that is no UTF-8 can be told apart, and it is not drawn.
        assert!(!expected.contains('\u{fffd}'), "choose another seed");
        assert_eq!((found, end.finish), (expected, ended.finish), "seed {seed}");
    }
}

#[test]
fn every_setting_of_sampling_obeys_the_grammar() {
    let native = demo(&options(1));
    let base = request(&native, Grammar::JsonSchema(CAT.into()), 3);
    let settings = [
        Sampling::default(),
        Sampling { temperature: 1.0, top_k: 1, ..Sampling::default() },
        Sampling { temperature: 2.0, top_p: 0.1, ..Sampling::default() },
        Sampling { temperature: 1.0, min_p: 0.9, ..Sampling::default() },
        Sampling {
            temperature: 1.5,
            repetition_penalty: 1.8,
            presence_penalty: 2.0,
            frequency_penalty: -2.0,
            logit_bias: (0..200).map(|id| (id, 50.0)).collect(),
            ..Sampling::default()
        },
    ];
    for sampling in settings {
        let (text, usage) = generate(&native, &Request { sampling, ..base.clone() });
        if usage.finish == Finish::Stop {
            is_cat(&text);
        } else {
            assert_eq!(usage.finish, Finish::Length);
            assert!(text.starts_with('{'), "{text}");
        }
    }
}

#[test]
fn the_end_comes_where_the_grammar_lets_it_and_nowhere_else() {
    let native = demo(&options(1));
    let ends = native.tokenizer().unwrap().stop_tokens().to_vec();
    // However much the model wants to end, or is kept from it.
    let bias = |by: f32| Sampling {
        temperature: 1.0,
        logit_bias: ends.iter().map(|id| (*id, by)).collect(),
        ..Sampling::default()
    };
    let eager =
        Request { sampling: bias(1e6), ..request(&native, Grammar::Regex("a{3,5}".into()), 0) };
    assert_eq!(generate(&native, &eager).0, "aaa");
    let never = Request { sampling: bias(f32::NEG_INFINITY), ..eager.clone() };
    let (text, usage) = generate(&native, &never);
    assert_eq!((text.as_str(), usage.finish), ("aaaaa", Finish::Stop));
    // Going on past the ends that the model wants goes to the grammar's end.
    let (text, usage) = generate(&native, &Request { ignore_stop: true, ..eager });
    assert_eq!((text.as_str(), usage.finish), ("aaaaa", Finish::Stop));
    let nothing = request(&native, Grammar::Choice(vec![String::new()]), 0);
    let (text, usage) = generate(&native, &nothing);
    assert_eq!((text.as_str(), usage.generated_tokens, usage.finish), ("", 0, Finish::Stop));
    let short = Request { max_tokens: 2, ..request(&native, Grammar::JsonSchema(CAT.into()), 0) };
    assert_eq!(generate(&native, &short).1.finish, Finish::Length);
}

#[test]
fn a_text_that_cannot_go_on_is_an_error_that_says_so() {
    let native = demo(&options(1));
    let mut banned = request(&native, Grammar::Regex("[xy]+".into()), 0);
    let vocab = native.info().vocab as u32;
    banned.sampling.logit_bias = (0..vocab).map(|id| (id, f32::NEG_INFINITY)).collect();
    let error = native.generate(&banned, &mut |_| Flow::Continue).unwrap_err();
    assert!(error.to_string().contains("no token can follow"), "{error}");
    let schema = r##"{ "$ref": "#" }"##;
    let nothing = request(&native, Grammar::JsonSchema(schema.into()), 0);
    let error = native.generate(&nothing, &mut |_| Flow::Continue).unwrap_err();
    assert!(error.to_string().contains("allows no text"), "{error}");
}

#[test]
fn stop_strings_end_a_text_before_its_grammar_does() {
    let native = demo(&options(1));
    let grammar = Grammar::Regex("one two three".into());
    let stopping =
        Request { stop_strings: vec!["two".into()], ..request(&native, grammar.clone(), 0) };
    let (text, usage) = generate(&native, &stopping);
    assert_eq!((text.as_str(), usage.finish), ("one ", Finish::Stop));
    // What was held back because it could have become one comes out.
    let held = Request { stop_strings: vec!["three four".into()], ..stopping };
    assert_eq!(generate(&native, &held).0, "one two three");
}

#[test]
fn texts_are_the_same_together_preempted_and_alone() {
    let native = demo(&options(1));
    let wants = |seed| Request {
        max_tokens: 200,
        ..request(&native, Grammar::JsonSchema(CAT.into()), seed)
    };
    let free = Request { grammar: None, max_tokens: 60, ..wants(0) };
    let expected: Vec<String> = (0..6).map(|seed| generate(&native, &wants(seed)).0).collect();
    let plain = generate(&native, &free).0;
    // Room for about two of them: the others give way to each other.
    let small = demo(&Options { cache: Some(320), ..options(6) });
    let service = Service::start(Arc::clone(&small), Limits::default()).unwrap();
    let responses: Vec<Response> =
        (0..6).map(|seed| service.submit(wants(seed).into()).unwrap()).collect();
    let free = service.submit(free.into()).unwrap();
    // One that nobody waits for.
    drop(service.submit(wants(9).into()).unwrap());
    for (response, expected) in responses.into_iter().zip(&expected) {
        assert_eq!(read(response).unwrap(), [(expected.clone(), Some(Finish::Stop))]);
    }
    assert_eq!(read(free).unwrap()[0].0, plain);
    assert!(service.snapshot().preemptions > 0);
}

#[test]
fn each_of_several_texts_follows_the_grammar_by_itself() {
    let native = demo(&options(4));
    let service = Service::start(Arc::clone(&native), Limits::default()).unwrap();
    let wanted = Some(LogProbsWanted { top: 3, of: Distribution::Sampled });
    let several = Submission {
        n: 5,
        log_probs: wanted,
        ..request(&native, Grammar::JsonSchema(CAT.into()), 1).into()
    };
    let texts = read(service.submit(several).unwrap()).unwrap();
    assert_eq!(texts.len(), 5);
    for (text, finish) in &texts {
        assert_eq!(*finish, Some(Finish::Stop));
        is_cat(text);
    }
    assert!(texts.iter().map(|(text, _)| text).collect::<HashSet<_>>().len() > 2);
}

#[test]
fn log_probabilities_are_the_models_or_of_what_may_come() {
    let native = demo(&options(1));
    let service = Service::start(Arc::clone(&native), Limits::default()).unwrap();
    let first = |of| {
        let wanted = Some(LogProbsWanted { top: 20, of });
        let grammar = Grammar::Choice(vec!["{".into(), "}".into()]);
        let one = Submission { log_probs: wanted, ..request(&native, grammar, 1).into() };
        let updates = service.submit(one).unwrap();
        let token = |update| match update {
            Update::Token { log_probs, .. } => log_probs,
            _ => None,
        };
        updates.filter_map(token).next().unwrap()
    };
    let sampled = first(Distribution::Sampled);
    assert_eq!(sampled.top.len(), 2);
    let sum: f64 = sampled.top.iter().map(|(_, log)| f64::from(*log).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    let models = first(Distribution::Model);
    assert_eq!(models.top.len(), 20);
    assert!(models.chosen < sampled.chosen - 1.0, "{models:?}");
}

#[test]
fn bad_grammars_are_refused_when_they_are_submitted() {
    let native = demo(&options(1));
    let service = Service::start(Arc::clone(&native), Limits::default()).unwrap();
    let refused = |grammar| {
        let error = service.submit(request(&native, grammar, 0).into()).map(drop).unwrap_err();
        assert!(matches!(error, Error::Grammar(_)), "{error:?}");
        error.to_string()
    };
    assert!(refused(Grammar::JsonSchema("{".into())).contains("line 1"));
    assert!(refused(Grammar::Regex("(".into())).contains("unclosed"));
    refused(Grammar::Lark("start: nothing".into()));
    refused(Grammar::Choice(vec![]));
    assert_eq!(service.snapshot().refused, 4);
    let error = native
        .generate(&request(&native, Grammar::Regex("(".into()), 0), &mut |_| Flow::Continue)
        .unwrap_err();
    assert!(matches!(error, lathe_api::Error::BadRequest { .. }), "{error}");
}

#[test]
fn many_threads_may_ask_for_many_grammars_at_once() {
    let native = demo(&options(4));
    let service = Service::start(Arc::clone(&native), Limits::default()).unwrap();
    thread::scope(|scope| {
        for client in 0..4u64 {
            let (service, native) = (&service, &native);
            scope.spawn(move || {
                for turn in 0..6 {
                    let count = 2 + (client + turn) % 5;
                    let grammar = Grammar::Regex(format!("[a-z]{{{count}}}"));
                    let response = service.submit(request(native, grammar, turn).into()).unwrap();
                    let texts = read(response).unwrap();
                    assert_eq!(texts[0].0.len() as u64, count, "{texts:?}");
                }
            });
        }
    });
}
