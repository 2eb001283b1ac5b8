//! llama.cpp's adapter against a server that can do everything wrong.

use std::{fs, path::Path, time::Duration, time::Instant};

use lathe_adapters::llamacpp::{Installation, LlamaCpp, Options, Settings};
use lathe_api::{Engine, Event, Finish, Flow, Request, UNKNOWN_TOKEN};
use lathe_base::Seconds;

use crate::{
    common::{generate, request, tells},
    fake,
};

#[test]
#[ignore = "serves the other tests"]
fn serve() {
    fake::serve();
}

fn options(folder: &Path, mode: &str) -> Options {
    let program = fake::program(folder, "llamacpp::serve");
    let installation = Installation::probe("llama.cpp", &program).unwrap();
    assert_eq!(installation.version, "fake 7");
    let settings = Settings {
        model: folder.join("model.gguf"),
        threads: 1,
        context: 64,
        streams: 4,
        kv: "f16".into(),
        more: vec!["--fake".into(), mode.into()],
    };
    Options {
        name: installation.name.clone(),
        version: installation.version.clone(),
        program,
        arguments: installation.arguments(&settings).unwrap(),
        guard: Vec::new(),
        context: 64,
        streams: 4,
        vocab: 4096,
        avoid: vec![7],
        start_within: Seconds(30.0),
        patience: Seconds(30.0),
    }
}

fn start(mode: &str) -> LlamaCpp {
    let folder = tempfile::tempdir().unwrap();
    LlamaCpp::start(&options(folder.path(), mode)).unwrap()
}

/// Why a server with this fault does not start.
fn refusal(options: &Options) -> String {
    match LlamaCpp::start(options) {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn tokens_come_as_ids_however_the_answer_is_cut() {
    for mode in ["", "bytewise", "slow", "slow-start"] {
        let engine = start(mode);
        let (ids, usage) = generate(&engine, &request(4));
        assert_eq!(ids, [7, 8, 9, 10], "{mode}");
        let usage = usage.unwrap();
        assert_eq!((usage.generated_tokens, usage.finish), (4, Finish::Length), "{mode}");
        assert_eq!(engine.info().weight_bytes, 1234);
        if mode == "slow-start" {
            assert!(engine.load().0 >= 0.3, "loading took {}", engine.load());
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_server_leaves_in_its_folder_goes_with_it() {
    let engine = start("");
    let folder = fs::read_link(format!("/proc/{}/cwd", engine.process())).unwrap();
    assert!(folder.join(fake::LOG).exists() && !Path::new(fake::LOG).exists());
    drop(engine);
    assert!(!folder.exists(), "{}", folder.display());
}

#[test]
fn an_older_server_tells_no_ids_and_is_counted_all_the_same() {
    let (ids, usage) = generate(&start("older"), &request(4));
    assert_eq!(ids, [UNKNOWN_TOKEN; 4]);
    assert_eq!(usage.unwrap().generated_tokens, 4);
}

#[test]
fn tokens_that_are_kept_back_are_counted_when_they_come() {
    let engine = start("keeps-back");
    let (ids, _) = generate(&engine, &request(4));
    assert_eq!(ids, [UNKNOWN_TOKEN, 8, UNKNOWN_TOKEN, 10]);
    let (ids, usage) = generate(&engine, &request(5));
    assert_eq!((ids.len(), ids[4]), (5, UNKNOWN_TOKEN), "the last is known by the end's count");
    assert_eq!(usage.unwrap().generated_tokens, 5);
}

#[test]
fn a_text_that_may_end_ends() {
    let engine = start("");
    let stop = Request { stop_tokens: vec![9], ignore_stop: false, ..request(8) };
    let (ids, usage) = generate(&engine, &stop);
    assert_eq!((ids, usage.unwrap().finish), (vec![7, 8], Finish::Stop));
    let mut seen = 0;
    let usage = engine.generate(&request(50), &mut |_| {
        seen += 1;
        if seen == 2 { Flow::Stop } else { Flow::Continue }
    });
    assert_eq!((usage.unwrap().finish, seen), (Finish::Cancelled, 2));
    let (_, usage) = generate(&start("early-end"), &request(8));
    assert_eq!(usage.unwrap().generated_tokens, 2, "an early end is told, not filled up");
}

#[test]
fn streams_run_at_the_same_time_each_with_its_own_tokens() {
    let engine = start("slow");
    let requests: Vec<Request> =
        (0..4).map(|i| Request { prompt: vec![100 * (i + 1)], ..request(10) }).collect();
    let mut ids = vec![Vec::new(); 4];
    let begin = Instant::now();
    let usages = engine.generate_batch(&requests, &mut |index, event| {
        if let Event::Token { id, .. } = event {
            ids[index].push(id);
        }
        Flow::Continue
    });
    let took = begin.elapsed();
    assert_eq!(usages.unwrap().len(), 4);
    for (index, ids) in ids.iter().enumerate() {
        let first = 100 * (index as u32 + 1) + 1;
        assert_eq!(*ids, (first..first + 10).collect::<Vec<_>>());
    }
    // Ten tokens of 20 ms; in turn they would take 800 ms.
    assert!(took < Duration::from_millis(700), "{took:?}");
}

#[test]
fn what_goes_wrong_is_told_in_the_servers_words() {
    for (mode, told) in [
        ("refuse", "refused the request (400): Prompt contains invalid tokens"),
        ("broken", "it answered 500: Compute error."),
        ("breaks-off", "its answer broke off after 2 of 6 tokens"),
        ("malformed", "it sent an event that is no JSON"),
        ("error-event", "out of slots"),
        ("crash", "exit status: 9); it last said: ggml_abort: not enough memory"),
    ] {
        let (_, outcome) = generate(&start(mode), &request(6));
        let error = outcome.unwrap_err();
        assert!(error.contains("llama.cpp") && error.contains(told), "{mode}: {error}");
    }
}

#[test]
fn a_server_that_hangs_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let patience = Seconds(0.3);
    let engine = LlamaCpp::start(&Options { patience, ..options(folder.path(), "hang") }).unwrap();
    let begin = Instant::now();
    let (ids, outcome) = generate(&engine, &request(6));
    assert_eq!(ids.len(), 2);
    let error = outcome.unwrap_err();
    assert!(error.contains("said nothing for 300 ms"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let refused = refusal(&options(folder.path(), "bad-model"));
    assert!(refused.contains("tensor data is out of bounds"), "{refused}");
    let start_within = Seconds(0.4);
    let refused = refusal(&Options { start_within, ..options(folder.path(), "never-ready") });
    assert!(refused.contains("not ready after") && refused.contains("503"), "{refused}");
    let refused = refusal(&options(folder.path(), "small-vocabulary"));
    assert!(refused.contains("it knows 10 tokens of 4096"), "{refused}");
    let missing = Options { program: folder.path().join("none"), ..options(folder.path(), "") };
    assert!(refusal(&missing).contains("cannot start"));
    let narrow = Options { context: 100_000, ..options(folder.path(), "") };
    assert!(refusal(&narrow).contains("a stream has room for 256 tokens"));
}

#[test]
fn a_port_that_is_taken_meanwhile_is_changed_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("marker");
    std::fs::write(&marker, "").unwrap();
    let mode = format!("port-taken:{}", marker.display());
    LlamaCpp::start(&options(folder.path(), &mode)).unwrap();
    assert!(!marker.exists(), "the first try must have failed");
}

#[test]
fn the_process_ends_with_the_engine() {
    let engine = start("");
    let pid = engine.process();
    let alive = || Path::new(&format!("/proc/{pid}/stat")).exists();
    assert!(!cfg!(target_os = "linux") || alive());
    drop(engine);
    assert!(!alive());
}

#[test]
fn requests_that_cannot_be_are_refused_before_they_are_sent() {
    let engine = start("");
    let long = generate(&engine, &request(62)).1.unwrap_err();
    assert!(long.contains("65 tokens are needed"), "{long}");
    let strange = Request { prompt: vec![4096], ..request(2) };
    assert!(generate(&engine, &strange).1.unwrap_err().contains("outside the vocabulary"));
}

#[test]
fn a_program_that_is_no_server_is_recognised() {
    let no_server = Installation::probe("llama.cpp", Path::new("/bin/ls")).unwrap_err();
    assert!(no_server.to_string().contains("it is no llama-server"), "{no_server}");
}

/// The real server on a real model, where both are named: prints what it generates, to be held
/// against `lathe generate`.
#[test]
#[ignore = "needs LATHE_LLAMA_CPP (a llama-server) and LATHE_GGUF (a model)"]
fn a_real_server_generates() {
    let place = |name: &str| std::path::PathBuf::from(std::env::var_os(name).unwrap());
    let installation = Installation::probe("llama.cpp", &place("LATHE_LLAMA_CPP")).unwrap();
    let settings = Settings {
        model: place("LATHE_GGUF"),
        threads: 2,
        context: 128,
        streams: 2,
        kv: "f16".into(),
        more: vec![],
    };
    let folder = tempfile::tempdir().unwrap();
    let engine = LlamaCpp::start(&Options {
        program: installation.program.clone(),
        arguments: installation.arguments(&settings).unwrap(),
        vocab: 512,
        context: 128,
        avoid: vec![],
        ..options(folder.path(), "")
    })
    .unwrap();
    let prompt = std::env::var("LATHE_PROMPT_IDS").unwrap_or("1,2,3".into());
    let prompt: Vec<u32> = prompt.split(',').map(|id| id.trim().parse().unwrap()).collect();
    let asked = Request { prompt, max_tokens: 40, ignore_stop: false, ..request(40) };
    let both = [asked.clone(), asked];
    let mut texts = [String::new(), String::new()];
    let mut ids = [Vec::new(), Vec::new()];
    let usages = engine
        .generate_batch(&both, &mut |index, event| {
            if let Event::Token { id, text } = event {
                texts[index].push_str(text);
                ids[index].push(id);
            }
            Flow::Continue
        })
        .unwrap();
    println!("{:?}\n{:?}\n{}", usages[0], ids[0], texts[0]);
    assert_eq!(ids[0], ids[1]);
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn texts_conversations_and_probabilities_are_told() {
    tells(&start(""));
    let older = start("older");
    assert!(older.tokenize("a").unwrap_err().to_string().contains("(404)"));
    let few = start("few-probabilities");
    let error = few.scorer().unwrap().feed(&[1]).unwrap_err().to_string();
    assert!(error.contains("cannot tell the probabilities of all 4096 tokens"), "{error}");
}
