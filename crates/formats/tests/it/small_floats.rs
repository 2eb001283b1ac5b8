//! Small floats and the rest of the integer family against the reference implementations, from
//! files that `goldens/make_grids.py` made.

use crate::safetensors::{Tensor, Tensors};
use lathe_formats::{
    AnyFormat, Blocks, DoubleBlock, Fp4, Fp8Block, Int, Nested, ScaleType, by_name,
};

fn quants(name: &str) -> Tensors {
    Tensors::open(&format!("quants/{name}"))
}

fn encode(name: &str, of: &Tensor) -> Blocks {
    let (rows, cols) = of.matrix();
    by_name(name).unwrap().encode(rows, cols, &of.floats(), 2).unwrap()
}

/// Each row's codes, and the f32 after them, as `int8` and `fp8_row` have them.
fn rows_with_scale(coded: &Blocks) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for row in 0..coded.rows {
        let (row, scale) = coded.row(row).split_at(coded.cols);
        codes.extend(row);
        scales.push(f32::from_le_bytes(scale.try_into().unwrap()));
    }
    (codes, scales)
}

#[test]
fn fp4_equals_bitsandbytes_to_the_bit() {
    let (inputs, golden) = (quants("inputs.safetensors"), quants("fp4.safetensors"));
    let large = [("large".to_owned(), golden["large.input"].clone())];
    let mut compared = 0;
    for (name, input) in inputs.iter().map(|(n, t)| (n.to_owned(), t.clone())).chain(large) {
        let Some(codes) = golden.get(&format!("single.{name}")) else { continue };
        let coded = encode("fp4", &input);
        let blocks: &[Fp4] = coded.typed().unwrap();
        assert_eq!(blocks.iter().flat_map(|b| b.codes).collect::<Vec<_>>(), codes.data, "{name}");
        let absmax: Vec<u8> = blocks.iter().flat_map(|b| b.absmax).collect();
        assert_eq!(absmax, golden[&format!("single.{name}.absmax")].data, "{name}");
        if let Some(values) = golden.get(&format!("single.{name}.values")) {
            assert_eq!(coded.decode(), values.floats(), "{name}");
        }
        compared += 1;
    }
    assert!(compared >= 8, "{compared}");
}

#[test]
fn fp4_codes_stay_as_they_are_under_double_quantization() {
    let (inputs, golden) = (quants("inputs.safetensors"), quants("fp4.safetensors"));
    let mut compared = 0;
    for (name, input) in inputs.iter() {
        let Some(codes) = golden.get(&format!("double.{name}")) else { continue };
        let coded = encode("fp4_dq", input);
        let blocks: &[DoubleBlock] = bytemuck::cast_slice(&coded.data);
        assert_eq!(blocks.iter().flat_map(|b| b.codes).collect::<Vec<_>>(), codes.data, "{name}");
        let map = golden[&format!("double.{name}.nested_quant_map")].floats();
        assert_eq!(Nested::of(&coded).map, map, "{name}");
        compared += 1;
    }
    assert!(compared >= 7, "{compared}");
}

#[test]
fn fp8_casts_equal_torch_for_all_numbers_and_all_that_lies_between() {
    let golden = quants("floats.safetensors");
    // Among numbers up to 448 the scale is 1, so that codes are casts.
    let input = &golden["casts.input"];
    let values = input.floats();
    assert!(values.iter().all(|x| x.abs() <= 448.0) && values.contains(&448.0));
    let count = values.len();
    let coded = by_name("fp8_tensor").unwrap().encode(1, count, &values, 1).unwrap();
    assert_eq!(coded.side[..], 1f32.to_le_bytes());
    for (i, (ours, theirs)) in coded.data.iter().zip(&golden["casts.codes"].data).enumerate() {
        // A weight −0 is coded as 0.
        let theirs = if values[i] == 0.0 { 0 } else { *theirs };
        assert_eq!(*ours, theirs, "{}", values[i]);
    }
}

#[test]
fn fp8_scales_and_codes_equal_compressed_tensors() {
    let (inputs, golden) = (quants("inputs.safetensors"), quants("floats.safetensors"));
    for name in ["normal", "outliers", "zeros", "constant", "ties", "tiny", "huge", "tiled"] {
        let input = if name == "tiled" { &golden["tiled.input"] } else { &inputs[name] };
        let (codes, scales) = rows_with_scale(&encode("fp8_row", input));
        assert_eq!(scales, golden[&format!("{name}.channel.scale")].floats(), "{name}");
        assert_eq!(codes, golden[&format!("{name}.channel.codes")].data, "{name}");
        let coded = encode("fp8_tensor", input);
        assert_eq!(coded.side[..], golden[&format!("{name}.tensor.scale")].data, "{name}");
        assert_eq!(coded.data[..], golden[&format!("{name}.tensor.codes")].data, "{name}");
    }
    let coded = encode("fp8_block", &golden["tiled.input"]);
    assert_eq!(Fp8Block::scales(&coded), golden["tiled.block.scale"].floats());
    assert_eq!(coded.data[..], golden["tiled.block.codes"].data);
    let again = Fp8Block::side(&Fp8Block::scales(&coded));
    assert_eq!(again, coded.side);
}

#[test]
fn mxfp4_and_nvfp4_equal_compressed_tensors() {
    let (inputs, golden) = (quants("inputs.safetensors"), quants("floats.safetensors"));
    for name in ["normal", "outliers", "zeros", "constant", "ties", "tiny", "huge"] {
        for (format, bytes) in [("mxfp4", 17), ("nvfp4", 9)] {
            let coded = encode(format, &inputs[name]);
            let part = |key: &str| &golden[&format!("{name}.{format}.{key}")];
            let blocks = coded.data.chunks(bytes);
            let scales: Vec<u8> = blocks.clone().map(|b| b[0]).collect();
            let codes: Vec<u8> = blocks.flat_map(|b| b[1..].to_vec()).collect();
            assert_eq!(scales, part("scale").data, "{name} {format}");
            assert_eq!(codes, part("codes").data, "{name} {format}");
        }
        let divisor = &golden[&format!("{name}.nvfp4.divisor")];
        assert_eq!(encode("nvfp4", &inputs[name]).side[..], divisor.data, "{name}");
    }
    let decoded = encode("nvfp4", &inputs["normal"]).decode();
    assert_eq!(decoded, golden["normal.nvfp4.values"].floats());
}

/// Scales, zero points and codes of a matrix in a format of the integer family.
fn groups(coded: &Blocks, int: &Int) -> (Vec<f32>, Vec<u8>, Vec<u8>) {
    let columns = int.columns().unwrap_or(coded.cols);
    let (mut scales, mut zeros, mut codes) = (Vec::new(), Vec::new(), Vec::new());
    for group in coded.data.chunks(int.group_bytes(columns)) {
        let (scale, zero, _) = int.head_of(group);
        scales.push(int.scale_of(scale));
        zeros.push(zero);
        let first = codes.len();
        codes.resize(first + columns, 0);
        int.unpack(group, &mut codes[first..]);
    }
    (scales, zeros, codes)
}

/// Runs `check` (format, label, groups of ours) over matrices × bits × symmetry × groups.
fn over_ints(
    scale: ScaleType,
    bits: &[u8],
    check: impl Fn(&Int, &str, (Vec<f32>, Vec<u8>, Vec<u8>)),
) {
    let inputs = quants("inputs.safetensors");
    for name in ["normal", "outliers", "zeros", "constant", "ties"] {
        for &bits in bits {
            for (symmetry, zero_points) in [("sym", false), ("asym", true)] {
                for (group, columns) in [(32, Some(32)), (128, Some(128)), (0, None)] {
                    let int = Int::find(bits, columns, zero_points, scale).unwrap();
                    let coded = encode(int.name(), &inputs[name]);
                    let label = format!("{name}.{bits}.{symmetry}.{group}");
                    check(int, &label, groups(&coded, int));
                }
            }
        }
    }
}

#[test]
fn integers_equal_compressed_tensors() {
    let golden = quants("ints.safetensors");
    over_ints(ScaleType::Bf16, &[2, 3, 8], |int, label, (scales, zeros, codes)| {
        let part = |key: &str| &golden[&format!("{label}.{key}")];
        let signed = |code: &u8| code.wrapping_add(int.middle());
        let theirs: Vec<u8> = part("codes").data.iter().map(signed).collect();
        assert_eq!(codes, theirs, "{label}");
        let theirs: Vec<u8> = part("zero").data.iter().map(signed).collect();
        assert_eq!(zeros, theirs, "{label}");
        let size = codes.len() / scales.len();
        for (i, (ours, theirs)) in scales.iter().zip(part("scale").floats()).enumerate() {
            // A group of zeros has some machine epsilon for a scale.
            let zeros_only = codes[i * size..][..size].iter().all(|code| *code == zeros[i]);
            assert!(*ours == theirs || zeros_only, "{label} group {i}: {ours} for {theirs}");
        }
    });
}

#[test]
fn scales_and_zero_points_equal_gptqmodel() {
    let golden = quants("gptq-grids.safetensors");
    over_ints(ScaleType::F16, &[2, 3, 4, 8], |int, label, (scales, zeros, codes)| {
        let theirs = golden[&format!("{label}.zero")].data.clone();
        let size = codes.len() / scales.len();
        for (i, ours) in scales.iter().enumerate() {
            // A group of zeros has a scale as if it reached to ±1.
            if codes[i * size..][..size].iter().all(|code| *code == zeros[i]) {
                continue;
            }
            let scale = golden[&format!("{label}.scale")].floats()[i];
            // Theirs of a symmetric group without negative numbers takes half of the range only.
            assert!(*ours == scale || *ours == 2.0 * scale && !int.zero_points(), "{label} {i}");
            assert_eq!(zeros[i], theirs[i], "{label} group {i}");
        }
    });
}

#[test]
fn int8_per_tensor_equals_compressed_tensors() {
    let (inputs, golden) = (quants("inputs.safetensors"), quants("ints.safetensors"));
    for name in ["normal", "outliers", "zeros", "constant", "ties"] {
        let coded = encode("int8_tensor", &inputs[name]);
        assert_eq!(coded.side[..], golden[&format!("{name}.tensor.scale")].data, "{name}");
        assert_eq!(coded.data[..], golden[&format!("{name}.tensor.codes")].data, "{name}");
    }
}
