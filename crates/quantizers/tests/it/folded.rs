//! What is folded into a layer's weights does not change the layer, and helps what follows.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use lathe_api::Engine;
use lathe_engine::{KvType, Native, Options, Precision};
use lathe_files::{Activations, Checkpoint};
use lathe_formats::{AnyFormat, by_name};
use lathe_models::{Kind, Model, Part, Role, Spec, Stage};
use lathe_quantizers::{
    Awq, Block, Context, Dense, Needs, Quantizer, Rtn, Smooth, Stats, Stored, Transform, Weights,
    output_error,
};

/// Every architecture under `goldens/archs`.
fn goldens() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs");
    let mut models: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    assert!(!models.is_empty());
    models
}

fn noise(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed * 113 + 1) as f32 * 0.77).sin()).collect()
}

/// Statistics of `cols` inputs of very unequal sizes, neighbours being related.
fn stats(cols: usize, seed: usize) -> Stats {
    let size: Vec<f32> = noise(cols, seed).iter().map(|x| 12f32.powf(*x)).collect();
    let related = |a: usize, b: usize| 0.5f32.powi(a.abs_diff(b) as i32);
    let hessian = (0..cols * cols)
        .map(|at| (at / cols, at % cols))
        .map(|(a, b)| size[a] * size[b] * related(a, b))
        .collect();
    Stats {
        count: 1000,
        mean_abs: size.iter().map(|x| 0.8 * x).collect(),
        importance: size.iter().map(|x| x * x).collect(),
        absmax: size.iter().map(|x| 4.0 * x).collect(),
        hessian: Some(hessian),
        ..Stats::default()
    }
}

fn formats(spec: &Spec, to: &str) -> BTreeMap<Part, &'static dyn AnyFormat> {
    let format = |w: &lathe_models::Weight| match w.role {
        Role::Layer(0, part) if w.kind == Kind::Linear => Some((part, by_name(to).unwrap())),
        _ => None,
    };
    spec.weights().iter().filter_map(format).collect()
}

/// Applies a transform to every stage of a layer; `then` sees the stage before the next one.
fn apply_and(
    transform: &dyn Transform,
    block: &mut Block<'_>,
    (to, threads): (&str, usize),
    then: &mut dyn FnMut(usize, &Block<'_>, &Stats),
) {
    let formats = formats(block.spec, to);
    let cx =
        Context { formats: &formats, quantizer: &Rtn, activations: Activations::Float, threads };
    for (nth, stage) in block.layer().stages().iter().enumerate() {
        let cols = block.matrix(stage.linears[0]).unwrap().cols;
        let mut stats = stats(cols, nth + 7 * block.index);
        transform.apply(block, stage, &mut stats, &cx).unwrap();
        then(nth, block, &stats);
    }
}

fn apply(transform: &dyn Transform, block: &mut Block<'_>, to: &str) {
    apply_and(transform, block, (to, 1), &mut |_, _, _| {});
}

fn logits(stored: &Stored<'_>, blocks: &HashMap<usize, Block<'_>>) -> Vec<f32> {
    let options = Options {
        threads: 1,
        kv: KvType::F32,
        precision: Precision::Exact,
        context: Some(32),
        ..Options::default()
    };
    let mut source = |weight: &lathe_models::Weight| {
        let Role::Layer(index, part) = weight.role else {
            return Ok(stored.matrix(weight.role).unwrap());
        };
        let Some(block) = blocks.get(&index) else {
            return Ok(stored.matrix(weight.role).unwrap());
        };
        let numbers = block.matrix(part).map(|m| &m.data[..]).or(block.vector(part)).unwrap();
        Ok(by_name("f32").unwrap().encode(weight.rows, weight.cols, numbers, 1).unwrap())
    };
    let native = Native::from_weights(stored.spec().clone(), &mut source, &options).unwrap();
    let ids: Vec<u32> = (0..24).map(|i| (i * 7 + 3) % stored.spec().vocab as u32).collect();
    native.scorer().unwrap().feed(&ids).unwrap().values
}

#[test]
fn scales_leave_the_logits_of_every_architecture() {
    let halves = Smooth::new(0.5).unwrap();
    let transforms: [&dyn Transform; 3] = [&Awq { clip: false }, &halves, &Smooth::default()];
    for path in goldens() {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let model = Model::read(&checkpoint).unwrap();
        let stored = Stored { model: &model, checkpoint: &checkpoint };
        let expected = logits(&stored, &HashMap::new());
        let largest = expected.iter().fold(1f32, |most, x| most.max(x.abs()));
        for transform in transforms {
            let mut blocks = HashMap::new();
            for index in 0..model.spec.layers.len() {
                let mut block = Block::load(&stored, index).unwrap();
                let before = block.clone();
                apply(transform, &mut block, "int8");
                let experts = [
                    Part::ExpertGate(0),
                    Part::ExpertDown(1),
                    Part::Router,
                    Part::SharedGate,
                    Part::SharedDown,
                    Part::SharedRouter,
                ];
                let changed = [Part::V, Part::Out, Part::Gate, Part::Down].into_iter();
                let parts = changed.chain(experts);
                let parts: Vec<_> = parts.filter(|part| before.matrix(*part).is_some()).collect();
                let changed = |part: &&Part| block.matrix(**part) != before.matrix(**part);
                // A search may find that a stage is best left as it is.
                let least = if transform.needs() == Needs::Hessian { 1 } else { parts.len() };
                assert!(parts.iter().filter(changed).count() >= least, "{transform:?} {index}");
                blocks.insert(index, block);
            }
            let found = logits(&stored, &blocks);
            let worst = expected.iter().zip(&found).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
            let name = transform.name();
            assert!(worst <= 5e-5 * largest, "{name} on {}: {worst}", path.display());
        }
    }
}

/// One layer of a small model with given sizes.
fn spec() -> Spec {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 128,
        "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 2,
        "intermediate_size": 128, "max_position_embeddings": 64, "head_dim": 16,
    });
    let serde_json::Value::Object(map) = config else { unreachable!() };
    lathe_models::read_config(&lathe_models::Config::new(map)).unwrap().1
}

fn block(spec: &Spec) -> Block<'_> {
    let (mut matrices, mut vectors) = (BTreeMap::new(), BTreeMap::new());
    for (nth, weight) in spec.weights().iter().enumerate() {
        let Role::Layer(_, part) = weight.role else { continue };
        let data = noise(weight.len(), nth);
        if weight.kind == Kind::Vector {
            vectors.insert(part, data.iter().map(|x| 1.0 + 0.5 * x).collect());
            continue;
        }
        // A few weights stand out, so that there is something to cut off.
        let cube = |(i, x): (usize, f32)| if i % 61 == 0 { 2.0 * x } else { x * x * x };
        let data = data.into_iter().enumerate().map(cube).collect();
        matrices.insert(part, Dense { rows: weight.rows, cols: weight.cols, data });
    }
    Block::new(spec, 0, matrices, vectors)
}

/// What rounding does to the outputs of a stage's linears.
fn errors(block: &Block<'_>, stage: &Stage, stats: &Stats, to: &str) -> Vec<f64> {
    let error = |part: &Part| {
        let weights = block.matrix(*part).unwrap();
        let coded = Rtn.quantize(weights, None, by_name(to).unwrap(), 1).unwrap().blocks;
        let mut delta = Dense::decode(&coded);
        delta.data.iter_mut().zip(&weights.data).for_each(|(d, w)| *d -= w);
        output_error(&delta, stats, 1)
    };
    stage.linears.iter().map(error).collect()
}

#[test]
fn awq_scales_make_the_outputs_of_every_stage_nearer_in_any_format() {
    let spec = spec();
    for to in ["int4_g32", "int4_g128", "q4_0", "nf4", "int8"] {
        let before = block(&spec);
        let mut scaled = before.clone();
        apply_and(&Awq { clip: false }, &mut scaled, (to, 1), &mut |nth, block, followed| {
            let stage = &spec.layers[0].stages()[nth];
            let plain: f64 = errors(&before, stage, &stats(128, nth), to).iter().sum();
            let ours: f64 = errors(block, stage, followed, to).iter().sum();
            assert!(ours < plain, "{to} {}: {ours} against {plain}", stage.name);
        });
    }
}

#[test]
fn clipping_cuts_values_but_never_queries_and_keys() {
    let spec = spec();
    let before = block(&spec);
    let [mut scaled, mut clipped] = [before.clone(), before];
    apply(&Awq { clip: false }, &mut scaled, "int4_g128");
    apply(&Awq { clip: true }, &mut clipped, "int4_g128");
    for part in [Part::Q, Part::K] {
        assert_eq!(scaled.matrix(part), clipped.matrix(part), "{part:?}");
    }
    let largest = |block: &Block<'_>, part| {
        block.matrix(part).unwrap().data.iter().fold(0f32, |most, w| most.max(w.abs()))
    };
    let cut = [Part::V, Part::Gate, Part::Up, Part::Down];
    assert!(cut.iter().any(|part| largest(&clipped, *part) < largest(&scaled, *part)));
}

#[test]
fn the_result_is_the_same_at_any_thread_count() {
    let spec = spec();
    let [mut one, mut four] = [block(&spec), block(&spec)];
    let [mut first, mut second] = [Vec::new(), Vec::new()];
    let awq = Awq::default();
    apply_and(&awq, &mut one, ("int4_g32", 1), &mut |_, _, stats| first.push(stats.clone()));
    apply_and(&awq, &mut four, ("int4_g32", 4), &mut |_, _, stats| second.push(stats.clone()));
    assert_eq!(first, second);
    for part in [Part::Q, Part::V, Part::Out, Part::Up, Part::Down] {
        assert_eq!(one.matrix(part), four.matrix(part), "{part:?}");
    }
}

#[test]
fn calibration_that_saw_nothing_or_nonsense_keeps_weights_finite() {
    let spec = spec();
    let formats = formats(&spec, "int4_g32");
    let cx =
        Context { formats: &formats, quantizer: &Rtn, activations: Activations::Float, threads: 1 };
    let transforms: [&dyn Transform; 2] = [&Awq::default(), &Smooth::default()];
    for value in [0.0, f32::NAN, f32::INFINITY, 1e-30] {
        for transform in transforms {
            let mut block = block(&spec);
            for stage in &spec.layers[0].stages() {
                let mut stats = Stats {
                    count: 5,
                    mean_abs: vec![value; 128],
                    importance: vec![value; 128],
                    absmax: vec![value; 128],
                    hessian: Some(vec![value; 128 * 128]),
                    ..Stats::default()
                };
                transform.apply(&mut block, stage, &mut stats, &cx).unwrap();
            }
            for part in [Part::Q, Part::V, Part::Out, Part::Up, Part::Down] {
                let finite = block.matrix(part).unwrap().data.iter().all(|w| w.is_finite());
                assert!(finite, "{} at {value}: {part:?}", transform.name());
            }
        }
    }
}

#[test]
fn smoothing_by_halves_makes_inputs_and_weights_equally_extreme() {
    let spec = spec();
    let mut block = block(&spec);
    let stages = spec.layers[0].stages();
    let smooth = Smooth::new(0.5).unwrap();
    apply_and(&smooth, &mut block, ("int8", 1), &mut |nth, block, stats| {
        if stages[nth].before.repeat() > 1 {
            return; // Columns share a channel.
        }
        for column in 0..128 {
            let weights = stages[nth].linears.iter().map(|part| {
                let weights = block.matrix(*part).unwrap();
                (0..weights.rows).fold(0f32, |m, row| m.max(weights.row(row)[column].abs()))
            });
            // Scales of gains are moved by up to 2^-9.
            let ratio = stats.absmax[column] / weights.fold(0.0, f32::max);
            assert!((ratio - 1.0).abs() < 0.01, "stage {nth} column {column}: {ratio}");
        }
    });
}

/// Inputs `[T, cols]`, of which two columns are much larger than the others.
fn uneven_inputs(tokens: usize, cols: usize) -> Vec<f32> {
    let size = |column: usize| match column {
        5 => 40.0,
        77 => 15.0,
        _ => 1.0,
    };
    noise(tokens * cols, 3).iter().enumerate().map(|(i, x)| x * size(i % cols)).collect()
}

/// As engines round inputs to 8 bits: with a scale for each token.
fn round_inputs(x: &mut [f32]) {
    let step = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    x.iter_mut().for_each(|x| *x = (*x / step).round() * step);
}

/// The mean square error of the outputs of attention's projections with 8-bit weights and inputs.
fn rounded_error(smooth: Option<Smooth>) -> f64 {
    let spec = spec();
    let (mut block, stage) = (block(&spec), spec.layers[0].stages().remove(0));
    let exact = block.clone();
    let (tokens, cols) = (96, 128);
    let x = uneven_inputs(tokens, cols);
    let mean = |f: &dyn Fn(&[f32]) -> f32| x.chunks_exact(cols).map(f).sum::<f32>() / 96.0;
    let mut stats = Stats {
        count: tokens as u64,
        mean_abs: (0..cols).map(|i| mean(&|x| x[i].abs())).collect(),
        importance: (0..cols).map(|i| mean(&|x| x[i] * x[i])).collect(),
        absmax: (0..cols)
            .map(|i| x.iter().skip(i).step_by(cols).fold(0f32, |m, x| m.max(x.abs())))
            .collect(),
        sample: x.clone(),
        hessian: Some((0..cols * cols).map(|at| mean(&|x| x[at / cols] * x[at % cols])).collect()),
    };
    let before = stats.absmax.clone();
    if let Some(smooth) = smooth {
        let formats = formats(&spec, "int8");
        let activations = Activations::Int8PerToken;
        let cx = Context { formats: &formats, quantizer: &Rtn, activations, threads: 1 };
        smooth.apply(&mut block, &stage, &mut stats, &cx).unwrap();
    }
    let scales: Vec<f32> = before.iter().zip(&stats.absmax).map(|(b, a)| b / a).collect();
    let mut error = 0.0;
    for part in &stage.linears {
        let (weights, coded) = (exact.matrix(*part).unwrap(), block.matrix(*part).unwrap());
        let format = by_name("int8").unwrap();
        let coded = Rtn.quantize(coded, None, format, 1).unwrap().blocks;
        let mut row = vec![0.0; cols];
        for nth in 0..weights.rows {
            coded.decode_row(nth, &mut row);
            for x in x.chunks_exact(cols) {
                let mut scaled: Vec<f32> = x.iter().zip(&scales).map(|(x, s)| x / s).collect();
                round_inputs(&mut scaled);
                let dot = |a: &[f32], b: &[f32]| -> f64 {
                    a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
                };
                error += (dot(&row, &scaled) - dot(weights.row(nth), x)).powi(2);
            }
        }
    }
    error / tokens as f64
}

#[test]
fn the_share_that_is_searched_loses_no_more_than_any_other() {
    let searched = rounded_error(Some(Smooth::default()));
    let plain = rounded_error(None);
    assert!(searched < 0.2 * plain, "{searched} of {plain}");
    for alpha in [0.25, 0.5, 0.75, 1.0] {
        let fixed = rounded_error(Some(Smooth::new(alpha).unwrap()));
        assert!(searched < 1.05 * fixed, "{searched}, with {alpha} {fixed}");
    }
}

#[test]
fn a_share_outside_0_to_1_is_refused() {
    for alpha in [-0.1, 1.5, f32::NAN] {
        assert!(Smooth::new(alpha).is_err());
    }
    assert_eq!(Smooth::new(0.7).unwrap().alpha, Some(0.7));
}
