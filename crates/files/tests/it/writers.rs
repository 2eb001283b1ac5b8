//! What the writers write, the readers read: the same names, shapes and bytes; and an interrupted
//! run ends in the same files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lathe_base::{Buf, Bytes};
use lathe_files::{
    Checkpoint, Error, Folder, FolderPlan, Planned, Result, Target, Writer,
    gguf::{Array, Metadata, Value},
    write_folder, write_gguf,
};
use lathe_formats::{Blocks, by_name};
use serde_json::{Map, json};

/// Numbers without a pattern, the same every time.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// A small model's tensors, matrices in `format`.
fn tensors(format: &str) -> Vec<(Planned, Blocks)> {
    let shapes: [(&str, &[usize], &str); 6] = [
        ("model.embed_tokens.weight", &[40, 128], "bf16"),
        ("model.layers.0.self_attn.q_proj.weight", &[128, 128], format),
        ("model.layers.0.self_attn.q_proj.bias", &[128], "f32"),
        ("model.layers.0.mlp.down_proj.weight", &[12, 256], format),
        ("model.norm.weight", &[128], "f16"),
        ("lm_head.weight", &[40, 128], "bf16"),
    ];
    let one = |(i, (name, shape, format)): (usize, (&str, &[usize], &str))| {
        let format = by_name(format).unwrap();
        let cols = *shape.last().unwrap();
        let count: usize = shape.iter().product();
        let blocks = format.encode(count / cols, cols, &numbers(count, i as u64 + 1), 1).unwrap();
        (Planned { name: name.to_owned(), shape: shape.to_vec(), format }, blocks)
    };
    shapes.into_iter().enumerate().map(one).collect()
}

fn metadata() -> Metadata {
    let mut metadata = Metadata::new();
    let mut set = |key: &str, value| metadata.set(key, value);
    set("general.architecture", Value::String("llama".into()));
    for (key, n) in [
        ("context_length", 64u32),
        ("embedding_length", 128),
        ("block_count", 1),
        ("feed_forward_length", 256),
        ("attention.head_count", 4),
    ] {
        set(&format!("llama.{key}"), Value::U32(n));
    }
    set("every.i8", Value::I8(-3));
    set("every.u8", Value::U8(250));
    set("every.i16", Value::I16(-300));
    set("every.u16", Value::U16(65000));
    set("every.i32", Value::I32(-70000));
    set("every.f32", Value::F32(1e-5));
    set("every.f64", Value::F64(1e-300));
    set("every.bool", Value::Bool(true));
    set("every.i64", Value::I64(i64::MIN));
    set("every.u64", Value::U64(u64::MAX));
    set(
        "every.nested",
        Value::Array(Array::Array(vec![Array::U16(vec![1, 2]), Array::Bool(vec![])])),
    );
    let tokens = ["<s>", "é", "日本", ""].map(str::to_owned).to_vec();
    set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0, -1.5, -2.0, -3.0])));
    metadata
}

fn target(path: &Path) -> Target<'_> {
    Target { path, replace: false, fingerprint: "test" }
}

fn gguf(path: &Path, tensors: &[(Planned, Blocks)]) -> Result<Box<dyn Writer>> {
    let plan: Vec<_> = tensors.iter().map(|(planned, _)| planned.clone()).collect();
    write_gguf(target(path), &metadata(), &plan)
}

fn folder(path: &Path, tensors: &[(Planned, Blocks)], shard: u64) -> Result<Box<dyn Writer>> {
    let plan: Vec<_> = tensors.iter().map(|(planned, _)| planned.clone()).collect();
    let config = json!({"model_type": "llama", "torch_dtype": "float16", "hidden_size": 128});
    let config: Map<_, _> = config.as_object().unwrap().clone();
    let sides = Folder::Memory(vec![
        ("tokenizer.json".into(), Buf::from_static(b"{}")),
        ("config.json".into(), Buf::from_static(b"not this one")),
        ("model.safetensors.index.json".into(), Buf::from_static(b"nor this one")),
        ("weights.bin".into(), Buf::from_static(b"nor this one")),
    ]);
    let plan = FolderPlan { shard: Bytes(shard), ..FolderPlan::new(&config, &sides, &plan) };
    write_folder(target(path), plan)
}

fn write(mut writer: Box<dyn Writer>, tensors: &[(Planned, Blocks)]) {
    for (planned, blocks) in &tensors[writer.done()..] {
        writer.add(&planned.name, &planned.shape, blocks).unwrap();
    }
    writer.finish().unwrap();
}

fn assert_same(checkpoint: &Checkpoint, tensors: &[(Planned, Blocks)]) {
    let mut names: Vec<_> = checkpoint.names().collect();
    let mut wanted: Vec<_> = tensors.iter().map(|(p, _)| p.name.as_str()).collect();
    names.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(names, wanted);
    for (planned, blocks) in tensors {
        let found = checkpoint.weight(&planned.name).unwrap();
        assert_eq!(checkpoint.shape(&planned.name), Some(planned.shape.as_slice()));
        assert_eq!(checkpoint.format(&planned.name).unwrap(), planned.format.name());
        assert_eq!(found.format.name(), planned.format.name());
        assert_eq!((found.rows, found.cols), (blocks.rows, blocks.cols));
        assert_eq!(found.data, blocks.data, "{planned:?}");
        assert_eq!(found.side, blocks.side, "{planned:?}");
    }
}

/// Every file below `path` with its bytes.
fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    if path.is_file() {
        return vec![(PathBuf::new(), fs::read(path).unwrap())];
    }
    let mut files: Vec<_> = fs::read_dir(path)
        .unwrap()
        .flatten()
        .map(|e| (e.file_name().into(), fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_gguf_is_read_back_with_its_bytes_and_its_typed_metadata() {
    for format in ["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0"] {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model.gguf");
        let tensors = tensors(format);
        write(gguf(&path, &tensors).unwrap(), &tensors);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_same(&checkpoint, &tensors);
        assert_eq!(checkpoint.gguf, Some(metadata()));
        assert_eq!(contents(place.path()).len(), 1, "nothing is left beside it");
    }
}

#[test]
fn a_folder_is_read_back_with_its_bytes_whatever_the_layout_and_the_shards() {
    for format in [
        "f32",
        "f16",
        "bf16",
        "int8",
        "nf4",
        "nf4_dq",
        "int4_g32",
        "int4_g64",
        "int4_g128",
        "int4_asym_g32",
        "int4_asym_g64",
        "int4_asym_g128",
    ] {
        for shard in [1 << 30, 20_000, 1] {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("model");
            let tensors = tensors(format);
            write(folder(&path, &tensors, shard).unwrap(), &tensors);
            assert_same(&Checkpoint::open(&path).unwrap(), &tensors);
            assert!(path.join("tokenizer.json").exists());
            assert!(!path.join("weights.bin").exists());
            assert_eq!(path.join("model.safetensors").exists(), shard == 1 << 30);
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
        }
    }
}

#[test]
fn every_stored_tensor_is_aligned_to_its_type() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model");
    let tensors = tensors("nf4_dq");
    write(folder(&path, &tensors, 1 << 30).unwrap(), &tensors);
    let checkpoint = Checkpoint::open(&path).unwrap();
    for (name, tensor) in checkpoint.tensors.iter() {
        let width = tensor.dtype.block().1;
        assert_eq!(tensor.data.as_ptr() as usize % width, 0, "{name}");
    }
}

#[test]
fn the_configuration_says_what_the_weights_are_stored_as() {
    let config = |format| {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model");
        let tensors = tensors(format);
        write(folder(&path, &tensors, 1 << 30).unwrap(), &tensors);
        Checkpoint::open(&path).unwrap().config
    };
    let dense = config("f32");
    assert_eq!(dense["torch_dtype"], "bfloat16", "that of the first matrix");
    assert_eq!(dense["hidden_size"], 128);
    assert!(!dense.contains_key("quantization_config"));
    let nf4 = config("nf4_dq");
    assert_eq!(nf4["quantization_config"]["bnb_4bit_use_double_quant"], true);
    assert_eq!(nf4["quantization_config"]["llm_int8_skip_modules"], json!(["lm_head"]));
    let int4 = config("int4_asym_g64");
    let weights = &int4["quantization_config"]["config_groups"]["group_0"]["weights"];
    assert_eq!(weights["group_size"], 64);
    assert_eq!(weights["symmetric"], false);
    assert_eq!(int4["quantization_config"]["ignore"], json!(["lm_head"]));
}

#[test]
fn a_run_cut_short_anywhere_ends_in_the_same_bytes() {
    type Start = fn(&Path, &[(Planned, Blocks)]) -> Result<Box<dyn Writer>>;
    let starts: [(&str, Start); 2] =
        [("q8_0", gguf), ("nf4_dq", |path, tensors| folder(path, tensors, 20_000))];
    for (format, start) in starts {
        let tensors = tensors(format);
        let place = tempfile::tempdir().unwrap();
        let whole = place.path().join("whole");
        write(start(&whole, &tensors).unwrap(), &tensors);
        for cut in 0..=tensors.len() {
            let path = place.path().join(format!("cut{cut}"));
            let mut writer = start(&path, &tensors).unwrap();
            for (planned, blocks) in &tensors[..cut] {
                writer.add(&planned.name, &planned.shape, blocks).unwrap();
            }
            drop(writer);
            assert!(!path.exists());
            let writer = start(&path, &tensors).unwrap();
            assert_eq!(writer.done(), cut);
            write(writer, &tensors);
            assert_eq!(contents(&path), contents(&whole));
        }
    }
}

#[test]
fn a_tensor_that_a_crash_tore_is_written_again() {
    let tensors = tensors("q8_0");
    let place = tempfile::tempdir().unwrap();
    let (whole, path) = (place.path().join("whole.gguf"), place.path().join("torn.gguf"));
    write(gguf(&whole, &tensors).unwrap(), &tensors);
    let mut writer = gguf(&path, &tensors).unwrap();
    for (planned, blocks) in &tensors[..3] {
        writer.add(&planned.name, &planned.shape, blocks).unwrap();
    }
    drop(writer);
    let partial = place.path().join("torn.gguf.partial");
    let mut bytes = fs::read(&partial).unwrap();
    let second = Checkpoint::open(&whole).unwrap().weight(&tensors[1].0.name).unwrap().data;
    let at = bytes.windows(second.len()).position(|w| w == second).unwrap();
    bytes[at + 100] ^= 1;
    fs::write(&partial, bytes).unwrap();
    let writer = gguf(&path, &tensors).unwrap();
    assert_eq!(writer.done(), 1);
    write(writer, &tensors);
    assert_eq!(contents(&path), contents(&whole));
}

#[test]
fn another_fingerprint_starts_anew() {
    let tensors = tensors("q8_0");
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.gguf");
    let mut writer = gguf(&path, &tensors).unwrap();
    writer.add(&tensors[0].0.name, &tensors[0].0.shape, &tensors[0].1).unwrap();
    drop(writer);
    let plan: Vec<_> = tensors.iter().map(|(planned, _)| planned.clone()).collect();
    let other = Target { path: &path, replace: false, fingerprint: "another model" };
    assert_eq!(write_gguf(other, &metadata(), &plan).unwrap().done(), 0);
}

#[test]
fn what_another_plan_left_behind_does_not_get_into_the_model() {
    let tensors = tensors("int8");
    let place = tempfile::tempdir().unwrap();
    let (whole, path) = (place.path().join("whole"), place.path().join("model"));
    write(folder(&whole, &tensors, 1 << 30).unwrap(), &tensors);
    drop(folder(&path, &tensors, 1).unwrap());
    fs::write(place.path().join("model.partial/tokenizer.json.77.partial"), "torn").unwrap();
    write(folder(&path, &tensors, 1 << 30).unwrap(), &tensors);
    assert_eq!(contents(&path), contents(&whole));
}

#[test]
fn an_older_model_stays_until_the_new_one_is_complete() {
    let tensors = tensors("nf4");
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("config.json"), "old").unwrap();
    assert!(matches!(folder(&path, &tensors, 1 << 30), Err(Error::Exists { .. })));

    let plan: Vec<_> = tensors.iter().map(|(planned, _)| planned.clone()).collect();
    let config = Map::new();
    let plan = FolderPlan::new(&config, &Folder::None, &plan);
    let target = Target { path: &path, replace: true, fingerprint: "" };
    let writer = write_folder(target, plan).unwrap();
    assert_eq!(fs::read(path.join("config.json")).unwrap(), b"old");
    write(writer, &tensors);
    assert_same(&Checkpoint::open(&path).unwrap(), &tensors);

    fs::create_dir(path.join("thesis")).unwrap();
    assert!(matches!(write_folder(target, plan), Err(Error::Exists { .. })), "not only a model");
}

#[test]
fn two_runs_cannot_write_the_same_target() {
    let tensors = tensors("q8_0");
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.gguf");
    let _first = gguf(&path, &tensors).unwrap();
    let error = gguf(&path, &tensors).err().unwrap();
    assert!(error.to_string().contains("another run"), "{error}");
}

#[test]
fn a_tensor_out_of_turn_or_of_another_shape_is_refused() {
    let tensors = tensors("q8_0");
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.gguf");
    let mut writer = gguf(&path, &tensors).unwrap();
    let (planned, blocks) = &tensors[1];
    assert!(writer.add(&planned.name, &planned.shape, blocks).is_err());
    let (planned, blocks) = &tensors[0];
    assert!(writer.add(&planned.name, &[128, 40], blocks).is_err());
    let unfinished = writer.finish().unwrap_err();
    assert!(unfinished.to_string().contains("embed_tokens"), "{unfinished}");
}

#[test]
fn what_no_tool_would_load_is_refused_before_anything_is_written() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model");
    assert!(matches!(folder(&path, &tensors("q8_0"), 1), Err(Error::Unsupported { .. })));
    assert!(matches!(gguf(&path, &tensors("nf4")), Err(Error::Unsupported { .. })));
    let mut mixed = tensors("nf4");
    mixed.extend(tensors("int8").into_iter().map(|(mut planned, blocks)| {
        planned.name.insert_str(0, "other.");
        (planned, blocks)
    }));
    assert!(matches!(folder(&path, &mixed, 1), Err(Error::Unsupported { .. })));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}
