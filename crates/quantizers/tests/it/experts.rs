//! Models with experts: coded by what each expert is fed, and made up for where that is little.

use std::path::{Path, PathBuf};

use crate::common::{Case, IntoGguf, files, out, recipe};
use lathe_api::Engine;
use lathe_base::Silent;
use lathe_engine::{KvType, Native, Options, Precision};
use lathe_files::{Checkpoint, Imatrix};
use lathe_quantizers::Calibration;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs").join(name)
}

fn calibration(samples: usize) -> Calibration {
    let token = |s: usize, i: usize| (3 + (i * i * 7 + i * 13 + s * 29) % 90) as u32;
    let sequence = |s: usize| (0..24 + s % 5).map(|i| token(s, i)).collect();
    Calibration::of((0..samples).map(sequence).collect(), "test")
}

fn logits(model: &Path) -> Vec<f32> {
    let checkpoint = Checkpoint::open(model).unwrap();
    let options = Options {
        threads: 1,
        context: Some(64),
        kv: KvType::F32,
        precision: Precision::Exact,
        ..Options::default()
    };
    let native = Native::load(&checkpoint, None, &options).unwrap();
    let text: Vec<u32> = (0..60).map(|i| 4 + (i * 31 + i * i * 3) % 88).collect();
    native.scorer().unwrap().feed(&text).unwrap().values
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[test]
fn gptq_loses_less_than_rounding_in_every_container() {
    for (source, recipe) in [
        (golden("mixtral"), recipe("int4_g32")),
        (golden("mixtral"), recipe("q4_0").into_gguf()),
        (golden("mixtral").join("model.gguf"), recipe("q4_0")),
    ] {
        let case = Case::new(&source, &recipe).unwrap();
        let base = logits(&source);
        let folder = tempfile::tempdir().unwrap();
        let made = out(&folder, &case.plan);
        case.run(&made, 2, &Silent).unwrap();
        let rounded = distance(&logits(&made), &base);
        let folder = tempfile::tempdir().unwrap();
        let made = out(&folder, &case.plan);
        case.calibrate(&made, &calibration(40), &Silent).unwrap();
        let coded = distance(&logits(&made), &base);
        assert!(coded < rounded, "{}: {coded} of {rounded}", source.display());
    }
}

#[test]
fn experts_that_were_hardly_hit_are_named_and_coded_the_same_at_any_thread_count() {
    let mut case = Case::new(&golden("mixtral"), &recipe("q4_0").into_gguf()).unwrap();
    // 24 tokens, each to two of four experts: none sees the 32 that are enough.
    let data = calibration(1);
    let mut results = Vec::new();
    for threads in [1, 3] {
        case.threads = threads;
        let folder = tempfile::tempdir().unwrap();
        let made = out(&folder, &case.plan);
        let summary = case.calibrate(&made, &data, &Silent).unwrap();
        let named = |note: &&String| note.contains(" of 24 tokens") && note.contains("expert");
        assert_eq!(summary.notes.iter().filter(named).count(), 8, "{:?}", summary.notes);
        assert!(logits(&made).iter().all(|logit| logit.is_finite()));
        results.push(files(&made));
    }
    assert!(results[0] == results[1]);
}

#[test]
fn rejects_stacked_experts_where_no_layout_has_a_place_for_them() {
    let source = golden("mixtral-fused");
    let error = Case::new(&source, &recipe("int4_g32")).err().unwrap().to_string();
    assert!(error.contains("experts.gate_up_proj") && error.contains("GGUF"), "{error}");
    // As they are, or split up for llama.cpp.
    assert!(Case::new(&source, &recipe("f16")).is_ok());
    let case = Case::new(&source, &recipe("q8_0").into_gguf()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let made = out(&folder, &case.plan);
    case.run(&made, 2, &Silent).unwrap();
    let made = Checkpoint::open(&made).unwrap();
    assert_eq!(made.shape("blk.0.ffn_gate_exps.weight").unwrap(), [3, 40, 32]);
}

#[test]
fn what_gguf_has_no_place_for_is_said_before_it_is_written() {
    let case = Case::new(&golden("qwen3-moe-mixed"), &recipe("f16").into_gguf()).unwrap();
    let said = |what: &str| case.plan.notes.iter().any(|note| note.contains(what));
    assert!(said("layers without experts"), "{:?}", case.plan.notes);
    assert!(said("do not sum to 1"), "{:?}", case.plan.notes);
}

#[test]
fn routers_keep_their_numbers() {
    let source = Checkpoint::open(&golden("mixtral")).unwrap();
    let case = Case::new(&golden("mixtral"), &recipe("q4_0").into_gguf()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let made = out(&folder, &case.plan);
    case.run(&made, 2, &Silent).unwrap();
    let made = Checkpoint::open(&made).unwrap();
    let router = made.weight("blk.1.ffn_gate_inp.weight").unwrap();
    let stored = source.weight("model.layers.1.block_sparse_moe.gate.weight").unwrap();
    assert_eq!(router.format.name(), "f32");
    assert_eq!(router.decode(), stored.decode());
    assert_eq!(made.format("blk.1.ffn_up_exps.weight").unwrap(), "q4_0");
    assert_eq!(made.shape("blk.1.ffn_up_exps.weight").unwrap(), [4, 32, 32]);
}

#[test]
fn importance_is_by_expert_and_counts_the_tokens_of_each() {
    let case = Case::new(&golden("mixtral"), &recipe("q4_0").into_gguf()).unwrap();
    let data = calibration(7);
    let imatrix = case.importance(&data);
    for tensor in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
        let squares = &imatrix.entries[&format!("blk.0.{tensor}.weight")];
        assert_eq!((squares.sums.len(), squares.counts.len()), (4 * 32, 4), "{tensor}");
        assert_eq!(squares.counts.iter().sum::<u64>(), 2 * data.about.tokens, "{tensor}");
    }
    let router = &imatrix.entries["blk.0.ffn_gate_inp.weight"];
    assert_eq!(router.counts, [data.about.tokens]);
    let mut weighted = case;
    weighted.imatrix = Some(imatrix);
    let folder = tempfile::tempdir().unwrap();
    let made = out(&folder, &weighted.plan);
    weighted.run(&made, 2, &Silent).unwrap();
    assert!(logits(&made).iter().all(|logit| logit.is_finite()));
}

/// `goldens/make_imatrix.py`: llama-imatrix on the same model and tokens.
#[test]
fn importance_is_what_llama_imatrix_measures() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/imatrix");
    let theirs = Imatrix::read(&goldens.join("experts.gguf")).unwrap();
    let about = std::fs::read_to_string(goldens.join("golden.json")).unwrap();
    let about: serde_json::Value = serde_json::from_str(&about).unwrap();
    let ids: Vec<u32> = serde_json::from_value(about["experts"]["ids"].clone()).unwrap();
    let chunks = ids.chunks(theirs.chunk_size as usize).map(<[u32]>::to_vec).collect();

    let source = golden("qwen2-moe").join("model.gguf");
    let case = Case::new(&source, &recipe("f16")).unwrap();
    let ours = case.importance(&Calibration::of(chunks, "text.txt"));
    assert_eq!((ours.chunks, ours.chunk_size), (theirs.chunks, theirs.chunk_size));
    assert!(ours.entries.keys().eq(theirs.entries.keys()));
    for (name, theirs) in &theirs.entries {
        let ours = &ours.entries[name];
        assert_eq!(ours.counts, theirs.counts, "{name}");
        assert_eq!(ours.sums.len(), theirs.sums.len(), "{name}");
        for (ours, theirs) in ours.sums.iter().zip(&theirs.sums) {
            assert!((ours - theirs).abs() <= 5e-3 * theirs, "{name}: {ours} and {theirs}");
        }
    }
}
