//! Files that are cut short, altered or built to hurt: every reader ends in an error or in
//! numbers, never in a panic, and never takes memory that the file does not back.

use std::{fs, path::Path, sync::OnceLock};

use lathe_base::Buf;
use lathe_files::{
    Checkpoint, Error, Folder, FolderPlan, Planned, Result, Target, Writer,
    gguf::{Array, Metadata, Value},
    write_folder, write_gguf,
};
use lathe_formats::by_name;
use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

fn open(files: &[(&str, &[u8])]) -> Result<Checkpoint> {
    let files: Vec<_> = files.iter().map(|(n, b)| (*n, Buf::copy_from_slice(b))).collect();
    Checkpoint::from_memory(&files)
}

/// Opens one weights file and, if that goes well, reads everything in it.
fn read(name: &str, bytes: &[u8]) -> Result<()> {
    let checkpoint = open(&[("config.json", b"{}"), (name, bytes)])?;
    for name in checkpoint.names() {
        let _ = checkpoint.has_non_finite(name);
        let _ = checkpoint.shape(name);
    }
    Ok(())
}

fn fill(mut writer: Box<dyn Writer>, plan: &[Planned]) {
    for planned in plan {
        let cols = *planned.shape.last().unwrap();
        let count: usize = planned.shape.iter().product();
        let numbers: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
        let blocks = planned.format.encode(count / cols, cols, &numbers, 1).unwrap();
        writer.add(&planned.name, &planned.shape, &blocks).unwrap();
    }
    writer.finish().unwrap();
}

fn plan(formats: &[&str]) -> Vec<Planned> {
    let one = |format: &&str| Planned {
        name: format!("model.{format}.weight"),
        // GPTQ and AWQ pack whole words along the rows as well.
        shape: vec![if format.contains("_f16") { 32 } else { 2 }, 64],
        format: by_name(format).unwrap(),
    };
    formats.iter().map(one).collect()
}

fn safetensors(formats: &[&str]) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m");
    let plan = plan(formats);
    let config = Map::new();
    let folder = FolderPlan::new(&config, &Folder::None, &plan);
    let target = Target { path: &path, replace: false, fingerprint: "" };
    fill(write_folder(target, folder).unwrap(), &plan);
    fs::read(path.join("model.safetensors")).unwrap()
}

fn gguf() -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m.gguf");
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::String("llama".into()));
    for key in ["context_length", "embedding_length", "block_count", "feed_forward_length"] {
        metadata.set(format!("llama.{key}"), Value::U32(64));
    }
    metadata.set("llama.attention.head_count", Value::U32(4));
    let tokens = vec!["a".into(), "é".into()];
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    let plan = plan(&["f32", "q8_0", "q4_0"]);
    let target = Target { path: &path, replace: false, fingerprint: "" };
    fill(write_gguf(target, &metadata, &plan).unwrap(), &plan);
    fs::read(path).unwrap()
}

fn torch(name: &str) -> Vec<u8> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    fs::read(data.join(name)).unwrap()
}

/// One file of every kind, by the name under which it is opened.
fn samples() -> &'static [(&'static str, Vec<u8>)] {
    static SAMPLES: OnceLock<Vec<(&str, Vec<u8>)>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        vec![
            ("model.safetensors", safetensors(&["f32", "bf16"])),
            ("model.safetensors", safetensors(&["nf4", "f16"])),
            ("model.safetensors", safetensors(&["nf4_dq"])),
            ("model.safetensors", safetensors(&["int8", "int4_g32", "int4_asym_g64"])),
            ("model.safetensors", safetensors(&["int3_g32_f16"])),
            ("model.safetensors", safetensors(&["int4_asym_g32_f16"])),
            ("model.gguf", gguf()),
            ("model.pt", torch("today.pt")),
            ("model.pt", torch("legacy.pt")),
        ]
    })
}

#[test]
fn every_sample_is_whole() {
    for (name, bytes) in samples() {
        read(name, bytes).unwrap();
    }
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() {
    for (name, bytes) in samples() {
        for length in 0..bytes.len() {
            let Err(error) = read(name, &bytes[..length]) else {
                // What follows the last storage of a PyTorch file, or pads a GGUF, may be lost.
                assert!(
                    *name != "model.safetensors" && length + 64 > bytes.len(),
                    "{name} {length}"
                );
                continue;
            };
            assert!(error.to_string().contains(*name), "{error}");
        }
    }
}

#[test]
fn a_file_with_any_byte_altered_is_read_or_refused() {
    for (name, bytes) in samples() {
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut altered = bytes.clone();
                altered[at] ^= flip;
                let _ = read(name, &altered);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_file_with_many_bytes_altered_is_read_or_refused(
        sample in 0usize..9,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let (name, mut bytes) = samples()[sample].clone();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        let _ = read(name, &bytes);
    }

    #[test]
    fn noise_behind_a_magic_number_is_refused(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        magic in 0usize..4,
    ) {
        let magic: &[u8] = [b"GGUF\x03\x00\x00\x00".as_slice(), b"PK\x03\x04", b"\x80\x02\x8a\x0a", b"\x40\x00\x00\x00\x00\x00\x00\x00{"][magic];
        let bytes = [magic, &noise].concat();
        for name in ["model.safetensors", "model.bin", "model.gguf"] {
            prop_assert!(read(name, &bytes).is_err());
        }
    }
}

/// A safetensors file with this header and so many bytes of data.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

fn refused(name: &str, bytes: &[u8], hint: &str) {
    let error = read(name, bytes).unwrap_err().to_string();
    assert!(error.contains(hint), "expected `{hint}`: {error}");
}

#[test]
fn safetensors_headers_that_lie_are_refused() {
    let name = "model.safetensors";
    let entry = |dtype: &str, shape: Json, offsets: Json| {
        json!({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).to_string()
    };
    let f32 = |shape, offsets| entry("F32", shape, offsets);
    for (header, data, hint) in [
        (f32(json!([2]), json!([0, 8])), 4, "claims bytes 0 to 8 of 4"),
        (f32(json!([2]), json!([8, 0])), 8, "claims bytes 8 to 0"),
        (f32(json!([3]), json!([0, 8])), 8, "does not fit"),
        (f32(json!([1u64 << 63, 4]), json!([0, 8])), 8, "does not fit"),
        (f32(json!([-1]), json!([0, 8])), 8, "not valid"),
        (f32(json!([1]), json!([4, 8])), 8, "leaves a hole"),
        (f32(json!([1]), json!([0, 4])), 8, "4 bytes follow"),
        (entry("F3", json!([1]), json!([0, 4])), 4, "type F3"),
        ("[1]".into(), 0, "this kind of file"),
        ("{".into(), 0, "not valid"),
        ("{\"w\":".to_owned() + &"[".repeat(100_000), 0, "not valid"),
    ] {
        refused(name, &with_header(&header, data), hint);
    }
    let twice = r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    refused(name, &with_header(twice, 2), "`w` is there twice");
    let overlap = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
    refused(name, &with_header(overlap, 3), "overlaps");
    let mut text = with_header("{\"\u{e9}\":1}", 0);
    text[11] = 0xff;
    refused(name, &text, "not valid");
    refused(name, &[&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "header's length");
    refused(name, &[&90_000_000u64.to_le_bytes()[..], b"{}"].concat(), "the file has 10");
    let error = read(name, &[&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap_err();
    assert!(matches!(error, Error::OverCap { .. }));
}

/// A GGUF header with these counts, then `rest`.
fn gguf_with(version: u32, tensors: u64, keys: u64, rest: &[&[u8]]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(version.to_le_bytes());
    out.extend(tensors.to_le_bytes());
    out.extend(keys.to_le_bytes());
    out.extend(rest.concat());
    out
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

#[test]
fn gguf_headers_that_lie_are_refused() {
    let name = "model.gguf";
    let u32s = |n: &[u32]| n.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let u64s = |n: &[u64]| n.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let pad = [0; 64];
    let nested = u32s(&[9]).into_iter().chain(u64s(&[1])).collect::<Vec<u8>>().repeat(50);
    let tensor = |dims: &[u64], kind: u32, offset: u64| {
        let parts =
            [text("t"), u32s(&[dims.len() as u32]), u64s(dims), u32s(&[kind]), u64s(&[offset])];
        gguf_with(3, 1, 0, &[&parts.concat(), &pad])
    };
    for (bytes, hint) in [
        (gguf_with(1, 0, 0, &[]), "version 1"),
        (gguf_with(4, 0, 0, &[]), "version 4"),
        (gguf_with(3u32.swap_bytes(), 0, 0, &[]), "big-endian"),
        (gguf_with(3, u64::MAX, 0, &[&pad]), "tensors in the 64 bytes"),
        (gguf_with(3, 0, 1 << 40, &[&pad]), "metadata keys in the 64 bytes"),
        (gguf_with(3, 0, 1, &[&u64s(&[u64::MAX]), &pad]), "elements of `a metadata key`"),
        (gguf_with(3, 0, 1, &[&text("k"), &u32s(&[99]), &pad]), "unknown type 99"),
        (gguf_with(3, 0, 1, &[&text("k"), &u32s(&[7]), &[2], &pad]), "truth value 2"),
        (gguf_with(3, 0, 1, &[&text("k"), &u32s(&[8]), &u64s(&[2]), &[0xff; 9]]), "not UTF-8"),
        (
            gguf_with(3, 0, 1, &[&text("k"), &u32s(&[9, 4]), &u64s(&[1 << 61]), &pad]),
            "elements of `k`",
        ),
        (gguf_with(3, 0, 1, &[&text("k"), &u32s(&[9]), &nested, &pad]), "nesting"),
        (
            gguf_with(3, 0, 2, &[&[text("k"), u32s(&[4, 1])].concat().repeat(2), &pad]),
            "`k` is there twice",
        ),
        (
            gguf_with(3, 0, 1, &[&text("general.alignment"), &u32s(&[4, 3]), &pad]),
            "not a power of two",
        ),
        (tensor(&[1; 5], 0, 0), "number of dimensions"),
        (tensor(&[1], 4, 0), "tensor type 4"),
        (tensor(&[33], 8, 0), "cannot be q8_0"),
        (tensor(&[u64::MAX, 8], 0, 0), "cannot be f32"),
        (tensor(&[1 << 20], 0, 0), "needs 4194304 bytes"),
        (tensor(&[1], 0, u64::MAX - 31), "needs 4 bytes"),
        (tensor(&[1], 0, 7), "not a multiple of 32"),
        (gguf_with(3, 0, 0, &[&pad]), "general.architecture"),
    ] {
        refused(name, &bytes, hint);
    }
    let two = |second: u64| {
        let one = |name, at| [text(name), u32s(&[1]), u64s(&[8]), u32s(&[0]), u64s(&[at])].concat();
        gguf_with(3, 2, 0, &[&one("a", 0), &one("b", second), &[0; 128]])
    };
    refused(name, &two(0), "overlap");
    refused(name, &two(32), "general.architecture");
}

#[test]
fn a_gguf_tensor_of_an_unknown_format_hurts_only_when_it_is_asked_for() {
    let u32s = |n: &[u32]| n.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let mut parts = Vec::new();
    parts.extend([text("general.architecture"), u32s(&[8]), text("llama")]);
    let keys = [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
    ];
    for key in keys {
        parts.extend([text(&format!("llama.{key}")), u32s(&[4, 2])]);
    }
    // Q8_K is what ggml rounds activations to; no file of weights has it.
    let q8_k = [text("w"), u32s(&[1]), 256u64.to_le_bytes().to_vec(), u32s(&[15]), vec![0; 8]];
    parts.extend(q8_k);
    let bytes = gguf_with(3, 1, 6, &[&parts.concat(), &[0; 400]]);
    let checkpoint = open(&[("m.gguf", &bytes)]).unwrap();
    assert_eq!(checkpoint.format("w").as_deref(), Some("q8_k"));
    assert_eq!(checkpoint.stored_bytes().0, 292);
    let error = checkpoint.weight("w").unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("q8_k"), "{error}");
}

#[test]
fn quantized_parts_that_do_not_fit_together_are_refused() {
    // Renames parts within a real file: lengths stay, so that only the grouping is wrong.
    let swap = |formats: &[&str], from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = safetensors(formats);
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
        assert!(header.contains(from));
        bytes[8..8 + length].copy_from_slice(header.replace(from, to).as_bytes());
        let checkpoint = open(&[("config.json", b"{}"), ("model.safetensors", &bytes)])?;
        checkpoint.names().try_for_each(|name| checkpoint.weight(name).map(drop))
    };
    for (format, from, to) in [
        ("nf4", "weight.absmax", "weight.absmin"),
        ("nf4", "quant_map\":{\"dtype\":\"F32\"", "quant_map\":{\"dtype\":\"I32\""),
        ("nf4_dq", "nested_absmax", "nested_absmin"),
        ("int8", "weight_scale", "weight_slate"),
        ("int8", "[2,16]", "[16,2]"),
        ("int4_asym_g32", "weight_shape", "weight_shade"),
        ("int4_asym_g32", "\"shape\":[1,2]", "\"shape\":[2,1]"),
        ("int4_g32_f16", "qzeros", "qzerox"),
        ("int4_g32_f16", "\"shape\":[64]", "\"shape\":[46]"),
        ("int4_g32_f16", "I32", "U32"),
        ("int3_g32_f16", "scales", "scaled"),
        ("int3_g32_f16", "\"shape\":[2,3]", "\"shape\":[3,2]"),
        ("int4_asym_g32_f16", "\"shape\":[2,4]", "\"shape\":[4,2]"),
        ("int4_asym_g32_f16", "qweight", "kweight"),
    ] {
        assert!(swap(&[format], from, to).is_err(), "{format}: {from}");
    }
}

#[test]
fn rejects_group_numbers_beyond_the_groups() {
    let mut bytes = safetensors(&["int4_g32_f16"]);
    let whole = open(&[("config.json", b"{}"), ("model.safetensors", &bytes)]).unwrap();
    let index = &whole.tensors.iter().find(|(name, _)| name.ends_with("g_idx")).unwrap().1.data;
    let at = bytes.windows(index.len()).position(|w| w == *index).unwrap();
    for (value, hint) in [(2i32, "group 2 of 2"), (-1, "group 4294967295"), (i32::MAX, "of 2")] {
        bytes[at + 40..at + 44].copy_from_slice(&value.to_le_bytes());
        let altered = open(&[("config.json", b"{}"), ("model.safetensors", &bytes)]).unwrap();
        let error = altered.weight("model.int4_g32_f16.weight").unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
}

#[test]
fn other_quantization_methods_are_named_at_once() {
    let weights = safetensors(&["f32"]);
    for (config, said) in [
        (json!({"quant_method": "aqlm"}), "aqlm"),
        (json!({"quant_method": "gptq", "checkpoint_format": "marlin"}), "`marlin`"),
        (json!({"quant_method": "awq", "version": "gemv"}), "`gemv`"),
    ] {
        let config = json!({"quantization_config": config}).to_string();
        let files: [(&str, &[u8]); 2] =
            [("config.json", config.as_bytes()), ("model.safetensors", &weights)];
        let error = open(&files).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    let beside: [(&str, &[u8]); 3] =
        [("config.json", b"{}"), ("model.safetensors", &weights), ("quantize_config.json", b"{")];
    assert!(open(&beside).unwrap_err().to_string().contains("quantize_config.json"));
}
