//! Layer by layer is the same model: logits of the runner against those of the engine, to the bit.

use std::{collections::BTreeMap, fs, path::Path};

use lathe_api::Engine;
use lathe_engine::{Error, Fed, KvType, LayerRunner, Native, Options, Precision, Room, Sequences};
use lathe_files::Checkpoint;
use lathe_formats::Blocks;
use lathe_models::{Inputs, Model, Role, Weight};

struct Case {
    checkpoint: Checkpoint,
    model: Model,
}

impl Case {
    fn all() -> Vec<(String, Self)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs");
        let mut all = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if !path.join("config.json").exists() {
                continue;
            }
            let checkpoint = Checkpoint::open(&path).unwrap();
            let model = Model::read(&checkpoint).unwrap();
            all.push((path.display().to_string(), Self { checkpoint, model }));
        }
        assert!(all.len() > 5, "no goldens");
        all
    }

    fn weight(&self, weight: &Weight) -> Result<Blocks, Error> {
        let located = self.model.find(weight.role).unwrap();
        Ok(self.model.load(&self.checkpoint, located)?)
    }

    /// Logits of all sequences, and the shapes of what the taps saw in layer 0.
    fn run(&self, sequences: &[&[u32]], threads: usize) -> (Vec<f32>, BTreeMap<Inputs, usize>) {
        let spec = &self.model.spec;
        let tokens = sequences.iter().map(|s| s.len()).sum();
        let room = Room { tokens, sequences: sequences.len() };
        let mut runner = LayerRunner::new(spec, room, threads).unwrap();
        let table = self.model.find(Role::Embed).unwrap();
        let table = self.model.load(&self.checkpoint, table).unwrap();
        let mut on: Sequences = runner.embed(&table, sequences).unwrap();
        let mut seen = BTreeMap::new();
        let source = &mut |weight: &Weight| self.weight(weight);
        for layer in 0..spec.layers.len() {
            for stage in 0..4 {
                let entry = runner.entry(layer, stage, source).unwrap();
                let linears = runner.linears(layer, stage, source).unwrap();
                let tap = &mut |fed: Fed<'_>| {
                    if layer == 0 {
                        let inputs = Inputs { step: stage, expert: fed.expert };
                        let count = if fed.expert.is_some() { fed.tokens.len() } else { tokens };
                        seen.insert(inputs, fed.x.len() / count);
                    }
                };
                runner.advance((&entry, &linears), &mut on, tap).unwrap();
            }
            assert!(on.inner.is_empty());
        }
        let output = runner.output(source).unwrap();
        (runner.logits(&output, &mut on).unwrap(), seen)
    }
}

fn tokens(length: usize, seed: usize) -> Vec<u32> {
    (0..length).map(|i| (3 + (i * 37 + seed * 11) % 90) as u32).collect()
}

#[test]
fn logits_are_those_of_the_engine_to_the_bit_for_every_architecture() {
    for (name, case) in Case::all() {
        let (a, b) = (tokens(37, 1), tokens(20, 2));
        let (together, seen) = case.run(&[&a, &b], 2);
        let layer = &case.model.spec.layers[0];
        let inputs = layer.stages().into_iter().flat_map(|stage| stage.linears);
        let cols = inputs.map(|part| {
            (part.inputs(), case.model.find(Role::Layer(0, part)).unwrap().weight.cols)
        });
        let mut cols: BTreeMap<Inputs, usize> = cols.collect();
        if layer.mlp.experts().is_some() {
            // What all experts are fed together.
            cols.insert(Inputs { step: 2, expert: None }, case.model.spec.width);
        }
        for (inputs, cols) in &cols {
            assert_eq!(layer.input_width(*inputs, case.model.spec.width), *cols, "{name}");
        }
        assert_eq!(layer.inputs().len(), cols.len(), "{name}");
        assert_eq!(seen, cols, "{name}");
        let options = Options {
            threads: 1,
            context: Some(64),
            kv: KvType::F32,
            precision: Precision::Exact,
            ..Options::default()
        };
        let native = Native::load(&case.checkpoint, None, &options).unwrap();
        let mut expected = Vec::new();
        for sequence in [&a, &b] {
            let mut scorer = native.scorer().unwrap();
            expected.extend(scorer.feed(sequence).unwrap().values);
        }
        assert!(together == expected, "{name}");
        assert!(case.run(&[&b], 1).0 == together[37 * case.model.spec.vocab..], "{name}");
    }
}

#[test]
fn rejects_more_than_there_is_room_for_and_unknown_tokens() {
    let (_, case) = Case::all().remove(0);
    let spec = &case.model.spec;
    let runner = LayerRunner::new(spec, Room { tokens: 8, sequences: 1 }, 1).unwrap();
    let table = case.model.find(Role::Embed).unwrap();
    let table = case.model.load(&case.checkpoint, table).unwrap();
    assert!(matches!(runner.embed(&table, &[&[3; 9]]), Err(Error::Context { .. })));
    assert!(matches!(runner.embed(&table, &[&[3; 4], &[3; 4]]), Err(Error::Pages { .. })));
    let id = spec.vocab as u32;
    assert!(matches!(runner.embed(&table, &[&[id]]), Err(Error::Token { .. })));
}
