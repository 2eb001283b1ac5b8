//! What the built-in rules say about artifacts whose fate is known.

use lathe_preflight::{Answer, Artifact, Device, Matrix, Rules, Split, check, check_all};

fn matrix(name: &str, rows: usize, cols: usize, format: &str, split: Split) -> Matrix {
    let group = format.split("_g").nth(1).and_then(|g| g.trim_end_matches("_f16").parse().ok());
    Matrix {
        name: name.to_owned(),
        rows,
        cols,
        format: format.to_owned(),
        group,
        zero_point: format.contains("asym"),
        split,
    }
}

/// A small Llama in one format.
fn llama(layout: &str, format: &str) -> Artifact {
    Artifact {
        architecture: "LlamaForCausalLM".to_owned(),
        layout: layout.to_owned(),
        activations: "bf16".to_owned(),
        inputs: "float".to_owned(),
        act_order: false,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        matrices: vec![
            matrix("q_proj", 4096, 4096, format, Split::Rows),
            matrix("k_proj", 1024, 4096, format, Split::Rows),
            matrix("down_proj", 4096, 11008, format, Split::Cols),
        ],
    }
}

fn ask(artifact: &Artifact, engine: &str, device: &str, ranks: usize) -> Answer {
    check(Rules::built_in(), artifact, engine, device.parse().unwrap(), ranks).unwrap()
}

fn kernels(answer: &Answer) -> Vec<&str> {
    answer.kernels.iter().map(|kernel| kernel.name.as_str()).collect()
}

#[test]
fn the_kernel_depends_on_the_generation_of_the_gpu() {
    let artifact = llama("compressed-tensors", "int4_g128");
    for (device, kernel) in [("t4", "Marlin"), ("a100", "Marlin"), ("h100", "Machete")] {
        let answer = ask(&artifact, "vllm", device, 1);
        assert_eq!(kernels(&answer), [kernel], "{device}: {answer:?}");
    }
    assert!(!ask(&artifact, "vllm", "v100", 1).loads());
}

#[test]
fn groups_that_the_fastest_kernel_does_not_take_fall_to_the_next() {
    assert_eq!(kernels(&ask(&llama("gptq", "int4_g32_f16"), "vllm", "h100", 1)), ["Marlin"]);
}

#[test]
fn zero_points_of_gptq_are_refused_by_vllm_and_read_by_transformers() {
    let artifact = llama("gptq", "int4_asym_g128_f16");
    let refused = ask(&artifact, "vllm", "a100", 1);
    assert!(!refused.loads());
    assert!(refused.obstacles[0].reason.contains("without zero points"), "{refused:?}");
    assert_eq!(refused.obstacles[0].matrices.len(), 3);
    assert!(ask(&artifact, "transformers", "cpu", 1).loads());
}

#[test]
fn reordered_columns_are_refused_where_no_kernel_takes_them() {
    let artifact = Artifact { act_order: true, ..llama("gptq", "int4_g128_f16") };
    let answer = ask(&artifact, "vllm", "a100", 1);
    assert!(answer.obstacles[0].reason.contains("reordered columns"), "{answer:?}");
    assert!(ask(&artifact, "transformers", "a100", 1).loads());
}

#[test]
fn tensor_parallelism_is_held_against_heads_groups_and_shapes() {
    let artifact = llama("compressed-tensors", "int4_g128");
    assert!(ask(&artifact, "vllm", "a100", 2).loads());
    // 11008 / 4 = 2752 is no multiple of 128.
    let answer = ask(&artifact, "vllm", "a100", 4);
    assert!(!answer.loads());
    assert!(answer.obstacles.iter().any(|o| o.matrices == ["down_proj"]), "{answer:?}");
    let answer = ask(&artifact, "vllm", "a100", 3);
    assert!(answer.obstacles.iter().any(|o| o.reason.contains("32 attention heads")));
    assert!(!ask(&llama("gguf", "q4_0"), "llama.cpp", "cpu", 2).loads());
}

#[test]
fn files_of_a_layout_that_an_engine_does_not_read_are_refused_whole() {
    let answer = ask(&llama("bitsandbytes", "nf4"), "vllm", "h100", 1);
    assert!(answer.obstacles[0].reason.contains("does not read bitsandbytes files"), "{answer:?}");
    assert!(answer.obstacles[0].matrices.is_empty());
    assert!(!ask(&llama("gguf", "q4_k"), "vllm", "h100", 1).loads());
    assert!(ask(&llama("gguf", "q4_k"), "llama.cpp", "h100", 1).loads());
}

#[test]
fn narrow_heads_are_refused_where_the_attention_does_not_take_them() {
    let artifact = Artifact { head_dim: 16, ..llama("plain", "bf16") };
    let answer = ask(&artifact, "vllm", "cpu", 1);
    assert!(answer.obstacles[0].reason.contains("heads of 16"), "{answer:?}");
    assert!(ask(&artifact, "vllm", "a100", 1).loads());
    assert!(ask(&llama("plain", "bf16"), "vllm", "cpu", 1).loads());
}

#[test]
fn odd_shapes_are_named_with_the_matrix_and_what_each_kernel_misses() {
    let mut artifact = llama("compressed-tensors", "int4_g128");
    artifact.matrices.push(matrix("odd", 4100, 4096, "int4_g128", Split::Rows));
    let answer = ask(&artifact, "vllm", "cpu", 1);
    let odd = &answer.obstacles[0];
    assert_eq!(odd.matrices, ["odd"]);
    assert!(odd.reason.contains("rows in multiples of 32, not 4100"), "{}", odd.reason);
    assert!(!odd.source.is_empty());
}

#[test]
fn every_engine_is_asked_about_the_devices_that_it_runs_on() {
    let answers = check_all(Rules::built_in(), &llama("gguf", "q4_0"), Device::USUAL, 1);
    let native = answers.iter().filter(|a| a.engine == "native").count();
    assert_eq!(native, 1);
    assert_eq!(answers.iter().filter(|a| a.engine == "vllm").count(), Device::USUAL.len());
}

#[test]
fn rejects_an_engine_without_rules() {
    let error = check(Rules::built_in(), &llama("gguf", "q4_0"), "nothing", Device::Cpu, 1);
    assert!(error.unwrap_err().to_string().contains("llama.cpp"));
}

#[test]
fn int8_weights_run_on_a_cpu_in_vllm_only_where_inputs_are_int8_too() {
    let weights_only = llama("compressed-tensors", "int8");
    assert!(!ask(&weights_only, "vllm", "cpu", 1).loads());
    let w8a8 = Artifact { inputs: "int8".to_owned(), ..weights_only };
    assert_eq!(kernels(&ask(&w8a8, "vllm", "cpu", 1)), ["CPUInt8ScaledMM"]);
    assert_eq!(kernels(&ask(&w8a8, "vllm", "a100", 1)), ["CUTLASS INT8"]);
}

#[test]
fn fp8_needs_ada_for_inputs_in_fp8_and_runs_on_older_gpus_with_inputs_as_they_are() {
    let fp8 = Artifact { inputs: "fp8".to_owned(), ..llama("compressed-tensors", "fp8_row") };
    assert_eq!(kernels(&ask(&fp8, "vllm", "h100", 1)), ["CUTLASS FP8"]);
    assert_eq!(kernels(&ask(&fp8, "vllm", "a100", 1)), ["Marlin FP8"]);
    let weights_only = Artifact { inputs: "float".to_owned(), ..fp8 };
    assert_eq!(kernels(&ask(&weights_only, "vllm", "h100", 1)), ["Marlin FP8"]);
}

/// The same with experts.
fn with_experts(architecture: &str, layout: &str, format: &str, inputs: &str) -> Artifact {
    let (architecture, inputs) = (architecture.to_owned(), inputs.to_owned());
    Artifact { architecture, inputs, ..llama(layout, format) }
}

#[test]
fn experts_load_where_the_layout_was_tried_with_them() {
    let mixtral = "MixtralForCausalLM";
    for (layout, format, inputs, loads) in [
        ("plain", "bf16", "float", true),
        ("compressed-tensors", "int4_g128", "float", true),
        ("compressed-tensors", "int8", "float", true),
        ("compressed-tensors", "int8", "int8", false),
        ("compressed-tensors", "fp8_row", "fp8", true),
        ("compressed-tensors", "fp8_block", "fp8", false),
        ("compressed-tensors", "nvfp4", "float", false),
        ("bitsandbytes", "nf4", "float", false),
        ("gguf", "q8_0", "float", false),
    ] {
        let artifact = with_experts(mixtral, layout, format, inputs);
        let answer = ask(&artifact, "transformers", "cpu", 1);
        assert_eq!(answer.loads(), loads, "{layout} {format}: {answer:?}");
    }
    assert!(ask(&with_experts(mixtral, "gguf", "q4_k", "float"), "llama.cpp", "cpu", 1).loads());
}

#[test]
fn a_layout_may_be_read_of_some_architectures_only() {
    for (architecture, loads) in [("MixtralForCausalLM", false), ("Qwen3MoeForCausalLM", true)] {
        let artifact = with_experts(architecture, "gptq", "int4_g128_f16", "float");
        let answer = ask(&artifact, "transformers", "cpu", 1);
        assert_eq!(answer.loads(), loads, "{answer:?}");
    }
    let experts = with_experts("OlmoeForCausalLM", "awq", "int4_asym_g128_f16", "float");
    let answer = ask(&experts, "vllm", "cpu", 1);
    let reason = "vllm is not known to read awq files of OlmoeForCausalLM";
    assert_eq!(answer.obstacles[0].reason, reason);
    assert!(
        ask(&with_experts("OlmoeForCausalLM", "plain", "bf16", "float"), "vllm", "cpu", 1).loads()
    );
}

#[test]
fn onnx_runtime_gets_a_graph_of_whatever_is_read_unless_it_has_experts_or_odd_heads() {
    for (layout, format, kernel) in [
        ("plain", "bf16", "MatMul"),
        ("gguf", "q4_0", "MatMulNBits"),
        ("gguf", "q4_k", "MatMul of decoded weights"),
        ("gptq", "int4_g128_f16", "MatMulNBits"),
        ("bitsandbytes", "nf4", "MatMul of decoded weights"),
    ] {
        let answer = ask(&llama(layout, format), "onnxruntime", "cpu", 1);
        assert_eq!(kernels(&answer), [kernel], "{layout} {format}: {answer:?}");
        assert!(answer.notes[0].contains("lathe convert --to onnx"), "{answer:?}");
    }
    let reordered = Artifact { act_order: true, ..llama("gptq", "int4_g128_f16") };
    let decoded = ask(&reordered, "onnxruntime", "cpu", 1);
    assert_eq!(kernels(&decoded), ["MatMul of decoded weights"]);
    let experts = with_experts("MixtralForCausalLM", "plain", "bf16", "float");
    assert!(!ask(&experts, "onnxruntime", "cpu", 1).loads());
    let odd = Artifact { head_dim: 20, ..llama("plain", "bf16") };
    let answer = ask(&odd, "onnxruntime", "cpu", 1);
    assert!(answer.obstacles[0].reason.contains("heads of 20"), "{answer:?}");
}
