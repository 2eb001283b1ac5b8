//! `eval`, `bench` and `compare`, with as little work as shows that they measure.

use std::fs;

use serde_json::Value;

use super::{json, run, stderr, stdout, text};

const QUICK: [&str; 12] = [
    "--rounds",
    "2",
    "--requests",
    "1",
    "--warmup",
    "0",
    "--prompt-tokens",
    "8",
    "--new-tokens",
    "4",
    "--threads",
    "2",
];

fn quantized(folder: &std::path::Path) -> std::path::PathBuf {
    let out = folder.join("q4_0.gguf");
    json(&["quantize", "demo", "--to", "q4_0", "-o", text(&out)]);
    out
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn perplexity_is_measured_in_every_convention_and_labelled() {
    let seen = json(&["eval", "demo", "--max-tokens", "1500", "--no-choices"]);
    let passes = seen["passes"].as_array().unwrap();
    assert_eq!(passes.len(), 4);
    for (pass, label) in passes.iter().zip(["beginning", "GPTQ", "llama.cpp", "sliding"]) {
        assert!(pass["label"].as_str().unwrap().contains(label), "{}", pass["label"]);
        let perplexity = &pass["models"][0]["perplexity"];
        let point = number(&perplexity["point"]);
        assert!(point > 1.0 && point < 4096.0, "no better than guessing: {point}");
        assert!(number(&perplexity["interval"]["low"]) < point);
    }
    assert!(
        stdout(&["eval", "demo", "--max-tokens", "300", "--no-choices"]).contains("bits per byte")
    );
}

#[test]
fn a_quantized_model_diverges_more_than_rounding_does() {
    let folder = tempfile::tempdir().unwrap();
    let model = quantized(folder.path());
    let saved = folder.path().join("raw.json");
    let arguments = [
        "eval",
        text(&model),
        "--base",
        "demo",
        "--conventions",
        "documents",
        "--max-tokens",
        "2000",
        "--no-choices",
        "--save",
        text(&saved),
    ];
    let seen = json(&arguments);
    let pass = &seen["passes"][0];
    let candidate = pass["models"].as_array().unwrap().iter().find(|m| m["role"] == "candidate");
    let versus = &candidate.unwrap()["versus"];
    let (kl, floor) = (number(&versus["kl"]["point"]), number(&pass["floor"]["kl"]["point"]));
    assert!(floor > 0.0 && kl > 3.0 * floor, "{kl} {floor}");
    let (top, flips) = (number(&versus["same_top"]["point"]), number(&versus["flips"]["point"]));
    assert!(top > 0.8 && top < 1.0 && (top + flips - 1.0).abs() < 1e-9);

    let raw: Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    let nll = raw["passes"][0]["models"][0]["nll"].as_array().unwrap();
    let tokens = number(&candidate.unwrap()["tokens"]);
    let mean = nll.iter().map(number).sum::<f64>() / tokens;
    let base = number(&pass["models"][0]["perplexity"]["point"]);
    assert!((mean.exp() / base - 1.0).abs() < 1e-9, "the figure follows from the sums");
}

#[test]
fn what_was_measured_goes_into_the_card_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("demo-int4");
    let to = ["quantize", "demo", "--to", "int4_g128", "--method", "rtn", "-o", text(&model)];
    json(&to);
    let short = ["--conventions", "documents", "--max-tokens", "300", "--no-choices", "--card"];
    let asked = ["eval", text(&model), "--base", "demo"];
    let seen = json(&[&asked[..], &short].concat());
    let models = seen["passes"][0]["models"].as_array().unwrap();
    let made = models.iter().find(|model| model["role"] == "candidate").unwrap();
    let kl = number(&made["versus"]["kl"]["point"]);
    let card = fs::read_to_string(model.join("README.md")).unwrap();
    assert!(card.contains(&format!("| {kl:.5}")), "{kl} {card}");
    fs::write(model.join("README.md"), "my own words").unwrap();
    let refused = run(&[&asked[..], &short].concat());
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("no README.md made by"), "{}", stderr(&refused));
}

#[test]
fn a_text_and_questions_of_ones_own_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("text.jsonl");
    let chat = r#"{"messages": [{"role": "user", "content": "Hello"}]}"#;
    fs::write(&data, format!("{{\"text\": \"The cat sat on the mat.\"}}\n{chat}\n")).unwrap();
    let items = folder.path().join("items.jsonl");
    let item =
        r#"{"id": "1", "context": "The sky is", "choices": ["blue.", "a spoon."], "answer": 0}"#;
    fs::write(&items, format!("{item}\n")).unwrap();
    let seen = json(&[
        "eval",
        "demo",
        "--data",
        text(&data),
        "--choices",
        text(&items),
        "--conventions",
        "documents",
    ]);
    assert_eq!(seen["data"]["documents"], 2);
    assert_eq!(seen["choices"][0]["items"], 1);
}

#[test]
fn models_are_timed_in_turn_and_compared_with_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let model = quantized(folder.path());
    let saved = folder.path().join("raw.json");
    let more = ["bench", "demo", text(&model), "--streams", "1,2", "--save", text(&saved)];
    let seen = json(&[&more[..], &QUICK].concat());
    let models = seen["models"].as_array().unwrap();
    assert_eq!(models.len(), 2);
    for model in models {
        let figures = &model["figures"];
        assert_eq!(figures["rounds"], 2, "{}", seen["warnings"]);
        for key in ["load", "ttft", "prefill", "decode", "itl_p50", "itl_p99", "requests"] {
            assert!(number(&figures[key]["point"]) > 0.0, "{key}");
        }
        assert!(number(&figures["peak_memory"]) > 1e6);
        assert_eq!(figures["batch"][0][0], 2);
    }
    assert_eq!(models[0]["ratio"], Value::Null);
    assert!(number(&models[1]["ratio"]["point"]) > 0.0);
    assert!(number(&models[1]["size"]) < number(&models[0]["size"]));

    let raw: Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    let order: Vec<&Value> =
        raw["rounds"].as_array().unwrap().iter().map(|r| &r["candidate"]).collect();
    assert_eq!(order[0], "demo");
    assert!(order[0] != order[1] && order[0] == order[2], "rounds are interleaved");
    assert!(!raw["timeline"].as_array().unwrap().is_empty());
}

#[test]
fn two_models_are_set_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let model = quantized(folder.path());
    let more = ["compare", "demo", text(&model), "--data-tokens", "1000", "-n", "24"];
    let seen = json(&[&more[..], &QUICK].concat());
    assert!(number(&seen["speed_ratio"]["point"]) > 0.0);
    assert!(number(&seen["divergence"]["kl"]["point"]) > 0.0);
    assert_eq!(seen["outputs"].as_array().unwrap().len(), 3);

    let same = json(
        &[&["compare", "demo", "demo", "--data-tokens", "300", "--prompt", "The dog"][..], &QUICK]
            .concat(),
    );
    assert_eq!(same["outputs"][0]["same"], true);
    // The original is computed exactly, the one that is run with inputs in bf16.
    assert!(number(&same["divergence"]["kl"]["point"]) < 1e-4);
}

#[test]
fn guesses_are_measured_beside_the_same_model_without() {
    let folder = tempfile::tempdir().unwrap();
    let model = quantized(folder.path());
    let story = folder.path().join("story.txt");
    fs::write(&story, "The little cat sat on the mat and looked at the big dog. ".repeat(9))
        .unwrap();
    for how in [["--speculate", "lookup"], ["--draft", text(&model)]] {
        let asked = ["bench", "demo", "--text", text(&story)];
        let seen = json(&[&asked[..], &how[..], &QUICK[..]].concat());
        let [plain, guessing] = &seen["models"].as_array().unwrap()[..] else { panic!("{seen}") };
        assert_eq!(plain["order"]["guesses"], "off");
        let order = &guessing["order"]["guesses"];
        match how[0] {
            "--draft" => assert_eq!(order["draft"], text(&model)),
            _ => assert_eq!(order, "lookup"),
        }
        assert_eq!(guessing["figures"]["rounds"], 2, "{seen}");
        assert!(number(&guessing["ratio"]["point"]) > 0.0);
        assert_eq!(seen["workload"]["text"]["name"], text(&story));
    }
    let short = run(&[
        &["bench", "demo", "--text", text(&story)],
        &QUICK[..4],
        &["--prompt-tokens", "400"],
    ]
    .concat());
    assert!(stderr(&short).contains("--prompt-tokens asks for 400"), "{}", stderr(&short));
    let missing = run(&["bench", "demo", "--text", "nothing.txt"]);
    assert!(stderr(&missing).contains("--text nothing.txt: cannot be read"));
}
