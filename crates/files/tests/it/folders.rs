//! Which files belong together, and what is said when one is missing.

use std::{fs, path::Path};

use lathe_base::Buf;
use lathe_files::{
    Checkpoint, Container, Error, Folder, FolderPlan, Planned, Target, gguf::Metadata, gguf::Value,
    write_folder, write_gguf,
};
use lathe_formats::by_name;
use serde_json::{Map, json};

/// Weights `w0`, `w1`, `w2`, each four numbers.
fn plan() -> Vec<Planned> {
    let format = by_name("f32").unwrap();
    let one = |i| Planned { name: format!("w{i}"), shape: vec![2, 2], format };
    (0..3).map(one).collect()
}

/// A folder in as many shards as there are weights, or in one.
fn model(path: &Path, sharded: bool) {
    let (plan, config) = (plan(), Map::new());
    let shard = if sharded { lathe_base::Bytes(1) } else { FolderPlan::SHARD };
    let folder = FolderPlan { shard, ..FolderPlan::new(&config, &Folder::None, &plan) };
    let target = Target { path, replace: false, fingerprint: "" };
    let mut writer = write_folder(target, folder).unwrap();
    for planned in &plan {
        let blocks = planned.format.encode(2, 2, &[1.0, 2.0, 3.0, 4.0], 1).unwrap();
        writer.add(&planned.name, &planned.shape, &blocks).unwrap();
    }
    writer.finish().unwrap();
}

fn problem(path: &Path) -> String {
    Checkpoint::open(path).unwrap_err().to_string()
}

#[test]
fn shards_are_read_with_and_without_their_index_and_from_any_of_them() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m");
    model(&path, true);
    let names = |path: &Path| {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.files.len(), 3);
        checkpoint.names().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&path), ["w0", "w1", "w2"]);
    assert_eq!(names(&path.join("model-00002-of-00003.safetensors")), ["w0", "w1", "w2"]);
    fs::remove_file(path.join("model.safetensors.index.json")).unwrap();
    assert_eq!(names(&path), ["w0", "w1", "w2"]);
}

#[test]
fn a_missing_shard_is_named() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m");
    model(&path, true);
    fs::remove_file(path.join("model-00002-of-00003.safetensors")).unwrap();
    let error = problem(&path);
    assert!(error.contains("model-00002-of-00003.safetensors"), "{error}");
    assert!(error.contains("index.json lists it"), "{error}");
    fs::remove_file(path.join("model.safetensors.index.json")).unwrap();
    let error = problem(&path);
    assert!(error.contains("model-00002-of-00003.safetensors: missing"), "{error}");
}

#[test]
fn an_index_that_lies_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m");
    model(&path, true);
    let index = path.join("model.safetensors.index.json");
    for (map, hint) in [
        (json!({"w0": "../m/model-00001-of-00003.safetensors"}), "outside the folder"),
        (json!({"w0": "/etc/passwd"}), "outside the folder"),
        (json!({"w0": ".."}), "outside the folder"),
        (json!({"w0": 7}), "outside the folder"),
        (json!({"w9": "model-00001-of-00003.safetensors"}), "`w9`, which no file holds"),
        (json!([]), "no `weight_map`"),
    ] {
        fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
        let error = problem(&path);
        assert!(error.contains(hint), "{error}");
    }
    fs::write(&index, "{").unwrap();
    assert!(problem(&path).contains("not valid JSON"));
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m");
    model(&path, true);
    let part = |i| path.join(format!("model-0000{i}-of-00003.safetensors"));
    fs::copy(part(1), part(2)).unwrap();
    assert!(problem(&path).contains("`w0` is there twice"));
}

#[test]
fn what_is_missing_is_named_with_what_to_do() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("mistral-7b");
    model(&path, false);
    let error = problem(&place.path().join("mistral7b"));
    assert!(error.contains("did you mean") && error.contains("mistral-7b?"), "{error}");
    let error = problem(Path::new("/no/such/place/at/all"));
    assert!(error.contains("no such file or folder"), "{error}");

    let config = fs::read(path.join("config.json")).unwrap();
    fs::remove_file(path.join("config.json")).unwrap();
    assert!(problem(&path).contains("no config.json"));
    assert!(problem(&path.join("model.safetensors")).contains("no config.json"));
    fs::write(path.join("config.json"), "[]").unwrap();
    assert!(problem(&path).contains("config.json"));
    fs::write(path.join("config.json"), config).unwrap();

    fs::remove_file(path.join("model.safetensors")).unwrap();
    assert!(problem(&path).contains("no weights"));
    fs::write(path.join("adapter_model.safetensors"), "").unwrap();
    assert!(problem(&path).contains("adapter"));
    fs::write(path.join("a.safetensors"), "").unwrap();
    fs::write(path.join("b.safetensors"), "").unwrap();
    assert!(problem(&path).contains("a.safetensors, b.safetensors"));
    assert!(problem(&path.join("a.safetensors")).contains("0 bytes"));
    fs::write(path.join("a.safetensors"), "a picture, say").unwrap();
    assert!(problem(&path.join("a.safetensors")).contains("this kind of file"));
}

#[test]
fn a_misspelt_tensor_gets_the_nearest_name() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m");
    model(&path, false);
    let error = Checkpoint::open(&path).unwrap().weight("w9").unwrap_err();
    assert!(error.to_string().contains("nearest name is `w"), "{error}");
}

/// One part of a GGUF that is split in three.
fn gguf_part(folder: &Path, number: u16) {
    let path = folder.join(format!("m-{:05}-of-00003.gguf", number + 1));
    let mut metadata = Metadata::new();
    if number == 0 {
        metadata.set("general.architecture", Value::String("llama".into()));
        for key in ["context_length", "embedding_length", "block_count", "feed_forward_length"] {
            metadata.set(format!("llama.{key}"), Value::U32(2));
        }
        metadata.set("llama.attention.head_count", Value::U32(1));
    }
    metadata.set("split.no", Value::U16(number));
    metadata.set("split.count", Value::U16(3));
    metadata.set("split.tensors.count", Value::I32(3));
    let planned = &plan()[usize::from(number)];
    let target = Target { path: &path, replace: false, fingerprint: "" };
    let mut writer = write_gguf(target, &metadata, std::slice::from_ref(planned)).unwrap();
    let blocks = planned.format.encode(2, 2, &[0.5; 4], 1).unwrap();
    writer.add(&planned.name, &planned.shape, &blocks).unwrap();
    writer.finish().unwrap();
}

#[test]
fn a_split_gguf_opens_from_its_folder_and_from_any_part() {
    let place = tempfile::tempdir().unwrap();
    (0..3).for_each(|i| gguf_part(place.path(), i));
    let part = |i| place.path().join(format!("m-0000{i}-of-00003.gguf"));
    for path in [place.path().to_owned(), part(1), part(3)] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.container, Container::Gguf);
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["w0", "w1", "w2"]);
        assert_eq!(checkpoint.files.len(), 3);
        assert_eq!(checkpoint.config["hidden_size"], 2);
    }
    fs::remove_file(part(2)).unwrap();
    assert!(problem(&part(1)).contains("m-00002-of-00003.gguf: missing"));
    let alone = place.path().join("renamed.gguf");
    fs::rename(part(1), &alone).unwrap();
    assert!(problem(&alone).contains("split.count says 3"));
}

#[test]
fn a_model_in_memory_is_a_folder() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m");
    model(&path, false);
    let files: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .flatten()
        .map(|e| (e.file_name().into_string().unwrap(), Buf::from(fs::read(e.path()).unwrap())))
        .collect();
    let mut files: Vec<_> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    files.push(("tokenizer.json", Buf::from_static(b"{}")));
    let checkpoint = Checkpoint::from_memory(&files).unwrap();
    assert_eq!(checkpoint.names().count(), 3);
    assert_eq!(checkpoint.text_file("tokenizer.json").as_deref(), Some(&b"{}"[..]));
    assert_eq!(checkpoint.text_file("tokenizer.model"), None);
    assert!(matches!(Checkpoint::from_memory(&[]), Err(Error::Missing { .. })));
}

/// llama2.c's header and weights that count up, so that every row is known by its first number.
fn llama2c(vocabulary: i32) -> Vec<u8> {
    let header = [8, 6, 2, 2, 1, vocabulary, 3];
    let (kv, v) = (4, vocabulary.unsigned_abs() as usize);
    let layer = 8 + 8 * 8 + 2 * kv * 8 + 8 * 8 + 8 + 3 * 6 * 8;
    let own_head = if vocabulary < 0 { v * 8 } else { 0 };
    let count = v * 8 + 2 * layer + 8 + 3 * 4 + own_head;
    let mut out: Vec<u8> = header.iter().flat_map(|n: &i32| n.to_le_bytes()).collect();
    out.extend((0..count).flat_map(|i| (i as f32).to_le_bytes()));
    out
}

#[test]
fn a_llama2c_checkpoint_opens_with_its_tokenizer_and_hugging_faces_order_of_rows() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("stories.bin");
    fs::write(&file, llama2c(5)).unwrap();
    fs::write(place.path().join("tok5.bin"), "not weights").unwrap();
    fs::write(place.path().join("tok5.model"), "pieces").unwrap();
    for path in [place.path(), &file] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.container, Container::Llama2c);
        assert_eq!(checkpoint.text_file("tokenizer.model").as_deref(), Some(&b"pieces"[..]));
        assert_eq!(checkpoint.config["num_key_value_heads"], 1);
        assert_eq!(checkpoint.config["tie_word_embeddings"], true);
        assert_eq!(checkpoint.names().count(), 2 + 2 * 9);
        let name = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(checkpoint.shape(name), Some(&[8, 8][..]));
        let rows = checkpoint.weight(name).unwrap().decode();
        let first = (5 * 8 + 2 * 8) as f32;
        let order: Vec<_> = rows.chunks(8).map(|row| (row[0] - first) / 8.0).collect();
        assert_eq!(order, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
    fs::write(&file, llama2c(-5)).unwrap();
    let untied = Checkpoint::open(&file).unwrap();
    assert_eq!(untied.shape("lm_head.weight"), Some(&[5, 8][..]));
    fs::write(&file, &llama2c(5)[..1000]).unwrap();
    assert!(Checkpoint::open(&file).is_err());
}
