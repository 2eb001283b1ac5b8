//! Every architecture reads a configuration of its kind and lists the right shapes.

use lathe_formats::KvType;
use lathe_models::{Config, Error, Kind, Part, Role, Spec, read_config};
use serde_json::{Value, json};

fn read(config: Value) -> Result<Spec, Error> {
    let Value::Object(map) = config else { panic!("not an object") };
    read_config(&Config::new(map)).map(|(_, spec)| spec)
}

fn tiny(arch: &str) -> Value {
    json!({
        "architectures": [arch], "vocab_size": 2048, "hidden_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 384,
        "head_dim": 16, "max_position_embeddings": 512, "tie_word_embeddings": true,
    })
}

#[test]
fn an_unknown_architecture_lists_the_supported_ones() {
    let error = read(json!({"architectures": ["MambaForCausalLM"]})).unwrap_err().to_string();
    assert!(error.contains("MambaForCausalLM"), "{error}");
    assert!(error.contains("LlamaForCausalLM") && error.contains("Phi3ForCausalLM"), "{error}");
}

#[test]
fn parameters_of_a_llama_are_the_sum_of_its_shapes() {
    let spec = read(tiny("LlamaForCausalLM")).unwrap();
    let layer = 128 * 128 * 2 + 64 * 128 * 2 + 3 * 384 * 128 + 2 * 128;
    assert_eq!(spec.parameters(), 2048 * 128 + 2 * layer + 128);
    assert_eq!(spec.kv_bytes(100, KvType::F32).0, 2 * 2 * 64 * 100 * 4);
    assert_eq!(spec.cache_bytes(100, 2, KvType::F16).0, 2 * 2 * 64 * 256 * 2);
    // Scales and minima for each channel and 32 tokens, and for each token and head; three pages.
    let int8 = 2 * (64 * (256 + 256 / 8) + 64 * 256 + 4 * 256 * 4);
    let recent = 2 * 2 * 64 * 96 * 2;
    assert_eq!(spec.cache_bytes(100, 2, KvType::Int8).0, int8 + recent);
}

#[test]
fn an_untied_head_is_a_weight_of_its_own() {
    let mut config = tiny("LlamaForCausalLM");
    let tied = read(config.clone()).unwrap().parameters();
    config["tie_word_embeddings"] = json!(false);
    let spec = read(config).unwrap();
    assert_eq!(spec.parameters() - tied, 2048 * 128);
    assert_eq!(spec.weights().last().unwrap().kind, Kind::Head);
}

#[test]
fn fused_projections_are_row_ranges_of_one_tensor() {
    let Value::Object(map) = tiny("Phi3ForCausalLM") else { unreachable!() };
    let (arch, spec) = read_config(&Config::new(map)).unwrap();
    let value = arch.name(&spec, Role::Layer(1, Part::V));
    assert_eq!(value.name, "model.layers.1.self_attn.qkv_proj.weight");
    assert_eq!(value.rows, Some(192..256));
    let up = arch.name(&spec, Role::Layer(1, Part::Up));
    assert_eq!(up.rows, Some(384..768));
}

#[test]
fn gemma_layers_slide_in_their_pattern() {
    let slides = |config| -> Vec<bool> {
        read(config).unwrap().layers.iter().map(|l| l.attention().window.is_some()).collect()
    };
    let mut config = tiny("Gemma2ForCausalLM");
    assert_eq!(slides(config.clone()), [true, false]);
    config["architectures"] = json!(["Gemma3ForCausalLM"]);
    config["num_hidden_layers"] = json!(7);
    assert_eq!(slides(config), [true, true, true, true, true, false, true]);
}

#[test]
fn absurd_configurations_are_refused_by_key() {
    let absurd = [
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(u64::MAX)),
        ("hidden_size", json!(u64::MAX)),
        ("hidden_size", json!(-4)),
        ("hidden_size", json!("wide")),
        ("vocab_size", json!(1u64 << 60)),
        ("intermediate_size", json!(0)),
        ("head_dim", json!(15)),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(0.0)),
        ("hidden_act", json!("step")),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 0.0})),
        ("rope_scaling", json!({"rope_type": "magic", "factor": 2.0})),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": "big"})),
        (
            "rope_scaling",
            json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": []}),
        ),
    ];
    for arch in ["LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"] {
        for (key, value) in &absurd {
            let mut config = tiny(arch);
            config[*key] = value.clone();
            assert!(read(config).is_err(), "{arch} took {key} = {value}");
        }
    }
}

#[test]
fn a_multimodal_configuration_is_read_through_its_text_part() {
    let spec = read(json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}
        },
        "vision_config": {"hidden_size": 1152}
    }))
    .unwrap();
    // Gemma 3 4B's text part, from its published tensor shapes.
    assert_eq!(spec.parameters(), 3_880_263_168);
}
