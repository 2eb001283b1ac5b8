//! Bytes against ggml's own quantization code, from files that `goldens/make_ggml.py` made.

use crate::safetensors::{Tensor, Tensors};
use lathe_formats::{AnyFormat, Blocks, Effort, Error, READ_ONLY, by_name, readable};

/// Types whose bytes are held against ggml's.
const TYPES: [&str; 12] = [
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl",
    "iq4_xs",
];

fn goldens(name: &str) -> Tensors {
    Tensors::open(&format!("ggml/{name}.safetensors"))
}

fn matrices(inputs: &Tensors) -> impl Iterator<Item = (&str, &Tensor)> {
    inputs.iter().filter(|(name, _)| *name != "importance")
}

fn encode(kind: &str, input: &Tensor, importance: Option<&[f32]>) -> Blocks {
    let (rows, cols) = input.matrix();
    let source = by_name("f32").unwrap().encode(rows, cols, &input.floats(), 1).unwrap();
    let format = by_name(&kind.to_lowercase()).unwrap();
    format.encode_weighted(&source, importance, Effort::Nearest, 2).unwrap()
}

/// Where two codings part, for a message that helps.
fn first_difference(ours: &Blocks, theirs: &[u8]) -> Option<String> {
    let at = ours.data.iter().zip(theirs).position(|(a, b)| a != b)?;
    let bytes = ours.format.row_bytes(ours.cols);
    let count = ours.data.iter().zip(theirs).filter(|(a, b)| a != b).count();
    let block = ours.format.row_bytes(ours.format.block());
    let (row, column) = (at / bytes, at % bytes);
    Some(format!(
        "{count} bytes differ, first row {row}, block {}, byte {}: {:#x} for {:#x}",
        column / block,
        column % block,
        ours.data[at],
        theirs[at]
    ))
}

fn assert_equal(golden: &Tensors, importance: Option<&[f32]>, types: &[&str]) {
    let inputs = goldens("inputs");
    let mut wrong = Vec::new();
    for kind in types {
        for (name, input) in matrices(&inputs) {
            let coded = encode(kind, input, importance);
            let theirs = &golden[&format!("{name}.{kind}")].data;
            assert_eq!(coded.data.len(), theirs.len(), "{name}.{kind}");
            wrong.extend(first_difference(&coded, theirs).map(|d| format!("{name}.{kind}: {d}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bytes_equal_ggmls_where_nothing_is_known_of_columns() {
    assert_equal(&goldens("plain"), None, &TYPES);
}

#[test]
fn bytes_equal_ggmls_where_columns_have_an_importance() {
    let importance = goldens("inputs")["importance"].floats();
    // ggml's Q8_0 knows no importance.
    let types: Vec<_> = TYPES.into_iter().filter(|kind| *kind != "q8_0").collect();
    assert_equal(&goldens("weighted"), Some(&importance), &types);
}

#[test]
fn ggmls_bytes_decode_to_what_ggml_decodes_them_to() {
    let (plain, values) = (goldens("plain"), goldens("values"));
    for kind in TYPES {
        let key = format!("heavy.{kind}");
        let (coded, expected) = (&plain[&key], &values[&key]);
        let (rows, cols) = expected.matrix();
        let format = by_name(&kind.to_lowercase()).unwrap();
        let blocks =
            Blocks::new(format, rows, cols, coded.data.clone().into(), vec![].into()).unwrap();
        assert_eq!(blocks.decode(), expected.floats(), "{kind}");
    }
}

fn squared_error(input: &[f32], coded: &[f32], importance: Option<&[f32]>) -> f64 {
    let weight = |i: usize| importance.map_or(1.0, |all| f64::from(all[i % all.len()]));
    let pairs = input.iter().zip(coded).enumerate();
    pairs.map(|(i, (a, b))| weight(i) * f64::from(a - b).powi(2)).sum()
}

#[test]
fn a_search_leaves_less_error_than_ggml_on_a_models_weights() {
    let inputs = goldens("inputs");
    let importance = inputs["importance"].floats();
    let input = &inputs["demo"];
    let (rows, cols) = input.matrix();
    let floats = input.floats();
    let source = by_name("f32").unwrap().encode(rows, cols, &floats, 1).unwrap();
    for kind in ["q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_xs"] {
        let format = by_name(&kind.to_lowercase()).unwrap();
        for (file, importance) in [("plain", None), ("weighted", Some(&*importance))] {
            let theirs = goldens(file)[&format!("demo.{kind}")].data.clone();
            let theirs = Blocks::new(format, rows, cols, theirs.into(), vec![].into()).unwrap();
            let ours = format.encode_weighted(&source, importance, Effort::Search, 1).unwrap();
            let theirs = squared_error(&floats, &theirs.decode(), importance);
            let ours = squared_error(&floats, &ours.decode(), importance);
            println!("{kind} {file}: {:.3} of ggml's error", ours / theirs);
            assert!(ours < 0.99 * theirs, "{kind} {file}: {ours} against {theirs}");
        }
    }
}

#[test]
fn types_that_are_only_read_decode_to_what_ggml_decodes_them_to() {
    let golden = goldens("read_only");
    let mut compared = 0;
    for format in READ_ONLY.iter().filter(|format| format.name() != "ggml_mxfp4") {
        let (name, expected) = (format.name(), &golden[&format!("{}.values", format.name())]);
        let (rows, cols) = expected.matrix();
        let data = golden[name].data.clone();
        let blocks =
            Blocks::new(readable(name).unwrap(), rows, cols, data.into(), vec![].into()).unwrap();
        assert_eq!(blocks.decode(), expected.floats(), "{name}");
        assert!(matches!(format.encode(1, 256, &[0.0; 256], 1), Err(Error::ReadOnly { .. })));
        compared += 1;
    }
    assert_eq!(compared, 9);
}

#[test]
fn mxfp4_in_a_gguf_has_its_halves_side_by_side() {
    let mut block = vec![128];
    block.extend((0..16).map(|j: u8| j | (15 - j) << 4));
    let format = readable("ggml_mxfp4").unwrap();
    let decoded = Blocks::new(format, 1, 32, block.into(), vec![].into()).unwrap().decode();
    // Exponent 128 doubles.
    let numbers = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];
    assert_eq!(decoded[..8], numbers);
    assert_eq!(decoded[8..16], numbers.map(|x: f32| -x));
    assert_eq!(decoded[24..], [12.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.0]);
}
