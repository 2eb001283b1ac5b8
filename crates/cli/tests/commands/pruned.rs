//! Weights and layers that are left out.

use std::fs;

use serde_json::Value;

use super::{json, run, stderr, stdout, text};

const QUICK: [&str; 4] = ["--samples", "4", "--length", "64"];

fn sparse(tensor: &Value) -> Option<f64> {
    let shape = tensor["shape"].as_array().unwrap();
    let size: f64 = shape.iter().map(|n| n.as_f64().unwrap()).product();
    Some(tensor["zeros"].as_f64()? / size)
}

#[test]
fn pruned_weights_are_zero_in_what_is_written_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    for (prune, to, method) in [
        ("magnitude:50%", "bf16", "rtn"),
        ("wanda:2:4", "nf4", "search"),
        ("sparsegpt:2:4", "q4_0", "gptq"),
    ] {
        let out = folder.path().join(to);
        let arguments = ["quantize", "demo", "--to", to, "--method", method, "--prune", prune];
        let made = json(&[&arguments[..], &QUICK, &["-o", text(&out)]].concat());
        let tensors = made["tensors"].as_array().unwrap();
        let linear = |t: &&Value| {
            let name = t["name"].as_str().unwrap();
            name.contains("_proj") || name.starts_with("blk.") && !name.contains("norm")
        };
        let inside: Vec<f64> = tensors.iter().filter(linear).filter_map(sparse).collect();
        assert!(inside.len() >= 28, "{to}: {}", inside.len());
        assert!(inside.iter().all(|share| *share >= 0.499), "{to}: {inside:?}");
        let notes = made["notes"].to_string();
        assert!(notes.contains("neither smaller nor faster"), "{notes}");
        json(&["generate", text(&out), "Once upon a time", "-n", "2"]);
    }
}

#[test]
fn formats_without_a_zero_are_named_and_sparsity_is_shown_by_kind_of_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["quantize", "demo", "--prune", "magnitude:2:4", "-q", "-o"];
    let q4_1 = folder.path().join("out.gguf");
    let said = stdout(&[&arguments[..], &[text(&q4_1), "--to", "q4_1"]].concat());
    assert!(said.contains("q4_1 cannot hold an exact zero"), "{said}");
    let q8_0 = folder.path().join("other.gguf");
    let said = stdout(&[&arguments[..], &[text(&q8_0), "--to", "q8_0"]].concat());
    assert!(said.contains("ffn_down") && said.contains("50."), "{said}");
    assert!(!said.contains("cannot hold"), "{said}");
}

#[test]
fn layers_are_dropped_by_what_they_do_or_by_number() {
    let folder = tempfile::tempdir().unwrap();
    let layers = json(&["inspect", "demo"]).to_string();
    for container in ["safetensors", "gguf"] {
        for which in ["1", "2,", "1,2"] {
            let out = folder.path().join(format!("{container}-{which}"));
            let arguments =
                ["quantize", "demo", "--to", "f16", "--container", container, "--drop-layers"];
            let made = json(&[&arguments[..], &[which, "-o", text(&out)], &QUICK].concat());
            let notes = made["notes"].to_string();
            assert!(notes.contains("layers left out"), "{notes}");
            assert_eq!(notes.contains("influence"), which == "1", "{notes}");
            assert_ne!(json(&["inspect", text(&out)]).to_string(), layers);
            json(&["generate", text(&out), "Once upon a time", "-n", "2"]);
            if container == "safetensors" {
                let config = fs::read_to_string(out.join("config.json")).unwrap();
                let config: Value = serde_json::from_str(&config).unwrap();
                let before = config["num_hidden_layers"].as_u64().unwrap();
                let gone = if which == "1,2" { 2 } else { 1 };
                assert_eq!(before, lathe_layers() - gone);
            }
        }
    }
}

/// Layers of the built-in model.
fn lathe_layers() -> u64 {
    let config = lathe_demo::files().iter().find(|(name, _)| *name == "config.json").unwrap().1;
    let config: Value = serde_json::from_slice(config).unwrap();
    config["num_hidden_layers"].as_u64().unwrap()
}

#[test]
fn rejects_prunings_and_layers_that_are_none() {
    for (flag, value, why) in [
        ("--prune", "half", "sparsegpt:50%"),
        ("--prune", "wanda:4:4", "fewer than M"),
        ("--drop-layers", "0", "a number of layers"),
        ("--drop-layers", "99", "leave at least one"),
        ("--drop-layers", "99,", "numbered from 0"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let ended = run(&["quantize", "demo", "--to", "bf16", flag, value, "-o", text(&out)]);
        assert!(!ended.status.success() && stderr(&ended).contains(why), "{}", stderr(&ended));
        assert!(!out.exists());
    }
}
