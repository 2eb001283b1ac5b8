//! Bytes against the reference implementations, from files that `goldens/make_quants.py` made.

use crate::safetensors::{Tensor, Tensors};
use half::bf16;
use lathe_formats::{AnyFormat, Blocks, DoubleBlock, Int8, Nested, Nf4, by_name};

fn quants(name: &str) -> Tensors {
    Tensors::open(&format!("quants/{name}"))
}

fn encode(name: &str, of: &Tensor) -> Blocks {
    let (rows, cols) = of.matrix();
    format(name).encode(rows, cols, &of.floats(), 2).unwrap()
}

fn format(name: &str) -> &'static dyn AnyFormat {
    by_name(name).unwrap()
}

/// Whether a format's scale reaches the numbers; where not, we refuse and the reference overflows.
fn reaches(format: &dyn AnyFormat, input: &Tensor) -> bool {
    input.floats().iter().all(|x| x.abs() <= format.limit())
}

#[test]
fn ggml_formats_equal_gguf_py_to_the_byte() {
    let (inputs, golden) = (quants("inputs.safetensors"), quants("ggml.safetensors"));
    let mut compared = 0;
    for (name, input) in inputs.iter() {
        for (theirs, ours) in
            [("Q8_0", "q8_0"), ("Q5_0", "q5_0"), ("Q4_0", "q4_0"), ("F16", "f16"), ("BF16", "bf16")]
        {
            if !reaches(format(ours), input) {
                assert_eq!(name, "huge");
                continue;
            }
            let coded = encode(ours, input);
            let label = format!("{name}.{theirs}");
            assert!(coded.data == golden[&label].data, "{label}");
            if let Some(values) = golden.get(&format!("{label}.values")) {
                assert_eq!(coded.decode(), values.floats(), "{label}");
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 9 * 5 - 4);
}

#[test]
fn nf4_equals_bitsandbytes_to_the_bit() {
    let (inputs, golden) = (quants("inputs.safetensors"), quants("nf4.safetensors"));
    let large = [("large".to_owned(), golden["large.input"].clone())];
    let mut compared = 0;
    for (name, input) in inputs.iter().map(|(n, t)| (n.to_owned(), t.clone())).chain(large) {
        let Some(codes) = golden.get(&format!("single.{name}")) else { continue };
        let coded = encode("nf4", &input);
        let blocks: &[Nf4] = coded.typed().unwrap();
        assert_eq!(blocks.iter().flat_map(|b| b.codes).collect::<Vec<_>>(), codes.data, "{name}");
        let absmax: Vec<u8> = blocks.iter().flat_map(|b| b.absmax).collect();
        assert_eq!(absmax, golden[&format!("single.{name}.absmax")].data, "{name}");
        if input.dtype == "F32" {
            assert_eq!(coded.decode(), golden[&format!("single.{name}.values")].floats(), "{name}");
        }
        compared += 1;
    }
    assert!(compared >= 8, "{compared}");
}

#[test]
fn double_quantization_equals_bitsandbytes_up_to_the_last_bits_of_the_mean() {
    let (inputs, golden) = (quants("inputs.safetensors"), quants("nf4.safetensors"));
    let large = [("large".to_owned(), golden["large.input"].clone())];
    let mut compared = 0;
    for (name, input) in inputs.iter().map(|(n, t)| (n.to_owned(), t.clone())).chain(large) {
        let part = |key: &str| golden.get(&format!("double.{name}.{key}"));
        let Some(codes) = golden.get(&format!("double.{name}")) else { continue };
        let coded = encode("nf4_dq", &input);
        let blocks: &[DoubleBlock] = bytemuck::cast_slice(&coded.data);
        assert_eq!(blocks.iter().flat_map(|b| b.codes).collect::<Vec<_>>(), codes.data, "{name}");
        let nested = Nested::of(&coded);
        assert_eq!(nested.map, part("nested_quant_map").unwrap().floats(), "{name}");
        // The reference sums in f32, in an order of its own; the rest follows from the mean.
        let state = part("quant_state.bitsandbytes__nf4").unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state.data).unwrap();
        let offset = state["nested_offset"].as_f64().unwrap();
        let close = |a: f64, b: f64| (a - b).abs() <= 4.0 * f64::from(f32::EPSILON) * offset.abs();
        assert!(close(f64::from(nested.offset), offset), "{name}: {} {offset}", nested.offset);
        for (a, b) in nested.absmax.iter().zip(part("nested_absmax").unwrap().floats()) {
            assert!(close(f64::from(*a), f64::from(b)), "{name}: {a} {b}");
        }
        if f64::from(nested.offset) == offset {
            let theirs = &part("absmax").unwrap().data;
            assert_eq!(&blocks.iter().map(|b| b.absmax).collect::<Vec<_>>(), theirs, "{name}");
            if input.dtype == "F32" {
                assert_eq!(coded.decode(), golden[&format!("double.{name}.values")].floats());
            }
            compared += 1;
        }
    }
    assert!(compared >= 3, "only {compared} of the means are equal");
}

/// Scale, zero point and codes (−8..=7) of each group.
fn int4_groups(coded: &Blocks, zero_points: bool) -> Vec<(f32, i32, Vec<i32>)> {
    let head = if zero_points { 3 } else { 2 };
    let group = |block: &[u8]| {
        let scale = bf16::from_le_bytes([block[0], block[1]]).to_f32();
        let zero = if zero_points { i32::from(block[2]) - 8 } else { 0 };
        let codes = block[head..].iter().flat_map(|b| [b & 15, b >> 4]);
        (scale, zero, codes.map(|c| i32::from(c) - 8).collect())
    };
    coded.data.chunks(head + coded.format.block() / 2).map(group).collect()
}

#[test]
fn int4_scales_and_zero_points_equal_compressed_tensors() {
    let (inputs, golden) = (quants("inputs.safetensors"), quants("int4.safetensors"));
    for name in ["normal", "outliers", "zeros", "constant", "ties"] {
        for group in [32, 64, 128] {
            for (label, ours) in [("sym", "int4"), ("asym", "int4_asym")] {
                let coded = encode(&format!("{ours}_g{group}"), &inputs[name]);
                let part = |key: &str| golden.get(&format!("{name}.{label}{group}.{key}"));
                let scales = part("weight_scale").unwrap().floats();
                let zeros = part("zero_points").map(|z| z.data.clone());
                let groups = int4_groups(&coded, label == "asym");
                assert_eq!(groups.len(), scales.len());
                for (i, (scale, zero, codes)) in groups.iter().enumerate() {
                    // A group of zeros has some machine epsilon for a scale.
                    if codes.iter().any(|c| c != zero) {
                        assert_eq!(*scale, bf16::from_f32(scales[i]).to_f32(), "{name} {ours}");
                    }
                    let theirs = zeros.as_ref().map_or(0, |z| i32::from(z[i] as i8));
                    assert_eq!(*zero, theirs, "{name} {ours}");
                }
            }
        }
    }
}

#[test]
fn int4_codes_equal_a_checkpoint_of_compressed_tensors() {
    let source = Tensors::open("archs/llama3/model.safetensors");
    for (folder, ours) in [("int4", "int4_g32"), ("int4-asymmetric", "int4_asym_g32")] {
        let golden = Tensors::open(&format!("quants/{folder}/model.safetensors"));
        let mut compared = 0;
        for (name, weight) in source.iter().filter(|(n, _)| n.ends_with("proj.weight")) {
            let coded = encode(ours, weight);
            let groups = int4_groups(&coded, ours.contains("asym"));
            let nibbles = groups.iter().flat_map(|(.., codes)| codes);
            // Eight codes to an i32, the first in the lowest bits, along the columns.
            let packed: Vec<u8> = nibbles
                .collect::<Vec<_>>()
                .chunks(2)
                .map(|pair| (pair[0] + 8) as u8 | ((pair[1] + 8) as u8) << 4)
                .collect();
            assert!(packed == golden[&format!("{name}_packed")].data, "{name}");
            let scales: Vec<f32> = groups.iter().map(|g| g.0).collect();
            assert_eq!(scales, golden[&format!("{name}_scale")].floats(), "{name}");
            compared += 1;
        }
        assert!(compared > 6);
    }
}

#[test]
fn int8_equals_the_definition_in_pytorch() {
    let (inputs, golden) = (quants("inputs.safetensors"), quants("int8.safetensors"));
    for (name, input) in inputs.iter() {
        let coded = encode("int8", input);
        for row in 0..coded.rows {
            let (codes, scale) = Int8::row(&coded, row);
            let theirs: &[i8] = bytemuck::cast_slice(&golden[&format!("{name}.codes")].data);
            assert_eq!(scale, golden[&format!("{name}.scale")].floats()[row], "{name}");
            assert_eq!(codes, &theirs[row * coded.cols..][..coded.cols], "{name} row {row}");
        }
    }
}
