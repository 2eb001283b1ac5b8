//! Weights that stay codes.

use lathe_formats::Blocks;
use lathe_models::{Part, Role};
use lathe_onnx::{Options, proto::Node};

use crate::written::{Written, golden};

/// A matrix as the operator for codes reads it, row by row.
///
/// **Source** ONNX Runtime's `docs/ContribOperators.md`, MatMulNBits.
fn decoded(written: &Written, node: &Node) -> Vec<f32> {
    let int = |name: &str| {
        let attribute = node.attribute.iter().find(|a| a.name == name);
        attribute.and_then(|a| a.i).unwrap_or_else(|| panic!("no {name}")) as usize
    };
    let (cols, rows, bits, block) = (int("K"), int("N"), int("bits"), int("block_size"));
    assert!(block.is_power_of_two() && block >= 16, "{block}");
    let groups = cols.div_ceil(block);
    let codes = written.tensor(&node.input[1]);
    assert_eq!(codes.dims, [rows, groups, block * bits / 8].map(|d| d as i64));
    let codes = unpacked(&written.bytes(codes), bits);
    let scales = written.numbers(&node.input[2]);
    assert_eq!(scales.len(), rows * groups);
    let per_row = groups.div_ceil(8 / bits) * (8 / bits);
    let zeros = node.input.get(3).map(|name| unpacked(&written.bytes(written.tensor(name)), bits));
    let mut out = Vec::new();
    for row in 0..rows {
        for col in 0..cols {
            let group = col / block;
            let zero = match &zeros {
                Some(zeros) => zeros[row * per_row + group],
                None => 1 << (bits - 1),
            };
            let code = codes[(row * groups + group) * block + col % block];
            let scale = scales[row * groups + group];
            out.push((i32::from(code) - i32::from(zero)) as f32 * scale);
        }
    }
    out
}

fn unpacked(bytes: &[u8], bits: usize) -> Vec<u8> {
    match bits {
        4 => bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect(),
        _ => bytes.to_vec(),
    }
}

fn load(written: &Written, role: Role) -> Blocks {
    let located = written.model.find(role).unwrap();
    written.model.load(&written.checkpoint, located).unwrap()
}

#[test]
fn codes_stand_for_the_weights_that_they_came_from() {
    let mut checked = 0;
    let folders = ["gptq-2", "gptq-3", "gptq-4", "gptq-8", "awq", "int4", "int4-asymmetric"];
    for name in
        folders.map(|name| format!("quants/{name}")).iter().chain(&["activations/w8a8".into()])
    {
        let written = Written::new(&golden(name), Options::default()).unwrap();
        for node in written.graph.node.iter().filter(|node| node.op_type == "MatMulNBits") {
            let index = node.name.split('.').nth(2).unwrap().parse().unwrap();
            let parts: &[Part] = match node.name.split('/').nth(1).unwrap() {
                name if name.ends_with("qkv_proj") => &[Part::Q, Part::K, Part::V],
                name if name.ends_with("q_proj") => &[Part::Q],
                name if name.ends_with("k_proj") => &[Part::K],
                name if name.ends_with("v_proj") => &[Part::V],
                name if name.ends_with("o_proj") => &[Part::Out],
                name if name.ends_with("gate_proj") => &[Part::Gate],
                name if name.ends_with("up_proj") => &[Part::Up],
                name if name.ends_with("down_proj") => &[Part::Down],
                other => panic!("what is {other}?"),
            };
            let weights =
                parts.iter().flat_map(|p| load(&written, Role::Layer(index, *p)).decode());
            assert_eq!(
                decoded(&written, node),
                weights.collect::<Vec<_>>(),
                "{name} {}",
                node.name
            );
            checked += 1;
        }
        assert_eq!(
            written.graph.node.iter().filter(|n| n.op_type == "MatMulNBits").count() > 0,
            written.summary.coded > 0
        );
    }
    assert!(checked > 20, "{checked} products with codes");
}

#[test]
fn formats_without_such_codes_become_numbers_and_are_named() {
    let written = Written::new(&golden("quants/mxfp4"), Options::default()).unwrap();
    assert_eq!((written.summary.coded, &*written.summary.expanded), (0, &["mxfp4"][..]));
    let down = load(&written, Role::Layer(0, Part::Down));
    let turned = written.numbers("model.layers.0.mlp.down_proj.weight");
    let numbers = down.decode();
    assert!((0..down.cols).all(|col| turned[col * down.rows] == numbers[col]));
}

#[test]
fn inputs_are_rounded_only_where_that_is_asked_for() {
    for (rounded_inputs, level) in [(false, 1), (true, 4)] {
        let options = Options { rounded_inputs, ..Options::default() };
        let written = Written::new(&golden("quants/int4"), options).unwrap();
        let node = written.graph.node.iter().find(|node| node.op_type == "MatMulNBits").unwrap();
        let set = node.attribute.iter().find(|a| a.name == "accuracy_level").unwrap();
        assert_eq!(set.i, Some(level));
    }
}
