//! Whole models pruned on their way to a format.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicI64, Ordering},
};

use crate::common::{Case, IntoGguf, Source, files, out, recipe};
use lathe_base::{Progress, Silent};
use lathe_files::Checkpoint;
use lathe_models::Kind;
use lathe_quantizers::{Calibration, Error, Gptq, Prune, Quantizer, Rtn, Search};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs").join(name)
}

fn calibration(samples: usize) -> Calibration {
    let token = |s: usize, i: usize| (3 + (i * i * 7 + i * 13 + s * 29) % 90) as u32;
    let sequence = |s: usize| (0..24 + s % 5).map(|i| token(s, i)).collect();
    Calibration::of((0..samples).map(sequence).collect(), "test")
}

fn pruning(spelt: &str) -> Prune {
    spelt.parse().unwrap()
}

/// The numbers of every tensor of a result that is a matrix inside the layers.
fn linears(case: &Case, made: &Path) -> Vec<Vec<f32>> {
    let checkpoint = Checkpoint::open(made).unwrap();
    let planned = case.plan.tensors.iter().filter(|planned| planned.kind == Kind::Linear);
    planned.map(|planned| checkpoint.weight(&planned.name).unwrap().decode()).collect()
}

#[test]
fn two_of_four_are_zero_in_every_matrix_whatever_codes_it() {
    let cases: [(&str, &str, bool, &dyn Quantizer); 6] = [
        ("qwen3", "bf16", false, &Rtn),
        ("qwen3", "f32", true, &Rtn),
        ("phi3", "int4_g32", false, &Gptq::default()),
        ("phi3", "q4_0", true, &Gptq::default()),
        ("qwen3", "int4_asym_g32", false, &Search),
        ("qwen3", "q8_0", true, &Search),
    ];
    for (source, format, gguf, quantizer) in cases {
        for criterion in ["magnitude", "wanda", "sparsegpt"] {
            let recipe = if gguf { recipe(format).into_gguf() } else { recipe(format) };
            let mut case = Case::new(&golden(source), &recipe).unwrap();
            case.transforms.push(Box::new(pruning(&format!("{criterion}:2:4"))));
            let folder = tempfile::tempdir().unwrap();
            let made = out(&folder, &case.plan);
            let data = calibration(12);
            let summary = case.calibrate_with(quantizer, &made, &data, &Silent).unwrap();
            for numbers in linears(&case, &made) {
                let runs = numbers.as_chunks::<4>().0.iter();
                let zeros = |run: &[f32; 4]| run.iter().filter(|x| **x == 0.0).count();
                assert!(runs.clone().all(|run| zeros(run) >= 2), "{source} {format} {criterion}");
                let kept = runs.filter(|run| zeros(run) == 2).count();
                assert!(kept > 0, "{source} {format} {criterion}: nothing is left");
            }
            for (planned, done) in case.plan.tensors.iter().zip(&summary.tensors) {
                let half = done.shape.iter().product::<usize>() as u64 / 2;
                if case.plan.tensors.iter().any(|p| p.name == done.name && p.kind == Kind::Linear) {
                    let zeros = done.zeros.unwrap_or_else(|| panic!("{}", planned.name));
                    assert!(zeros >= half && !done.copied, "{}: {zeros}", done.name);
                }
            }
        }
    }
}

#[test]
fn magnitude_asks_for_no_texts_and_the_others_do() {
    let source = Source::new(false);
    let made = |criterion: &str| {
        let mut case = Case::new(&source.path(), &recipe("bf16")).unwrap();
        case.transforms.push(Box::new(pruning(&format!("{criterion}:50%"))));
        let folder = tempfile::tempdir().unwrap();
        let made = out(&folder, &case.plan);
        let nothing = Calibration::of(Vec::new(), "no texts");
        case.calibrate_with(&Rtn, &made, &nothing, &Silent).map(|summary| {
            let numbers = linears(&case, &made);
            (summary.calibration, numbers)
        })
    };
    let (calibration, numbers) = made("magnitude").unwrap();
    assert!(calibration.is_none());
    for numbers in numbers {
        let zeros = numbers.iter().filter(|x| **x == 0.0).count();
        assert!(zeros >= numbers.len() / 2 && zeros < numbers.len() * 6 / 10, "{zeros}");
    }
    for criterion in ["wanda", "sparsegpt"] {
        let error = made(criterion).unwrap_err();
        assert!(matches!(error, Error::NoTexts { .. }), "{error}");
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
fn interrupted_anywhere_a_pruned_model_is_the_same_to_the_byte_at_any_thread_count_and_cap() {
    let source = Source::new(false);
    for (spelt, format) in [("sparsegpt:50%", "int4_g32"), ("magnitude:2:4", "bf16")] {
        let mut case = Case::new(&source.path(), &recipe(format)).unwrap();
        case.transforms.push(Box::new(pruning(spelt)));
        let data = calibration(5);
        let folder = tempfile::tempdir().unwrap();
        let whole = out(&folder, &case.plan);
        case.calibrate(&whole, &data, &Silent).unwrap();
        let expected = files(&whole);
        let folder = tempfile::tempdir().unwrap();
        let broken = out(&folder, &case.plan);
        let (mut steps, mut stops) = (1, 0);
        let summary = loop {
            case.threads = 1 + stops % 3;
            case.max_memory = (stops % 2 == 1).then_some(case.least_memory(&data));
            match case.calibrate(&broken, &data, &StopAt(AtomicI64::new(steps))) {
                Ok(summary) => break summary,
                Err(Error::Cancelled(_)) => assert!(!broken.exists()),
                Err(other) => panic!("{other}"),
            }
            stops += 1;
            steps += 4;
        };
        assert!(stops > 5 && summary.resumed > 0, "{stops} {}", summary.resumed);
        assert!(files(&broken) == expected, "{spelt}");
    }
}
