//! `lathe optimize` and `lathe report` as a user runs them, on the built-in model.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Small enough for a test, large enough that every step runs.
const SMALL: [&str; 14] = [
    "--rounds",
    "2",
    "--max-rounds",
    "2",
    "--requests",
    "1",
    "--prompt-tokens",
    "16",
    "--new-tokens",
    "8",
    "--max-tokens",
    "2500",
    "--threads",
    "2",
];

fn lathe() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lathe"));
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

fn optimize(run: &Path, more: &[&str]) -> Command {
    let mut command = lathe();
    command.args(["optimize", "--json", "--quiet", "--run"]).arg(run).args(SMALL).args(more);
    command
}

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn row<'a>(report: &'a Value, id: &str) -> &'a Value {
    let rows = report["rows"].as_array().unwrap();
    rows.iter().find(|row| row["id"] == id).unwrap_or_else(|| panic!("no row {id}"))
}

#[test]
fn trade_offs_are_measured_reported_and_recomputed_from_raw_samples() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let output = optimize(&run, &["--formats", "q8_0,q4_0,nf4"]).output().unwrap();
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["outcome"], "explored");

    let kl = |id| row(&report, id)["kl"]["point"].as_f64().unwrap();
    assert!(kl("q8_0") > 0.0 && kl("q8_0") < kl("q4_0"), "{} {}", kl("q8_0"), kl("q4_0"));
    let size = |id| row(&report, id)["size"].as_u64().unwrap();
    assert!(size("q4_0") < size("q8_0") && size("q8_0") < size("base"));
    for id in ["base", "q8_0", "q4_0", "nf4"] {
        assert!(row(&report, id)["decode"]["point"].as_f64().unwrap() > 0.0);
        assert!(row(&report, id)["needed_memory"].as_u64().unwrap() > 1 << 20);
        assert!(row(&report, id)["sample"].as_str().unwrap().starts_with("Once upon a time"));
    }
    for name in ["run.json", "report.html", "results.csv", "recommendations.md", "report.json"] {
        assert!(run.join(name).metadata().unwrap().len() > 100, "{name}");
    }
    assert!(run.join("charts/quality-size.png").exists());

    let check = || lathe().arg("report").arg(&run).arg("--check").output().unwrap();
    assert!(check().status.success());
    std::fs::write(run.join("results.csv"), "id\nmade up\n").unwrap();
    let refused = check();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("results.csv") && said.lines().count() == 1, "{said}");
    assert!(lathe().arg("report").arg(&run).output().unwrap().status.success());
    assert!(check().status.success());

    let again = optimize(&run, &[]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "a run must not overwrite another");
}

#[test]
fn what_cannot_be_met_is_shown_with_what_to_relax() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let needs = ["--formats", "q8_0,q4_0", "--max-kl", "0.0000001", "--max-size", "7MiB"];
    let output = optimize(&run, &needs).output().unwrap();
    let report = json(&output);
    assert_eq!(report["outcome"], "unmet", "{}", report["headline"]);
    assert_eq!(output.status.code(), Some(3));
    let headline = report["headline"].as_str().unwrap();
    assert!(headline.contains("relax --max-kl to") || headline.contains("relax --max-size to"));
}

#[test]
fn what_cannot_fit_is_dropped_by_the_plan_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let output =
        optimize(&run, &["--formats", "q8_0,q4_0", "--max-size", "4MiB"]).output().unwrap();
    let report = json(&output);
    let dropped = report["dropped"].as_array().unwrap();
    let reason = dropped.iter().find(|d| d["label"] == "GGUF Q8_0").unwrap();
    assert!(reason["reason"].as_str().unwrap().contains("more than the 4.00 MiB allowed"));
    assert!(!run.join("models/q8_0.gguf").exists());
}

#[test]
fn what_changes_the_model_first_and_what_takes_long_to_make_is_planned() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let formats = "q8_0+drop:1,q8_0+rotate,4.5bpw";
    let output = optimize(&run, &["--formats", formats, "--max-make", "2s"]).output().unwrap();
    let report = json(&output);
    let size = |id| row(&report, id)["size"].as_u64().unwrap();
    assert!(size("q8_0+drop-1") < size("q8_0+rotate"), "a layer is gone");
    let kl = |id| row(&report, id)["kl"]["point"].as_f64().unwrap();
    assert!(kl("q8_0+rotate") < 0.01 && kl("q8_0+drop-1") > 0.05);
    // Tens of seconds where this was written: the estimate is nowhere two.
    let dropped = report["dropped"].as_array().unwrap();
    let reason = dropped.iter().find(|d| d["label"] == "mixed, 4.5 bits").unwrap();
    assert!(reason["reason"].as_str().unwrap().contains("--max-make"), "{reason}");
}

#[test]
fn more_layers_dropped_than_there_are_is_said_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let output = optimize(&run, &["--formats", "q8_0+drop:0"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("drops nothing"), "{error}");
    let formats = "q8_0+drop:99,q8_0+drop:999999999999";
    let report = json(&optimize(&run, &["--formats", formats]).output().unwrap());
    let dropped = report["dropped"].as_array().unwrap();
    for layers in ["99 layers", "999999999999 layers"] {
        let says = |d: &&Value| d["reason"].as_str().unwrap().starts_with(layers);
        assert!(dropped.iter().any(|d| says(&d)), "{dropped:?}");
    }
}

#[test]
fn formats_for_a_budget_are_a_candidate() {
    let folder = tempfile::tempdir().unwrap();
    let (run, texts) = (folder.path().join("run"), folder.path().join("texts.jsonl"));
    let story = "Once upon a time there was a cat who sat on a mat and looked at a bird. ";
    let line = serde_json::json!({ "text": story.repeat(8) });
    std::fs::write(&texts, format!("{line}\n{line}\n")).unwrap();
    let asked = ["--formats", "4.5bpw", "--calibration", texts.to_str().unwrap()];
    let output = optimize(&run, &asked).output().unwrap();
    let report = json(&output);
    let made = row(&report, "4.5bpw");
    let bits = made["bits_per_weight"].as_f64().unwrap();
    assert!((4.2..=4.5).contains(&bits), "{bits}");
    assert!(made["kl"]["point"].as_f64().unwrap() < 0.2);
    assert!(run.join("models/4.5bpw.gguf").exists());
    assert!(!run.join("models/4.5bpw.gguf.measured.jsonl").exists());
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut child = optimize(&run, &["--formats", "q8_0,q4_0"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let record = || -> Option<Value> {
        serde_json::from_slice(&std::fs::read(run.join("run.json")).ok()?).ok()
    };
    let start = Instant::now();
    let made = loop {
        let made = record().and_then(|r| r["made"].as_object().map(serde_json::Map::len));
        if made.is_some_and(|n| n >= 2) || start.elapsed() > Duration::from_secs(120) {
            break made;
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        thread::sleep(Duration::from_millis(2));
    };
    assert!(made.is_some_and(|n| n >= 2), "nothing was made in two minutes");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(record().unwrap()["finished"], false);

    let output =
        lathe().args(["optimize", "--json", "--quiet", "--resume"]).arg(&run).output().unwrap();
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["rows"].as_array().unwrap().len(), 3);
    let rounds = record().unwrap()["rounds"].as_array().unwrap().len();
    assert_eq!(rounds, 6, "two rounds of three configurations, none twice");
}

#[test]
fn wrong_options_are_one_line_that_names_the_flag() {
    for (arguments, says) in [
        (&["optimize", "/no/such/model"][..], "/no/such/model"),
        (&["optimize", "--formats", "q9_9"], "--formats"),
        (&["optimize", "--formats", "4bpw+gptq"], "--formats"),
        (&["optimize", "--formats", "q4_0+rotate:x"], "--formats"),
        (&["quantize", "demo", "--bpw", "4", "--method", "gptq", "-o", "x"], "--method"),
        (&["optimize", "--context", "100000"], "--context"),
        (&["optimize", "--rounds", "9", "--max-rounds", "3"], "--max-rounds"),
        (&["optimize", "--resume", "/no/such/run"], "/no/such/run"),
        (&["optimize", "--data", "/no/such/text"], "/no/such/text"),
        (&["report", "/no/such/run"], "/no/such/run"),
    ] {
        let output = lathe().args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(says) && said.lines().count() == 1, "{arguments:?}: {said}");
    }
}
