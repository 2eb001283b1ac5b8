//! What the graph says.

use std::collections::BTreeSet;

use lathe_models::Role;
use lathe_onnx::{Float, LOGITS_FROM, Options, proto::Graph};

use crate::written::{Written, golden};

/// Every architecture that a graph can say.
const ARCHS: [&str; 17] = [
    "gemma2",
    "gemma3",
    "gemma3-layer-types",
    "llama",
    "llama-bias",
    "llama-dynamic",
    "llama-linear",
    "llama-longrope",
    "llama-yarn",
    "llama3",
    "mistral",
    "phi3",
    "phi3-longrope",
    "phi3-partial",
    "qwen2",
    "qwen2-window",
    "qwen3",
];

fn arch(name: &str) -> Written {
    Written::new(&golden("archs").join(name), Options::default()).unwrap()
}

/// Panics where a value is read before it is known, or known twice, or an output never made.
fn check_order(graph: &Graph) {
    let mut known: BTreeSet<&str> = graph.input.iter().map(|input| &*input.name).collect();
    assert_eq!(known.len(), graph.input.len());
    for tensor in &graph.initializer {
        // The input that has a value of its own is both.
        assert!(known.insert(&tensor.name) || tensor.name == LOGITS_FROM, "{}", tensor.name);
    }
    let mut names = BTreeSet::new();
    for node in &graph.node {
        assert!(names.insert(&*node.name), "two nodes are called {}", node.name);
        for input in node.input.iter().filter(|input| !input.is_empty()) {
            assert!(known.contains(&**input), "{} reads {input}, which is not there", node.name);
        }
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            assert!(known.insert(output), "{output} is made twice");
        }
    }
    for output in &graph.output {
        assert!(known.contains(&*output.name), "{} is never made", output.name);
    }
}

#[test]
fn every_value_is_made_before_it_is_read() {
    for name in ARCHS {
        let written = arch(name);
        check_order(&written.graph);
        for tensor in &written.graph.initializer {
            written.bytes(tensor);
            let reads = |node: &lathe_onnx::proto::Node| node.input.contains(&tensor.name);
            assert!(written.graph.node.iter().any(reads), "{name}: nobody reads {}", tensor.name);
        }
    }
}

#[test]
fn every_weight_is_in_the_graph_once() {
    for name in ARCHS {
        let written = arch(name);
        let floats = written.graph.initializer.iter().filter(|t| {
            t.dims.len() <= 2
                && !t.dims.is_empty()
                && t.data_type() == lathe_onnx::proto::Type::Float
                && !t.name.contains("_cache")
        });
        let numbers: i64 = floats.map(|t| t.dims.iter().product::<i64>()).sum();
        assert_eq!(numbers as u64, written.model.spec.parameters(), "{name}");
    }
}

#[test]
fn inputs_and_outputs_have_the_names_that_loaders_look_for() {
    let graph = arch("llama").graph;
    let inputs: Vec<_> = graph.input.iter().map(|input| &*input.name).collect();
    let caches = ["past_key_values.0.key", "past_key_values.0.value", "past_key_values.1.key"];
    assert_eq!(inputs[..5], [&["input_ids", "attention_mask"], &caches[..]].concat());
    let outputs: Vec<_> = graph.output.iter().map(|output| &*output.name).collect();
    assert_eq!(outputs[..3], ["logits", "present.0.key", "present.0.value"]);
}

#[test]
fn the_nodes_of_a_llama_are_these() {
    let graph = arch("llama3").graph;
    let ops: Vec<_> = graph.node.iter().map(|node| &*node.op_type).collect();
    let layer = [
        "MatMul",
        "GroupQueryAttention",
        "MatMul",
        "SkipSimplifiedLayerNormalization",
        "MatMul",
        "MatMul",
        "Sigmoid",
        "Mul",
        "Mul",
        "MatMul",
    ];
    let lengths = ["ReduceSum", "Sub", "Cast", "Shape", "Gather", "Cast"];
    let start = [&lengths[..], &["Gather", "RMSNormalization"], &layer].concat();
    assert_eq!(ops[..start.len()], start);
    assert_eq!(ops[ops.len() - 3..], ["SkipSimplifiedLayerNormalization", "Slice", "FusedMatMul"]);
}

#[test]
fn attention_says_what_the_spec_says() {
    let written = arch("gemma2");
    let set = |layer: usize, name: &str| {
        let node = format!("/model.layers.{layer}.attn/GroupQueryAttention");
        let node = written.graph.node.iter().find(|n| n.name == node).unwrap();
        node.attribute.iter().find(|a| a.name == name).cloned()
    };
    for (index, layer) in written.model.spec.layers.iter().enumerate() {
        let attention = layer.attention();
        let window = set(index, "local_window_size").and_then(|a| a.i);
        assert_eq!(window, attention.window.map(|w| w as i64));
        assert_eq!(set(index, "softcap").and_then(|a| a.f), attention.cap);
        assert_eq!(set(index, "scale").and_then(|a| a.f), Some(attention.scale));
        assert_eq!(set(index, "num_heads").and_then(|a| a.i), Some(attention.heads as i64));
    }
    assert!(written.graph.node.iter().any(|node| node.op_type == "Tanh"), "logits are capped");
}

#[test]
fn matrices_are_turned_and_stacked_and_norms_have_their_offset() {
    for float in [Float::F32, Float::F16] {
        let options = Options { float, ..Options::default() };
        let written = Written::new(&golden("archs/gemma2"), options).unwrap();
        let model = &written.model;
        let load = |part| {
            let located = model.find(Role::Layer(1, part)).unwrap();
            model.load(&written.checkpoint, located).unwrap()
        };
        use lathe_models::Part::{Down, K, MlpNorm, Q, V};
        let [q, k, v] = [Q, K, V].map(load);
        let qkv = written.numbers("model.layers.1.attn.qkv_proj.weight");
        let (q_rows, k_rows, cols) = (q.rows, k.rows, q.cols);
        let rows = q_rows + 2 * k_rows;
        let (q, k, v, down) = (q.decode(), k.decode(), v.decode(), load(Down));
        for col in 0..cols {
            for (row, first, of) in [(0, 0, &q), (3, q_rows, &k), (1, q_rows + k_rows, &v)] {
                // Golden checkpoints are exact in 16 bits.
                assert_eq!(qkv[col * rows + first + row], of[row * cols + col], "{col}");
            }
        }
        let turned = written.numbers("model.layers.1.mlp.down_proj.weight");
        let numbers = down.decode();
        for (i, number) in numbers.iter().enumerate() {
            let (row, col) = (i / down.cols, i % down.cols);
            assert_eq!(turned[col * down.rows + row], *number);
        }
        let norm = written.numbers("model.layers.1.mlp_layernorm.weight");
        let stored = load(MlpNorm).decode();
        for (number, stored) in norm.iter().zip(&stored) {
            assert!((number - stored - 1.0).abs() < 1e-3, "{number} {stored}");
        }
    }
}
