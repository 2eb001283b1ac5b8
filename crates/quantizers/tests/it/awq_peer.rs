//! AWQ against llm-compressor's on the demo model, with the same tokens and the same 4 bits.

use std::{collections::BTreeMap, fs, path::Path};

use lathe_engine::{Fed, LayerRunner, Room};
use lathe_files::{Activations, Checkpoint};
use lathe_formats::by_name;
use lathe_models::{Model, Part, Role, Stage};
use lathe_quantizers::{
    Awq, Block, Context, Dense, Quantizer, Rtn, Stats, Stored, Transform, Weights, output_error,
};
use serde_json::Value;

const FORMAT: &str = "int4_g128";

/// Statistics of inputs `[T, cols]`.
fn stats(x: &[f32], cols: usize) -> Stats {
    let tokens = x.len() / cols;
    let mut hessian = vec![0.0; cols * cols];
    let (mut mean_abs, mut absmax) = (vec![0.0; cols], vec![0f32; cols]);
    for x in x.chunks_exact(cols) {
        for (i, row) in hessian.chunks_exact_mut(cols).enumerate() {
            row.iter_mut().zip(x).for_each(|(h, y)| *h += x[i] / tokens as f32 * y);
        }
        for (i, x) in x.iter().enumerate() {
            mean_abs[i] += x.abs() / tokens as f32;
            absmax[i] = absmax[i].max(x.abs());
        }
    }
    let importance = (0..cols).map(|i| hessian[i * cols + i]).collect();
    let hessian = Some(hessian);
    Stats { count: tokens as u64, mean_abs, importance, absmax, hessian, ..Stats::default() }
}

/// What rounding adds to the outputs of a stage.
fn error(block: &Block<'_>, stage: &Stage, stats: &Stats) -> f64 {
    let error = |part: &Part| {
        let weights = block.matrix(*part).unwrap();
        let coded = Rtn.quantize(weights, None, by_name(FORMAT).unwrap(), 1).unwrap().blocks;
        let mut delta = Dense::decode(&coded);
        delta.data.iter_mut().zip(&weights.data).for_each(|(d, w)| *d -= w);
        output_error(&delta, stats, 1)
    };
    stage.linears.iter().map(error).sum()
}

#[test]
fn awq_loses_less_than_llm_compressors() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = fs::read_to_string(root.join("../../goldens/awq/demo.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let ids = |line: &Value| -> Vec<u32> {
        line.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let tokens: Vec<Vec<u32>> = golden["tokens"].as_array().unwrap().iter().map(ids).collect();
    let sequences: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();

    let checkpoint = Checkpoint::open(&root.join("../demo/model")).unwrap();
    let model = Model::read(&checkpoint).unwrap();
    let stored = Stored { model: &model, checkpoint: &checkpoint };
    let room = Room { tokens: tokens.iter().map(Vec::len).sum(), sequences: sequences.len() };
    let mut runner = LayerRunner::new(&model.spec, room, 2).unwrap();
    let mut state = runner.embed(&stored.matrix(Role::Embed).unwrap(), &sequences).unwrap();
    // Two layers of four: a search takes seconds.
    for (index, layer) in model.spec.layers.iter().take(2).enumerate() {
        let mut block = Block::load(&stored, index).unwrap();
        let formats: BTreeMap<_, _> = layer
            .stages()
            .into_iter()
            .flat_map(|stage| stage.linears)
            .map(|part| (part, by_name(FORMAT).unwrap()))
            .collect();
        let cx = Context {
            formats: &formats,
            quantizer: &Rtn,
            activations: Activations::Float,
            threads: 2,
        };
        let (mut ours, mut theirs) = (0.0, 0.0);
        for (nth, stage) in layer.stages().iter().enumerate() {
            let mut source =
                |weight: &lathe_models::Weight| Ok(stored.matrix(weight.role).unwrap());
            let entry = runner.entry(index, nth, &mut source).unwrap();
            let linears = runner.linears(index, nth, &mut source).unwrap();
            let cols = block.matrix(stage.linears[0]).unwrap().cols;
            let mut inputs = Stats::default();
            let tap = &mut |fed: Fed<'_>| inputs = stats(fed.x, cols);
            runner.advance((&entry, &linears), &mut state, tap).unwrap();

            let peer = |method: &str| golden[method][index][stage.name].as_f64().unwrap();
            let before = Block::load(&stored, index).unwrap();
            let plain = error(&before, stage, &inputs) / peer("rounded");
            assert!((plain - 1.0).abs() < 0.02, "layer {index} {}: {plain}", stage.name);
            Awq { clip: false }.apply(&mut block, stage, &mut inputs, &cx).unwrap();
            // Later stages scale rows of the earlier ones: each is measured when it is done.
            let own = error(&block, stage, &inputs);
            assert!(own <= 1.001 * peer("rounded"), "layer {index} {}", stage.name);
            ours += own / peer("rounded");
            theirs += peer("awq") / peer("rounded");
        }
        assert!(ours <= theirs, "layer {index}: {ours} against {theirs}");
    }
}
