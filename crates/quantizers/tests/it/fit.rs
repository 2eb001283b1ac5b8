//! A budget, from measurements to the file.

use std::{fs, path::Path};

use crate::common::{Case, Source, recipe};
use lathe_base::{Bytes, Silent};
use lathe_engine::{LayerRunner, Room};
use lathe_files::{Checkpoint, gguf::Metadata};
use lathe_models::{Model, Weight};
use lathe_quantizers::{
    About, Error, Gptq, Job, Needs, Plan, Quantizer, Recipe, Search, Stored, Target,
    mix::{Budget, Effort, Fit, Fitted, fit},
};

fn texts() -> Vec<Vec<u32>> {
    (0..6u32).map(|i| (0..20 + 3 * i).map(|j| (i * 37 + j * j * 11 + j) % 100).collect()).collect()
}

const EFFORT: Effort = Effort { anchors: 2, rounds: 1 };

fn run(
    source: &Path,
    recipe: &Recipe,
    budget: Budget,
    out: &Path,
    quantizer: &dyn Quantizer,
    threads: usize,
) -> Result<Fitted, Error> {
    let checkpoint = Checkpoint::open(source).unwrap();
    let model = Model::read(&checkpoint).unwrap();
    let plan = Plan::new(&model, &checkpoint, recipe)?;
    let job = Job {
        checkpoint: &checkpoint,
        weights: &Stored { model: &model, checkpoint: &checkpoint },
        plan: &plan,
        out,
        replace: false,
        quantizer,
        imatrix: None,
        threads,
        measure: true,
        about: &About { name: "Test".to_owned(), tokenizer: Metadata::new() },
    };
    let request = Fit {
        job: &job,
        recipe,
        budget,
        reserved: Bytes(0),
        formats: &[],
        texts: &texts(),
        effort: Some(EFFORT),
        recoder: (quantizer.needs() == Needs::Hessian).then_some(quantizer),
        max_memory: None,
        // Runs on one source share what they measure.
        journal: &out.with_file_name("measured"),
    };
    fit(&request, &Silent)
}

/// All logits of a model's texts, by its file.
fn logits(path: &Path) -> Vec<f32> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let model = Model::read(&checkpoint).unwrap();
    let spec = &model.spec;
    let mut source = |weight: &Weight| {
        let f32s = lathe_formats::by_name("f32").unwrap();
        let stored = model.load(&checkpoint, model.find(weight.role).unwrap())?;
        let values = f32s.encode(stored.rows, stored.cols, &stored.decode(), 1);
        Ok(values.map_err(lathe_models::Error::from)?)
    };
    let texts = texts();
    let tokens = texts.iter().map(Vec::len).sum();
    let mut runner = LayerRunner::new(spec, Room { tokens, sequences: texts.len() }, 2).unwrap();
    let weights = spec.weights();
    let table = source(&weights[0]).unwrap();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let mut x = runner.embed(&table, &texts).unwrap();
    for layer in 0..spec.layers.len() {
        for stage in 0..4 {
            let entry = runner.entry(layer, stage, &mut source).unwrap();
            let linears = runner.linears(layer, stage, &mut source).unwrap();
            runner.advance((&entry, &linears), &mut x, &mut |_| {}).unwrap();
        }
    }
    let output = runner.output(&mut source).unwrap();
    runner.logits(&output, &mut x).unwrap()
}

fn divergence(base: &[f32], other: &[f32]) -> f64 {
    let mut between = lathe_eval::Divergence::default();
    let rows = base.chunks(100).zip(other.chunks(100));
    let each: Vec<f64> = rows.map(|(a, b)| between.between(a, b).unwrap()).collect();
    each.iter().sum::<f64>() / each.len() as f64
}

#[test]
fn the_file_has_the_budget_to_the_byte_and_the_divergence_that_was_measured() {
    let source = Source::new(true);
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe { target: Some(Target::Gguf), ..recipe("q4_0") };
    let base = logits(&source.path());
    let mut last = f64::INFINITY;
    for bits in [5.2, 7.0] {
        let out = folder.path().join(format!("{bits}.gguf"));
        let found = run(&source.path(), &recipe, Budget::Bits(bits), &out, &Search, 2).unwrap();
        assert!(found.plan.bits_per_weight() <= bits);
        let length = fs::metadata(&out).unwrap().len();
        assert_eq!(found.length, Bytes(length));
        let measured = divergence(&base, &logits(&out));
        let said = found.found.measured.mean;
        assert!((measured - said).abs() <= 1e-3 * said + 1e-9, "{bits}: {measured} {said}");
        assert!(measured < last, "{bits}");
        last = measured;

        // The same by bytes: what fits to the byte fits, and one byte less gives something else.
        let again = folder.path().join("again.gguf");
        let budget = Budget::Bytes(Bytes(length));
        let same = run(&source.path(), &recipe, budget, &again, &Search, 1).unwrap();
        assert!(same.length <= found.length);
        fs::remove_file(&again).unwrap();
        let budget = Budget::Bytes(Bytes(same.length.0 - 1));
        let less = run(&source.path(), &recipe, budget, &again, &Search, 1).unwrap();
        assert!(less.length < same.length);
        fs::remove_file(&again).unwrap();
    }
}

#[test]
fn what_is_found_is_better_than_one_format_for_all() {
    let source = Source::new(false);
    let folder = tempfile::tempdir().unwrap();
    let base = logits(&source.path());
    let uniform = Recipe { pure: true, ..recipe("q5_0") };
    let case = Case::new(&source.path(), &uniform).unwrap();
    let plain = folder.path().join("plain.gguf");
    case.run(&plain, 2, &Silent).unwrap();
    let length = fs::metadata(&plain).unwrap().len();
    let out = folder.path().join("fitted.gguf");
    let budget = Budget::Bytes(Bytes(length));
    let found = run(&source.path(), &recipe("q4_0"), budget, &out, &Search, 2).unwrap();
    assert!(found.length.0 <= length);
    let (ours, theirs) = (divergence(&base, &logits(&out)), divergence(&base, &logits(&plain)));
    assert!(ours < 0.8 * theirs, "{ours} {theirs}");
    let formats: std::collections::BTreeSet<_> =
        found.plan.tensors.iter().map(|t| t.format.name()).collect();
    assert!(formats.len() > 2, "{formats:?}");
}

#[test]
fn codes_made_anew_belong_to_the_same_weights_and_a_second_run_makes_the_same_file() {
    let source = Source::new(false);
    let folder = tempfile::tempdir().unwrap();
    let base = logits(&source.path());
    let gptq = Gptq::default();
    let mut files = Vec::new();
    for (bits, threads) in [(5.0, 2), (5.0, 1), (6.5, 2)] {
        let out = folder.path().join("out.gguf");
        let budget = Budget::Bits(bits);
        let found = run(&source.path(), &recipe("q4_0"), budget, &out, &gptq, threads).unwrap();
        let recoded = found.recoded.unwrap();
        let plain = found.found.measured;
        assert_eq!(found.divergence.mean, recoded.mean.min(plain.mean));
        let ratio = recoded.mean / plain.mean;
        assert!((ratio - 1.0).abs() > 1e-6, "other codes are tried");
        assert!((0.5..2.0).contains(&ratio), "rows are where they belong: {recoded:?} {plain:?}");
        let measured = divergence(&base, &logits(&out));
        let said = found.divergence.mean;
        assert!((measured - said).abs() <= 1e-3 * said, "{bits}: {measured} {said}");
        files.push(fs::read(&out).unwrap());
        fs::remove_file(&out).unwrap();
        let left = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["measured"], "nothing else is left behind");
    }
    assert!(files[0] == files[1] && files[0] != files[2]);
}

#[test]
fn folders_get_several_formats_of_integers_and_fused_matrices_share_theirs() {
    let source = Source::new(false);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let recipe = Recipe { target: Some(Target::SafeTensors), ..recipe("int4_g32") };
    let found = run(&source.path(), &recipe, Budget::Bits(9.0), &out, &Search, 2).unwrap();
    let made = Checkpoint::open(&out).unwrap();
    let stored = fs::metadata(out.join("model.safetensors")).unwrap().len();
    assert_eq!(found.length, Bytes(stored));
    let format = |layer: usize, part: &str| {
        made.weight(&format!("model.layers.{layer}.{part}.weight")).unwrap().format.name()
    };
    for layer in 0..2 {
        let q = format(layer, "self_attn.q_proj");
        assert!(q.starts_with("int"));
        assert_eq!(q, format(layer, "self_attn.k_proj"));
        assert_eq!(q, format(layer, "self_attn.v_proj"));
        assert_eq!(format(layer, "mlp.gate_proj"), format(layer, "mlp.up_proj"));
    }
    assert_eq!(made.weight("lm_head.weight").unwrap().format.name(), "bf16");
    let base = logits(&source.path());
    let measured = divergence(&base, &logits(&out));
    let said = found.found.measured.mean;
    assert!((measured - said).abs() <= 1e-3 * said, "{measured} {said}");
}

#[test]
fn a_budget_that_nothing_fits_says_what_it_takes() {
    let source = Source::new(true);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let recipe = recipe("q4_0");
    for budget in [Budget::Bits(1.0), Budget::Bytes(Bytes(1000))] {
        let refused = run(&source.path(), &recipe, budget, &out, &Search, 1).unwrap_err();
        assert!(matches!(refused, Error::Budget { .. }), "{refused}");
        assert!(!out.exists());
    }
}
