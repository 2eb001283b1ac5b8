//! Norms, rotations, activations and the like against naive f64, on every instruction set.

use lathe_kernels::{
    Activation, Norm, Pool, Rope, RopeStyle, add, gated, rms_norm, rms_norm_in_place, rope,
    soft_cap, softmax,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Lengths around the width of a vector and of a task.
const LENGTHS: [usize; 9] = [0, 1, 15, 16, 17, 63, 64, 1000, 40_000];

fn uniform(seed: u64, n: usize, size: f32) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * size).collect()
}

/// Applies `f` to `x` on every instruction set: all must give the same bits, near `truth`.
fn check(x: &[f32], truth: &[f64], tolerance: f64, f: impl Fn(&Pool, &mut [f32])) {
    let mut first: Option<Vec<u32>> = None;
    for isa in lathe_simd::available() {
        let mut found = x.to_vec();
        lathe_simd::with_isa(isa, || f(&Pool::new(1), &mut found)).unwrap();
        assert_eq!(found.len(), truth.len());
        for (i, (found, truth)) in found.iter().zip(truth).enumerate() {
            let error = (f64::from(*found) - truth).abs();
            assert!(error <= tolerance * (1.0 + truth.abs()), "{isa}: {i} is {found}, not {truth}");
        }
        let bits: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
        assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{isa} differs from scalar");
    }
    let mut threaded = x.to_vec();
    f(&Pool::new(3), &mut threaded);
    let bits: Vec<u32> = threaded.iter().map(|x| x.to_bits()).collect();
    assert_eq!(first.unwrap(), bits, "threads change bits");
}

#[test]
fn rms_norm_divides_by_the_root_mean_square() {
    for width in [1, 7, 16, 64, 100, 2048] {
        for offset in [0.0, 1.0] {
            let (x, weight) = (uniform(1, 5 * width, 3.0), uniform(2, width, 2.0));
            let norm = Norm { weight: &weight, offset, eps: 1e-6 };
            let truth: Vec<f64> = x
                .chunks(width)
                .flat_map(|row| {
                    let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
                    let rms = (squares / width as f64 + 1e-6).sqrt();
                    let weigh = move |(x, w): (&f32, &f32)| {
                        f64::from(*x) / rms * (f64::from(*w) + f64::from(offset))
                    };
                    row.iter().zip(&weight).map(weigh)
                })
                .collect();
            check(&x, &truth, 1e-6, |pool, x| rms_norm_in_place(pool, &norm, x));
            check(&x, &truth, 1e-6, |pool, out| {
                let x = out.to_vec();
                rms_norm(pool, &norm, &x, out);
            });
        }
    }
}

#[test]
fn gates_follow_their_formulas_over_the_whole_range() {
    for n in LENGTHS {
        let mut gate = uniform(3, n, 12.0);
        for (x, extreme) in gate.iter_mut().zip([0.0, -0.0, 100.0, -100.0, 1e-30, -1e30, 1e4]) {
            *x = extreme;
        }
        let up = uniform(4, n, 2.0);
        let with = |f: fn(f64) -> f64| -> Vec<f64> {
            gate.iter().zip(&up).map(|(g, u)| f(f64::from(*g)) * f64::from(*u)).collect()
        };
        let silu = with(|x| x / (1.0 + (-x).exp()));
        check(&gate, &silu, 3e-7, |pool, gate| gated(pool, Activation::Silu, gate, &up));
        let gelu = with(|x| {
            let slope = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + slope.tanh())
        });
        check(&gate, &gelu, 2e-6, |pool, gate| gated(pool, Activation::GeluTanh, gate, &up));
    }
}

#[test]
fn softmax_sums_to_one_whatever_the_scores() {
    for width in [1, 5, 16, 100, 32_000] {
        for size in [0.1, 10.0, 1000.0] {
            let x = uniform(5, 3 * width, size);
            let truth: Vec<f64> = x
                .chunks(width)
                .flat_map(|row| {
                    let top = row.iter().copied().fold(f32::MIN, f32::max);
                    let e: Vec<f64> = row.iter().map(|x| f64::from(x - top).exp()).collect();
                    let total: f64 = e.iter().sum();
                    e.into_iter().map(move |e| e / total)
                })
                .collect();
            check(&x, &truth, 1e-6, |pool, x| softmax(pool, x, width));
        }
    }
    let mut hidden = [0.0, f32::NEG_INFINITY, 0.0];
    softmax(&Pool::new(1), &mut hidden, 3);
    assert_eq!(hidden, [0.5, 0.0, 0.5]);
}

#[test]
fn a_nan_is_not_hidden() {
    for isa in lathe_simd::available() {
        lathe_simd::with_isa(isa, || {
            let pool = Pool::new(1);
            let mut x = [1.0, f32::NAN];
            gated(&pool, Activation::Silu, &mut x, &[1.0, 1.0]);
            assert!(x[0] > 0.7 && x[1].is_nan(), "{isa}: {x:?}");
            let mut x = [1.0, f32::NAN];
            softmax(&pool, &mut x, 2);
            assert!(x.iter().all(|x| x.is_nan()), "{isa}: {x:?}");
        })
        .unwrap();
    }
}

#[test]
fn caps_are_smooth_bounds() {
    for n in LENGTHS {
        let x = uniform(6, n, 200.0);
        let truth: Vec<f64> = x.iter().map(|x| 30.0 * (f64::from(*x) / 30.0).tanh()).collect();
        check(&x, &truth, 5e-6, |pool, x| soft_cap(pool, x, 30.0));
    }
}

#[test]
fn add_adds() {
    for n in LENGTHS {
        let (x, y) = (uniform(7, n, 1.0), uniform(8, n, 1.0));
        let truth: Vec<f64> = x.iter().zip(&y).map(|(x, y)| f64::from(x + y)).collect();
        check(&x, &truth, 0.0, |pool, x| add(pool, x, &y));
    }
}

#[test]
fn rope_turns_pairs_and_leaves_the_rest() {
    let (tokens, heads) = (70, 3);
    for (dim, pairs) in [(16, 8), (64, 32), (80, 16), (96, 0)] {
        let x = uniform(9, tokens * heads * dim, 1.0);
        let angles: Vec<f64> = (0..tokens * pairs)
            .map(|i| (i / pairs) as f64 * 0.9f64.powi((i % pairs) as i32))
            .collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
        for style in [RopeStyle::Half, RopeStyle::Interleaved] {
            let mut truth: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            for (i, head) in truth.chunks_mut(dim).enumerate() {
                for p in 0..pairs {
                    let (sin, cos) = angles[i / heads * pairs + p].sin_cos();
                    let (a, b) = match style {
                        RopeStyle::Half => (p, p + pairs),
                        RopeStyle::Interleaved => (2 * p, 2 * p + 1),
                    };
                    (head[a], head[b]) =
                        (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
                }
            }
            let turn = Rope { style, pairs, cos: &cos, sin: &sin };
            check(&x, &truth, 3e-7, |pool, x| rope(pool, &turn, dim, x));
        }
    }
}
