//! The adapter for transformers against a shell script in Python's place.

use std::{fs, path::Path};

use lathe_adapters::transformers::{Options, Transformers};
use lathe_api::{Engine, Event, Finish, Flow, Request, Turn, Usage};
use lathe_base::Seconds;

use crate::{common, fake};

const READY: &str =
    r#"{"ready": {"version": "5, torch 2", "vocab": 100, "bytes": 8, "dtype": "x"}}"#;

/// A worker that says `lines` for each request after it is ready.
fn worker(folder: &Path, ready: &str, lines: &str) -> Options {
    let script =
        format!("#!/bin/sh\necho loading >&2\n{ready}\nwhile read line; do\n{lines}\ndone\n");
    Options {
        name: "transformers".into(),
        python: fake::executable(folder, "python", &script),
        model: folder.to_owned(),
        threads: 1,
        dtype: "auto".into(),
        context: 64,
        vocab: 100,
        guard: Vec::new(),
        start_within: Seconds(20.0),
        patience: Seconds(0.5),
    }
}

fn request(prompt: &[u32]) -> Request {
    Request { prompt: prompt.to_vec(), stop_tokens: vec![9], ..common::request(2) }
}

fn say(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("echo '{line}'\n")).collect()
}

/// A stream and a token of it.
type Heard = (usize, u32);

fn run(options: &Options, requests: &[Request]) -> (Vec<Heard>, Result<Vec<Usage>, String>) {
    let engine = match Transformers::start(options) {
        Ok(engine) => engine,
        Err(error) => return (Vec::new(), Err(error.to_string())),
    };
    let mut ids = Vec::new();
    let usages = engine.generate_batch(requests, &mut |index, event| {
        if let Event::Token { id, .. } = event {
            ids.push((index, id));
        }
        Flow::Continue
    });
    (ids, usages.map_err(|error| error.to_string()))
}

#[test]
fn a_batch_is_told_step_by_step() {
    let folder = tempfile::tempdir().unwrap();
    let lines = say(&[r#"{"tokens": [5, 9]}"#, r#"{"tokens": [6, 8]}"#, r#"{"done": true}"#]);
    let options = worker(folder.path(), &say(&[READY]), &lines);
    let both = [request(&[1, 2]), request(&[3, 4])];
    let (ids, usages) = run(&options, &both);
    assert_eq!(ids, [(0, 5), (1, 9), (0, 6), (1, 8)]);
    assert!(usages.unwrap().iter().all(|usage| usage.generated_tokens == 2));
    let stopping = both.map(|request| Request { ignore_stop: false, ..request });
    let (ids, usages) = run(&options, &stopping);
    assert_eq!(ids, [(0, 5), (0, 6)]);
    let usages = usages.unwrap();
    assert_eq!((usages[0].finish, usages[1].finish), (Finish::Length, Finish::Stop));
}

#[test]
fn what_goes_wrong_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for (name, ready, lines, told) in [
        ("missing", "echo 'No module named torch' >&2; exit 1".to_owned(), "", "No module named"),
        ("no-model", say(&[r#"{"error": "OSError: no config.json"}"#]), "", "no config.json"),
        ("no-json", say(&[READY]), "echo hello", "its answer is no JSON"),
        ("failing", say(&[READY]), r#"echo '{"error": "out of memory"}'"#, "out of memory"),
        ("hanging", say(&[READY]), "sleep 60", "it said nothing for 500 ms"),
        (
            "crashing",
            say(&[READY]),
            "echo killed >&2; exit 3",
            "exit status: 3); it last said: loading / killed",
        ),
        ("small", say(&[&READY.replace("100", "7")]), "", "it knows 7 tokens of 100"),
    ] {
        let place = folder.path().join(name);
        fs::create_dir(&place).unwrap();
        let lines = if lines.is_empty() { ":" } else { lines };
        let error = run(&worker(&place, &ready, lines), &[request(&[1])]).1.unwrap_err();
        assert!(error.contains(told), "{name}: {error}");
    }
}

#[test]
fn what_the_worker_cannot_do_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = worker(folder.path(), &say(&[READY]), "exit 1");
    let uneven = [request(&[1]), request(&[1, 2])];
    assert!(run(&options, &uneven).1.unwrap_err().contains("prompts of several lengths"));
    let strings = Request { stop_strings: vec!["x".into()], ..request(&[1]) };
    assert!(run(&options, &[strings]).1.unwrap_err().contains("stop at strings"));
}

#[test]
fn texts_conversations_and_logits_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let ready = say(&[&READY.replace("100", "3")]);
    // Two rows of four logits, 0 to 7, of a model with one more than the tokenizer has tokens.
    let logits = "AAAAAAAAgD8AAABAAABAQAAAgEAAAKBAAADAQAAA4EA=";
    let lines = format!(
        "case \"$line\" in\n\
         *tokenize*) echo '{{\"ids\": [3, 4]}}';;\n\
         *weights*) echo '{{\"weights\": \"AAAAQAAAQEA=\"}}';;\n\
         *render*) echo '{{\"text\": \"<user>a\"}}';;\n\
         *) echo '{{\"logits\": \"{logits}\"}}';;\n\
         esac"
    );
    let options = Options { vocab: 3, ..worker(folder.path(), &ready, &lines) };
    let engine = Transformers::start(&options).unwrap();
    assert_eq!(engine.tokenize("ab").unwrap(), [3, 4]);
    assert_eq!(engine.render(&[Turn { role: "user", content: "a" }]).unwrap(), "<user>a");
    assert_eq!(engine.weights("model.layers.0.mlp.up_proj", 0..1).unwrap(), [2.0, 3.0]);
    let mut scorer = engine.scorer().unwrap();
    assert_eq!(scorer.feed(&[1, 2]).unwrap().values, [0.0, 1.0, 2.0, 4.0, 5.0, 6.0]);
    // Three tokens have no eight logits.
    let error = scorer.feed(&[1]).unwrap_err().to_string();
    assert!(error.contains("it gave 8 logits of 3 × 3"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_an_engine_started_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let ready =
        format!("sleep 60 > /dev/null 2>&1 &\necho $! > {}\n{}", told.display(), say(&[READY]));
    let engine = Transformers::start(&worker(folder.path(), &ready, ":")).unwrap();
    let id = fs::read_to_string(&told).unwrap();
    let stat = format!("/proc/{}/stat", id.trim());
    // What has ended and was not waited for is a zombie.
    let runs = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z"));
    assert!(runs());
    drop(engine);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while runs() && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(!runs());
}
