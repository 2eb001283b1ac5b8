//! `bench --against`, with a server that can do everything wrong in llama.cpp's place.
#![cfg(unix)]

#[path = "../../../adapters/tests/it/fake.rs"]
pub(crate) mod fake;

use std::{
    fs,
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{json, lathe, run, stderr, stdout, text};

const QUICK: [&str; 10] = [
    "--rounds",
    "2",
    "--requests",
    "1",
    "--prompt-tokens",
    "8",
    "--new-tokens",
    "4",
    "--threads",
    "1",
];

#[test]
#[ignore = "serves the other tests"]
fn serve() {
    fake::serve();
}

/// A model that llama.cpp reads, and the words that measure it against the server.
fn setting(folder: &Path, more: &[&str]) -> Vec<String> {
    let model = folder.join("demo.gguf");
    json(&["quantize", "demo", "--to", "q4_0", "-o", text(&model)]);
    let server = fake::program(folder, "against::serve");
    let path = format!("llama.cpp={}", server.display());
    let words = ["bench", text(&model), "--against", "llama.cpp", "--engine-path", &path];
    words.iter().chain(&QUICK).chain(more).map(|word| (*word).to_owned()).collect()
}

fn words(setting: &[String]) -> Vec<&str> {
    setting.iter().map(String::as_str).collect()
}

#[test]
fn engines_are_measured_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved.json");
    let setting =
        setting(folder.path(), &["--streams", "1,2", "--kv", "int8", "--save", text(&saved)]);
    let seen = json(&words(&setting));
    let engines: Vec<&str> = seen["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["engine"].as_str().unwrap())
        .collect();
    assert_eq!(engines, ["native", "llama.cpp"]);
    let peer = &seen["models"][1];
    assert_eq!(peer["order"]["version"], "fake 7");
    let arguments = peer["order"]["arguments"].as_array().unwrap();
    assert!(arguments.contains(&Value::from("q8_0")), "{arguments:?}");
    assert!(peer["order"]["avoid"].as_u64().unwrap() > 0, "tokens that end a text are avoided");
    for measure in ["ttft", "prefill", "decode", "itl_p50", "load", "peak_memory"] {
        let found = seen["advantages"].as_array().unwrap().iter().find(|a| a["measure"] == measure);
        let times = &found.unwrap_or_else(|| panic!("no {measure}"))["times"];
        assert!(times["point"].as_f64().unwrap() > 0.0, "{measure}");
    }
    assert_eq!(seen["roofs"].as_array().unwrap().len(), 5, "before, between and after four trials");
    assert!(seen["models"][0]["shares"]["prefill"].as_f64().unwrap() > 0.0);

    let raw: Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    let trials = raw["rounds"].as_array().unwrap();
    let order: Vec<bool> = trials
        .iter()
        .map(|trial| trial["candidate"].as_str().unwrap().ends_with("on native"))
        .collect();
    assert_eq!(order, [true, false, true, false], "engines take turns");
    let trial = &trials[1]["outcome"]["Ok"];
    assert_eq!(trial["requests"][0]["tokens"].as_array().unwrap().len(), 4);
    assert_eq!(trial["batches"][0]["tokens"].as_array().unwrap().len(), 2);
    // The server's memory, not that of the process that asks it: a test binary is small.
    let (own, other) = (&trials[0]["outcome"]["Ok"], trial);
    assert!(own["peak_memory"].as_u64().unwrap() > 0 && other["peak_memory"].as_u64().unwrap() > 0);
}

#[test]
fn tables_fit_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let shown = stdout(&words(&setting(folder.path(), &["--streams", "1,2", "-q"])));
    let tables = shown.lines().skip(1).take_while(|line| !line.contains("prompt and"));
    for line in tables {
        assert!(line.chars().count() <= 100, "{line}");
    }
    for word in ["native", "llama.cpp", "against llama.cpp", "of arithmetic peak", "GB/s"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
}

#[test]
fn what_an_engine_does_not_read_is_left_out_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("demo-nf4");
    json(&["quantize", "demo", "--to", "nf4", "-o", text(&other)]);
    let seen = json(&words(&setting(folder.path(), &[text(&other), "demo"])));
    assert_eq!(seen["models"].as_array().unwrap().len(), 4);
    let refused = seen["refused"].as_array().unwrap();
    let reason = |i: usize| refused[i]["reason"].as_str().unwrap();
    assert!(reason(0).contains("llama.cpp does not read bitsandbytes files"), "{}", reason(0));
    assert!(reason(1).contains("the built-in model has no files"), "{}", reason(1));
}

#[test]
fn a_failure_of_the_other_engine_costs_its_own_trials_alone() {
    let folder = tempfile::tempdir().unwrap();
    for (mode, told) in [
        ("crash", "ggml_abort: not enough memory"),
        ("early-end", "asked for 4 tokens, the engine generated 2"),
        ("bad-model", "tensor data is out of bounds"),
    ] {
        let place = folder.path().join(mode);
        fs::create_dir(&place).unwrap();
        let fake = format!("llama.cpp=--fake {mode}");
        let seen = json(&words(&setting(&place, &["--engine-args", &fake])));
        let figures = |i: usize| &seen["models"][i]["figures"];
        assert_eq!((&figures(0)["rounds"], &figures(0)["failed"]), (&2.into(), &0.into()));
        assert_eq!((&figures(1)["rounds"], &figures(1)["failed"]), (&0.into(), &2.into()));
        let warning = seen["warnings"][0].as_str().unwrap();
        assert!(warning.contains(told) && warning.contains("on llama.cpp, round 1"), "{warning}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_does_not_outlive_us_however_we_end() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["-KILL", "-INT"] {
        let place = folder.path().join(signal);
        fs::create_dir(&place).unwrap();
        let marker = place.join("pid");
        let fake = format!("llama.cpp=--fake hang-and-tell:{}", marker.display());
        let setting = setting(&place, &["--engine-args", &fake]);
        let mut child =
            lathe(&words(&setting)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let pid = loop {
            if let Some(pid) = fs::read_to_string(&marker).ok().filter(|pid| !pid.is_empty()) {
                break pid;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "the server was never asked");
            sleep(Duration::from_millis(20));
        };
        let status = std::process::Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
        child.wait().unwrap();
        let start = Instant::now();
        while Path::new(&format!("/proc/{pid}/stat")).exists() {
            assert!(start.elapsed() < Duration::from_secs(20), "{signal}: the server lives on");
            sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn engines_are_listed_with_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let server = fake::program(folder.path(), "against::serve");
    let path = format!("some-fork={}", server.display());
    let seen = json(&["engines", "--engine-path", &path]);
    let find = |name: &str| {
        let all = seen.as_array().unwrap().iter();
        all.clone().find(|engine| engine["name"] == name).unwrap().clone()
    };
    assert_eq!(find("native")["place"], "built in");
    assert_eq!(
        (&find("some-fork")["version"], &find("some-fork")["missing"]),
        (&"fake 7".into(), &Value::Null)
    );
    let missing = find("ik_llama.cpp");
    let told = missing["missing"].as_str().unwrap();
    assert!(told.contains("LATHE_IK_LLAMA_CPP"), "{told}");
    assert!(stdout(&["engines"]).contains("native"));
}

#[test]
fn a_server_is_asked_by_its_address() {
    let path = format!("mine={}", fake::listen("older"));
    let arguments = ["bench", "demo", "--against", "mine", "--engine-path", &path];
    let seen = json(&[&arguments[..], &QUICK].concat());
    let peer = &seen["models"][1];
    assert_eq!((&peer["engine"], &peer["figures"]["rounds"]), (&"mine".into(), &2.into()));
    assert!(peer["figures"]["decode"]["point"].as_f64().unwrap() > 0.0);
}

#[test]
fn engines_that_are_not_there_are_named() {
    let fails = |arguments: &[&str]| {
        let output = run(&[&["bench", "demo"], arguments].concat());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        stderr(&output)
    };
    let missing = fails(&["--against", "ik_llama.cpp"]);
    assert!(missing.contains("--engine-path ik_llama.cpp=PATH or LATHE_IK_LLAMA_CPP"), "{missing}");
    let later = fails(&["--against", "mistral.rs"]);
    assert!(later.contains("there is no adapter for it yet"), "{later}");
    let nowhere = fails(&["--against", "llama.cpp", "--engine-path", "llama.cpp=/nowhere"]);
    assert!(nowhere.contains("there is no llama-server at /nowhere"), "{nowhere}");
    let other = fails(&["--against", "llama.cpp", "--engine-path", "llama.cpp=/bin/ls"]);
    assert!(other.contains("it is no llama-server"), "{other}");
    let idle = fails(&["--engine-path", "llama.cpp=/bin/ls"]);
    assert!(idle.contains("add --against llama.cpp"), "{idle}");
}
