use lathe_kernels::Inputs;
use serde_json::{Map, Value};

/// What the engine that a checkpoint is made for does to the inputs of coded weights, by its
/// `quantization_config`.
///
/// Schemes that need more than the configuration says (scales measured beforehand), or one scale
/// for a whole batch, leave inputs as they are, which is closer to the model that was quantized.
///
/// **Source**: `BitsAndBytesConfig` of transformers; `QuantizationArgs` of compressed-tensors;
/// vLLM's `Fp8Config`.
pub(crate) fn inputs(config: &Map<String, Value>) -> Inputs {
    let keys = ["quantization_config", "compression_config"];
    let Some(config) = keys.iter().find_map(|key| config.get(*key)) else { return Inputs::Own };
    match config["quant_method"].as_str() {
        Some("bitsandbytes") => bitsandbytes(config),
        Some("compressed-tensors") => compressed(config),
        Some("fp8") if config["weight_block_size"].is_null() => {
            let dynamic = config["activation_scheme"] == "dynamic";
            if dynamic { Inputs::Fp8PerToken } else { Inputs::Own }
        }
        _ => Inputs::Own,
    }
}

fn bitsandbytes(config: &Value) -> Inputs {
    /// `llm_int8_threshold` where it is not given.
    const USUAL: f64 = 6.0;
    if config["load_in_8bit"] != true {
        return Inputs::Own;
    }
    let threshold = config["llm_int8_threshold"].as_f64().unwrap_or(USUAL) as f32;
    // At 0 nothing is taken out.
    Inputs::LlmInt8 { threshold: if threshold > 0.0 { threshold } else { f32::INFINITY } }
}

/// The scheme that all groups of weights have.
fn compressed(config: &Value) -> Inputs {
    let groups = config["config_groups"].as_object();
    let mut schemes =
        groups.into_iter().flatten().map(|(_, group)| group["input_activations"].clone());
    let Some(first) = schemes.next() else { return Inputs::Own };
    if schemes.any(|other| of_arguments(&other) != of_arguments(&first)) {
        return Inputs::Own;
    }
    of_arguments(&first)
}

fn of_arguments(scheme: &Value) -> Inputs {
    let symmetric = scheme["symmetric"] != false;
    if scheme["num_bits"] != 8 || scheme["dynamic"] != true || scheme["strategy"] != "token" {
        return Inputs::Own;
    }
    match scheme["type"].as_str() {
        Some("int") if symmetric => Inputs::Int8PerToken,
        Some("float") => Inputs::Fp8PerToken,
        _ => Inputs::Own,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(quantization: Value) -> Inputs {
        let Value::Object(config) = json!({"quantization_config": quantization}) else {
            unreachable!("an object")
        };
        inputs(&config)
    }

    #[test]
    fn eight_bit_bitsandbytes_brings_its_threshold() {
        let eight = |threshold: Value| {
            of(json!({"quant_method": "bitsandbytes", "load_in_8bit": true,
                      "llm_int8_threshold": threshold}))
        };
        assert_eq!(eight(json!(4.5)), Inputs::LlmInt8 { threshold: 4.5 });
        assert_eq!(eight(Value::Null), Inputs::LlmInt8 { threshold: 6.0 });
        assert_eq!(eight(json!(0.0)), Inputs::LlmInt8 { threshold: f32::INFINITY });
        let four = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
        assert_eq!(of(four), Inputs::Own);
    }

    #[test]
    fn compressed_tensors_say_it_per_group() {
        let groups = |all: &[Value]| {
            let groups: Map<String, Value> = all
                .iter()
                .enumerate()
                .map(|(i, args)| (format!("group_{i}"), json!({"input_activations": args})))
                .collect();
            of(json!({"quant_method": "compressed-tensors", "config_groups": groups}))
        };
        let int8 = json!({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": true,
                          "symmetric": true});
        let fp8 = json!({"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true});
        let fixed = json!({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": false});
        assert_eq!(groups(std::slice::from_ref(&int8)), Inputs::Int8PerToken);
        assert_eq!(groups(&[fp8.clone(), fp8.clone()]), Inputs::Fp8PerToken);
        assert_eq!(groups(&[int8, fp8]), Inputs::Own);
        assert_eq!(groups(&[fixed]), Inputs::Own);
        assert_eq!(groups(&[Value::Null]), Inputs::Own);
        assert_eq!(groups(&[]), Inputs::Own);
    }

    #[test]
    fn fp8_checkpoints_are_dynamic_or_left_alone() {
        let fp8 = |scheme: &str, block: Value| {
            of(json!({"quant_method": "fp8", "activation_scheme": scheme,
                      "weight_block_size": block}))
        };
        assert_eq!(fp8("dynamic", Value::Null), Inputs::Fp8PerToken);
        assert_eq!(fp8("static", Value::Null), Inputs::Own);
        assert_eq!(fp8("dynamic", json!([128, 128])), Inputs::Own);
        assert_eq!(inputs(&Map::new()), Inputs::Own);
    }
}
