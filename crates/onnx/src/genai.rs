use lathe_models::Spec;
use serde_json::{Value, json};

use crate::export::{GRAPH, Tokens};

/// What onnxruntime-genai reads beside a graph.
///
/// **Source** onnxruntime-genai's `src/config.h` and the configurations that its builder writes.
pub(crate) fn config(spec: &Spec, context: usize, tokens: &Tokens) -> Value {
    let attention = spec.layers.first().map(lathe_models::Layer::attention);
    let of = |number: fn(&lathe_models::Attention) -> usize| attention.map_or(0, number);
    // Its loader asks for an end even where a model has none: one that never comes.
    let ends: Vec<u32> =
        if tokens.ends.is_empty() { vec![u32::MAX >> 1] } else { tokens.ends.clone() };
    let end: Value = match ends[..] {
        [one] => one.into(),
        _ => ends.clone().into(),
    };
    json!({
        "model": {
            "bos_token_id": tokens.begin.unwrap_or(ends[0]),
            "context_length": context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": GRAPH,
                "head_size": of(|a| a.head_dim),
                "hidden_size": spec.width,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": of(|a| a.heads),
                "num_hidden_layers": spec.layers.len(),
                "num_key_value_heads": of(|a| a.kv_heads),
            },
            "eos_token_id": end,
            "pad_token_id": tokens.pad.unwrap_or(ends[0]),
            "type": kind(spec.arch),
            "vocab_size": spec.vocab,
        },
        "search": {
            "diversity_penalty": 0.0,
            "do_sample": false,
            "early_stopping": true,
            "length_penalty": 1.0,
            "max_length": context,
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": true,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    })
}

/// The family by onnxruntime-genai's name: `llama` of `LlamaForCausalLM`.
fn kind(arch: &str) -> String {
    arch.split("For").next().unwrap_or(arch).to_lowercase()
}
