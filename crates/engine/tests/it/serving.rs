//! What callers of the service rely on: texts are those of each request alone, whatever is shared,
//! given up or cancelled around them; limits are errors; pages are never lost.

use std::{
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lathe_api::{Engine, Event, Finish, Flow, Request, Sampling};
use lathe_base::Buf;
use lathe_engine::{
    Error, KvType, Native, Options,
    serving::{
        Distribution, Ending, Limits, LogProbs, LogProbsWanted, Response, Served, Service,
        Snapshot, Submission, Update, derived_seed,
    },
};
use lathe_files::Checkpoint;
use lathe_tokens::Tokenizer;

fn load(checkpoint: &Checkpoint, options: &Options) -> Result<Arc<Native>, Error> {
    let tokenizer = Arc::new(Tokenizer::from_checkpoint(checkpoint).unwrap());
    Native::load(checkpoint, tokenizer, options).map(Arc::new)
}

pub(crate) fn demo(options: &Options) -> Arc<Native> {
    let files: Vec<(&str, Buf)> =
        lathe_demo::files().iter().map(|(name, bytes)| (*name, Buf::from_static(bytes))).collect();
    load(&Checkpoint::from_memory(&files).unwrap(), options).unwrap()
}

/// A tiny model with random weights and a context of 64 tokens.
pub(crate) fn tiny(name: &str, options: &Options) -> Result<Arc<Native>, Error> {
    let archs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs");
    load(&Checkpoint::open(&archs.join(name)).unwrap(), options)
}

pub(crate) fn options(batch: usize) -> Options {
    Options { threads: 2, context: Some(64), batch, ..Options::default() }
}

pub(crate) fn start(native: &Arc<Native>, limits: Limits) -> Service {
    Service::start(Arc::clone(native), limits).unwrap()
}

/// Ids that the tiny models have, different for each seed.
pub(crate) fn prompt(length: usize, seed: usize) -> Vec<u32> {
    (0..length).map(|i| (3 + (i * 37 + seed * 11) % 150) as u32).collect()
}

pub(crate) fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        sampling: Sampling { temperature: 1.0, seed: prompt.len() as u64, ..Sampling::default() },
        stop_tokens: vec![],
        stop_strings: vec![],
        ignore_stop: true,
        grammar: None,
    }
}

/// What a submission came to: ids and text of each of its texts.
#[derive(Debug, PartialEq)]
struct Read {
    texts: Vec<(Vec<u32>, String)>,
    served: Served,
}

fn read(response: Response) -> Result<Read, Error> {
    let mut texts: Vec<(Vec<u32>, String)> = Vec::new();
    for update in response {
        match update {
            Update::Token { text, id, piece, .. } => {
                texts.resize(texts.len().max(text + 1), Default::default());
                texts[text].0.push(id);
                texts[text].1.push_str(&piece);
            }
            Update::Done(served) => return Ok(Read { texts, served: served? }),
            _ => {}
        }
    }
    unreachable!("a response ends with Done");
}

/// The same without the service.
pub(crate) fn alone(native: &Native, request: &Request) -> (Vec<u32>, String) {
    let (mut ids, mut text) = (Vec::new(), String::new());
    let on = &mut |event: Event<'_>| {
        if let Event::Token { id, text: piece } = event {
            ids.push(id);
            text.push_str(piece);
        }
        Flow::Continue
    };
    native.generate(request, on).unwrap();
    (ids, text)
}

/// Waits until nothing runs, and counts pages.
pub(crate) fn settled(service: &Service) -> Snapshot {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let now = service.snapshot();
        if now.running + now.waiting + now.preempted == 0 {
            return now;
        }
        assert!(Instant::now() < until, "{now:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn nothing_is_lost(service: &Service) {
    let now = settled(service);
    assert_eq!(now.free_pages + now.cached_pages, now.pages, "{now:?}");
}

#[test]
fn a_service_is_an_engine_that_many_threads_ask_at_once() {
    let native = tiny("llama", &options(2)).unwrap();
    let service = start(&native, Limits::default());
    let expected: Vec<_> = (0..4).map(|i| alone(&native, &request(&prompt(5 + i, i), 6))).collect();
    thread::scope(|scope| {
        for (i, expected) in expected.iter().enumerate() {
            let engine: &dyn Engine = &service;
            scope.spawn(move || {
                let mut ids = Vec::new();
                let usage = engine.generate(&request(&prompt(5 + i, i), 6), &mut |event| {
                    if let Event::Token { id, .. } = event {
                        ids.push(id);
                    }
                    Flow::Continue
                });
                assert_eq!(ids, expected.0);
                let usage = usage.unwrap();
                assert_eq!((usage.generated_tokens, usage.finish), (6, Finish::Length));
            });
        }
    });
    let refused = service.generate(&request(&[], 6), &mut |_| Flow::Continue);
    assert!(refused.unwrap_err().to_string().contains("prompt is empty"));
    let stopped = service.generate(&request(&prompt(5, 1), 40), &mut |event| match event {
        Event::Prefilled { .. } => Flow::Continue,
        Event::Token { .. } => Flow::Stop,
    });
    assert_eq!(stopped.unwrap().finish, Finish::Cancelled);
    nothing_is_lost(&service);
}

const TYPES: [KvType; 4] = [KvType::F16, KvType::Fp8, KvType::Int8, KvType::Int4];

#[test]
fn texts_are_the_same_with_shared_prefixes_without_and_alone() {
    for kv in TYPES {
        let native = demo(&Options { kv, context: Some(192), ..options(4) });
        // Beginnings of 70 and of 96 tokens in common; the last is exactly what is shared.
        let requests: Vec<Request> = [(70, 30), (70, 1), (96, 9), (96, 0), (70, 26)]
            .iter()
            .enumerate()
            .map(|(i, (common, own))| {
                request(&[prompt(*common, 1), prompt(*own, 5 + i)].concat(), 40)
            })
            .collect();
        let expected: Vec<_> = requests.iter().map(|request| alone(&native, request)).collect();
        for share_prefixes in [true, false] {
            let service = start(&native, Limits { share_prefixes, ..Limits::default() });
            for round in 0..2 {
                let responses: Vec<_> = requests
                    .iter()
                    .map(|request| service.submit(request.clone().into()).unwrap())
                    .collect();
                for (i, response) in responses.into_iter().enumerate() {
                    let read = read(response).unwrap();
                    assert_eq!(read.texts[0], expected[i], "{kv:?}, request {i}");
                    assert_eq!(read.served.prompt_tokens, requests[i].prompt.len());
                    if round == 1 {
                        // Everything was seen before, but the last token is always computed.
                        let whole = (requests[i].prompt.len() - 1) / 32 * 32;
                        let cached = if share_prefixes { whole } else { 0 };
                        assert_eq!(read.served.cached_tokens, cached, "{kv:?}, request {i}");
                    }
                }
            }
            let snapshot = settled(&service);
            assert_eq!(snapshot.prefix_hit_tokens > 0, share_prefixes);
            // The cache is the model's and outlives the service.
            assert!(snapshot.cached_pages > 0);
            nothing_is_lost(&service);
        }
    }
}

#[test]
fn a_conversation_that_goes_on_finds_its_own_text_in_the_cache() {
    let native = demo(&Options { kv: KvType::Int8, context: Some(256), ..options(2) });
    let service = start(&native, Limits::default());
    let first = request(&prompt(50, 2), 60);
    let answer = read(service.submit(first.clone().into()).unwrap()).unwrap();
    let turn = [&first.prompt[..], &answer.texts[0].0, &prompt(20, 9)].concat();
    let second = request(&turn, 30);
    let again = read(service.submit(second.clone().into()).unwrap()).unwrap();
    assert_eq!(again.texts[0], alone(&native, &second));
    // The last token generated was never computed: 109 positions, three full pages.
    assert_eq!(again.served.cached_tokens, 96);
}

#[test]
fn a_text_that_gave_up_its_pages_is_the_same_as_undisturbed() {
    let all = [
        ("llama", KvType::F16),
        ("llama", KvType::Int4),
        ("mistral", KvType::Int8),
        ("gemma3", KvType::F16),
        ("phi3-longrope", KvType::F16),
        ("phi3-longrope", KvType::Int8),
        ("llama-dynamic", KvType::F16),
        ("llama-dynamic", KvType::Int4),
    ];
    for (name, kv) in all {
        for share_prefixes in [true, false] {
            // Six sequences of two pages each at their ends, and seven pages.
            let native =
                tiny(name, &Options { kv, cache: Some(7 * 32), chunk: 48, ..options(6) }).unwrap();
            let requests: Vec<Request> =
                (0..6).map(|i| request(&prompt(9 + 3 * i, i), 50 - 4 * i)).collect();
            // Before the service has pages: calls of their own are refused where none are left.
            let expected: Vec<_> = requests.iter().map(|request| alone(&native, request)).collect();
            let service = start(&native, Limits { share_prefixes, ..Limits::default() });
            let responses: Vec<_> = requests
                .iter()
                .map(|request| service.submit(request.clone().into()).unwrap())
                .collect();
            for (i, response) in responses.into_iter().enumerate() {
                let read = read(response).unwrap();
                assert_eq!(read.texts[0], expected[i], "{name} {kv:?} {i}");
                assert_eq!(read.served.generated_tokens, requests[i].max_tokens);
            }
            let snapshot = settled(&service);
            assert!(snapshot.preemptions > 0, "{name} {kv:?}: {snapshot:?}");
            nothing_is_lost(&service);
        }
    }
}

#[test]
fn several_texts_are_those_of_several_requests_with_derived_seeds() {
    // Four go on from the prompt's pages at once; with two places the others begin anew.
    for (kv, batch) in [(KvType::F16, 4), (KvType::Int8, 4), (KvType::Int4, 2), (KvType::F32, 2)] {
        for length in [1, 32, 45] {
            let native = demo(&Options { kv, context: Some(128), ..options(batch) });
            let service = start(&native, Limits::default());
            let one = request(&prompt(length, 3), 40);
            let all = Submission { n: 4, ..one.clone().into() };
            let read = read(service.submit(all).unwrap()).unwrap();
            assert_eq!(read.served.generated_tokens, 160);
            assert_eq!((read.served.prompt_tokens, read.served.cached_tokens), (length, 0));
            for (text, found) in read.texts.iter().enumerate() {
                let mut single = one.clone();
                single.sampling.seed = derived_seed(one.sampling.seed, text);
                assert_eq!(*found, alone(&native, &single), "{kv:?}, {length}, text {text}");
            }
            assert_ne!(read.texts[0], read.texts[1]);
            nothing_is_lost(&service);
        }
    }
}

#[test]
fn a_cancelled_request_gives_its_pages_back_and_others_go_on() {
    let native = demo(&Options { context: Some(512), ..options(3) });
    let service = start(&native, Limits { share_prefixes: false, ..Limits::default() });
    let kept = request(&prompt(20, 1), 120);
    let other = service.submit(kept.clone().into()).unwrap();
    let mut cancelled = service.submit(request(&prompt(40, 2), 400).into()).unwrap();
    let mut dropped = service.submit(request(&prompt(60, 3), 400).into()).unwrap();
    for response in [&mut cancelled, &mut dropped] {
        let first = response.find(|update| matches!(update, Update::Token { .. }));
        assert!(first.is_some());
    }
    cancelled.cancel();
    drop(dropped);
    let finish = cancelled.find_map(|update| match update {
        Update::Finished { finish, generated, .. } => Some((finish, generated < 400)),
        _ => None,
    });
    assert_eq!(finish, Some((Finish::Cancelled, true)));
    assert!(matches!(cancelled.next(), Some(Update::Done(Ok(_)))));
    assert!(cancelled.next().is_none());
    assert_eq!(read(other).unwrap().texts[0], alone(&native, &kept));
    let now = settled(&service);
    assert_eq!((now.cancelled, now.finished), (2, 1));
    assert_eq!(now.free_pages, now.pages);
}

#[test]
fn what_waits_can_be_cancelled_too() {
    let native = demo(&Options { context: Some(512), ..options(1) });
    let service = start(&native, Limits::default());
    let runs = service.submit(request(&prompt(20, 1), 300).into()).unwrap();
    let waits = service.submit(Submission { n: 3, ..request(&prompt(20, 2), 300).into() }).unwrap();
    waits.cancel();
    let finished: Vec<_> = waits
        .filter_map(|update| match update {
            Update::Finished { text, finish, generated } => Some((text, finish, generated)),
            _ => None,
        })
        .collect();
    assert_eq!(finished, [0, 1, 2].map(|text| (text, Finish::Cancelled, 0)));
    drop(runs);
    nothing_is_lost(&service);
}

#[test]
fn requests_beyond_the_limits_are_refused_with_the_reason() {
    let native = demo(&Options { context: Some(512), ..options(1) });
    let limits =
        Limits { waiting: 3, waiting_tokens: 100, n: 2, top_log_probs: 5, ..Limits::default() };
    let service = start(&native, limits);
    let refused = |submission: Submission| service.submit(submission).map(drop).unwrap_err();
    let long = refused(request(&prompt(100, 1), 413).into());
    assert!(matches!(long, Error::Context { needed: 513, context: 512 }), "{long}");
    assert!(matches!(refused(request(&[], 5).into()), Error::Request(_)));
    assert!(matches!(refused(request(&[9999], 5).into()), Error::Token { id: 9999, .. }));
    let few = |n| Submission { n, ..request(&prompt(5, 1), 5).into() };
    assert!(refused(few(3)).to_string().contains("n is 3"));
    assert!(refused(few(0)).to_string().contains('n'));
    let wanted = LogProbsWanted { top: 6, of: Distribution::Model };
    assert!(refused(Submission { log_probs: Some(wanted), ..few(1) }).to_string().contains('6'));
    let prompts = refused(Submission { prompt_log_probs: Some(7), ..few(1) });
    assert!(prompts.to_string().contains('7'));

    // One runs for long; then the queue fills, first its tokens, then its places.
    let mut runs = service.submit(request(&prompt(5, 1), 500).into()).unwrap();
    runs.next();
    while service.snapshot().waiting > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let wait = |length, seed| service.submit(request(&prompt(length, seed), 20).into());
    let _first = wait(60, 1).unwrap();
    assert!(matches!(wait(60, 2), Err(Error::QueueTokens { waiting: 120, most: 100 })));
    let _others = (wait(5, 3).unwrap(), wait(5, 4).unwrap());
    assert!(matches!(wait(5, 5), Err(Error::QueueFull { waiting: 3, most: 3 })));
    assert_eq!(service.snapshot().refused, 9);
    // A prompt that the pages could never hold is refused whatever the context is.
    let native = demo(&Options { context: Some(512), cache: Some(96), ..options(2) });
    let small = start(&native, Limits::default());
    let never = small.submit(request(&prompt(90, 1), 7).into()).map(drop);
    assert!(matches!(never, Err(Error::Context { needed: 97, context: 96 })));
    assert_eq!(
        read(small.submit(request(&prompt(90, 1), 6).into()).unwrap()).unwrap().texts.len(),
        1
    );
}

#[test]
fn log_probabilities_of_the_model_are_those_of_the_scorer() {
    let native = demo(&Options { context: Some(96), ..options(2) });
    let service = start(&native, Limits::default());
    let mut biased = request(&prompt(30, 4), 25);
    biased.sampling.logit_bias = vec![(77, 3.0)];
    biased.sampling.temperature = 0.7;
    let wanted = LogProbsWanted { top: 4, of: Distribution::Model };
    let submission = Submission { log_probs: Some(wanted), ..biased.clone().into() };
    let mut sequence = biased.prompt.clone();
    let mut compared = 0;
    for update in service.submit(submission).unwrap() {
        let Update::Token { id, log_probs, .. } = update else { continue };
        let found = log_probs.unwrap();
        let logits = native.scorer().unwrap().feed(&sequence).unwrap();
        let row = logits.rows().last().unwrap();
        let sum = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        let of = |id: u32| (f64::from(row[id as usize]) - sum) as f32;
        assert!((found.chosen - of(id)).abs() < 1e-5, "{} {}", found.chosen, of(id));
        let mut ids: Vec<u32> = (0..row.len() as u32).collect();
        ids.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
        assert_eq!(found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids[..4]);
        assert!(found.top.iter().all(|(id, found)| (found - of(*id)).abs() < 1e-5));
        sequence.push(id);
        compared += 1;
    }
    assert_eq!(compared, 25);
}

/// What a submission tells of its prompt, how much of that was cached, and its first text.
fn told(response: Response) -> (Vec<LogProbs>, usize, Vec<u32>) {
    let (mut told, mut found, mut ids) = (None, 0, Vec::new());
    for update in response {
        match update {
            Update::Prefilled { cached, log_probs, .. } => {
                assert!(told.is_none(), "it is told once");
                (told, found) = (log_probs, cached);
            }
            Update::Token { text: 0, id, .. } => ids.push(id),
            Update::Done(served) => drop(served.unwrap()),
            _ => {}
        }
    }
    (told.unwrap_or_default(), found, ids)
}

/// Holds log probabilities of a prompt against logits of the scorer, in f64.
fn are_those_of_the_scorer(native: &Native, prompt: &[u32], told: &[LogProbs], top: usize) {
    assert_eq!(told.len(), prompt.len() - 1);
    let logits = native.scorer().unwrap().feed(prompt).unwrap();
    for ((row, next), found) in logits.rows().zip(&prompt[1..]).zip(told) {
        let sum = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        let of = |id: u32| (f64::from(row[id as usize]) - sum) as f32;
        assert!((found.chosen - of(*next)).abs() < 1e-5, "{} {}", found.chosen, of(*next));
        let mut ids: Vec<u32> = (0..row.len() as u32).collect();
        ids.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
        assert_eq!(found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids[..top]);
        assert!(found.top.iter().all(|(id, found)| (found - of(*id)).abs() < 1e-5));
    }
}

#[test]
fn log_probabilities_of_a_prompt_are_those_of_the_scorer_whatever_is_cached() {
    for kv in TYPES {
        let native = demo(&Options { kv, context: Some(192), ..options(3) });
        let plain = request(&prompt(100, 4), 10);
        let text = alone(&native, &plain).0;
        for (step_tokens, share_prefixes) in [(256, true), (256, false), (7, true), (40, true)] {
            let limits =
                Limits { step_tokens: Some(step_tokens), share_prefixes, ..Limits::default() };
            let service = start(&native, limits);
            read(service.submit(plain.clone().into()).unwrap()).unwrap();
            // Twice at once beside one that wants none: each sees all of its own prompt.
            let watched = || Submission { prompt_log_probs: Some(3), ..plain.clone().into() };
            let all = [watched(), plain.clone().into(), watched()];
            let all = all.map(|submission| service.submit(submission).unwrap());
            let [one, unwatched, other] = all.map(told);
            are_those_of_the_scorer(&native, &plain.prompt, &one.0, 3);
            assert_eq!(one, other, "{kv:?}, {step_tokens}");
            assert_eq!((one.1, &one.2), (0, &text), "{kv:?}, {step_tokens}");
            let cached = if share_prefixes { 96 } else { 0 };
            assert_eq!((unwatched.0, unwatched.1, &unwatched.2), (vec![], cached, &text));
            nothing_is_lost(&service);
        }
    }
}

#[test]
fn log_probabilities_of_a_prompt_are_those_of_the_scorer_whatever_the_rope() {
    let all = [
        ("llama", KvType::Int4),
        ("mistral", KvType::F16),
        ("phi3-longrope", KvType::F16),
        ("llama-dynamic", KvType::F16),
    ];
    for (name, kv) in all {
        for share_prefixes in [true, false] {
            let native = tiny(name, &Options { kv, cache: Some(7 * 32), ..options(6) }).unwrap();
            let requests: Vec<Request> =
                (0..6).map(|i| request(&prompt(40 + 3 * i, i), 9)).collect();
            let limits = Limits { step_tokens: Some(10), share_prefixes, ..Limits::default() };
            let service = start(&native, limits);
            let responses: Vec<_> = requests
                .iter()
                .map(|request| {
                    let wanted = Submission { prompt_log_probs: Some(2), ..request.clone().into() };
                    service.submit(wanted).unwrap()
                })
                .collect();
            let told: Vec<_> = responses.into_iter().map(told).collect();
            nothing_is_lost(&service);
            drop(service);
            for (request, (told, _, ids)) in requests.iter().zip(&told) {
                are_those_of_the_scorer(&native, &request.prompt, told, 2);
                assert_eq!(*ids, alone(&native, request).0, "{name}");
            }
        }
    }
}

#[test]
fn log_probabilities_of_a_prompt_are_told_once_for_several_texts_and_to_a_call_as_well() {
    let native = demo(&Options { context: Some(128), ..options(2) });
    let one = request(&prompt(45, 3), 5);
    let wanted = Submission { prompt_log_probs: Some(0), ..one.clone().into() };
    let mut found = None;
    let served = native.submit(wanted.clone(), &mut |update| {
        if let Update::Prefilled { log_probs, .. } = update {
            found = log_probs;
        }
        Flow::Continue
    });
    assert_eq!((served.unwrap().generated_tokens, found.as_ref().unwrap().len()), (5, 44));
    let service = start(&native, Limits::default());
    // Four texts in two places: the last two begin anew.
    let several = service.submit(Submission { n: 4, ..wanted.clone() }).unwrap();
    assert_eq!(Some(told(several).0), found);
    are_those_of_the_scorer(&native, &one.prompt, &found.unwrap(), 0);
    let single = Submission { request: request(&prompt(1, 3), 5), ..wanted.clone() };
    assert_eq!(told(service.submit(single).unwrap()).0, vec![]);
    let refused = native.submit(Submission { n: 2, ..wanted }, &mut |_| Flow::Continue);
    assert!(matches!(refused, Err(Error::Request(_))), "{refused:?}");
}

#[test]
fn a_light_client_does_not_wait_for_all_of_a_heavy_one() {
    let native = demo(&Options { context: Some(128), ..options(2) });
    let service = start(&native, Limits::default());
    let of = |client: &str, seed| Submission {
        client: Arc::from(client),
        ..request(&prompt(20, seed), 60).into()
    };
    let heavy: Vec<_> = (0..12).map(|i| service.submit(of("heavy", i)).unwrap()).collect();
    let light = service.submit(of("light", 50)).unwrap();
    let before = service.snapshot().finished;
    read(light).unwrap();
    let finished = service.snapshot().finished - before;
    // It takes the place of one of the two that run.
    assert!(finished <= 3, "{finished} finished meanwhile");
    heavy.into_iter().for_each(|response| drop(read(response).unwrap()));
    assert_eq!(settled(&service).finished, 13);
}

#[test]
fn a_higher_priority_takes_the_place_of_a_lower_one_and_texts_stay_the_same() {
    let native = demo(&Options { context: Some(256), kv: KvType::Int8, ..options(2) });
    let service = start(&native, Limits::default());
    let usual: Vec<Request> = (0..6).map(|i| request(&prompt(20, i), 200)).collect();
    let mut responses: Vec<_> =
        usual.iter().map(|request| service.submit(request.clone().into()).unwrap()).collect();
    responses[..2].iter_mut().for_each(|response| drop(response.next()));
    let urgent = request(&prompt(30, 9), 10);
    let submission = Submission { priority: 1, ..urgent.clone().into() };
    let read_urgent = read(service.submit(submission).unwrap()).unwrap();
    assert_eq!(read_urgent.texts[0], alone(&native, &urgent));
    let now = service.snapshot();
    assert!(now.preemptions >= 1 && now.waiting + now.preempted > 0, "{now:?}");
    for (request, mut response) in usual.iter().zip(responses) {
        let ids: Vec<u32> = response
            .by_ref()
            .filter_map(|update| match update {
                Update::Token { id, .. } => Some(id),
                _ => None,
            })
            .collect();
        assert_eq!(ids, alone(&native, request).0);
    }
}

#[test]
fn an_error_of_one_request_leaves_the_others_alone() {
    let native = demo(&Options { context: Some(128), ..options(3) });
    let service = start(&native, Limits::default());
    let good = request(&prompt(10, 1), 60);
    let response = service.submit(good.clone().into()).unwrap();
    let mut nothing = request(&prompt(10, 2), 60);
    nothing.sampling.logit_bias = (0..4096).map(|id| (id, f32::NEG_INFINITY)).collect();
    let failed = read(service.submit(nothing.into()).unwrap());
    assert!(matches!(failed, Err(Error::NoLogits)), "{failed:?}");
    assert_eq!(read(response).unwrap().texts[0], alone(&native, &good));
    let now = settled(&service);
    assert_eq!((now.failed, now.finished), (1, 1));
    nothing_is_lost(&service);
}

#[test]
fn draining_finishes_what_was_taken_on_and_stopping_does_not() {
    let native = demo(&Options { context: Some(256), ..options(2) });
    let submit = |service: &Service, count: usize| -> Vec<Response> {
        let one = |i| service.submit(request(&prompt(20, i), 100).into()).unwrap();
        (0..count).map(one).collect()
    };
    let service = start(&native, Limits::default());
    let responses = submit(&service, 5);
    service.end(Ending::Drain);
    for response in responses {
        assert_eq!(read(response).unwrap().served.generated_tokens, 100);
    }
    let service = start(&native, Limits::default());
    let responses = submit(&service, 5);
    drop(service);
    for mut response in responses {
        let cancelled = Finish::Cancelled;
        assert!(
            response.any(|u| matches!(u, Update::Finished { finish, .. } if finish == cancelled))
        );
    }
}
