//! What goes wrong is one line that says what to do, and an exit code; never a panic.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{demo_folder, golden, run, stderr, text};

/// A command that must fail: by exit code 1 and one line with `says`.
fn refuses(arguments: &[&str], says: &str) {
    let output = run(&[arguments, &["--quiet"]].concat());
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    assert!(said.starts_with("lathe: ") && said.contains(says), "{arguments:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
}

/// Damaged models, each with what its error must name.
fn damaged(folder: &Path) -> Vec<(PathBuf, &'static str)> {
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let gguf = fs::read(golden("llama/model.gguf")).unwrap();
    let weights = fs::read(golden("llama/model.safetensors")).unwrap();
    let cut = folder.join("cut");
    fs::create_dir(&cut).unwrap();
    fs::copy(golden("llama/config.json"), cut.join("config.json")).unwrap();
    fs::write(cut.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let empty = folder.join("empty");
    fs::create_dir(&empty).unwrap();
    let config_only = folder.join("config-only");
    fs::create_dir(&config_only).unwrap();
    fs::copy(golden("llama/config.json"), config_only.join("config.json")).unwrap();
    let mut huge = gguf.clone();
    huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    vec![
        (folder.join("missing.gguf"), "missing.gguf"),
        (put("half.gguf", &gguf[..gguf.len() / 2]), "half.gguf"),
        (put("head.gguf", &gguf[..20]), "head.gguf"),
        (put("huge.gguf", &huge), "huge.gguf"),
        (put("words.gguf", b"This is no model at all, only words."), "words.gguf"),
        (put("none.gguf", b""), "none.gguf"),
        (cut, "model.safetensors"),
        (empty, "empty"),
        (config_only, "config-only"),
    ]
}

#[test]
fn damaged_models_are_named_by_every_command_that_reads_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for (path, says) in damaged(folder.path()) {
        let path = text(&path);
        refuses(&["inspect", path], says);
        refuses(&["generate", path, "a"], says);
        refuses(&["chat", path, "-m", "a"], says);
        refuses(&["prompt", path, "a"], says);
        refuses(&["quantize", path, "--to", "q8_0", "-o", text(&out)], says);
        refuses(&["eval", path], says);
        refuses(&["bench", path], says);
        refuses(&["compare", "demo", path], says);
    }
    assert!(!out.exists());
}

#[test]
fn weights_that_are_not_numbers_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let model = demo_folder(folder.path());
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // A bf16 NaN somewhere in the middle of the data.
    let middle = (8 + header + (bytes.len() - 8 - header) / 2) & !1;
    bytes[middle..middle + 2].copy_from_slice(&[0xc0, 0x7f]);
    fs::write(&path, bytes).unwrap();
    let out = folder.path().join("out.gguf");
    refuses(&["quantize", text(&model), "--to", "q4_0", "-o", text(&out)], "NaN");
    assert!(!out.exists());
    let seen = super::json(&["inspect", text(&model), "--check-finite"]);
    assert!(seen["warnings"][0].as_str().unwrap().contains("NaN"), "{}", seen["warnings"]);
    let generated = run(&["generate", text(&model), "Once", "-q"]);
    assert_eq!(generated.status.code(), Some(1));
    assert_eq!(stderr(&generated).lines().count(), 1);
}

#[test]
fn what_does_not_fit_together_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.gguf");
    let folder_out = folder.path().join("x");
    refuses(&["quantize", "demo", "--to", "nf4", "-o", text(&out)], "GGUF");
    refuses(&["quantize", "demo", "--to", "q4_0", "--container", "safetensors"], "safetensors");
    refuses(
        &["quantize", "demo", "--to", "int4_g32", "--head", "q8_0", "-o", text(&folder_out)],
        "q8_0",
    );
    refuses(&["generate", "demo", "a", "-n", "100000"], "--context");
    refuses(&["generate", "demo", "a", "--context", "1"], "--context");
    refuses(&["generate", "demo", "a", "--logit-bias", "999999:1"], "--logit-bias");
    refuses(&["prompt", "demo", "a", "--prompt-format", "x"], "--prompt-format");
    refuses(&["prompt", "demo", "--messages", "/no/such/file"], "--messages");
    refuses(&["eval", "demo", "--data", "/no/such/file"], "--data");
    refuses(&["eval", "demo", "--choices", "/no/such/file"], "--choices");
    refuses(&["eval", "demo", "--context", "3"], "--context");
    refuses(&["eval", "demo", "--base", &golden("llama")], "tokens");
    refuses(&["bench", "demo", "--prompt-tokens", "600"], "--prompt-tokens");
    refuses(&["bench", "demo", "--context", "10"], "--context");
    refuses(&["compare", "demo", "/no/such/model"], "/no/such/model");
}

#[test]
fn wrong_command_lines_end_with_code_two_and_name_the_flag() {
    for (arguments, says) in [
        (&["generate", "demo", "a", "--temperature=-1"][..], "--temperature"),
        (&["generate", "demo", "a", "--top-p", "2"], "--top-p"),
        (&["generate", "demo", "a", "--min-p", "x"], "--min-p"),
        (&["generate", "demo", "a", "--logit-bias", "1"], "--logit-bias"),
        (&["generate", "demo", "a", "--threads", "0"], "--threads"),
        (&["generate", "demo", "a", "--kv", "q4"], "--kv"),
        (&["quantize", "demo", "--to", "q9"], "there is no format `q9`"),
        (&["quantize", "demo"], "--to"),
        (&["eval", "demo", "--conventions", "mine"], "--conventions"),
        (&["eval", "demo", "--split", "pages"], "--split"),
        (&["eval", "demo", "--level", "2"], "--level"),
        (&["bench"], "MODEL"),
        (&["bench", "demo", "--new-tokens", "1"], "--new-tokens"),
        (&["bench", "demo", "--streams", "1,0"], "--streams"),
        (&["compare", "demo"], "<B>"),
        (&["prompt", "demo"], "<TEXT>"),
        (&["nonsense"], "nonsense"),
    ] {
        let output = run(arguments);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(says) && !said.contains("panicked"), "{arguments:?}: {said}");
    }
}
