use lathe_formats::Blocks;
use lathe_kernels::Inputs;
use serde_json::{Map, Value};

/// What the engine that a checkpoint is made for does to the inputs of coded weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scheme {
    /// The same for all.
    Same(Inputs),
    /// FP8 with the scale that is stored beside each weight.
    Stored,
}

impl Default for Scheme {
    fn default() -> Self {
        Self::Same(Inputs::Own)
    }
}

impl Scheme {
    /// The scheme that a checkpoint's configuration describes in `quantization_config`.
    ///
    /// Schemes with one scale for a whole batch leave inputs as they are, which is closer to the
    /// model that was quantized and does not depend on what else is run.
    ///
    /// **Source**: `BitsAndBytesConfig` of transformers; `QuantizationArgs` of compressed-tensors;
    /// vLLM's `Fp8Config`.
    pub(crate) fn of(config: &Map<String, Value>) -> Self {
        let keys = ["quantization_config", "compression_config"];
        let Some(config) = keys.iter().find_map(|key| config.get(*key)) else {
            return Self::default();
        };
        match config["quant_method"].as_str() {
            Some("bitsandbytes") => Self::Same(bitsandbytes(config)),
            Some("compressed-tensors") => compressed(config),
            Some("fp8") => fp8(config),
            _ => Self::default(),
        }
    }

    /// What becomes of the inputs of a weight.
    pub(crate) fn inputs(self, weight: &Blocks) -> Inputs {
        // What is stored in full precision the scheme has left out.
        if ["f32", "f16", "bf16"].contains(&weight.format.name()) {
            return Inputs::Own;
        }
        match self {
            Self::Same(inputs) => inputs,
            Self::Stored => weight.input_scale.map_or(Inputs::Own, Inputs::Fp8Static),
        }
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

fn fp8(config: &Value) -> Scheme {
    let block = config["weight_block_size"][1].as_u64();
    match (config["activation_scheme"].as_str(), block.map(usize::try_from)) {
        (Some("static"), None) => Scheme::Stored,
        (Some("dynamic"), None) => Scheme::Same(Inputs::Fp8PerToken),
        (Some("dynamic"), Some(Ok(columns))) => Scheme::Same(Inputs::Fp8PerGroup { columns }),
        _ => Scheme::default(),
    }
}

/// The scheme that all groups of weights have.
fn compressed(config: &Value) -> Scheme {
    let groups = config["config_groups"].as_object();
    let mut schemes =
        groups.into_iter().flatten().map(|(_, group)| of_arguments(&group["input_activations"]));
    let Some(first) = schemes.next() else { return Scheme::default() };
    if schemes.all(|other| other == first) { first } else { Scheme::default() }
}

fn of_arguments(scheme: &Value) -> Scheme {
    let word = |key: &str| scheme[key].as_str().unwrap_or_default();
    if scheme["num_bits"] != 8 || scheme["symmetric"] == false {
        return Scheme::default();
    }
    let group = scheme["group_size"].as_u64().and_then(|n| usize::try_from(n).ok());
    let dynamic = scheme["dynamic"] == true;
    match (word("type"), word("strategy"), dynamic, group) {
        ("int", "token", true, _) => Scheme::Same(Inputs::Int8PerToken),
        ("float", "token", true, _) => Scheme::Same(Inputs::Fp8PerToken),
        ("float", "group", true, Some(columns)) => Scheme::Same(Inputs::Fp8PerGroup { columns }),
        ("float", "tensor", false, _) => Scheme::Stored,
        _ => Scheme::default(),
    }
}

#[cfg(test)]
mod tests {
    use lathe_formats::by_name;
    use serde_json::json;

    use super::*;

    fn of(quantization: Value) -> Scheme {
        let Value::Object(config) = json!({"quantization_config": quantization}) else {
            unreachable!("an object")
        };
        Scheme::of(&config)
    }

    const OWN: Scheme = Scheme::Same(Inputs::Own);

    #[test]
    fn eight_bit_bitsandbytes_brings_its_threshold() {
        let eight = |threshold: Value| {
            of(json!({"quant_method": "bitsandbytes", "load_in_8bit": true,
                      "llm_int8_threshold": threshold}))
        };
        let outliers = |threshold| Scheme::Same(Inputs::LlmInt8 { threshold });
        assert_eq!(eight(json!(4.5)), outliers(4.5));
        assert_eq!(eight(Value::Null), outliers(6.0));
        assert_eq!(eight(json!(0.0)), outliers(f32::INFINITY));
        let four = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
        assert_eq!(of(four), OWN);
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
        let tiles = json!({"num_bits": 8, "type": "float", "strategy": "group", "dynamic": true,
                           "group_size": 128});
        let batch = json!({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": true});
        let four = json!({"num_bits": 4, "type": "float", "strategy": "tensor_group",
                          "dynamic": "local", "group_size": 16});
        assert_eq!(groups(std::slice::from_ref(&int8)), Scheme::Same(Inputs::Int8PerToken));
        assert_eq!(groups(&[fp8.clone(), fp8.clone()]), Scheme::Same(Inputs::Fp8PerToken));
        assert_eq!(groups(&[int8, fp8]), OWN);
        assert_eq!(groups(&[fixed]), Scheme::Stored);
        assert_eq!(groups(&[tiles]), Scheme::Same(Inputs::Fp8PerGroup { columns: 128 }));
        assert_eq!(groups(&[batch]), OWN);
        assert_eq!(groups(&[four]), OWN);
        assert_eq!(groups(&[Value::Null]), OWN);
        assert_eq!(groups(&[]), OWN);
    }

    #[test]
    fn fp8_checkpoints_are_dynamic_or_have_scales_of_their_own() {
        let fp8 = |scheme: &str, block: Value| {
            of(json!({"quant_method": "fp8", "activation_scheme": scheme,
                      "weight_block_size": block}))
        };
        let tiles = Scheme::Same(Inputs::Fp8PerGroup { columns: 128 });
        assert_eq!(fp8("dynamic", Value::Null), Scheme::Same(Inputs::Fp8PerToken));
        assert_eq!(fp8("static", Value::Null), Scheme::Stored);
        assert_eq!(fp8("dynamic", json!([128, 128])), tiles);
        assert_eq!(Scheme::of(&Map::new()), OWN);
    }

    #[test]
    fn stored_scales_count_where_there_are_any() {
        let weight = by_name("fp8_tensor").unwrap().encode(2, 4, &[0.5; 8], 1).unwrap();
        assert_eq!(Scheme::Stored.inputs(&weight), Inputs::Own);
        let scaled = Blocks { input_scale: Some(0.25), ..weight };
        assert_eq!(Scheme::Stored.inputs(&scaled), Inputs::Fp8Static(0.25));
        assert_eq!(Scheme::Same(Inputs::Fp8PerToken).inputs(&scaled), Inputs::Fp8PerToken);
        let dense = by_name("bf16").unwrap().encode(2, 4, &[0.5; 8], 1).unwrap();
        assert_eq!(Scheme::Same(Inputs::Fp8PerToken).inputs(&dense), Inputs::Own);
    }
}
