//! Shapes and parameter counts against those that transformers gives for published models, and
//! for the tiny checkpoints of `goldens/archs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use lathe_models::{Config, Kind, read_config};
use serde_json::Value;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn config(path: &Path) -> Config {
    let Value::Object(map) = json(path) else { panic!("{} is no object", path.display()) };
    Config::new(map)
}

#[test]
fn published_models_have_the_shapes_and_parameters_of_the_reference() {
    let expected = json(&goldens().join("configs/expected.json"));
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
        let expected = json(&folder.join("golden.json"))["parameters"].as_u64().unwrap();
        assert_eq!(spec.parameters(), expected, "{}", folder.display());
        seen.insert(arch.ids()[0]);
    }
    for arch in lathe_models::ARCHS {
        assert!(seen.contains(arch.ids()[0]), "no golden of {arch:?}");
    }
}
