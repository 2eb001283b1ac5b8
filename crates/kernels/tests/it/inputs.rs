//! Activation schemes against the engines that they come from, and every promise of sameness.

use std::path::Path;

use lathe_base::Buf;
use lathe_formats::{Blocks, by_name};
use lathe_kernels::{Inputs, Matrix, Pool, Precision, matmul};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// Inputs of a golden file, and what was made of them.
struct Golden(Value);

impl Golden {
    fn read(name: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/activations");
        Self(serde_json::from_slice(&std::fs::read(root.join(name)).unwrap()).unwrap())
    }

    fn number(&self, key: &str) -> usize {
        self.0[key].as_u64().unwrap() as usize
    }

    fn integers(&self, key: &str) -> Vec<i8> {
        self.0[key].as_array().unwrap().iter().map(|n| n.as_i64().unwrap() as i8).collect()
    }

    fn floats(&self, key: &str) -> Vec<f32> {
        let bits = self.0[key].as_array().unwrap().iter();
        bits.map(|n| f32::from_bits(n.as_i64().unwrap() as u32)).collect()
    }
}

fn product(x: &[f32], w: &Matrix, threads: usize) -> Vec<f32> {
    let t = x.len() / w.cols();
    let mut out = vec![f32::NAN; t * w.rows()];
    matmul(&Pool::new(threads), x, t, w, &mut out);
    out
}

/// What a scheme makes of inputs: their product with the identity.
fn rounded(x: &[f32], cols: usize, inputs: Inputs) -> Vec<f32> {
    let mut identity = vec![0.0; cols * cols];
    (0..cols).for_each(|i| identity[i * cols + i] = 1.0);
    let blocks = by_name("f32").unwrap().encode(cols, cols, &identity, 1).unwrap();
    product(x, &Matrix::new(blocks).unwrap().with_inputs(inputs), 1)
}

#[test]
fn fp8_inputs_are_those_of_compressed_tensors() {
    let golden = Golden::read("golden.json");
    let (x, cols) = (golden.floats("x"), golden.number("cols"));
    let scale = f32::from_bits(golden.number("static_scale") as u32);
    assert_eq!(rounded(&x, cols, Inputs::Fp8PerToken), golden.floats("fp8_per_token"));
    assert_eq!(rounded(&x, cols, Inputs::Fp8Static(scale)), golden.floats("fp8_static"));
    let columns = golden.number("group");
    let grouped = rounded(&x, cols, Inputs::Fp8PerGroup { columns });
    assert_eq!(grouped, golden.floats("fp8_per_group"));
}

#[test]
fn int8_inputs_are_those_of_vllm() {
    let (golden, vllm) = (Golden::read("golden.json"), Golden::read("vllm.json"));
    let (x, cols) = (golden.floats("x"), golden.number("cols"));
    let (codes, scales) = (vllm.integers("codes"), vllm.floats("scales"));
    for (i, found) in rounded(&x, cols, Inputs::Int8PerToken).into_iter().enumerate() {
        let scale = scales[i / cols];
        let expected = f32::from(codes[i]) * scale;
        assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{i}: {found}, not {expected}");
    }
}

#[test]
fn llm_int8_gives_the_products_of_bitsandbytes_on_every_instruction_set() {
    let golden = Golden::read("golden.json");
    let (rows, cols) = (golden.number("rows"), golden.number("cols"));
    let (x, codes) = (golden.floats("x"), golden.integers("codes"));
    let expected = golden.floats("llm_int8");
    let mut data = Vec::new();
    for (codes, absmax) in codes.chunks(cols).zip(golden.floats("absmax")) {
        data.extend(codes.iter().map(|code| code.cast_unsigned()));
        data.extend((absmax / 127.0).to_le_bytes());
    }
    let format = by_name("int8").unwrap();
    let blocks = Blocks::new(format, rows, cols, data.into(), Buf::new()).unwrap();
    let threshold = golden.0["threshold"].as_f64().unwrap() as f32;
    for precision in [Precision::Fast, Precision::Exact] {
        let w = Matrix::with(blocks.clone(), precision, &Pool::new(1)).unwrap();
        let w = w.with_inputs(Inputs::LlmInt8 { threshold });
        for isa in lathe_simd::available() {
            let found = lathe_simd::with_isa(isa, || product(&x, &w, 1)).unwrap();
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                // bitsandbytes takes 6.200124e-5 for 1 / 127²: two parts in a hundred thousand.
                let bound = 4e-5 * expected.abs().max(1.0);
                let error = (found - expected).abs();
                assert!(error <= bound, "{precision:?} {isa} {i}: {found}, not {expected}");
            }
        }
    }
}

fn normal(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| (0..12).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 2.0).collect()
}

const SCHEMES: [Inputs; 5] = [
    Inputs::Int8PerToken,
    Inputs::LlmInt8 { threshold: 3.0 },
    Inputs::Fp8PerToken,
    Inputs::Fp8PerGroup { columns: 128 },
    Inputs::Fp8Static(0.02),
];

#[test]
fn products_on_codes_are_those_of_rounded_inputs() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // One format of each way to hold scales: by rows, by groups, with zero points, by superblocks.
    for name in [
        "int8",
        "q8_0",
        "int4_asym_g32",
        "q4_k",
        "q6_k",
        "iq4_nl",
        "f32",
        "bf16",
        "fp8_row",
        "fp8_tensor",
    ] {
        let (rows, cols) = (35, 512);
        let blocks = by_name(name).unwrap().encode(rows, cols, &normal(&mut rng, rows * cols), 1);
        let blocks = blocks.unwrap();
        let weights = blocks.decode();
        let x = normal(&mut rng, 7 * cols);
        for inputs in SCHEMES {
            let seen = rounded(&x, cols, inputs);
            let mut first: Option<Vec<f32>> = None;
            for isa in lathe_simd::available() {
                let w = Matrix::new(blocks.clone()).unwrap().with_inputs(inputs);
                let found = lathe_simd::with_isa(isa, || product(&x, &w, 1)).unwrap();
                for (i, found) in found.iter().enumerate() {
                    let (token, row) = (i / rows, i % rows);
                    let pairs = seen[token * cols..][..cols].iter().zip(&weights[row * cols..]);
                    let (sum, size) = pairs.fold((0.0, 0.0), |(sum, size), (x, w)| {
                        let product = f64::from(*x) * f64::from(*w);
                        (sum + product, size + product.abs())
                    });
                    let error = (f64::from(*found) - sum).abs();
                    assert!(
                        error <= 4e-5 * size,
                        "{name} {inputs:?} {isa} {i}: {found}, not {sum}"
                    );
                }
                let first = first.get_or_insert_with(|| found.clone());
                // Tiles of bfloat16 are summed in another order.
                let reordered = isa == "amx" && ["bf16", "fp8_row", "fp8_tensor"].contains(&name);
                let same = reordered || *first == found;
                assert!(same, "{name} {inputs:?} {isa} differs from scalar");
            }
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_alone_and_in_any_company_at_any_number_of_threads() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (rows, cols) = (50, 256);
    let blocks = by_name("int8").unwrap().encode(rows, cols, &normal(&mut rng, rows * cols), 1);
    let blocks = blocks.unwrap();
    let x = normal(&mut rng, 9 * cols);
    for inputs in SCHEMES {
        for precision in [Precision::Fast, Precision::Exact] {
            let w = Matrix::new(blocks.clone()).unwrap().precise(precision).with_inputs(inputs);
            let alone: Vec<f32> = x.chunks(cols).flat_map(|x| product(x, &w, 1)).collect();
            for threads in [1, 3] {
                assert_eq!(product(&x, &w, threads), alone, "{inputs:?} {precision:?}");
            }
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    let format = by_name("int8").unwrap();
    let blocks = format.encode(3, 64, &[0.5; 3 * 64], 1).unwrap();
    for inputs in SCHEMES {
        let w = Matrix::new(blocks.clone()).unwrap().with_inputs(inputs);
        assert_eq!(product(&[0.0; 64], &w, 1), [0.0; 3], "{inputs:?}");
    }
}
