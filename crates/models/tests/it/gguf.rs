//! What Lathe would write into a GGUF against what llama.cpp's own converter wrote.

use std::{collections::BTreeMap, fs, path::Path};

use lathe_files::{
    Checkpoint, Container,
    gguf::{Metadata, Value},
};
use lathe_models::{
    Kind, Model,
    gguf::{Edit, Source, Tensor},
};

/// Golden folders with a GGUF: their name, the folder opened, the GGUF opened.
fn goldens() -> Vec<(String, Checkpoint, Checkpoint)> {
    let archs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs");
    let mut found = Vec::new();
    for folder in fs::read_dir(archs).unwrap() {
        let folder = folder.unwrap().path();
        let file = folder.join("model.gguf");
        if file.exists() {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            let open = |path| Checkpoint::open(path).unwrap_or_else(|e| panic!("{name}: {e}"));
            let (folder, file) = (open(&folder), open(&file));
            assert_ne!(folder.container, Container::Gguf, "{name}");
            found.push((name, folder, file));
        }
    }
    assert!(!found.is_empty());
    found
}

fn tensors(model: &Model) -> BTreeMap<String, Tensor> {
    let list = lathe_models::gguf::tensors(model);
    let count = list.len();
    let by_name: BTreeMap<_, _> = list.into_iter().map(|t| (t.name.clone(), t)).collect();
    assert_eq!(by_name.len(), count, "a name twice");
    by_name
}

/// A tensor's numbers, made as the exporter makes them.
fn numbers(checkpoint: &Checkpoint, model: &Model, tensor: &Tensor) -> Vec<f32> {
    let parts = match &tensor.source {
        Source::Values(values) => return values.clone(),
        Source::Weights(parts) => parts,
    };
    let mut all = Vec::new();
    for (located, edit) in parts {
        let blocks = model.load(checkpoint, located).unwrap();
        match tensor.kind {
            Kind::Vector => all.extend(edit.vector(&blocks.decode())),
            _ => all.extend(edit.reorder(&blocks).unwrap().decode()),
        }
    }
    all
}

#[test]
fn metadata_has_every_key_of_the_reference_with_its_value() {
    for (name, folder, reference) in goldens() {
        let model = Model::read(&folder).unwrap();
        let theirs: &Metadata = reference.gguf.as_ref().unwrap();
        let ours = lathe_models::gguf::metadata(&model, theirs.str("general.name").unwrap());
        for (key, value) in theirs.iter() {
            let of_the_writer = key.starts_with("tokenizer.")
                || ["general.file_type", "general.quantization_version"].contains(&key);
            // Of layers without experts, where no layer is.
            let of_nothing = key.ends_with("moe.feed_forward_length");
            if of_the_writer || of_nothing {
                continue;
            }
            match (ours.get(key), value) {
                (Some(Value::F32(a)), Value::F32(b)) if (a / b - 1.0).abs() < 1e-6 => {}
                (found, expected) => assert_eq!(found, Some(expected), "{name}: {key}"),
            }
        }
    }
}

#[test]
fn tensors_are_those_of_the_reference_to_the_bit() {
    for (name, folder, reference) in goldens() {
        let model = Model::read(&folder).unwrap();
        let ours = tensors(&model);
        let theirs: Vec<&str> = reference.names().collect();
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for tensor in theirs {
            let mine = ours.get(tensor).unwrap_or_else(|| panic!("{name}: no {tensor}"));
            assert_eq!(reference.shape(tensor), Some(&*mine.shape), "{name}: {tensor}");
            let expected = reference.weight(tensor).unwrap().decode();
            let found = numbers(&folder, &model, mine);
            if tensor.starts_with("rope") {
                // Computed, by the reference in f32 and by us in f64.
                let close = |(a, b): (&f32, &f32)| (a / b - 1.0).abs() < 1e-5;
                assert!(found.iter().zip(&expected).all(close), "{name}: {tensor}");
            } else {
                assert_eq!(found, expected, "{name}: {tensor}");
            }
        }
    }
}

#[test]
fn a_gguf_goes_into_a_gguf_unchanged() {
    for (name, _, reference) in goldens() {
        let model = Model::read(&reference).unwrap();
        for (tensor, ours) in tensors(&model) {
            let edits = match &ours.source {
                Source::Weights(parts) => parts.iter().map(|(_, edit)| *edit).collect(),
                Source::Values(_) => vec![],
            };
            assert!(edits.iter().all(|edit| *edit == Edit::None), "{name}: {tensor}");
            let expected = reference.weight(&tensor).unwrap().decode();
            assert_eq!(numbers(&reference, &model, &ours), expected, "{name}: {tensor}");
        }
    }
}
