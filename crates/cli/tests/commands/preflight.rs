use super::{golden, json, run, stderr, stdout};

fn answer<'a>(seen: &'a serde_json::Value, engine: &str, device: &str) -> &'a serde_json::Value {
    let answers = seen["answers"].as_array().unwrap();
    answers.iter().find(|a| a["engine"] == engine && a["device"] == device).unwrap()
}

#[test]
fn names_the_kernel_of_every_engine_that_loads_a_planned_format() {
    let seen = json(&["preflight", "demo", "--to", "int4_g128"]);
    assert_eq!(seen["layout"], "compressed-tensors");
    assert_eq!(answer(&seen, "vllm", "cpu")["kernels"][0]["name"], "CPUWNA16");
    assert_eq!(answer(&seen, "vllm", "sm90")["kernels"][0]["name"], "Machete");
    assert_eq!(answer(&seen, "native", "cpu")["obstacles"].as_array().unwrap().len(), 0);
    let reason = answer(&seen, "llama.cpp", "cpu")["obstacles"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("does not read compressed-tensors files"), "{reason}");
}

#[test]
fn files_are_asked_about_as_they_are() {
    let seen = json(&["preflight", &golden("llama/model.gguf")]);
    assert_eq!(seen["layout"], "gguf");
    assert!(answer(&seen, "llama.cpp", "cpu")["obstacles"].as_array().unwrap().is_empty());
    assert!(stdout(&["preflight", "demo"]).contains("loads"));
}

#[test]
fn an_engine_that_will_not_load_it_ends_with_its_own_code() {
    let asked = ["preflight", "demo", "--to", "nf4", "--engine", "vllm", "--device", "h100"];
    let output = run(&asked);
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("does not read bitsandbytes files"), "{text}");
}

#[test]
fn rejects_engines_and_devices_that_are_not_known() {
    let output = run(&["preflight", "demo", "--engine", "nothing"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("known: native"));
    let output = run(&["preflight", "demo", "--device", "toaster"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn quantize_refuses_what_the_engine_asked_for_will_not_load() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("made");
    let out = out.to_str().unwrap();
    let asked = ["quantize", "demo", "--to", "nf4", "--engine", "llama.cpp", "-o", out];
    let output = run(&asked);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("llama.cpp will not load this"), "{said}");
    assert!(said.contains("does not read bitsandbytes files"), "{said}");
    assert!(!folder.path().join("made").exists(), "nothing was begun");
    let seen = json(&[&asked[..], &["--unchecked"]].concat());
    assert_eq!(seen["engines"][0]["engine"], "llama.cpp");
    assert!(!seen["engines"][0]["obstacles"].as_array().unwrap().is_empty());
}

#[test]
fn quantize_refuses_what_no_engine_loads_on_the_devices_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("made");
    let asked = [
        "quantize",
        "demo",
        "--to",
        "int4_g128_f16",
        "--layout",
        "gptq",
        "--tensor-parallel",
        "7",
        "-o",
    ];
    let output = run(&[&asked[..], &[out.to_str().unwrap()]].concat());
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--unchecked"), "{said}");
}
