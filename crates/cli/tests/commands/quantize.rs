use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use super::{demo_folder, golden, json, lathe, run, stderr, text};

const FORMATS: [&str; 15] = [
    "f32",
    "f16",
    "bf16",
    "int8",
    "int4_g32",
    "int4_g64",
    "int4_g128",
    "int4_asym_g32",
    "int4_asym_g64",
    "int4_asym_g128",
    "nf4",
    "nf4_dq",
    "q8_0",
    "q5_0",
    "q4_0",
];

#[test]
fn every_format_is_made_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let base = json(&["generate", "demo", "Once upon a time", "-n", "3"]);
    for format in FORMATS {
        let gguf = ["q8_0", "q5_0", "q4_0"].contains(&format);
        let name = if gguf { format!("{format}.gguf") } else { format.to_owned() };
        let out = folder.path().join(name);
        let made = json(&["quantize", "demo", "--to", format, "-o", text(&out)]);
        assert_eq!(made["format"], format);
        let bits = made["bits_per_weight"].as_f64().unwrap();
        assert!(bits > 4.0 && bits <= 32.1, "{format}: {bits}");
        let error = made["relative_square_error"].as_f64();
        assert!(error.is_none_or(|e| e < 0.02), "{format}: {error:?}");

        let seen = json(&["generate", text(&out), "Once upon a time", "-n", "3"]);
        assert_eq!(seen["prompt_ids"], base["prompt_ids"], "{format} has another tokenizer");
        // The demo model is sure of how its stories begin.
        assert_eq!(seen["text"], base["text"], "{format}");
        let prompt = |model: &str| json(&["prompt", model, "Hello"])["ids"].clone();
        assert_eq!(prompt(text(&out)), prompt("demo"), "{format} has another template");
    }
}

#[test]
fn scales_are_searched_where_no_other_tool_has_to_make_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for (format, usual) in [
        ("int8", "search"),
        ("int4_g128", "search"),
        ("fp8_row", "search"),
        ("nvfp4", "search"),
        ("mxfp4", "search"),
        ("fp8_tensor", "rtn"),
        ("nf4", "rtn"),
        ("q4_0", "rtn"),
    ] {
        let out = folder.path().join(format);
        let made = json(&["quantize", "demo", "--to", format, "-o", text(&out)]);
        assert_eq!(made["quantizer"], usual, "{format}");
    }
}

#[test]
fn dense_formats_go_into_both_containers() {
    let folder = tempfile::tempdir().unwrap();
    for container in ["safetensors", "gguf"] {
        let out = folder.path().join(format!("out-{container}"));
        let made =
            json(&["quantize", "demo", "--to", "f16", "--container", container, "-o", text(&out)]);
        assert_eq!(made["target"], container);
        let ids = json(&["generate", text(&out), "Once upon a time", "-n", "4"])["ids"].clone();
        assert_eq!(ids, json(&["generate", "demo", "Once upon a time", "-n", "4"])["ids"]);
    }
}

#[test]
fn a_gguf_is_quantized_further() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.gguf");
    let model = golden("qwen3/model.gguf");
    let made = json(&["quantize", &model, "--to", "q8_0", "-o", text(&out)]);
    assert!(made["bytes_out"].as_u64().unwrap() < made["bytes_in"].as_u64().unwrap());
    json(&["generate", text(&out), "a", "-n", "2"]);
}

#[test]
fn what_is_there_is_kept_without_force() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.gguf");
    fs::write(&out, "mine").unwrap();
    let arguments = ["quantize", "demo", "--to", "q4_0", "-q", "-o", text(&out)];
    let refused = run(&arguments);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("--force") && fs::read(&out).unwrap() == b"mine");
    assert!(run(&[&arguments[..], &["--force"]].concat()).status.success());
    assert!(fs::read(&out).unwrap().starts_with(b"GGUF"));

    let copy = demo_folder(folder.path());
    let itself = run(&["quantize", text(&copy), "--to", "bf16", "-o", text(&copy), "--force"]);
    assert_eq!(itself.status.code(), Some(1));
    assert!(stderr(&itself).contains("the model itself"));
}

#[test]
fn without_a_name_the_result_is_called_after_model_and_format() {
    let folder = tempfile::tempdir().unwrap();
    let made = lathe(&["quantize", "demo", "--to", "q4_0", "-q"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    assert!(folder.path().join("lathe-demo-4m-q4_0.gguf").is_file());
}

#[test]
fn a_killed_run_goes_on_and_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let model = large_model(folder.path());
    let whole = folder.path().join("whole.gguf");
    json(&["quantize", text(&model), "--to", "q4_0", "-o", text(&whole), "--threads", "1"]);

    let out = folder.path().join("resumed.gguf");
    let arguments = ["quantize", text(&model), "--to", "q4_0", "-o", text(&out)];
    let mut child =
        lathe(&arguments).args(["--threads", "1", "-q"]).stdout(Stdio::null()).spawn().unwrap();
    let journal = folder.path().join("resumed.gguf.partial.journal");
    let lines = || fs::read(&journal).map_or(0, |j| j.iter().filter(|b| **b == b'\n').count());
    let start = Instant::now();
    while lines() < 4 {
        assert!(start.elapsed() < Duration::from_secs(60), "it never began");
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.exists(), "a half-made model must not have the name of a whole one");

    let made = json(&arguments);
    assert!(made["resumed"].as_u64().unwrap() >= 3, "{}", made["resumed"]);
    assert!(fs::read(&out).unwrap() == fs::read(&whole).unwrap(), "the bytes differ");
    assert!(!journal.exists());
}

/// A Llama of 25 million random weights with the built-in model's tokenizer.
fn large_model(at: &Path) -> PathBuf {
    const D: usize = 512;
    const F: usize = 1536;
    const LAYERS: usize = 8;
    let folder = demo_folder(at);
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in [
        ("hidden_size", D),
        ("intermediate_size", F),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 8),
        ("head_dim", 64),
    ] {
        config[key] = value.into();
    }
    let vocab = config["vocab_size"].as_u64().unwrap() as usize;
    fs::write(&path, config.to_string()).unwrap();
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, D])];
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            tensors.push((name(&format!("self_attn.{part}")), vec![D, D]));
        }
        tensors.push((name("mlp.gate_proj"), vec![F, D]));
        tensors.push((name("mlp.up_proj"), vec![F, D]));
        tensors.push((name("mlp.down_proj"), vec![D, F]));
        tensors.push((name("input_layernorm"), vec![D]));
        tensors.push((name("post_attention_layernorm"), vec![D]));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![D]));
    fs::write(folder.join("model.safetensors"), safetensors(&tensors)).unwrap();
    folder
}

/// Tensors of these shapes in bf16, filled by a linear congruential generator.
fn safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = serde_json::json!({
            "dtype": "BF16", "shape": shape, "data_offsets": [start, end],
        });
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    let mut state = 1u32;
    for _ in 0..end / 2 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // A sign, a magnitude between 2^-6 and 2^-5, seven bits of fraction.
        let bits = (state >> 16) as u16 & 0x807f | 0x3c80;
        file.extend(bits.to_le_bytes());
    }
    file
}

#[test]
fn a_budget_is_kept_to_the_byte_and_refused_where_nothing_fits() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("budget.gguf");
    let texts = folder.path().join("texts.jsonl");
    fs::write(&texts, "{\"text\": \"Once upon a time there was a cat. It sat on a mat.\"}\n")
        .unwrap();
    let drawn = ["--calibration", text(&texts), "--samples", "2", "--length", "32"];
    let asked = |budget: &'static str| {
        let formats = ["--formats", "q4_k,q6_k,q8_0", "--threads", "2"];
        let to = ["quantize", "demo", "--budget", budget, "-o", text(&out)];
        run(&[&to[..], &drawn, &formats].concat())
    };
    let output = asked("3500000");
    assert!(output.status.success(), "{}", stderr(&output));
    let length = fs::metadata(&out).unwrap().len();
    assert!((3_300_000..=3_500_000).contains(&length), "{length}");
    json(&["generate", text(&out), "Once upon a time", "-n", "3"]);
    fs::remove_file(&out).unwrap();
    let output = asked("1000");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("budget"), "{}", stderr(&output));
    assert!(!out.exists());
}

#[test]
fn a_folder_layout_is_not_passed_over_for_a_gguf_type() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("made");
    let output = run(&["quantize", "demo", "--to", "q4_0", "--layout", "gptq", "-o", text(&out)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot hold q4_0"), "{}", stderr(&output));
    assert!(!out.exists());
}

#[test]
fn pruning_that_makes_no_sense_is_refused() {
    for prune in
        ["sparsegpt:150%", "sparsegpt:-1", "wanda:5:4", "wanda:2:3", "nothing:50%", "wanda"]
    {
        let output = run(&["quantize", "demo", "--to", "bf16", "--prune", prune, "-o", "never"]);
        assert!(!output.status.success(), "{prune}");
        assert!(!stderr(&output).contains("panicked"), "{prune}: {}", stderr(&output));
        assert!(!Path::new("never").exists(), "{prune}");
    }
}
