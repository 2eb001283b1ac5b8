//! A rotated model is the same function of its tokens.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lathe_api::Engine;
use lathe_engine::{KvType, Native, Options, Precision};
use lathe_files::Checkpoint;
use lathe_models::{Kind, Model, Part, Role};
use lathe_quantizers::{Error, Rotated, Stored, Weights};

/// Every architecture under `goldens/archs`, as a folder and as a GGUF.
fn goldens() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs");
    let folders = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let both = folders.flat_map(|folder| [folder.join("model.gguf"), folder]);
    let mut models: Vec<_> = both.filter(|path| path.exists()).collect();
    models.sort();
    assert!(!models.is_empty());
    models
}

fn golden(name: &str) -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs").join(name);
    Checkpoint::open(&path).unwrap()
}

fn logits(weights: &dyn Weights) -> Vec<f32> {
    let options = Options {
        threads: 1,
        kv: KvType::F32,
        precision: Precision::Exact,
        context: Some(32),
        ..Options::default()
    };
    let mut source = |weight: &lathe_models::Weight| Ok(weights.matrix(weight.role).unwrap());
    let native = Native::from_weights(weights.spec().clone(), &mut source, &options).unwrap();
    let ids: Vec<u32> = (0..24).map(|i| (i * 7 + 3) % weights.spec().vocab as u32).collect();
    native.scorer().unwrap().feed(&ids).unwrap().values
}

#[test]
fn a_rotated_model_gives_the_logits_of_the_model() {
    let mut rotated_some = 0;
    for path in goldens() {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let model = Model::read(&checkpoint).unwrap();
        let stored = Stored { model: &model, checkpoint: &checkpoint };
        let Ok(rotated) = Rotated::new(&stored, 11, 2) else { continue };
        rotated_some += 1;
        let (expected, found) = (logits(&stored), logits(&rotated));
        let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
        let worst = expected.iter().zip(&found).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
        assert!(worst <= 2e-5 * largest.max(1.0), "{}: {worst} of {largest}", path.display());
    }
    assert!(rotated_some >= 20, "{rotated_some}");
}

#[test]
fn architectures_with_norms_inside_the_branches_are_refused_in_one_line() {
    for name in ["gemma2", "gemma3"] {
        let checkpoint = golden(name);
        let model = Model::read(&checkpoint).unwrap();
        let stored = Stored { model: &model, checkpoint: &checkpoint };
        let error = Rotated::new(&stored, 0, 1);
        let Err(error @ Error::Unsupported { .. }) = error else { panic!("{name} was rotated") };
        assert!(!error.to_string().contains('\n'));
        assert!(error.to_string().contains("Gemma"), "{error}");
    }
}

#[test]
fn every_matrix_is_other_numbers_and_the_norms_are_ones() {
    let checkpoint = golden("qwen2");
    let model = Model::read(&checkpoint).unwrap();
    let stored = Stored { model: &model, checkpoint: &checkpoint };
    let rotated = Rotated::new(&stored, 1, 1).unwrap();
    for located in &rotated.model().weights {
        let role = located.weight.role;
        let found = rotated.matrix(role).unwrap();
        assert_eq!((found.rows, found.cols), (located.weight.rows, located.weight.cols), "{role}");
        let norm = matches!(
            role,
            Role::FinalNorm | Role::Layer(_, Part::MixerNorm) | Role::Layer(_, Part::MlpNorm)
        );
        if norm {
            assert!(found.decode().iter().all(|gain| *gain == 1.0), "{role}");
        } else if located.weight.kind != Kind::Vector {
            assert!(!rotated.is_stored(role), "{role}");
        }
        if rotated.is_stored(role) {
            assert_eq!(found.decode(), stored.matrix(role).unwrap().decode(), "{role}");
        }
    }
}

#[test]
fn the_numbers_depend_on_the_seed_but_not_on_threads_or_on_reading_by_rows() {
    let checkpoint = golden("phi3");
    let model = Model::read(&checkpoint).unwrap();
    let stored = Stored { model: &model, checkpoint: &checkpoint };
    let [one, three, other] =
        [(5, 1), (5, 3), (6, 1)].map(|(seed, n)| Rotated::new(&stored, seed, n).unwrap());
    for located in &one.model().weights {
        let role = located.weight.role;
        let numbers = one.matrix(role).unwrap().decode();
        assert_eq!(numbers, three.matrix(role).unwrap().decode(), "{role}");
        if located.weight.kind != Kind::Vector {
            assert_ne!(numbers, other.matrix(role).unwrap().decode(), "{role}");
        }
        let rows = one.rows(role).unwrap();
        let mut by_row = vec![0.0; numbers.len()];
        for (row, out) in by_row.chunks_exact_mut(rows.shape().1).enumerate() {
            rows.read(row, out);
        }
        assert_eq!(numbers, by_row, "{role}");
    }
}

#[test]
fn a_tied_model_gets_a_head_of_its_own() {
    let tied = goldens().into_iter().find_map(|path| {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let model = Model::read(&checkpoint).unwrap();
        (model.spec.tied_head && model.spec.layers[0].norms.after_mlp.is_none())
            .then_some((checkpoint, model))
    });
    let (checkpoint, model) = tied.expect("a golden with a tied head");
    let stored = Stored { model: &model, checkpoint: &checkpoint };
    let rotated = Rotated::new(&stored, 0, 1).unwrap();
    assert!(!rotated.spec().tied_head);
    let names: Vec<_> = [Role::Embed, Role::Head]
        .iter()
        .map(|r| &rotated.model().find(*r).unwrap().tensor)
        .collect();
    assert_ne!(names[0], names[1]);
    assert_eq!(rotated.model().weights.len(), model.weights.len() + 1);
}
