//! `optimize --engines`, with a server that computes nothing in llama.cpp's place.
#![cfg(unix)]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
};

use serde_json::Value;

use super::{against::fake, json, lathe, run, stderr, text};

const QUICK: [&str; 16] = [
    "--rounds",
    "3",
    "--max-rounds",
    "3",
    "--requests",
    "1",
    "--prompt-tokens",
    "16",
    "--new-tokens",
    "8",
    "--max-tokens",
    "800",
    "--threads",
    "1",
    "--formats",
    "q4_0",
];

/// The report of a run with the server in a mode.
fn optimized(folder: &Path, mode: &str, more: &[&str]) -> Value {
    let server = format!("llama.cpp={}", fake::program(folder, "against::serve").display());
    let mode = format!("llama.cpp=--fake {mode}");
    let out = folder.join("run");
    let words = ["optimize", "demo", "--run", text(&out), "--engines", "llama.cpp"];
    let engine = ["--engine-path", &server, "--engine-args", &mode];
    json(&[&words[..], &engine, &QUICK, more].concat())
}

fn row<'a>(report: &'a Value, id: &str) -> &'a Value {
    let rows = report["rows"].as_array().unwrap();
    rows.iter().find(|row| row["id"] == id).unwrap_or_else(|| panic!("no row {id}: {report:#}"))
}

fn record(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("run/run.json")).unwrap()).unwrap()
}

/// The rounds of a candidate's trials that came to an end, and of those that failed.
fn trials(record: &Value, id: &str) -> (Vec<u64>, Vec<u64>) {
    let rounds = record["rounds"].as_array().unwrap();
    let own = rounds.iter().filter(|round| round["candidate"] == id);
    let (well, failed): (Vec<&Value>, Vec<&Value>) =
        own.partition(|round| !round["outcome"]["Ok"].is_null());
    let numbers = |list: Vec<&Value>| list.iter().map(|r| r["round"].as_u64().unwrap()).collect();
    (numbers(well), numbers(failed))
}

#[test]
fn an_engine_that_computes_something_else_is_measured_marked_and_never_recommended() {
    let folder = tempfile::tempdir().unwrap();
    let report = optimized(folder.path(), "none", &["--kv", "f16,int8"]);
    let other = row(&report, "q4_0@llama.cpp");
    assert_eq!(other["label"], "GGUF Q4_0 on llama.cpp");
    assert!(other["decode"]["point"].as_f64().unwrap() > 0.0);
    assert!(other["kl"].is_null() && other["perplexity"].is_null(), "not those of other logits");
    let checks = other["conformance"]["checks"].as_array().unwrap();
    let deviates =
        |what: &str| checks.iter().any(|c| c["what"] == what && c["outcome"] == "deviates");
    assert!(deviates("logits") && deviates("text"), "{checks:?}");
    assert!(other["run"].as_str().unwrap().contains("llama-server --model "), "{}", other["run"]);
    let picked = report["picks"].as_array().unwrap();
    assert!(!picked.is_empty());
    assert!(picked.iter().all(|pick| !pick["row"].as_str().unwrap().ends_with("@llama.cpp")));
    let warned = report["warnings"].to_string();
    assert!(
        warned.contains("GGUF Q4_0 on llama.cpp does not compute what Lathe computes"),
        "{warned}"
    );
    // Of the engine whose KV cache can be chosen, both; of files that it does not read, the reason.
    row(&report, "q4_0@int8@llama.cpp");
    let dropped = report["dropped"].to_string();
    assert!(dropped.contains("BF16 on llama.cpp, BF16, KV INT8 on llama.cpp"), "{dropped}");
    let page = fs::read_to_string(folder.path().join("run/report.html")).unwrap();
    assert!(page.contains("Whether engines compute the same") && page.contains("DEVIATES"));
    let out = folder.path().join("run");
    assert!(run(&["report", text(&out), "--check"]).status.success());
}

#[test]
fn an_engine_that_dies_in_a_trial_costs_that_trial_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mode = format!("crash-once:{}", folder.path().join("crashed").display());
    let report = optimized(folder.path(), &mode, &[]);
    let record = record(folder.path());
    assert_eq!(trials(&record, "q4_0@llama.cpp"), (vec![1, 2], vec![0]));
    for id in ["base", "q4_0"] {
        assert_eq!(trials(&record, id), (vec![0, 1, 2], Vec::new()), "{id}");
    }
    let other = row(&report, "q4_0@llama.cpp");
    assert!(other["decode"]["point"].as_f64().unwrap() > 0.0);
    let notes = other["notes"].to_string();
    assert!(notes.contains("1 of 3 trials failed, first in round 1"), "{notes}");
    assert!(notes.contains("killed in the middle"), "{notes}");
}

#[test]
fn an_engine_that_dies_in_every_trial_is_given_up_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let report = optimized(folder.path(), "crash-at-eight", &[]);
    let record = record(folder.path());
    assert_eq!(trials(&record, "q4_0@llama.cpp"), (Vec::new(), vec![0, 1]));
    assert_eq!(trials(&record, "q4_0"), (vec![0, 1, 2], Vec::new()));
    let dropped = report["dropped"].to_string();
    assert!(dropped.contains("ggml_abort: not enough memory"), "{dropped}");
    assert_eq!(report["outcome"], "explored");
}

#[test]
fn an_engine_that_does_not_start_or_dies_when_it_is_asked_is_no_candidate() {
    for (mode, why) in
        [("bad-model", "tensor data is out of bounds"), ("crash", "ggml_abort: not enough memory")]
    {
        let folder = tempfile::tempdir().unwrap();
        let report = optimized(folder.path(), mode, &[]);
        let record = record(folder.path());
        assert_eq!(trials(&record, "q4_0@llama.cpp"), (Vec::new(), Vec::new()));
        assert!(record["conformance"].as_object().unwrap().is_empty());
        let dropped = report["dropped"].to_string();
        assert!(dropped.contains(why), "{dropped}");
        let rows = report["rows"].as_array().unwrap();
        assert!(rows.iter().all(|row| row["engine"] == "native"), "it has no figures");
    }
}

#[test]
fn of_a_server_that_runs_already_neither_memory_nor_load_is_known() {
    let mut server = lathe(&["mock", "--start", "1ms", "--decode", "1ms"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut address = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (out, place) = (folder.path().join("run"), format!("there={}", address.trim()));
    let words = ["optimize", "demo", "--run", text(&out), "--engines", "there"];
    let report = json(&[&words[..], &["--engine-path", &place], &QUICK].concat());
    drop(server.stdin.take());
    server.wait().unwrap();
    let there = row(&report, "base@there");
    assert!(there["decode"]["point"].as_f64().unwrap() > 0.0);
    for unknown in ["peak_memory", "needed_memory", "planned_memory", "load", "balance"] {
        assert!(there[unknown].is_null(), "{unknown}: {}", there[unknown]);
    }
    assert_eq!(there["run"], format!("nothing to do: it runs at {}", address.trim()));
    assert!(there["notes"].to_string().contains("what memory it takes is not known"));
    // It has a model of its own: nothing that was made here.
    assert!(report["dropped"].to_string().contains("a server that runs already"));
    let picked = report["picks"].as_array().unwrap();
    assert!(picked.iter().any(|pick| pick["kind"] == "smallest"));
    assert!(picked.iter().all(|pick| pick["kind"] == "fastest" || pick["row"] != "base@there"));
}

#[test]
fn engines_that_are_not_there_are_named_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let missing = format!("llama.cpp={}", folder.path().display());
    let words = ["optimize", "demo", "--run", text(&out), "--engine-path", &missing];
    let error = stderr(&run(&words));
    assert!(
        error.contains("--engine-path llama.cpp: add --engines llama.cpp to try it"),
        "{error}"
    );
    let error = stderr(&run(&[&words[..], &["--engines", "llama.cpp"]].concat()));
    assert!(error.contains("there is no llama-server at"), "{error}");
    assert!(!out.exists());
}
