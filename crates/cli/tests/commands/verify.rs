//! `verify`, with a server that says anything in llama.cpp's place.
#![cfg(unix)]

use super::{against::fake, json, lathe, run, stderr, text};

#[test]
fn an_engine_that_computes_something_else_is_named_with_what_differs_first() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("demo.gguf");
    json(&["quantize", "demo", "--to", "q8_0", "-o", text(&model)]);
    let server = format!("llama.cpp={}", fake::program(folder.path(), "against::serve").display());
    let words =
        ["verify", text(&model), "--engines", "llama.cpp", "--engine-path", &server, "--quiet"];
    let output = run(&[&words[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = seen["engines"][0]["checks"].as_array().unwrap();
    let found: Vec<_> = checks.iter().map(|c| (&c["what"], &c["outcome"])).collect();
    for (what, outcome) in found {
        // The server has no words for weights.
        let expected = if what == "weights" { "unasked" } else { "deviates" };
        assert_eq!(outcome, expected, "{what}");
    }
    assert_eq!(checks.len(), 5);
    let words_of = |what: &str| {
        let check = checks.iter().find(|check| check["what"] == what).unwrap();
        check["words"].as_str().unwrap()
    };
    assert!(words_of("tokens").contains("token 0 is 1 ("), "{}", words_of("tokens"));
    assert!(words_of("logits").contains("first at position 0 of text 1"), "{}", words_of("logits"));
    assert!(words_of("text").starts_with("text 1: token 0 is "), "{}", words_of("text"));
    assert!(checks[3]["kl"].as_f64().unwrap() > seen["noise"]["fast"].as_f64().unwrap());

    let shown = lathe(&words).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("llama.cpp  deviates  deviates  not asked  deviates  deviates"),
        "{shown}"
    );

    // A server that breaks costs its own line.
    let broken = [&words[..], &["--engine-args", "llama.cpp=--fake bad-model"]].concat();
    let output = run(&broken);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("tensor data is out of bounds"), "{shown}");
}

#[test]
fn what_cannot_be_verified_is_told() {
    let error = stderr(&run(&["verify", "demo", "--engines", "llama.cpp"]));
    assert!(error.contains("the built-in model has no files"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let model = super::demo_folder(folder.path());
    let missing = format!("llama.cpp={}", folder.path().display());
    let words = ["verify", text(&model), "--engines", "llama.cpp", "--engine-path", &missing];
    let error = stderr(&run(&words));
    assert!(error.contains("there is no llama-server at"), "{error}");
    let server = format!("llama.cpp={}", fake::program(folder.path(), "against::serve").display());
    let words = ["verify", text(&model), "--engines", "llama.cpp", "--engine-path", &server];
    let error = stderr(&run(&words));
    assert!(
        error.contains("no engine that reads these files") && error.contains("gguf"),
        "{error}"
    );
    let error = stderr(&run(&["verify", text(&model), "--engines", "native"]));
    assert!(error.contains("--engines native"), "{error}");
}
