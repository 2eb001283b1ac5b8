//! Shapes and parameter counts against those that transformers gives for published models, and
//! for the tiny checkpoints of `goldens/archs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use lathe_files::Checkpoint;
use lathe_models::{Config, Kind, Model, Role, read_config};
use serde_json::{Value, json};

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

fn json_of(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn config(path: &Path) -> Config {
    let Value::Object(map) = json_of(path) else { panic!("{} is no object", path.display()) };
    Config::new(map)
}

#[test]
fn published_models_have_the_shapes_and_parameters_of_the_reference() {
    let expected = json_of(&goldens().join("configs/expected.json"));
    let models = expected["models"].as_object().unwrap();
    assert!(!models.is_empty());
    for (name, model) in models {
        let (arch, spec) = read_config(&config(&goldens().join(format!("configs/{name}.json"))))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(spec.parameters(), model["parameters"].as_u64().unwrap(), "{name}");

        // Rows of fused tensors add up to the whole.
        let mut tensors = BTreeMap::<String, (usize, usize, Kind)>::new();
        for w in spec.weights() {
            let at = arch.name(&spec, w.role);
            let entry = tensors.entry(at.name).or_insert((0, w.cols, w.kind));
            assert_eq!(at.rows.map_or(0, |rows| rows.start), entry.0, "{name}: {}", w.role);
            entry.0 += w.rows;
        }
        assert_eq!(tensors.len() as u64, model["tensors"].as_u64().unwrap(), "{name}");
        for (tensor, shape) in model["shapes"].as_object().unwrap() {
            let (rows, cols, kind) = *tensors.get(tensor).unwrap_or_else(|| panic!("{tensor}"));
            let ours = if kind == Kind::Vector { vec![cols] } else { vec![rows, cols] };
            assert_eq!(serde_json::json!(ours), *shape, "{name}: {tensor}");
        }
    }
}

#[test]
fn every_golden_checkpoint_has_the_parameters_of_the_reference() {
    let mut seen = BTreeSet::new();
    for folder in fs::read_dir(goldens().join("archs")).unwrap() {
        let folder = folder.unwrap().path();
        let (arch, spec) = read_config(&config(&folder.join("config.json")))
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let expected = json_of(&folder.join("golden.json"))["parameters"].as_u64().unwrap();
        assert_eq!(spec.parameters(), expected, "{}", folder.display());
        seen.insert(arch.ids()[0]);
    }
    for arch in lathe_models::ARCHS {
        assert!(seen.contains(arch.ids()[0]), "no golden of {arch:?}");
    }
}

#[test]
fn no_configuration_makes_the_reader_panic() {
    let absurd = [
        json!(null),
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(0.5),
        json!(1e300),
        json!(u64::MAX),
        json!("text"),
        json!(true),
        json!([]),
        json!([[]]),
        json!(vec![1e-300; 8]),
        json!({}),
        json!({"rope_type": "yarn", "factor": 1e300, "original_max_position_embeddings": 1}),
        json!({"rope_type": "longrope", "factor": -1, "short_factor": [0], "long_factor": [0]}),
        json!({"rope_type": "dynamic", "factor": 1e300}),
        json!({"full_attention": {"rope_theta": -1}, "sliding_attention": 5}),
    ];
    let mut accepted = 0;
    for folder in fs::read_dir(goldens().join("archs")).unwrap() {
        let Value::Object(map) = json_of(&folder.unwrap().path().join("config.json")) else {
            panic!("no object")
        };
        for key in map.keys() {
            for value in &absurd {
                let mut map = map.clone();
                map.insert(key.clone(), value.clone());
                let Ok((_, spec)) = read_config(&Config::new(map)) else { continue };
                // What is accepted can be computed with.
                accepted += 1;
                assert!(spec.parameters() > 0);
                for layer in &spec.layers {
                    let rope = &layer.attention().rope;
                    for length in [0, 1, 1 << 28] {
                        let frequencies = rope.frequencies(length);
                        assert_eq!(frequencies.inverse.len(), rope.dims / 2);
                        assert!(!frequencies.inverse.iter().any(|f| f.is_nan()), "{key}: {value}");
                    }
                }
            }
        }
    }
    assert!(accepted > 100);
}

/// A golden's folder in memory, with every tensor renamed.
fn renamed(name: &str, rename: impl Fn(&str) -> String) -> Checkpoint {
    let folder = goldens().join("archs").join(name);
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let header: serde_json::Map<String, Value> = header
        .as_object()
        .unwrap()
        .iter()
        .filter(|(key, _)| *key != "__metadata__")
        .map(|(key, value)| (rename(key), value.clone()))
        .collect();
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(&bytes[8 + length..]);
    let config = fs::read(folder.join("config.json")).unwrap();
    let files = [("config.json", config.into()), ("model.safetensors", file.into())];
    Checkpoint::from_memory(&files).unwrap()
}

#[test]
fn tensors_are_found_under_the_prefixes_that_checkpoints_use() {
    let prefixes = ["model.", "", "language_model.model.", "model.language_model."];
    for (name, prefix) in ["gemma3", "llama"].into_iter().flat_map(|n| prefixes.map(|p| (n, p))) {
        let checkpoint = renamed(name, |tensor| match tensor.strip_prefix("model.") {
            Some(tail) => format!("{prefix}{tail}"),
            None if prefix == "language_model.model." => format!("language_model.{tensor}"),
            None => tensor.to_owned(),
        });
        let model = Model::read(&checkpoint).unwrap_or_else(|e| panic!("{name} {prefix:?}: {e}"));
        let embed = model.find(Role::Embed).unwrap();
        assert_eq!(embed.tensor.name, format!("{prefix}embed_tokens.weight"));
        for located in &model.weights {
            model.load(&checkpoint, located).unwrap();
        }
    }
}

#[test]
fn a_tied_embedding_is_found_under_the_name_of_the_head() {
    let checkpoint = renamed("llama3", |tensor| match tensor {
        "model.embed_tokens.weight" => "lm_head.weight".to_owned(),
        other => other.to_owned(),
    });
    let model = Model::read(&checkpoint).unwrap();
    assert_eq!(model.find(Role::Embed).unwrap().tensor.name, "lm_head.weight");
    assert!(model.find(Role::Head).is_none());
}
