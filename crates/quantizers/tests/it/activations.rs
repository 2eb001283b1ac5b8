//! Schemes that name what engines do to inputs: what is written, and what is refused.

use crate::common::{Case, Source, out, recipe};
use lathe_base::Silent;
use lathe_files::{Activations, Checkpoint, Layout};
use lathe_formats::by_name;
use lathe_quantizers::{Calibration, Error, Recipe, Rtn, SCHEMES, Scheme, Smooth, Target};

fn calibration() -> Calibration {
    let sequence = |s: u32| (0..24).map(|i| 3 + (i * i * 7 + i * 13 + s * 29) % 90).collect();
    Calibration::of((0..5).map(sequence).collect(), "test")
}

fn scheme(name: &str) -> Recipe {
    Recipe::scheme(Scheme::by_name(name).unwrap()).unwrap()
}

#[test]
fn every_scheme_names_a_format_that_its_activations_suit() {
    for scheme in SCHEMES {
        let format = by_name(scheme.format).unwrap();
        assert!(scheme.activations.suit(format), "{}", scheme.name);
        assert!(by_name(scheme.name).is_err(), "{} is a format as well", scheme.name);
        let source = Source::new(false);
        let plan = Case::new(&source.path(), &Recipe::scheme(scheme).unwrap()).unwrap().plan;
        assert_eq!(plan.activations, scheme.activations);
        assert_eq!(plan.layout, Layout::CompressedTensors);
    }
}

#[test]
fn static_scales_bring_the_largest_input_of_each_stage_to_the_largest_code() {
    let source = Source::new(false);
    let case = Case::new(&source.path(), &scheme("fp8_static")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let made = out(&folder, &case.plan);
    case.calibrate_with(&Rtn, &made, &calibration(), &Silent).unwrap();
    let checkpoint = Checkpoint::open(&made).unwrap();
    let scale = |module: &str| {
        let weight = checkpoint.weight(&format!("model.layers.1.{module}.weight")).unwrap();
        weight.input_scale.unwrap()
    };
    let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|m| scale(&format!("self_attn.{m}")));
    assert!(q == k && k == v && q > 0.0, "one stage has one input: {q} {k} {v}");
    assert_eq!(scale("mlp.gate_proj"), scale("mlp.up_proj"));
    assert_ne!(scale("mlp.gate_proj"), scale("mlp.down_proj"));
    // Inputs of the first stage are normed: the largest of 128 numbers of mean square 1 is between
    // 1 and the root of 128, times the norm's gains.
    assert!(q * 448.0 > 1e-3 && q * 448.0 < 100.0, "{q}");
    let config = &checkpoint.config["quantization_config"]["config_groups"]["group_0"];
    assert_eq!(config["input_activations"]["dynamic"], false);
}

#[test]
fn smoothing_makes_inputs_that_are_less_extreme_and_the_same_model() {
    let source = Source::new(false);
    let mut case = Case::new(&source.path(), &scheme("fp8_static")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut scales = |name: &str, alpha: Option<f32>| {
        let made = folder.path().join(name);
        case.transforms =
            alpha.map(|alpha| Box::new(Smooth::new(alpha).unwrap()) as _).into_iter().collect();
        case.calibrate_with(&Rtn, &made, &calibration(), &Silent).unwrap();
        let checkpoint = Checkpoint::open(&made).unwrap();
        let weight = checkpoint.weight("model.layers.0.mlp.gate_proj.weight").unwrap();
        weight.input_scale.unwrap()
    };
    // With alpha 1 every column's largest input becomes 1.
    let smoothed = scales("smoothed", Some(1.0));
    assert!((smoothed * 448.0 - 1.0).abs() < 0.05, "{smoothed}");
    assert_ne!(scales("plain", None), smoothed);
}

#[test]
fn what_no_engine_would_do_is_refused_with_what_to_do_instead() {
    let source = Source::new(false);
    let with = |format: &str, activations, layout| Recipe {
        activations: Some(activations),
        layout,
        target: Some(Target::SafeTensors),
        ..recipe(format)
    };
    for recipe in [
        with("int4_g32", Activations::Int8PerToken, Layout::Auto),
        with("int8", Activations::Fp8, Layout::Auto),
        with("fp8_tensor", Activations::Float, Layout::Fp8),
        with("int8", Activations::Int8PerToken, Layout::BitsAndBytes),
        Recipe { head: by_name("fp8_tensor").ok().map(|f| f as _), ..scheme("fp8_static") },
        Recipe { activations: Some(Activations::Int8PerToken), ..recipe("q8_0") },
    ] {
        let refused = Case::new(&source.path(), &recipe).map(|_| ());
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{recipe:?}: {refused:?}");
    }
    let case = Case::new(&source.path(), &scheme("fp8_static")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let refused = case.run(&out(&folder, &case.plan), 1, &Silent);
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
}
