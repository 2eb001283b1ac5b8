//! Scales moved through the stages of a layer change no logit, whatever the architecture.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use lathe_api::Engine;
use lathe_engine::{KvType, Native, Options, Precision};
use lathe_files::Checkpoint;
use lathe_formats::{Blocks, by_name};
use lathe_models::{Model, Role, Spec, Weight};

/// Every architecture under `goldens/archs`, as a folder and as a GGUF.
fn goldens() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs");
    let folders = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut models: Vec<_> = folders
        .flat_map(|folder| [folder.join("model.gguf"), folder])
        .filter(|path| path.exists())
        .collect();
    models.sort();
    assert!(!models.is_empty());
    models
}

/// Every weight in f32.
fn weights(checkpoint: &Checkpoint, model: &Model) -> HashMap<Role, Vec<f32>> {
    let load = |located| model.load(checkpoint, located).unwrap().decode();
    model.weights.iter().map(|located| (located.weight.role, load(located))).collect()
}

fn logits(spec: &Spec, weights: &HashMap<Role, Vec<f32>>) -> Vec<f32> {
    let mut source = |weight: &Weight| -> Result<Blocks, lathe_engine::Error> {
        let f32s = by_name("f32").unwrap();
        Ok(f32s.encode(weight.rows, weight.cols, &weights[&weight.role], 1).unwrap())
    };
    let options = Options {
        threads: 1,
        kv: KvType::F32,
        precision: Precision::Exact,
        context: Some(32),
        ..Options::default()
    };
    let native = Native::from_weights(spec.clone(), &mut source, &options).unwrap();
    let ids: Vec<u32> = (0..24).map(|i| (i * 7 + 3) % spec.vocab as u32).collect();
    native.scorer().unwrap().feed(&ids).unwrap().values
}

/// Scales between 1/4 and 4, different for every layer, stage and channel.
fn scales(channels: usize, seed: usize) -> Vec<f32> {
    let at = |channel: usize| ((channel * 31 + seed * 17 + 5) as f32 * 0.61).sin();
    (0..channels).map(|channel| 4f32.powf(at(channel))).collect()
}

#[test]
fn scales_folded_through_every_stage_leave_the_logits_of_every_architecture() {
    for path in goldens() {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let model = Model::read(&checkpoint).unwrap();
        let mut edited = weights(&checkpoint, &model);
        let expected = logits(&model.spec, &edited);
        for (index, layer) in model.spec.layers.iter().enumerate() {
            for (nth, stage) in layer.stages().iter().enumerate() {
                let linear = model.find(Role::Layer(index, stage.linears[0])).unwrap();
                let channels = linear.weight.cols / stage.before.repeat();
                let scales = scales(channels, 4 * index + nth);
                for (part, fold) in stage.folds() {
                    let weight = edited.get_mut(&Role::Layer(index, part)).unwrap();
                    let before = weight.clone();
                    fold.apply(&scales, weight);
                    assert_ne!(*weight, before, "{part:?} of {}", stage.name);
                }
            }
        }
        let found = logits(&model.spec, &edited);
        let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
        let worst = expected.iter().zip(&found).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
        assert!(worst <= 2e-5 * largest.max(1.0), "{}: {worst} of {largest}", path.display());
    }
}
