//! Nominal 95 % intervals must hold the true value in about 95 % of repeated experiments. Seeds are
//! fixed: these are exact results, not flaky ones.

use lathe_stats::{
    Bootstrap, Interval, Kind, Unit, mean, mean_interval, median, median_interval, paired_ratio,
    paired_ratio_of, ratio_of_sums, wilson,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

struct Source(ChaCha8Rng);

impl Source {
    fn uniform(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
    fn normal(&mut self) -> f64 {
        // Box and Muller.
        let (u, v) = (self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
    }
    fn normals(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// The share of `trials` experiments whose interval holds `truth`.
fn coverage(trials: usize, truth: f64, mut trial: impl FnMut(&mut Source) -> Interval) -> f64 {
    let mut source = Source(ChaCha8Rng::seed_from_u64(20_240_229));
    let hits = (0..trials).filter(|_| trial(&mut source).contains(truth)).count();
    hits as f64 / trials as f64
}

fn assert_nominal(what: &str, coverage: f64) {
    assert!((0.93..=0.97).contains(&coverage), "{what}: {coverage}");
}

const QUICK: Bootstrap = Bootstrap { resamples: 400, seed: 7, level: 0.95, kind: Kind::Bca };

#[test]
fn student_intervals_of_means_and_ratios_cover() {
    for n in [3, 5, 20] {
        let of_mean = coverage(4000, 0.0, |s| mean_interval(&s.normals(n), 0.95).unwrap());
        assert_nominal(&format!("mean of {n}"), of_mean);
        let of_ratio = coverage(4000, 1.25, |s| {
            // A round slows both sides alike; each side has its own lognormal noise.
            let round: Vec<f64> = s.normals(n).iter().map(|z| (0.5 * z).exp()).collect();
            let side = |s: &mut Source, scale: f64| -> Vec<f64> {
                round.iter().map(|r| r * scale * (0.03 * s.normal()).exp()).collect()
            };
            let (a, b) = (side(s, 1.25), side(s, 1.0));
            paired_ratio(&a, &b, 0.95).unwrap()
        });
        assert_nominal(&format!("ratio over {n} rounds"), of_ratio);
    }
}

#[test]
fn bca_intervals_of_means_cover() {
    for n in [30, 80] {
        let normal =
            coverage(1000, 0.0, |s| QUICK.of(&s.normals(n), |v| mean(v).unwrap()).unwrap());
        assert_nominal(&format!("BCa of a normal mean, n = {n}"), normal);
    }
    let truth = (0.25_f64 / 2.0).exp();
    let skewed = coverage(1000, truth, |s| {
        let values: Vec<f64> = s.normals(80).iter().map(|z| (0.5 * z).exp()).collect();
        QUICK.of(&values, |v| mean(v).unwrap()).unwrap()
    });
    assert_nominal("BCa of a lognormal mean, n = 80", skewed);
}

#[test]
fn percentile_intervals_of_paired_ratios_of_medians_cover() {
    let percentile = Bootstrap { kind: Kind::Percentile, ..QUICK };
    let share = coverage(1000, 0.8, |s| {
        let b: Vec<f64> = s.normals(40).iter().map(|z| (0.1 * z).exp()).collect();
        let a: Vec<f64> = b.iter().map(|b| 0.8 * b * (0.1 * s.normal()).exp()).collect();
        paired_ratio_of(&a, &b, |v| median(v).unwrap(), &percentile).unwrap()
    });
    // Known to be a little too long: a resampled median moves in steps.
    assert!((0.94..=0.98).contains(&share), "ratio of medians of 40 pairs: {share}");
}

#[test]
fn order_statistic_intervals_cover_as_much_as_they_say() {
    for n in [5, 11, 50] {
        let mut stated = 0.0;
        let share = coverage(4000, 1.0, |s| {
            let values: Vec<f64> = s.normals(n).iter().map(|z| z.exp()).collect();
            let interval = median_interval(&values, 0.95).unwrap();
            stated = interval.level;
            interval
        });
        assert!((share - stated).abs() < 0.012, "n = {n}: {share}, stated {stated}");
    }
}

/// Documents of random length whose tokens share a document effect: Σ nll / Σ tokens.
fn documents(s: &mut Source, n: usize, spread: f64) -> Vec<Unit> {
    (0..n)
        .map(|_| {
            let count = (200.0 * (0.5 * s.normal()).exp()).ceil();
            let mean = 2.0 * (spread * s.normal()).exp();
            Unit { sum: count * mean, count }
        })
        .collect()
}

#[test]
fn document_bootstraps_of_ratios_of_sums_cover() {
    let truth = |spread: f64| 2.0 * (spread * spread / 2.0).exp();
    for (n, spread) in [(5, 0.2), (12, 0.2), (20, 0.3), (60, 0.5)] {
        let share = coverage(1500, truth(spread), |s| {
            ratio_of_sums(&documents(s, n, spread), &QUICK).unwrap()
        });
        assert_nominal(&format!("{n} documents, spread {spread}"), share);
    }
}

#[test]
fn wilson_intervals_cover_small_proportions() {
    let share = coverage(4000, 0.1, |s| {
        let hits = (0..60).filter(|_| s.uniform() < 0.1).count();
        wilson(hits, 60, 0.95).unwrap()
    });
    assert_nominal("6 of 60", share);
}

#[test]
fn a_bca_interval_of_eight_values_is_short_where_students_is_not() {
    // The reason for SMALLEST_BOOTSTRAP.
    let bca = coverage(1000, 0.0, |s| QUICK.of(&s.normals(8), |v| mean(v).unwrap()).unwrap());
    let student = coverage(1000, 0.0, |s| mean_interval(&s.normals(8), 0.95).unwrap());
    assert!((0.88..0.93).contains(&bca), "{bca}");
    assert_nominal("t at n = 8", student);
}
