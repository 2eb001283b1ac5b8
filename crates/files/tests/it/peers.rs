//! Checkpoints that other tools quantized: their numbers to the bit, and their bytes again.

use std::path::{Path, PathBuf};

use lathe_base::{bf16, f16};
use lathe_files::{Checkpoint, Folder, FolderPlan, Layout, Planned, Target, write_folder};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/quants").join(name)
}

/// Folders with `values.safetensors`, and the format that their matrices are regrouped into.
const CASES: [(&str, &str); 6] = [
    ("gptq-4", "int4_g32_f16"),
    ("gptq-3", "int3_asym_g32_f16"),
    ("gptq-2", "int2_asym_g32_f16"),
    ("gptq-8", "int8_row_f16"),
    // Lathe has no groups of 16: the numbers themselves.
    ("gptq-g16", "f16"),
    ("awq", "int4_asym_g32_f16"),
];

/// The quantized weights of a checkpoint with what the tool that made it dequantizes them to.
fn values(folder: &str) -> (Checkpoint, Vec<(String, Vec<f32>, String)>) {
    let checkpoint = Checkpoint::open(&golden(folder)).unwrap();
    let values = Checkpoint::open(&golden(folder).join("values.safetensors")).unwrap();
    let one = |module: &str| {
        let format = values.format(module).unwrap();
        (format!("{module}.weight"), values.weight(module).unwrap().decode(), format)
    };
    let all = values.names().map(one).collect();
    (checkpoint, all)
}

#[test]
fn every_weight_is_what_its_own_tool_dequantizes_to() {
    for (folder, format) in CASES {
        let (checkpoint, values) = values(folder);
        assert_eq!(values.len() % 7, 0, "{folder}");
        for (name, wanted, dtype) in values {
            let found = checkpoint.weight(&name).unwrap();
            assert_eq!(found.format.name(), format, "{folder} {name}");
            let round = |x: f32| match dtype.as_str() {
                "f16" => f16::from_f32(x).to_f32(),
                "bf16" => bf16::from_f32(x).to_f32(),
                _ => x,
            };
            let found: Vec<f32> = found.decode().into_iter().map(round).collect();
            assert_eq!(found, wanted, "{folder} {name}");
        }
    }
}

#[test]
fn act_order_of_a_golden_is_kept_as_an_order_of_columns() {
    let checkpoint = Checkpoint::open(&golden("gptq-4")).unwrap();
    let down = checkpoint.weight("model.layers.0.mlp.down_proj.weight").unwrap();
    assert!(down.order.is_some(), "two groups of 32 whose columns lie apart");
    let query = checkpoint.weight("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert!(query.order.is_none(), "one group");
}

#[test]
fn their_tensors_are_written_again_to_the_byte() {
    for (folder, layout) in [
        ("gptq-4", Layout::Gptq),
        ("gptq-3", Layout::GptqV2),
        ("gptq-2", Layout::Gptq),
        ("gptq-8", Layout::Gptq),
        ("awq", Layout::Awq),
    ] {
        let source = Checkpoint::open(&golden(folder)).unwrap();
        let weight = |name: &str| {
            let blocks = source.weight(name).unwrap();
            let (name, shape) = (name.to_owned(), source.shape(name).unwrap().to_vec());
            (Planned { name, shape, format: blocks.format }, blocks)
        };
        let weights: Vec<_> = source.names().map(weight).collect();
        let tensors: Vec<_> = weights.iter().map(|(planned, _)| planned.clone()).collect();
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model");
        let target = Target { path: &path, replace: false, fingerprint: "" };
        let plan = FolderPlan::new(&source.config, &Folder::None, &tensors);
        let plan = FolderPlan { layout, ..plan };
        let plan = FolderPlan { act_order: layout != Layout::Awq, ..plan };
        let mut writer = write_folder(target, plan).unwrap();
        for (planned, blocks) in &weights {
            writer.add(&planned.name, &planned.shape, blocks).unwrap();
        }
        writer.finish().unwrap();
        let again = Checkpoint::open(&path).unwrap();
        assert_eq!(again.tensors.len(), source.tensors.len(), "{folder}");
        for (name, tensor) in source.tensors.iter() {
            let again = again.tensors.get(name).unwrap();
            assert_eq!(again.dtype, tensor.dtype, "{folder} {name}");
            assert_eq!(again.shape, tensor.shape, "{folder} {name}");
            assert!(again.data == tensor.data, "{folder} {name}");
        }
    }
}
