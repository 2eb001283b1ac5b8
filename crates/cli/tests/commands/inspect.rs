use serde_json::Value;

use super::{golden, json, stdout};

#[test]
fn shows_the_built_in_model() {
    let seen = json(&["inspect", "demo", "--context", "512", "--batch", "2", "--tensors"]);
    let spec = &seen["spec"];
    assert_eq!(seen["architecture"], "LlamaForCausalLM");
    assert_eq!(spec["layers"].as_u64().unwrap() as usize * 9 + 2, tensors(&seen).len());
    assert_eq!(seen["container"], "safetensors");
    assert!(seen["template"]["text"].as_str().unwrap().contains("<|im_start|>"));
    assert_eq!(seen["tokenizer"]["vocab"], spec["vocab"]);
    assert!(seen["warnings"].as_array().unwrap().is_empty());

    let numbers: u64 = tensors(&seen).iter().map(count).sum();
    assert_eq!(spec["parameters"].as_u64().unwrap(), numbers);
    let number = |key: &str| spec[key].as_u64().unwrap();
    let kv = 2 * number("layers") * number("kv_heads") * number("head_dim") * 2 * 512 * 2;
    assert_eq!(seen["memory"]["kv_bytes"].as_u64().unwrap(), kv);
    for row in seen["memory"]["rows"].as_array().unwrap() {
        let sum = row["weight_bytes"].as_u64().unwrap()
            + kv
            + seen["memory"]["activation_bytes"].as_u64().unwrap();
        assert_eq!(row["total_bytes"].as_u64().unwrap(), sum);
    }
}

fn tensors(seen: &Value) -> &[Value] {
    seen["tensors"].as_array().unwrap()
}

fn count(tensor: &Value) -> u64 {
    tensor["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product()
}

#[test]
fn a_folder_and_its_gguf_are_the_same_model() {
    for name in ["llama", "qwen3", "gemma3", "phi3", "mistral"] {
        let folder = json(&["inspect", &golden(name)]);
        let gguf = json(&["inspect", &golden(&format!("{name}/model.gguf"))]);
        assert_eq!(gguf["container"], "GGUF");
        for key in ["parameters", "layers", "width", "heads", "kv_heads", "feed_forward"] {
            assert_eq!(folder["spec"][key], gguf["spec"][key], "{name}: {key}");
        }
    }
}

#[test]
fn a_model_without_a_template_says_what_it_needs() {
    let text = stdout(&["inspect", &golden("llama")]);
    assert!(text.contains("none: needs --prompt-format"), "{text}");
    assert!(stdout(&["inspect", "demo", "--template"]).contains("add_generation_prompt"));
}

#[test]
fn formats_that_cannot_be_run_are_shown_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q8_1.gguf");
    std::fs::write(&path, tiny_gguf()).unwrap();
    let seen = json(&["inspect", super::text(&path)]);
    assert_eq!(seen["formats"][0]["format"], "q8_1");
    assert_eq!(seen["formats"][0]["runs"], false);
    assert_eq!(seen["spec"], Value::Null);
    let warnings = seen["warnings"].to_string();
    assert!(warnings.contains("q8_1") && warnings.contains("tokenizer"), "{warnings}");
}

/// A GGUF with one Q8_1 tensor, of a family that does not exist.
fn tiny_gguf() -> Vec<u8> {
    const NUMBERS: [&str; 5] = [
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "context_length",
    ];
    let mut file = b"GGUF".to_vec();
    let string = |file: &mut Vec<u8>, text: &str| {
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(text.as_bytes());
    };
    file.extend(3u32.to_le_bytes());
    file.extend(1u64.to_le_bytes());
    file.extend((1 + NUMBERS.len() as u64).to_le_bytes());
    string(&mut file, "general.architecture");
    file.extend(8u32.to_le_bytes());
    string(&mut file, "imagined");
    for key in NUMBERS {
        string(&mut file, &format!("imagined.{key}"));
        file.extend(4u32.to_le_bytes());
        file.extend(32u32.to_le_bytes());
    }
    string(&mut file, "token_embd.weight");
    file.extend(2u32.to_le_bytes());
    file.extend(32u64.to_le_bytes());
    file.extend(4u64.to_le_bytes());
    file.extend(9u32.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.resize(file.len().next_multiple_of(32) + 4 * 36, 0);
    file
}
