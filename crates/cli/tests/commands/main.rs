//! Every command as a user runs it: on the built-in model and on the golden models.

mod against;
mod bad_inputs;
mod engines;
mod inspect;
mod measuring;
mod memory;
mod preflight;
mod pruned;
mod quantize;
mod side_by_side;
mod text;
mod verify;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// The program, without the surroundings that change what it says.
fn lathe(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lathe"));
    command.args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

fn run(arguments: &[&str]) -> Output {
    lathe(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command prints that must end well.
fn stdout(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The result of a command as JSON.
fn json(arguments: &[&str]) -> Value {
    let text = stdout(&[arguments, &["--json", "--quiet"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

/// Runs a command with a text on its stdin.
fn fed(arguments: &[&str], text: &str) -> Output {
    let mut child = lathe(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// A file or folder among the golden models.
fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs").join(name);
    path.to_str().unwrap().to_owned()
}

/// A Hugging Face folder of the built-in model, with its files to be changed.
fn demo_folder(at: &Path) -> PathBuf {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/model");
    let folder = at.join("demo-copy");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
