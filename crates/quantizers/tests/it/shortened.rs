//! Models with layers left out, as views and as files.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::common::{out, recipe};
use lathe_api::Engine;
use lathe_base::Silent;
use lathe_engine::{KvType, Native, Options, Precision};
use lathe_files::{Checkpoint, gguf::Metadata};
use lathe_models::{Model, Part, Role};
use lathe_quantizers::{
    About, Error, Job, Plan, Rotated, Rtn, Shortened, Stored, Weights, quantize,
};

/// Every architecture under `goldens/archs`, as a folder and as a GGUF.
fn goldens() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs");
    let folders = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let both = folders.flat_map(|folder| [folder.join("model.gguf"), folder]);
    let mut models: Vec<_> = both.filter(|path| path.exists()).collect();
    models.sort();
    models
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

/// Writes a view in f32.
fn write(checkpoint: &Checkpoint, view: &dyn Weights, folder: &tempfile::TempDir) -> PathBuf {
    let plan = Plan::new(view.model(), checkpoint, &recipe("f32")).unwrap();
    let out = out(folder, &plan);
    let about = About { name: "Test".to_owned(), tokenizer: Metadata::new() };
    let job = Job {
        checkpoint,
        weights: view,
        plan: &plan,
        out: &out,
        replace: false,
        quantizer: &Rtn,
        imatrix: None,
        threads: 1,
        measure: false,
        about: &about,
    };
    quantize(&job, &Silent).unwrap();
    out
}

#[test]
fn a_shortened_model_is_written_and_read_back_as_it_runs() {
    let (mut shortened, mut refused) = (0, Vec::new());
    for path in goldens() {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let model = Model::read(&checkpoint).unwrap();
        let stored = Stored { model: &model, checkpoint: &checkpoint };
        let before = model.spec.layers.len();
        let view = match Shortened::new(&stored, &checkpoint.config, &BTreeSet::from([0])) {
            Ok(view) => view,
            Err(Error::Unsupported { what, .. }) => {
                refused.push(format!("{}: {what}", path.display()));
                continue;
            }
            Err(error) => panic!("{}: {error}", path.display()),
        };
        shortened += 1;
        let expected = logits(&view);
        assert!(expected != logits(&stored), "{}", path.display());
        let folder = tempfile::tempdir().unwrap();
        let written = write(&checkpoint, &view, &folder);
        let checkpoint = Checkpoint::open(&written).unwrap();
        let model = Model::read(&checkpoint).unwrap();
        assert_eq!(model.spec.layers.len(), before - 1, "{}", path.display());
        let found = logits(&Stored { model: &model, checkpoint: &checkpoint });
        assert!(expected == found, "{}", path.display());
    }
    assert!(shortened >= 16, "{shortened}; refused: {refused:#?}");
    // Gemma's layers attend far and near in turn: leaving out one turns all after it around.
    assert!(refused.iter().any(|why| why.contains("gemma")), "{refused:#?}");
}

#[test]
fn layers_after_a_removed_one_move_up_also_below_a_rotation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs/llama");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let model = Model::read(&checkpoint).unwrap();
    let stored = Stored { model: &model, checkpoint: &checkpoint };
    let view = Shortened::new(&stored, &checkpoint.config, &BTreeSet::from([0])).unwrap();
    let (moved, own) = (Role::Layer(0, Part::Down), Role::Layer(1, Part::Down));
    let (a, b) = (view.matrix(moved).unwrap(), stored.matrix(own).unwrap());
    assert_eq!(a.decode(), b.decode());
    assert!(!view.is_stored(moved) && view.is_stored(Role::Embed));
    let kept: Vec<usize> = (1..model.spec.layers.len()).collect();
    assert_eq!(view.layers(), kept);
    let rotated = Rotated::new(&view, 3, 1).unwrap();
    assert_eq!(rotated.layers(), kept);
    let folder = tempfile::tempdir().unwrap();
    let written = Checkpoint::open(&write(&checkpoint, &rotated, &folder)).unwrap();
    let model = Model::read(&written).unwrap();
    let (expected, found) =
        (logits(&view), logits(&Stored { model: &model, checkpoint: &written }));
    let worst = expected.iter().zip(&found).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn rejects_layers_that_are_not_there_and_the_removal_of_all() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs/llama");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let model = Model::read(&checkpoint).unwrap();
    let stored = Stored { model: &model, checkpoint: &checkpoint };
    let layers = model.spec.layers.len();
    let error = |removed| Shortened::new(&stored, &checkpoint.config, &removed).unwrap_err();
    assert!(error(BTreeSet::from([layers])).to_string().contains("removing layer"));
    assert!(error((0..layers).collect()).to_string().contains("removing all"));
}
