//! `engines install` and `remove`, with a script in Python's place.
#![cfg(unix)]

use std::{fs, path::Path, process::Output};

use serde_json::Value;

use super::{against::fake, lathe, stderr, text};

/// A Python that makes environments with itself in them, installs nothing, and is transformers' worker.
const PYTHON: &str = r#"#!/bin/sh
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;
"-m pip")
    if [ -e "$(dirname "$0")/../../../../broken" ]; then echo "no matching release" >&2; exit 1; fi
    echo "Collecting $*" | tee "$(dirname "$0")/../asked";;
"-c import importlib"*) echo "5, torch 2";;
*)
    echo '{"ready": {"version": "5", "vocab": 4096, "bytes": 8, "dtype": "x"}}'
    while read line; do
        for id in 5 6 7 8; do echo "{\"tokens\": [$id]}"; done
        echo '{"done": true}'
    done;;
esac
"#;

fn engines(home: &Path, words: &[&str]) -> Output {
    lathe(&[&["engines"], words].concat())
        .env("XDG_DATA_HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .env_remove("LATHE_TRANSFORMERS")
        .output()
        .unwrap()
}

fn fails(home: &Path, words: &[&str]) -> String {
    let output = engines(home, words);
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    stderr(&output)
}

fn transformers(home: &Path) -> Value {
    let listed: Value = serde_json::from_slice(&engines(home, &["--json"]).stdout).unwrap();
    listed.as_array().unwrap().iter().find(|e| e["name"] == "transformers").unwrap().clone()
}

#[test]
fn an_engine_is_installed_found_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let tools = tempfile::tempdir().unwrap();
    let python = fake::executable(tools.path(), "python3", PYTHON);
    let install = ["install", "transformers", "--python", text(&python), "--release", "9.9"];
    let output = engines(home.path(), &install);
    assert!(output.status.success(), "{}", stderr(&output));
    let place = home.path().join("lathe/engines/transformers");
    let asked = fs::read_to_string(place.join("asked")).unwrap();
    assert!(asked.contains("transformers==9.9 torch==2"), "{asked}");
    let found = transformers(home.path());
    assert_eq!(found["place"], text(&place.join("bin/python")));
    let again = fails(home.path(), &install);
    assert!(again.contains("already; `lathe engines remove transformers`"), "{again}");

    assert!(engines(home.path(), &["remove", "transformers"]).status.success());
    assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 0);
    assert!(fails(home.path(), &["remove", "transformers"]).contains("nothing is installed"));

    // What the user has is used where it is, and stays when it is removed.
    let own = tools.path().join("own");
    fs::create_dir_all(own.join("bin")).unwrap();
    fake::executable(&own.join("bin"), "python", PYTHON);
    let output = engines(home.path(), &["install", "transformers", "--from", text(&own)]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(transformers(home.path())["version"], "5, torch 2");
    assert!(engines(home.path(), &["remove", "transformers"]).status.success());
    assert!(own.join("bin/python").is_file());
}

#[test]
fn what_does_not_work_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let tools = tempfile::tempdir().unwrap();
    let python = fake::executable(tools.path(), "python3", PYTHON);
    let install = ["install", "transformers", "--python", text(&python)];
    fs::create_dir_all(home.path().join("lathe/engines")).unwrap();
    fs::write(home.path().join("broken"), "").unwrap();
    let error = fails(home.path(), &install);
    assert!(
        error.contains("cannot install transformers") && error.contains("no matching"),
        "{error}"
    );
    fs::remove_file(home.path().join("broken")).unwrap();

    let silent = PYTHON.replace("for id in 5 6 7 8", "for id in 5");
    let python = fake::executable(tools.path(), "python4", &silent);
    let error = fails(home.path(), &["install", "transformers", "--python", text(&python)]);
    assert!(error.contains("wrote 1 of 4 tokens"), "{error}");
    let error = fails(home.path(), &["install", "transformers", "--python", "/nowhere/python"]);
    assert!(error.contains("--python /nowhere/python"), "{error}");
    let error = fails(home.path(), &["install", "transformers", "--from", "/nowhere"]);
    assert!(error.contains("--from /nowhere"), "{error}");
    let error = fails(home.path(), &["install", "llama.cpp"]);
    assert!(error.contains("onnxruntime, transformers, vllm can; build it"), "{error}");
    let error = fails(home.path(), &["install", "../x"]);
    assert!(error.contains("is no name of an engine"), "{error}");
    assert_eq!(fs::read_dir(home.path().join("lathe/engines")).unwrap().count(), 0);
}
