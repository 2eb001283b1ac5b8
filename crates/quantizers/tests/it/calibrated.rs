//! The layer-by-layer job: better than rounding, whatever the container; the same bytes however it
//! is cut, interrupted or threaded; and clear words where the data is no good.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicI64, Ordering},
};

use crate::common::{Case, IntoGguf, Source, files, out, recipe};
use lathe_api::Engine;
use lathe_base::{Bytes, Progress, Silent};
use lathe_engine::{KvType, Native, Options, Precision};
use lathe_files::Checkpoint;
use lathe_quantizers::{Calibration, Error, Gptq, Needs, Quantizer, Rtn, Search, Stats, Summary};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs").join(name)
}

/// Sequences of tokens of a small vocabulary, uneven in length and kind.
fn calibration(samples: usize) -> Calibration {
    let token = |s: usize, i: usize| (3 + (i * i * 7 + i * 13 + s * 29) % 90) as u32;
    let sequence = |s: usize| (0..24 + s % 5).map(|i| token(s, i)).collect();
    Calibration::of((0..samples).map(sequence).collect(), "test")
}

/// Logits of a text that calibration has not seen.
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
fn gptq_loses_less_than_rounding_in_every_container_and_architecture() {
    for (source, recipe) in [
        (golden("qwen3"), recipe("int4_g32")),
        (golden("phi3"), recipe("int4_g32")),
        (golden("phi3"), recipe("q4_0").into_gguf()),
        (golden("qwen3"), recipe("q4_0").into_gguf()),
        (golden("qwen3").join("model.gguf"), recipe("q4_0")),
    ] {
        let case = Case::new(&source, &recipe).unwrap();
        let base = logits(&source);
        let folder = tempfile::tempdir().unwrap();
        let made = out(&folder, &case.plan);
        case.run(&made, 2, &Silent).unwrap();
        let rounded = distance(&logits(&made), &base);
        let folder = tempfile::tempdir().unwrap();
        let made = out(&folder, &case.plan);
        let summary = case.calibrate(&made, &calibration(40), &Silent).unwrap();
        let coded = distance(&logits(&made), &base);
        assert!(coded < 0.8 * rounded, "{}: {coded} of {rounded}", source.display());
        assert_eq!(summary.tensors.len(), case.plan.tensors.len());
        assert_eq!(summary.calibration.unwrap().samples, 40);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "hidden states are gone when the result is there");
    }
}

/// Says stop at the step of this number.
struct StopAt(AtomicI64);

impl Progress for StopAt {
    fn at(&self, _: &str, _: u64, _: u64) {}

    fn note(&self, _: &str) {}

    fn cancelled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) <= 0
    }
}

#[test]
fn interrupted_anywhere_the_result_is_the_same_to_the_byte_at_any_thread_count_and_cap() {
    let source = Source::new(false);
    for format in ["int4_g32", "q4_0"] {
        let mut case = Case::new(&source.path(), &recipe(format)).unwrap();
        let data = calibration(9);
        let folder = tempfile::tempdir().unwrap();
        let whole = out(&folder, &case.plan);
        case.calibrate(&whole, &data, &Silent).unwrap();
        let expected = files(&whole);
        let folder = tempfile::tempdir().unwrap();
        let broken = out(&folder, &case.plan);
        let (mut steps, mut stops) = (1, 0);
        let summary = loop {
            case.threads = 1 + stops % 3;
            // Tokens of one sequence at a time, then of several.
            case.max_memory = (stops % 2 == 1).then_some(case.least_memory(&data));
            match case.calibrate(&broken, &data, &StopAt(AtomicI64::new(steps))) {
                Ok(summary) => break summary,
                Err(Error::Cancelled(_)) => assert!(!broken.exists()),
                Err(other) => panic!("{other}"),
            }
            stops += 1;
            steps += 3;
        };
        assert!(stops > 5 && summary.resumed > 0, "{stops} {}", summary.resumed);
        assert!(files(&broken) == expected, "{format}");
    }
}

#[test]
fn a_cap_that_is_too_low_names_the_smallest_that_works() {
    let source = Source::new(false);
    let mut case = Case::new(&source.path(), &recipe("int4_g32")).unwrap();
    let data = calibration(3);
    let least = case.least_memory(&data);
    case.max_memory = Some(Bytes(least.0 - 1));
    let folder = tempfile::tempdir().unwrap();
    let made = out(&folder, &case.plan);
    let error = case.calibrate(&made, &data, &Silent).unwrap_err();
    assert!(matches!(error, Error::MaxMemory { needed, .. } if needed == least), "{error}");
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing is begun");
}

#[test]
fn one_token_of_one_sample_is_enough_to_end_well() {
    let source = Source::new(true);
    let case = Case::new(&source.path(), &recipe("int4_g32")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let made = out(&folder, &case.plan);
    let data = Calibration::of(vec![vec![5]], "one token");
    case.calibrate(&made, &data, &Silent).unwrap();
    assert!(logits(&made).iter().all(|logit| logit.is_finite()));
}

#[test]
fn texts_without_tokens_are_refused() {
    let source = Source::new(true);
    let case = Case::new(&source.path(), &recipe("int4_g32")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = Calibration::of(vec![], "empty.txt");
    let error = case.calibrate(&out(&folder, &case.plan), &data, &Silent).unwrap_err();
    assert!(error.to_string().contains("empty.txt"), "{error}");
}

/// Changes some numbers of a tensor of a source in bf16.
fn spoil(source: &Path, tensor: &str, indices: &[usize], to: [u8; 2]) {
    let path = source.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = 8 + header + json[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    for index in indices {
        bytes[at + 2 * index..at + 2 * index + 2].copy_from_slice(&to);
    }
    fs::write(&path, bytes).unwrap();
}

#[test]
fn inputs_that_are_not_finite_are_named_by_layer_sample_and_token() {
    let source = Source::new(false);
    // The embedding of token 50 is NaN; of token 5, not.
    spoil(&source.path(), "model.embed_tokens.weight", &[50 * 128 + 3], [0xff, 0xff]);
    let case = Case::new(&source.path(), &recipe("int4_g32")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = Calibration::of(vec![vec![5; 8], vec![5, 5, 50, 5]], "test");
    let error = case.calibrate(&out(&folder, &case.plan), &data, &Silent).unwrap_err();
    // The embeddings are written first, and a NaN there is found as in any job.
    assert!(error.to_string().contains("model.embed_tokens.weight"), "{error}");
    let overflow = Source::new(false);
    // Finite as stored, but not what it is multiplied with.
    let gains: Vec<usize> = (0..128).collect();
    spoil(&overflow.path(), "model.layers.1.input_layernorm.weight", &gains, [0x7f, 0x7f]);
    let case = Case::new(&overflow.path(), &recipe("int8")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let quantizer = Watching::new(Needs::Importance);
    let error = case
        .calibrate_with(&quantizer, &out(&folder, &case.plan), &data, &Silent)
        .unwrap_err()
        .to_string();
    assert!(error.contains("layer 1, attention input: token 0 of calibration sample 0"), "{error}");
}

/// Rounds, and keeps what it was told.
#[derive(Debug)]
struct Watching {
    needs: Needs,
    seen: std::sync::Mutex<Vec<Option<Stats>>>,
}

impl Watching {
    fn new(needs: Needs) -> Self {
        Self { needs, seen: std::sync::Mutex::default() }
    }
}

impl Quantizer for Watching {
    fn name(&self) -> &'static str {
        "watching"
    }

    fn needs(&self) -> Needs {
        self.needs
    }

    fn quantize(
        &self,
        weights: &dyn lathe_formats::Rows,
        stats: Option<&Stats>,
        to: &'static dyn lathe_formats::AnyFormat,
        threads: usize,
    ) -> Result<lathe_quantizers::Coded, Error> {
        self.seen.lock().unwrap().push(stats.cloned());
        Rtn.quantize(weights, None, to, threads)
    }
}

#[test]
fn statistics_are_of_what_the_matrices_are_multiplied_with_in_the_order_of_the_stages() {
    let source = Source::new(false);
    // A norm's gain of 0 makes a column that is always 0.
    spoil(&source.path(), "model.layers.1.input_layernorm.weight", &[7], [0, 0]);
    let case = Case::new(&source.path(), &recipe("int4_g32")).unwrap();
    let data = calibration(5);
    let quantizer = Watching::new(Needs::Hessian);
    let folder = tempfile::tempdir().unwrap();
    let made = out(&folder, &case.plan);
    let summary = case.calibrate_with(&quantizer, &made, &data, &Silent).unwrap();
    let seen = quantizer.seen.into_inner().unwrap();
    let cols: Vec<_> = seen.iter().flatten().map(|stats| stats.importance.len()).collect();
    assert_eq!(cols, [[128; 6].as_slice(), &[256]].concat().repeat(2));
    for stats in seen.iter().flatten() {
        assert_eq!(stats.count, data.about.tokens);
        let (hessian, cols) = (stats.hessian.as_ref().unwrap(), stats.importance.len());
        for (c, importance) in stats.importance.iter().enumerate() {
            assert!((hessian[c * cols + c] - importance).abs() <= 1e-5 * importance);
        }
    }
    let dead: Vec<_> = seen[7].as_ref().unwrap().absmax.iter().map(|most| *most == 0.0).collect();
    assert_eq!(dead.iter().position(|dead| *dead), Some(7));
    assert_eq!(dead.iter().filter(|dead| **dead).count(), 1);
    let note = "layer 1, attention input: 1 of 128 columns are 0";
    assert!(summary.notes.iter().any(|line| line.contains(note)), "{:?}", summary.notes);
}

#[test]
fn a_second_layer_sees_what_the_quantized_first_one_gives() {
    let source = Source::new(false);
    let data = calibration(4);
    let stats = |format: &str| {
        let case = Case::new(&source.path(), &recipe(format)).unwrap();
        let quantizer = Watching::new(Needs::Importance);
        let folder = tempfile::tempdir().unwrap();
        case.calibrate_with(&quantizer, &out(&folder, &case.plan), &data, &Silent).unwrap();
        quantizer.seen.into_inner().unwrap()
    };
    let (four, eight) = (stats("int4_g32"), stats("int8"));
    // The first stage of the first layer has nothing before it.
    assert_eq!(four[0], eight[0]);
    assert_ne!(four[3], eight[3], "the output projection is fed by quantized values");
    assert_ne!(four[7], eight[7], "so is the next layer");
}

#[test]
fn importance_is_measured_as_llama_cpp_does_by_its_names() {
    let path = golden("phi3");
    let case = Case::new(&path, &recipe("q8_0").into_gguf()).unwrap();
    let data = calibration(6);
    let imatrix = case.importance(&data);
    assert_eq!((imatrix.chunks, imatrix.chunk_size), (6, 28));
    let names: Vec<_> = imatrix.entries.keys().map(String::as_str).collect();
    let of_layer = |layer| {
        ["attn_output", "attn_qkv", "ffn_down", "ffn_up"].map(|n| format!("blk.{layer}.{n}.weight"))
    };
    assert_eq!(names[..4], of_layer(0));
    let quantizer = Watching::new(Needs::Importance);
    let folder = tempfile::tempdir().unwrap();
    case.calibrate_with(&quantizer, &out(&folder, &case.plan), &data, &Silent).unwrap();
    let seen = quantizer.seen.into_inner().unwrap();
    let first = seen.iter().flatten().next().unwrap();
    let squares = &imatrix.entries["blk.0.attn_qkv.weight"];
    assert_eq!(squares.counts, [first.count]);
    for (a, b) in squares.mean().iter().zip(&first.importance) {
        assert!((a - b).abs() <= 1e-6 * b.abs());
    }
    let by_name: BTreeMap<_, _> =
        imatrix.entries.iter().map(|(name, squares)| (name.as_str(), squares.sums.len())).collect();
    assert_eq!(by_name.len(), 4 * case.model.spec.layers.len());
}

#[test]
fn an_importance_matrix_weighs_the_search_for_scales() {
    let path = golden("qwen3");
    let mut case = Case::new(&path, &recipe("q4_0").into_gguf()).unwrap();
    let imatrix = case.importance(&calibration(40));
    // What the search is to make small, over all matrices.
    let loss = |case: &Case| -> f64 {
        let folder = tempfile::tempdir().unwrap();
        let made = out(&folder, &case.plan);
        let summary: Summary = case.run_with(&Search, &made).unwrap();
        assert_eq!(summary.quantizer, "search");
        let made = Checkpoint::open(&made).unwrap();
        let stored = Checkpoint::open(&path.join("model.gguf")).unwrap();
        let of_tensor = |(name, squares): (&String, &lathe_files::Squares)| {
            let (before, after) = (stored.weight(name).unwrap(), made.weight(name).unwrap());
            let errors = before.decode().into_iter().zip(after.decode()).map(|(a, b)| a - b);
            let weighed = errors.zip(squares.mean().into_iter().cycle());
            weighed.map(|(error, mean)| f64::from(error * error * mean)).sum::<f64>()
        };
        imatrix.entries.iter().map(of_tensor).sum()
    };
    let plain = loss(&case);
    case.imatrix = Some(imatrix.clone());
    let weighted = loss(&case);
    assert!(weighted < 0.99 * plain, "{weighted} of {plain}");
    // Columns that another model has.
    let mut other = imatrix;
    for squares in other.entries.values_mut() {
        squares.sums.truncate(8);
    }
    case.imatrix = Some(other);
    let folder = tempfile::tempdir().unwrap();
    let error = case.run_with(&Search, &out(&folder, &case.plan)).unwrap_err();
    assert!(error.to_string().contains("8 columns for tensor `blk.0.attn_q.weight`"), "{error}");
}

#[test]
fn the_estimate_grows_with_what_is_gathered() {
    let source = Source::new(false);
    let case = Case::new(&source.path(), &recipe("int4_g32")).unwrap();
    let data = calibration(5);
    let gptq = case.estimate(&Gptq::default(), &data);
    let light = case.estimate(&Watching::new(Needs::Importance), &data);
    assert!(gptq.peak > light.peak && gptq.statistics > light.statistics);
    assert_eq!(gptq.disk, light.disk);
    assert!(gptq.words().contains("on disk for hidden states"));
}
