//! GPTQ against plain rounding, on inputs that are correlated, dead, or not numbers at all.

use lathe_formats::{AnyFormat, Effort, FORMATS, by_name};
use lathe_quantizers::{Dense, Error, Gptq, Order, Quantizer, Rtn, Stats};

const COLS: usize = 256;
const ROWS: usize = 150;

/// Numbers in −1..1 without a pattern that a scale could follow.
fn noise(i: usize) -> f32 {
    let mixed = (i as u64 ^ 0x9e37_79b9).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 40) as f32 / 8388608.0 - 1.0
}

fn weights() -> Dense {
    let data = (0..ROWS * COLS).map(|i| 0.05 * (noise(i) + noise(i + 1) * noise(i + 2))).collect();
    Dense { rows: ROWS, cols: COLS, data }
}

/// The mean of x·xᵀ over `count` correlated inputs of uneven size.
fn hessian(count: usize) -> Vec<f32> {
    let mut sums = vec![0.0; COLS * COLS];
    for sample in 0..count {
        let hidden: Vec<f32> = (0..24).map(|k| noise(7000 + sample * 31 + k)).collect();
        let x: Vec<f32> = (0..COLS)
            .map(|i| {
                let shared: f32 = (0..24).map(|k| hidden[k] * noise(k * COLS + i + 90_000)).sum();
                (shared + 0.7 * noise(sample * COLS + i)) * (1.0 + (i % 17) as f32 / 8.0)
            })
            .collect();
        for (row, a) in sums.chunks_exact_mut(COLS).zip(&x) {
            row.iter_mut().zip(&x).for_each(|(sum, b)| *sum += a * b / count as f32);
        }
    }
    sums
}

fn stats(hessian: Vec<f32>) -> Stats {
    Stats { count: 1, hessian: Some(hessian), ..Stats::default() }
}

/// tr(ΔW·H·ΔWᵀ), the mean square of what coding adds to the outputs.
fn loss(weights: &Dense, coded: &[f32], hessian: &[f32]) -> f64 {
    let rows = weights.data.chunks_exact(COLS).zip(coded.chunks_exact(COLS));
    rows.map(|(w, q)| {
        let e: Vec<f64> = w.iter().zip(q).map(|(w, q)| f64::from(w - q)).collect();
        let products = hessian
            .chunks_exact(COLS)
            .zip(&e)
            .map(|(h, a)| a * h.iter().zip(&e).map(|(h, b)| f64::from(*h) * b).sum::<f64>());
        products.sum::<f64>()
    })
    .sum()
}

fn coded(gptq: Gptq, stats: &Stats, to: &str, threads: usize) -> (Vec<f32>, Vec<String>) {
    let coded = gptq.quantize(&weights(), Some(stats), by_name(to).unwrap(), threads).unwrap();
    (coded.blocks.decode(), coded.notes)
}

#[test]
fn every_format_with_a_grid_loses_less_than_by_rounding() {
    let (weights, stats) = (weights(), stats(hessian(600)));
    let hessian = stats.hessian.as_ref().unwrap();
    let with_grid = |format: &&&'static dyn AnyFormat| format.grid().is_some();
    let mut count = 0;
    for to in FORMATS.iter().filter(with_grid) {
        if to.check(COLS).is_err() {
            continue;
        }
        count += 1;
        let rounded = Rtn.quantize(&weights, None, *to, 2).unwrap().blocks.decode();
        let rounded = loss(&weights, &rounded, hessian);
        for order in [Order::Natural, Order::Importance] {
            let mut before = 0.98 * rounded;
            for passes in [0, 2] {
                let gptq = Gptq { order, passes, ..Gptq::default() };
                let (decoded, notes) = coded(gptq, &stats, to.name(), 2);
                let reached = loss(&weights, &decoded, hessian);
                assert!(reached < before, "{} {gptq:?}: {reached}, {before}", to.name());
                assert!(notes.is_empty(), "{notes:?}");
                before = reached;
            }
        }
    }
    assert!(count >= 10, "only {count} formats have a grid");
}

#[test]
fn the_result_is_the_same_bytes_at_any_thread_count() {
    let stats = stats(hessian(300));
    for (to, order) in [("int4_g32", Order::Natural), ("nf4", Order::Importance)] {
        let bytes = |threads| {
            let gptq = Gptq { order, ..Gptq::default() };
            let coded = gptq.quantize(&weights(), Some(&stats), by_name(to).unwrap(), threads);
            coded.unwrap().blocks.data
        };
        let one = bytes(1);
        assert!([2, 3, 9].into_iter().all(|threads| bytes(threads) == one), "{to}");
    }
}

#[test]
fn independent_inputs_leave_nothing_to_make_up_for() {
    let mut identity = vec![0.0; COLS * COLS];
    (0..COLS).for_each(|i| identity[i * COLS + i] = 1.0);
    let gptq = Gptq { effort: Effort::Nearest, passes: 0, ..Gptq::default() };
    let weights = weights();
    for to in ["int8", "q8_0", "nf4"] {
        let (decoded, _) = coded(gptq, &stats(identity.clone()), to, 2);
        let rounded = Rtn.quantize(&weights, None, by_name(to).unwrap(), 1).unwrap();
        let (a, b) = (loss(&weights, &decoded, &identity), rounded.blocks.decode());
        let b = loss(&weights, &b, &identity);
        // The reference of q8_0 rounds before it stores the scale in 16 bits.
        assert!(a < 1.00001 * b && a > 0.99 * b, "{to}: {a} and {b}");
    }
}

#[test]
fn damping_that_does_not_suffice_is_raised_and_reported() {
    // Four inputs span four directions of 256, and rounding may have taken more than was there.
    let mut short = hessian(4);
    let mean = (0..COLS).map(|i| short[i * COLS + i]).sum::<f32>() / COLS as f32;
    (0..COLS).for_each(|i| short[i * COLS + i] -= 0.02 * mean);
    let (weights, stats) = (weights(), stats(short));
    let (decoded, notes) = coded(Gptq::default(), &stats, "int4_g32", 2);
    assert!(notes.iter().any(|note| note.contains("from 1.000 % to 3.000 %")), "{notes:?}");
    let to = by_name("int4_g32").unwrap();
    let rounded = Rtn.quantize(&weights, None, to, 1).unwrap().blocks.decode();
    let hessian = hessian(4);
    let (reached, plain) = (loss(&weights, &decoded, &hessian), loss(&weights, &rounded, &hessian));
    assert!(reached < 0.1 * plain, "{reached} of {plain}");
}

#[test]
fn a_matrix_that_is_no_hessian_is_survived_and_reported() {
    let mut wrong = hessian(300);
    for (i, x) in wrong.iter_mut().enumerate() {
        if i / COLS != i % COLS {
            *x = 1e3 * noise(i);
        }
    }
    let (decoded, notes) = coded(Gptq::default(), &stats(wrong), "int4_g32", 2);
    assert!(decoded.iter().all(|x| x.is_finite()));
    assert!(notes.iter().any(|note| note.contains("no sum of squares")), "{notes:?}");
}

#[test]
fn dead_columns_are_reported_and_keep_their_weights() {
    let mut partly = hessian(300);
    for dead in [3, 77] {
        (0..COLS).for_each(|i| {
            partly[i * COLS + dead] = 0.0;
            partly[dead * COLS + i] = 0.0;
        });
    }
    let (decoded, notes) = coded(Gptq::default(), &stats(partly), "int8", 2);
    assert!(notes.iter().any(|note| note.starts_with("2 of 256 input columns")), "{notes:?}");
    let weights = weights();
    for (w, q) in weights.data.chunks_exact(COLS).zip(decoded.chunks_exact(COLS)) {
        assert!((w[77] - q[77]).abs() < 0.002, "{} became {}", w[77], q[77]);
    }
}

#[test]
fn numbers_that_are_not_finite_in_calibration_never_reach_the_result() {
    let mut poisoned = hessian(300);
    for i in 0..COLS {
        poisoned[i * COLS + 9] = f32::NAN;
        poisoned[9 * COLS + i] = f32::INFINITY;
    }
    let (decoded, notes) = coded(Gptq::default(), &stats(poisoned), "int4_g32", 2);
    assert!(decoded.iter().all(|x| x.is_finite()));
    assert!(notes.iter().any(|note| note.contains("1 of 256 input columns")), "{notes:?}");
    for nothing in [0.0, f32::NAN] {
        let (decoded, notes) =
            coded(Gptq::default(), &stats(vec![nothing; COLS * COLS]), "int4_g32", 2);
        assert!(decoded.iter().all(|x| x.is_finite()));
        assert!(notes.iter().any(|note| note.contains("256 of 256")), "{notes:?}");
    }
}

#[test]
fn a_weight_that_is_not_a_number_is_refused_with_its_place() {
    let mut weights = weights();
    weights.data[5 * COLS + 8] = f32::NAN;
    let to = by_name("int4_g32").unwrap();
    let refused = Gptq::default().quantize(&weights, Some(&stats(hessian(9))), to, 1);
    let Err(Error::Format(lathe_formats::Error::NotFinite { row: 5, col: 8, .. })) = refused else {
        panic!("{refused:?}");
    };
}

#[test]
fn calibration_and_a_grid_are_asked_for() {
    let without = Gptq::default().quantize(&weights(), None, by_name("int4_g32").unwrap(), 1);
    assert!(without.unwrap_err().to_string().contains("calibrat"));
    let dense =
        Gptq::default().quantize(&weights(), Some(&stats(hessian(9))), by_name("f16").unwrap(), 1);
    assert!(dense.unwrap_err().to_string().contains("f16"));
}
