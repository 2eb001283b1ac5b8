//! The embedded files hang together, as far as can be told without running the model.

use serde_json::Value;

fn file(name: &str) -> &'static [u8] {
    let found = lathe_demo::files().iter().find(|(n, _)| *n == name);
    found.unwrap_or_else(|| panic!("{name} is not embedded")).1
}

fn json(name: &str) -> Value {
    serde_json::from_slice(file(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

/// Tensor names with their shapes, and the length that header and tensors together should have.
fn tensors() -> (Vec<(String, Vec<u64>)>, usize) {
    let bytes = file("model.safetensors");
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let table: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let mut named = Vec::new();
    let mut end = 0;
    for (name, tensor) in table.as_object().unwrap() {
        if name == "__metadata__" {
            continue;
        }
        assert_eq!(tensor["dtype"], "BF16", "{name}");
        let shape =
            tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        named.push((name.clone(), shape));
        end = end.max(tensor["data_offsets"][1].as_u64().unwrap() as usize);
    }
    (named, 8 + header + end)
}

#[test]
fn the_model_stays_below_ten_megabytes() {
    let total: usize = lathe_demo::files().iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(total <= 10_000_000, "{total} bytes");
}

#[test]
fn every_json_file_parses() {
    for (name, _) in lathe_demo::files().iter().filter(|(n, _)| n.ends_with(".json")) {
        json(name);
    }
}

#[test]
fn the_tensors_fill_the_file_and_have_the_shapes_of_the_config() {
    let (named, length) = tensors();
    assert_eq!(length, file("model.safetensors").len());
    let config = json("config.json");
    let size = |key: &str| config[key].as_u64().unwrap();
    let (d, f, k) = (size("hidden_size"), size("intermediate_size"), size("head_dim"));
    let (h, g) = (size("num_attention_heads"), size("num_key_value_heads"));
    let shape = |name: &str| {
        let found = named.iter().find(|(n, _)| n == name);
        found.unwrap_or_else(|| panic!("{name} is missing")).1.clone()
    };
    assert_eq!(shape("model.embed_tokens.weight"), [size("vocab_size"), d]);
    assert_eq!(shape("model.norm.weight"), [d]);
    for layer in 0..size("num_hidden_layers") {
        let of = |part: &str| shape(&format!("model.layers.{layer}.{part}.weight"));
        assert_eq!(of("self_attn.q_proj"), [h * k, d]);
        assert_eq!(of("self_attn.k_proj"), [g * k, d]);
        assert_eq!(of("self_attn.v_proj"), [g * k, d]);
        assert_eq!(of("self_attn.o_proj"), [d, h * k]);
        assert_eq!(of("mlp.gate_proj"), [f, d]);
        assert_eq!(of("mlp.up_proj"), [f, d]);
        assert_eq!(of("mlp.down_proj"), [d, f]);
        assert_eq!(of("input_layernorm"), [d]);
        assert_eq!(of("post_attention_layernorm"), [d]);
    }
    assert_eq!(named.len() as u64, 2 + 9 * size("num_hidden_layers"));
}

#[test]
fn no_weight_is_infinite_or_not_a_number() {
    let bytes = file("model.safetensors");
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let exponent = 0x7f80_u16;
    let odd = bytes[8 + header..]
        .chunks_exact(2)
        .filter(|b| u16::from_le_bytes([b[0], b[1]]) & exponent == exponent)
        .count();
    assert_eq!(odd, 0);
}

#[test]
fn the_vocabulary_has_the_size_of_the_config_and_the_special_tokens() {
    let tokenizer = json("tokenizer.json");
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
    assert_eq!(vocabulary.len() as u64, json("config.json")["vocab_size"].as_u64().unwrap());
    for (id, token) in ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"].iter().enumerate() {
        assert_eq!(vocabulary[*token], id);
    }
    assert_eq!(json("generation_config.json")["eos_token_id"], serde_json::json!([1, 3]));
}

#[test]
fn both_copies_of_the_chat_template_are_the_same() {
    let template = std::str::from_utf8(file("chat_template.jinja")).unwrap();
    assert_eq!(json("tokenizer_config.json")["chat_template"], template);
}

#[test]
fn stories_have_distinct_ids_and_texts_of_some_hundred_bytes() {
    let stories = lines(lathe_demo::stories());
    assert_eq!(stories.len(), 60);
    let mut ids: Vec<_> = stories.iter().map(|s| s["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), stories.len());
    for story in &stories {
        let length = story["text"].as_str().unwrap().len();
        assert!((600..1600).contains(&length), "{} has {length} bytes", story["id"]);
    }
}

#[test]
fn the_place_of_the_right_choice_and_its_length_give_nothing_away() {
    let items = lines(lathe_demo::choices());
    assert_eq!(items.len(), 300);
    let mut places = [0_usize; 4];
    let (mut longest, mut shortest) = (0, 0);
    for item in &items {
        let id = &item["id"];
        let choices: Vec<_> =
            item["choices"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
        assert_eq!(choices.len(), 4, "{id}");
        let answer = item["answer"].as_u64().unwrap() as usize;
        places[answer] += 1;
        let others =
            || choices.iter().enumerate().filter(|(i, _)| *i != answer).map(|(_, c)| c.len());
        assert!(
            choices.iter().enumerate().all(|(i, c)| !choices[..i].contains(c)),
            "{id} repeats a choice"
        );
        longest += usize::from(choices[answer].len() > others().max().unwrap());
        shortest += usize::from(choices[answer].len() < others().min().unwrap());
    }
    assert!(places.iter().all(|n| (65..=85).contains(n)), "{places:?}");
    // One in four would be the longest by chance, or fewer with ties.
    assert!(longest <= 90 && shortest <= 90, "longest {longest}, shortest {shortest}");
}

#[test]
fn calibration_texts_are_varied_and_none_of_those_that_are_measured() {
    let texts = lines(lathe_demo::calibration());
    assert!(texts.len() > 50 && lathe_demo::calibration().len() < 300_000);
    let of = |texts: &[Value]| -> Vec<String> {
        texts.iter().map(|t| t["text"].as_str().unwrap().to_owned()).collect()
    };
    let (calibration, stories) = (of(&texts), of(&lines(lathe_demo::stories())));
    assert!(calibration.iter().any(|text| text.contains("fn ")));
    assert!(calibration.iter().any(|text| !text.is_ascii()));
    for story in &stories {
        let start: String = story.chars().take(60).collect();
        assert!(!calibration.iter().any(|text| text.contains(&start)), "{start}");
    }
}
