//! Every format on every instruction set of this machine against naive sums in f64, and every
//! promise of sameness: instruction sets, threads, tokens.

use lathe_base::{Buf, bf16};
use lathe_formats::{AnyFormat, Blocks, FORMATS, by_name};
use lathe_kernels::{Inputs, Matrix, Pool, Precision, foresee, matmul, matmuls};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Tokens of the products: single, odd, and more than any tile.
const TOKENS: [usize; 8] = [1, 2, 3, 4, 5, 8, 11, 33];

fn normal(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    // A sum of twelve uniforms: normal enough, with tails that make blocks differ.
    (0..n).map(|_| (0..12).map(|_| rng.random::<f32>() - 0.5).sum()).collect()
}

/// Shapes that a format can take: one block, one panel, odd rows, several groups, odd columns.
fn shapes(format: &dyn AnyFormat) -> Vec<(usize, usize)> {
    let block = format.block();
    if block == 1 {
        vec![(1, 1), (3, 31), (16, 33), (17, 100), (35, 384), (4, 64)]
    } else {
        vec![(1, block), (16, block), (17, 2 * block), (35, 384), (64, 640)]
            .into_iter()
            .filter(|(_, cols)| cols % block == 0)
            .collect()
    }
}

fn product(x: &[f32], t: usize, w: &Matrix, threads: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; t * w.rows()];
    matmul(&Pool::new(threads), x, t, w, &mut out);
    out
}

/// The inputs as the fast path of integer formats sees them.
fn rounded(x: &[f32], cols: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for part in x.chunks(cols).flat_map(|row| row.chunks(32)) {
        let most = part.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
        out.extend(part.iter().map(|x| (x * inverse).round_ties_even() * (most / 127.0)));
    }
    out
}

/// Sums in f64, and sums of magnitudes to hold errors against.
fn truth(x: &[f32], t: usize, w: &[f32], rows: usize, cols: usize) -> Vec<(f64, f64)> {
    let dot = |n: usize, r: usize| {
        let pairs = x[n * cols..][..cols].iter().zip(&w[r * cols..][..cols]);
        pairs.fold((0.0, 0.0), |(sum, size), (x, w)| {
            let product = f64::from(*x) * f64::from(*w);
            (sum + product, size + product.abs())
        })
    };
    (0..t).flat_map(|n| (0..rows).map(move |r| dot(n, r))).collect()
}

/// Rounding errors of sums in f32, relative to the sum of magnitudes: half a unit per addition, as
/// when one term is far larger than all that follow.
const ROUNDING: f64 = 640.0 / (1 << 24) as f64;

fn assert_close(found: &[f32], truth: &[(f64, f64)], extra: f64, what: &str) {
    for (i, (found, (sum, size))) in found.iter().zip(truth).enumerate() {
        let error = (f64::from(*found) - sum).abs();
        let bound = (ROUNDING + extra) * size + 1e-30;
        assert!(error <= bound, "{what}: output {i} is {found}, not {sum}: {error} > {bound}");
    }
}

/// What a format's fast path may be off by beyond rounding: the levels of NF4 in 127ths, in a
/// sum where a weight is seldom below a tenth of the largest.
fn fast_extra(format: &dyn AnyFormat) -> f64 {
    if format.name().starts_with("nf4") { 0.02 } else { 0.0 }
}

/// Whether products are computed on the codes, with rounded inputs; others decode row by row.
fn is_coded(format: &dyn AnyFormat) -> bool {
    let by_rows = ["f32", "f16", "bf16", "fp4", "fp8", "mxfp4", "nvfp4"];
    !by_rows.iter().any(|start| format.name().starts_with(start))
}

/// Whether the fast path rounds inputs to bf16.
fn in_bf16(blocks: &Blocks) -> bool {
    let is_bf16 = |weight: &f32| bf16::from_f32(*weight).to_f32() == *weight;
    match blocks.format.name() {
        "bf16" | "fp8_row" | "fp8_tensor" => true,
        "f16" => blocks.decode().iter().all(is_bf16),
        _ => false,
    }
}

fn check(blocks: &Blocks, x: &[f32], t: usize, what: &str) {
    let (rows, cols) = (blocks.rows, blocks.cols);
    let weights = blocks.decode();
    let what = format!("{what} {} [{rows}, {cols}] × {t}", blocks.format.name());
    let exact = Matrix::with(blocks.clone(), Precision::Exact, &Pool::new(2)).unwrap();
    let fast = Matrix::new(blocks.clone()).unwrap();
    let left = Matrix::in_place(blocks.clone(), Precision::Fast, &Pool::new(1));
    let exact_truth = truth(x, t, &weights, rows, cols);
    let fast_truth = if is_coded(blocks.format) {
        truth(&rounded(x, cols), t, &weights, rows, cols)
    } else if in_bf16(blocks) {
        let x: Vec<f32> = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        truth(&x, t, &weights, rows, cols)
    } else {
        exact_truth.clone()
    };
    let mut first = None;
    for isa in lathe_simd::available() {
        let what = format!("{what} on {isa}");
        let run = |w: &Matrix| lathe_simd::with_isa(isa, || product(x, t, w, 1)).unwrap();
        let results = [run(&exact), run(&fast)];
        assert_close(&results[0], &exact_truth, 0.0, &format!("exact {what}"));
        assert_close(&results[1], &fast_truth, fast_extra(blocks.format), &format!("fast {what}"));
        let first = first.get_or_insert_with(|| results.clone());
        assert_eq!(first[0], results[0], "exact {what} differs from scalar");
        assert_eq!(run(&left), results[1], "{what} differs where it is not repacked");
        // Machines with a dot product of bf16 take subnormal numbers for 0.
        let plain = |x: &f32| if in_bf16(blocks) && x.abs() < 1e-30 { 0.0 } else { *x };
        let [one, other] =
            [&first[1], &results[1]].map(|r| r.iter().map(plain).collect::<Vec<_>>());
        // Tiles of bfloat16 are summed in another order.
        let reordered = isa == "amx" && in_bf16(blocks);
        assert!(reordered || one == other, "fast {what} differs from scalar");
    }
}

#[test]
fn every_format_multiplies_like_its_decoded_weights_on_every_instruction_set() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for format in FORMATS {
        for (rows, cols) in shapes(*format) {
            let weights = normal(&mut rng, rows * cols);
            let blocks = format.encode(rows, cols, &weights, 1).unwrap();
            for t in TOKENS {
                check(&blocks, &normal(&mut rng, t * cols), t, "random");
            }
        }
    }
}

#[test]
fn halves_that_are_bfloat16_multiply_like_bfloat16_to_the_bit() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (f16, bf16_) = (by_name("f16").unwrap(), by_name("bf16").unwrap());
    for (rows, cols) in [(1, 1), (3, 31), (17, 100), (35, 384), (130, 1056)] {
        let weights = normal(&mut rng, rows * cols);
        let mut weights: Vec<f32> = weights.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        let encode = |format: &'static dyn AnyFormat, weights: &[f32]| {
            format.encode(rows, cols, weights, 1).unwrap()
        };
        for t in TOKENS {
            let x = normal(&mut rng, t * cols);
            let halves = encode(f16, &weights);
            check(&halves, &x, t, "bf16 in");
            let [one, other] = [halves, encode(bf16_, &weights)].map(|w| {
                let w = Matrix::new(w).unwrap();
                product(&x, t, &w, 2)
            });
            assert_eq!(one, other);
        }
        // One that is none makes all of them f16.
        weights[rows * cols / 2] = 1.0 + 1.0 / 1024.0;
        let x = normal(&mut rng, 7 * cols);
        check(&encode(f16, &weights), &x, 7, "a true half in");
    }
}

type Pattern = fn(usize) -> f32;

#[test]
fn extreme_codes_and_inputs_neither_overflow_nor_saturate() {
    let signs = |n: usize| if n.is_multiple_of(2) { 1.0 } else { -1.0 };
    let patterns: [(&str, Pattern); 5] = [
        ("zeros", |_| 0.0),
        ("all highest", |_| 100.0),
        ("all lowest", |_| -100.0),
        ("one large", |i| if i % 32 == 5 { 1000.0 } else { 0.001 }),
        ("tiny", |i| 1e-20 * (i % 7) as f32),
    ];
    for format in FORMATS {
        let (rows, cols) = (18, 256);
        for (name, pattern) in patterns {
            let weights: Vec<f32> = (0..rows * cols).map(pattern).collect();
            let signed: Vec<f32> = weights.iter().enumerate().map(|(i, w)| w * signs(i)).collect();
            for weights in [weights, signed] {
                let blocks = format.encode(rows, cols, &weights, 1).unwrap();
                for (other, pattern) in patterns {
                    let x = (0..2 * cols).map(|i| match i / cols {
                        0 => pattern(i),
                        _ => pattern(i - cols) * signs(i),
                    });
                    let x: Vec<f32> = x.collect();
                    let (plain, alternating) = x.split_at(cols);
                    check(&blocks, plain, 1, &format!("{name} by {other}"));
                    check(&blocks, alternating, 1, &format!("{name} by alternating {other}"));
                    check(&blocks, &x, 2, &format!("{name} by both of {other}"));
                }
            }
        }
    }
}

#[test]
fn the_lowest_byte_of_int8_counts_as_minus_128() {
    // Lathe never writes it, other tools do.
    let format = by_name("int8").unwrap();
    let (rows, cols) = (3, 64);
    let mut data = Vec::new();
    for _ in 0..rows {
        data.extend([0x80; 64]);
        data.extend(0.5f32.to_le_bytes());
    }
    let blocks = Blocks::new(format, rows, cols, data.into(), Buf::new()).unwrap();
    check(&blocks, &[127.0; 64], 1, "lowest byte");
    check(&blocks, &[-127.0; 64], 1, "lowest byte");
}

#[test]
fn a_token_gets_the_same_bits_alone_and_in_any_company() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (rows, cols) = (35, 768);
    for format in FORMATS {
        let weights = normal(&mut rng, rows * cols);
        let blocks = format.encode(rows, cols, &weights, 1).unwrap();
        let x = normal(&mut rng, 33 * cols);
        for precision in [Precision::Fast, Precision::Exact] {
            let w = Matrix::new(blocks.clone()).unwrap().precise(precision);
            for isa in lathe_simd::available() {
                let run =
                    |x: &[f32], t| lathe_simd::with_isa(isa, || product(x, t, &w, 1)).unwrap();
                let alone: Vec<f32> = x.chunks(cols).flat_map(|x| run(x, 1)).collect();
                for t in TOKENS {
                    let together = run(&x[..t * cols], t);
                    assert_eq!(together, alone[..t * rows], "{} {isa} {t}", format.name());
                }
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    // So many rows that one thread reads eight panels side by side, and five threads fewer.
    let (rows, cols) = (283, 256);
    for format in FORMATS {
        let weights = normal(&mut rng, rows * cols);
        let blocks = format.encode(rows, cols, &weights, 1).unwrap();
        for precision in [Precision::Fast, Precision::Exact] {
            let w = Matrix::with(blocks.clone(), precision, &Pool::new(3)).unwrap();
            for t in [1, 9] {
                let x = normal(&mut rng, t * cols);
                let one = product(&x, t, &w, 1);
                for threads in [2, 5] {
                    assert_eq!(product(&x, t, &w, threads), one, "{} {threads}", format.name());
                }
            }
        }
    }
}

#[test]
fn several_matrices_at_once_give_the_bits_of_each_by_itself() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let cols = 512;
    // Of one kind, of kinds whose inputs differ, of kinds that are never multiplied together, and in
    // sixteen bits.
    let groups: [&[&str]; 6] = [
        &["q4_0", "q4_0", "q4_0"],
        &["q4_k", "q4_k", "q6_k"],
        &["q4_0", "bf16", "f32"],
        &["bf16", "bf16"],
        &["fp8_row", "fp8_row", "bf16"],
        &["q8_0", "none"],
    ];
    for group in groups {
        let mut matrix = |(index, name): (usize, &&str)| {
            // The last may have no rows at all.
            let rows = if *name == "none" { 0 } else { [283, 16, 17][index] };
            let format = by_name(if *name == "none" { "q8_0" } else { name }).unwrap();
            let blocks = format.encode(rows, cols, &normal(&mut rng, rows * cols), 1).unwrap();
            Matrix::new(blocks).unwrap()
        };
        let mut matrices: Vec<Matrix> = group.iter().enumerate().map(&mut matrix).collect();
        for scheme in [Inputs::Own, Inputs::Int8PerToken] {
            // One that rounds its inputs by a scheme is multiplied by itself.
            let last = matrices.pop().unwrap().with_inputs(scheme);
            matrices.push(last);
            for (t, threads) in [(1, 1), (1, 2), (3, 3), (9, 2)] {
                let x: Vec<f32> = (0..t * cols).map(|i| (i as f32 * 0.37).sin()).collect();
                let pool = Pool::new(threads);
                foresee(&pool, t, &matrices.iter().collect::<Vec<_>>());
                let mut outs: Vec<Vec<f32>> =
                    matrices.iter().map(|w| vec![f32::NAN; t * w.rows()]).collect();
                let mut of: Vec<(&Matrix, &mut [f32])> =
                    matrices.iter().zip(&mut outs).map(|(w, out)| (w, &mut out[..])).collect();
                matmuls(&pool, &x, t, &mut of);
                for (w, out) in matrices.iter().zip(&outs) {
                    assert_eq!(*out, product(&x, t, w, 1), "{group:?} {t} {threads}");
                }
            }
        }
    }
}

#[test]
fn what_is_repacked_strip_by_strip_gives_the_same_bits() {
    let (rows, cols, t) = (5000, 4096, 3);
    let weights: Vec<f32> = (0..1 << 16).map(|i| (i as f32 * 0.37).sin()).collect();
    let weights: Vec<f32> = weights.iter().copied().cycle().take(rows * cols).collect();
    let x: Vec<f32> = (0..t * cols).map(|i| (i as f32 * 0.11).cos()).collect();
    let pool = Pool::new(2);
    for format in ["q4_0", "int8"] {
        let blocks = by_name(format).unwrap().encode(rows, cols, &weights, 2).unwrap();
        assert!(blocks.bytes() > 8 << 20, "more than a strip");
        for inputs in [Inputs::Own, Inputs::Int8PerToken] {
            for precision in [Precision::Fast, Precision::Exact] {
                let packed = Matrix::with(blocks.clone(), precision, &pool).unwrap();
                let left = Matrix::in_place(blocks.clone(), precision, &pool);
                assert!(left.reads_source() && !packed.reads_source());
                let [one, other] =
                    [packed, left].map(|w| product(&x, t, &w.with_inputs(inputs), 2));
                assert_eq!(one, other, "{format} {inputs:?} {precision:?}");
            }
        }
    }
}

#[test]
fn rounding_inputs_costs_no_more_than_documented() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (rows, cols) = (32, 512);
    for format in FORMATS.iter().filter(|f| is_coded(**f)) {
        let blocks = format.encode(rows, cols, &normal(&mut rng, rows * cols), 1).unwrap();
        let weights = blocks.decode();
        let x = normal(&mut rng, cols);
        let fast = product(&x, 1, &Matrix::new(blocks).unwrap(), 2);
        let truth = truth(&x, 1, &weights, rows, cols);
        for (r, fast) in fast.iter().enumerate() {
            let row = &weights[r * cols..][..cols];
            let bound: f64 = x
                .chunks(32)
                .zip(row.chunks(32))
                .map(|(x, w)| {
                    let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    f64::from(most / 254.0) * w.iter().map(|w| f64::from(w.abs())).sum::<f64>()
                })
                .sum();
            let error = (f64::from(*fast) - truth[r].0).abs();
            let extra = (ROUNDING + fast_extra(*format)) * truth[r].1;
            assert!(error <= bound + extra, "{}: {error} > {bound}", format.name());
        }
    }
}

#[test]
fn repacked_weights_keep_their_size_and_rows_decode_as_in_their_format() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for format in FORMATS {
        let (rows, cols) = (37, 768);
        let blocks = format.encode(rows, cols, &normal(&mut rng, rows * cols), 1).unwrap();
        let w = Matrix::new(blocks.clone()).unwrap();
        assert_eq!(w.is_repacked(), is_coded(*format));
        // 37 rows become 48; NF4's coded absmax become f32, as do scales beside eight-bit zero
        // points, and scales of six bits bytes; codes of two and three bits become nibbles.
        let padded = blocks.bytes() * 48 / 37 + 64 * 3;
        let wider = match lathe_formats::Int::named(format.name()) {
            Some(int) if int.bits() < 4 => padded * (4 - usize::from(int.bits())) / 2,
            Some(int) if int.bits() == 8 && int.zero_points() => padded / 16,
            _ => match format.name() {
                "nf4_dq" => padded / 8,
                "int8_tensor" => 4 * 48,
                "q2_k" => padded,
                "q3_k" => padded * 2 / 5,
                "q4_k" | "q5_k" | "q6_k" | "iq4_xs" => padded / 25,
                _ => 0,
            },
        };
        assert!(w.bytes() <= padded + wider, "{}: {} > {padded}", format.name(), w.bytes());
        for isa in lathe_simd::available() {
            for row in [0, 15, 16, 36] {
                let (mut found, mut expected) = (vec![0.0; cols], vec![0.0; cols]);
                lathe_simd::with_isa(isa, || w.decode_row(row, &mut found)).unwrap();
                blocks.decode_row(row, &mut expected);
                assert_eq!(found, expected, "{} row {row} on {isa}", format.name());
            }
        }
    }
}

#[test]
fn nothing_times_nothing_is_nothing() {
    let f32 = by_name("f32").unwrap();
    let w = Matrix::new(f32.encode(2, 3, &[1.0; 6], 1).unwrap()).unwrap();
    assert!(product(&[], 0, &w, 2).is_empty());
    let w = Matrix::new(f32.encode(0, 3, &[], 1).unwrap()).unwrap();
    assert!(product(&[1.0; 3], 1, &w, 2).is_empty());
    let w = Matrix::new(f32.encode(2, 0, &[], 1).unwrap()).unwrap();
    assert_eq!(product(&[], 1, &w, 2), [0.0; 2]);
}

#[test]
fn columns_in_another_order_meet_their_own_inputs() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let (rows, cols) = (19, 768);
    let order: std::sync::Arc<[u32]> = (0..cols as u32).map(|j| j * 25 % cols as u32).collect();
    for format in FORMATS {
        let blocks = format.encode(rows, cols, &normal(&mut rng, rows * cols), 1).unwrap();
        let moved = blocks.clone().with_order(order.clone()).unwrap();
        let x = normal(&mut rng, 3 * cols);
        let gathered: Vec<f32> =
            x.chunks(cols).flat_map(|x| order.iter().map(|col| x[*col as usize])).collect();
        let (plain, ordered) = (Matrix::new(blocks).unwrap(), Matrix::new(moved.clone()).unwrap());
        let name = format.name();
        assert_eq!(product(&x, 3, &ordered, 2), product(&gathered, 3, &plain, 2), "{name}");
        let mut row = vec![0.0; cols];
        ordered.decode_row(7, &mut row);
        assert_eq!(row, moved.decode()[7 * cols..8 * cols], "{name}");
    }
}
