//! Logits of every architecture against those of transformers, from each container, however the
//! run is cut.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lathe_api::Engine;
use lathe_engine::{Inputs, KvType, Native, Options, Precision};
use lathe_files::Checkpoint;
use serde_json::Value;

/// The largest difference of a logit that counts as equal.
const TOLERANCE: f32 = 1e-4;

struct Case {
    name: String,
    model: PathBuf,
    ids: Vec<u32>,
    logits: Vec<f32>,
}

/// The cases of every checkpoint under `goldens/kind`.
fn cases(kind: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens").join(kind);
    let mut cases = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("golden.json").exists() {
            continue;
        }
        let golden: Value =
            serde_json::from_str(&fs::read_to_string(folder.join("golden.json")).unwrap()).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let text = |key: &str| case[key].as_str().unwrap();
            let (ids, logits) = read_logits(&folder.join(text("logits")));
            cases.push(Case {
                name: format!(
                    "{} {} {}",
                    folder.file_name().unwrap().to_string_lossy(),
                    text("model"),
                    text("logits")
                ),
                model: folder.join(text("model")),
                ids,
                logits,
            });
        }
    }
    assert!(!cases.is_empty(), "no goldens in {}", folder.display());
    cases
}

/// `input_ids` i64 and `logits` f32 of a safetensors file.
fn read_logits(path: &Path) -> (Vec<u32>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&rest[..length]).unwrap();
    let tensor = |name: &str| {
        let at = |i: usize| header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        &rest[length + at(0)..length + at(1)]
    };
    let ids = tensor("input_ids").as_chunks::<8>().0.iter();
    let logits = tensor("logits").as_chunks::<4>().0.iter();
    (
        ids.map(|b| u32::try_from(i64::from_le_bytes(*b)).unwrap()).collect(),
        logits.map(|b| f32::from_le_bytes(*b)).collect(),
    )
}

fn load(model: &Path, options: Options) -> Native {
    let checkpoint = Checkpoint::open(model).unwrap_or_else(|e| panic!("{e}"));
    Native::load(&checkpoint, None, &options).unwrap_or_else(|e| panic!("{}: {e}", model.display()))
}

fn options() -> Options {
    // Dynamic scaling is made for sequences longer than what config.json calls the context.
    let context = Some(64);
    Options {
        threads: 2,
        context,
        kv: KvType::F32,
        precision: Precision::Exact,
        ..Options::default()
    }
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // `max` drops NaN, hence the guard.
    a.iter().zip(b).fold(0.0, |worst, (a, b)| {
        let d = (a - b).abs();
        if d.is_nan() { f32::INFINITY } else { worst.max(d) }
    })
}

/// No format has groups of 16: they are decoded to f16, the type of their scales. Rounding these
/// weights to f16 moves the worst of transformers' own logits by 0.00816.
fn tolerance(name: &str) -> f32 {
    if name.starts_with("gptq-g16") { 0.02 } else { TOLERANCE }
}

/// Loads each case in passes of two sizes and says which logits differ.
fn compare(kind: &str) {
    let mut failures = Vec::new();
    for case in cases(kind) {
        for chunk in [256, 3] {
            let native = load(&case.model, Options { chunk, ..options() });
            let logits = native.scorer().unwrap().feed(&case.ids).unwrap().values;
            let worst = difference(&logits, &case.logits);
            if worst >= tolerance(&case.name) {
                failures.push(format!("{} in passes of {chunk}: {worst}", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "logits differ:\n{}", failures.join("\n"));
}

#[test]
fn every_architecture_and_container_gives_the_logits_of_transformers() {
    compare("archs");
}

/// The share of the scheme's effect that may be left, and how many of the first four tokens must
/// have the reference's digits.
///
/// A number half way between two codes may fall to either side, and then all that follows is a
/// little different.
fn rounds_inputs_like_its_engine(scheme: &str, same: usize) {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/activations").join(scheme);
    let (ids, expected) = read_logits(&folder.join("logits.safetensors"));
    let vocab = expected.len() / ids.len();
    let square = |found: &[f32]| -> f64 {
        found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    let of = |options| load(&folder, options).scorer().unwrap().feed(&ids).unwrap().values;
    let own = square(&of(Options { inputs: Some(Inputs::Own), ..options() }));
    for precision in [Precision::Fast, Precision::Exact] {
        let found = of(Options { precision, ..options() });
        let rows = found.chunks(vocab).zip(expected.chunks(vocab));
        let alike = rows.take(4).filter(|(a, b)| difference(a, b) < 2e-4).count();
        // Fast, what is not quantized, such as the head, meets inputs in bf16.
        let same = if precision == Precision::Exact { same } else { 0 };
        assert!(alike >= same, "{scheme} {precision:?}: {alike} of 4");
        let apart = square(&found);
        assert!(apart < own / 2.0, "{scheme} {precision:?}: {apart} of {own}");
    }
}

#[test]
fn llm_int8_gives_the_logits_of_bitsandbytes_fed_token_by_token() {
    // Its 1 / 127² is off by two parts in a hundred thousand.
    rounds_inputs_like_its_engine("llm-int8", 3);
}

#[test]
fn w8a8_and_fp8_give_the_logits_of_models_whose_inputs_are_rounded_as_their_engines_do() {
    for scheme in ["w8a8", "fp8-dynamic", "fp8-static", "fp8-block"] {
        rounds_inputs_like_its_engine(scheme, 3);
    }
}

#[test]
fn checkpoints_quantized_by_others_give_the_logits_of_their_libraries() {
    compare("quants");
}
