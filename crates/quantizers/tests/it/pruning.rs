//! Pruning against the papers' definitions, and what becomes of zeros when they are coded: see
//! `goldens/make_pruning.py`.

use std::fs;

use lathe_formats::{AnyFormat, FORMATS, by_name};
use lathe_quantizers::{
    Criterion, Dense, Gptq, Pattern, Prune, Quantizer, Rtn, Search, Stats, keeps_zeros,
};
use serde::Deserialize;

use crate::layer::{Layer, goldens};

#[derive(Deserialize)]
struct Masks {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    criterion: String,
    share: Option<f32>,
    keep: Option<usize>,
    of: Option<usize>,
    /// Hexadecimal digits of the mask, row by row.
    zeroed: Vec<String>,
    loss: f64,
}

impl Case {
    fn prune(&self) -> Prune {
        let criterion = match self.criterion.as_str() {
            "magnitude" => Criterion::Magnitude,
            "wanda" => Criterion::Wanda,
            _ => Criterion::SparseGpt,
        };
        let of = |of| Pattern::Of { keep: self.keep.unwrap(), of };
        let pattern = self.share.map_or_else(|| of(self.of.unwrap()), Pattern::Share);
        Prune { criterion, pattern }
    }

    /// Whether each weight is zeroed.
    fn mask(&self) -> Vec<bool> {
        let digits = self.zeroed.iter().flat_map(|row| row.chars());
        let bits = |digit: char| {
            let value = digit.to_digit(16).unwrap();
            (0..4).rev().map(move |bit| value >> bit & 1 == 1)
        };
        digits.flat_map(bits).collect()
    }
}

fn cases(criterion: &[&str]) -> Vec<Case> {
    let text = fs::read_to_string(goldens("pruning/masks.json")).unwrap();
    let masks: Masks = serde_json::from_str(&text).unwrap();
    masks.cases.into_iter().filter(|c| criterion.contains(&c.criterion.as_str())).collect()
}

fn pruned(layer: &Layer, prune: Prune, threads: usize) -> Dense {
    let mut weights = layer.weights.clone();
    let notes = prune.apply_to(&mut weights, &layer.stats(), threads).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    weights
}

fn zeros(weights: &[f32]) -> usize {
    weights.iter().filter(|w| **w == 0.0).count()
}

const HALF: Pattern = Pattern::Share(0.5);
const TWO_OF_FOUR: Pattern = Pattern::Of { keep: 2, of: 4 };

#[test]
fn magnitude_and_wanda_zero_the_papers_weights_and_leave_the_others() {
    let layer = Layer::open();
    for case in cases(&["magnitude", "wanda"]) {
        let pruned = pruned(&layer, case.prune(), 1);
        for ((before, after), gone) in layer.weights.data.iter().zip(&pruned.data).zip(case.mask())
        {
            assert_eq!(*after, if gone { 0.0 } else { *before }, "{:?}", case.prune());
        }
    }
}

#[test]
fn sparsegpt_zeroes_what_the_paper_does_and_makes_up_for_it_at_least_as_well() {
    let layer = Layer::open();
    let cases = cases(&["sparsegpt"]);
    assert_eq!(cases.len(), 4);
    for case in cases {
        let pruned = pruned(&layer, case.prune(), 2);
        let mask = case.mask();
        let gone = mask.iter().filter(|gone| **gone).count();
        assert_eq!(zeros(&pruned.data), gone, "{:?}", case.prune());
        let alike = pruned.data.iter().zip(&mask).filter(|(w, gone)| (**w == 0.0) == **gone);
        // The definition is computed in f64, ours in f32: close calls may differ.
        let alike = alike.count() as f64 / mask.len() as f64;
        assert!(alike > 0.998, "{:?}: masks agree in {alike}", case.prune());
        let loss = layer.loss(&pruned.data);
        assert!(loss <= 0.995 * case.loss, "{:?}: {loss} and {}", case.prune(), case.loss);
    }
}

#[test]
fn making_up_for_what_goes_costs_far_less_than_zeroing() {
    let layer = Layer::open();
    for pattern in [HALF, TWO_OF_FOUR] {
        let loss = |criterion| layer.loss(&pruned(&layer, Prune { criterion, pattern }, 2).data);
        let [magnitude, wanda, sparsegpt] =
            [Criterion::Magnitude, Criterion::Wanda, Criterion::SparseGpt].map(loss);
        assert!(sparsegpt < 0.6 * wanda.min(magnitude), "{pattern:?}");
    }
}

#[test]
fn sparsegpt_gives_the_same_bits_at_any_thread_count() {
    let layer = Layer::open();
    // Three panels of rows.
    let data = layer.weights.data.repeat(3);
    let tall = Dense { rows: 3 * layer.weights.rows, cols: layer.weights.cols, data };
    let tall = Layer { weights: tall, hessian: layer.hessian };
    let prune = Prune { criterion: Criterion::SparseGpt, pattern: HALF };
    let one = pruned(&tall, prune, 1);
    assert!([2, 5].into_iter().all(|threads| pruned(&tall, prune, threads) == one));
}

#[test]
fn zeros_stay_zeros_in_formats_that_have_one() {
    let layer = Layer::open();
    let prune = Prune { criterion: Criterion::SparseGpt, pattern: TWO_OF_FOUR };
    let sparse = pruned(&layer, prune, 2);
    let fits = |format: &&&'static dyn AnyFormat| format.check(sparse.cols).is_ok();
    let mut kept = Vec::new();
    for to in FORMATS.iter().filter(fits) {
        if !keeps_zeros(*to) {
            continue;
        }
        kept.push(to.name());
        let all: [&dyn Quantizer; 3] = [&Rtn, &Search, &Gptq::default()];
        for quantizer in all {
            if quantizer.name() == "gptq" && to.grid().is_none() {
                continue;
            }
            let coded = quantizer.quantize(&sparse, Some(&layer.stats()), *to, 2).unwrap();
            let decoded = coded.blocks.decode();
            let still = sparse.data.iter().zip(&decoded).all(|(w, q)| *w != 0.0 || *q == 0.0);
            assert!(still, "{} loses zeros in {}", quantizer.name(), to.name());
        }
    }
    for name in ["bf16", "int4_g128", "int4_asym_g32", "nf4", "q4_0", "q8_0"] {
        assert!(kept.contains(&name), "{name} should keep zeros");
    }
}

#[test]
fn a_pruned_matrix_is_coded_within_its_mask_for_little_more_error() {
    let layer = Layer::open();
    let criterion = Criterion::SparseGpt;
    for (name, pattern) in [("int4_g32", HALF), ("int4_g128", TWO_OF_FOUR), ("nf4", TWO_OF_FOUR)] {
        let (to, stats) = (by_name(name).unwrap(), layer.stats());
        let sparse = pruned(&layer, Prune { criterion, pattern }, 2);
        let coded = |quantizer: &dyn Quantizer| {
            quantizer.quantize(&sparse, Some(&stats), to, 2).unwrap().blocks.decode()
        };
        let (rounded, made_up) = (coded(&Rtn), coded(&Gptq::default()));
        assert!(2 * zeros(&made_up) >= made_up.len(), "{name}");
        if pattern == TWO_OF_FOUR {
            assert!(made_up.as_chunks::<4>().0.iter().all(|run| zeros(run) >= 2));
        }
        let before = layer.loss(&sparse.data);
        let (rounded, made_up) = (layer.loss(&rounded) - before, layer.loss(&made_up) - before);
        assert!(made_up < 0.75 * rounded, "{name}: {made_up} and {rounded}");
    }
}

#[test]
fn rejects_patterns_and_statistics_that_do_not_fit() {
    let layer = Layer::open();
    let refused = |criterion, pattern, stats: &Stats| {
        let mut weights = layer.weights.clone();
        let result = Prune { criterion, pattern }.apply_to(&mut weights, stats, 1);
        assert_eq!(weights, layer.weights);
        result.unwrap_err().to_string()
    };
    let (stats, nothing) = (layer.stats(), Stats::default());
    for pattern in [
        Pattern::Share(1.0),
        Pattern::Share(f32::NAN),
        Pattern::Of { keep: 5, of: 4 },
        Pattern::Of { keep: 1, of: 0 },
        Pattern::Of { keep: 1, of: 3 },
    ] {
        assert!(refused(Criterion::Magnitude, pattern, &stats).contains("pruning by"));
    }
    assert!(refused(Criterion::Wanda, HALF, &nothing).contains("wanda without calibration"));
    assert!(refused(Criterion::SparseGpt, HALF, &nothing).contains("sparsegpt without"));
}
