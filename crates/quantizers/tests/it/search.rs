//! The search for formats, on models that are formulas.

use lathe_base::Silent;
use lathe_formats::by_name;
use lathe_quantizers::{
    Error,
    mix::{Candidate, Divergence, Effort, Item, Probe, Remembered, search},
};

/// Formats by bits, with a relative squared error that falls fourfold a bit.
const FORMATS_BY_BITS: [(&str, f64); 4] =
    [("q4_0", 4.5), ("q5_0", 5.5), ("q8_0", 8.5), ("f16", 16.0)];

fn items(count: usize) -> Vec<Item> {
    let item = |i: usize| {
        let name = format!("tensor.{i}");
        let weights = 4096 * (1 + i as u64 % 3);
        let option = |(format, bits): (&str, f64)| Candidate {
            format: by_name(format).unwrap(),
            bytes: (weights as f64 * bits / 8.0) as u64,
        };
        let options = FORMATS_BY_BITS.into_iter().map(option).collect();
        Item { tensors: vec![name.clone()], roles: Vec::new(), name, weights, options }
    };
    (0..count).map(item).collect()
}

/// Divergence is a power of each item's error times its weight, and what the first two make worse
/// together.
struct Formula {
    weights: Vec<f64>,
    power: f64,
    together: f64,
    asked: usize,
}

impl Formula {
    fn new(count: usize) -> Self {
        let weights = (0..count).map(|i| 1.0 + (i * 7 % 11) as f64).collect();
        Self { weights, power: 1.0, together: 0.0, asked: 0 }
    }

    fn of(&self, state: &[Option<usize>]) -> f64 {
        let errors = state.iter().map(|o| o.map_or(0.0, error));
        let alone: Vec<f64> =
            errors.zip(&self.weights).map(|(e, w)| w * e.powf(self.power)).collect();
        let pair = (alone[0] * alone[1]).sqrt();
        alone.iter().sum::<f64>() + self.together * pair
    }
}

fn error(option: usize) -> f64 {
    (-2.0 * FORMATS_BY_BITS[option].1 * std::f64::consts::LN_2).exp()
}

impl Probe for Formula {
    fn error(&mut self, _: usize, option: usize) -> Result<f64, Error> {
        Ok(error(option))
    }

    fn divergence(&mut self, state: &[Option<usize>]) -> Result<Divergence, Error> {
        self.asked += 1;
        Ok(Divergence { mean: self.of(state), error: 0.0 })
    }
}

fn total(items: &[Item], state: &[usize]) -> u64 {
    items.iter().zip(state).map(|(item, option)| item.options[*option].bytes).sum()
}

/// The least divergence of all states within the budget.
fn brute(items: &[Item], budget: u64, probe: &Formula) -> f64 {
    let mut best = f64::INFINITY;
    for number in 0..4usize.pow(items.len() as u32) {
        let state: Vec<usize> = (0..items.len()).map(|i| number >> (2 * i) & 3).collect();
        if total(items, &state) <= budget {
            best = best.min(probe.of(&state.iter().map(|o| Some(*o)).collect::<Vec<_>>()));
        }
    }
    best
}

fn budget(items: &[Item], bits: f64) -> u64 {
    let weights: u64 = items.iter().map(|item| item.weights).sum();
    (weights as f64 * bits / 8.0) as u64
}

#[test]
fn where_divergences_add_up_the_best_formats_are_found_with_one_measurement_each() {
    let items = items(8);
    for bits in [4.5, 4.9, 5.6, 7.0, 9.0, 16.0] {
        let budget = budget(&items, bits);
        let mut probe = Formula::new(8);
        let best = brute(&items, budget, &probe);
        let effort = Effort { anchors: 1, rounds: 0 };
        let found = search(&items, budget, effort, &mut probe, &Silent).unwrap();
        assert_eq!(probe.asked, 8 + 1);
        assert!(found.bytes == total(&items, &found.state) && found.bytes <= budget);
        assert!((found.measured.mean / best - 1.0).abs() < 1e-9, "{bits}");
        assert!((found.predicted / best - 1.0).abs() < 1e-9);
        assert!(found.bound <= found.predicted && found.predicted - found.bound < 1e-12);
    }
}

#[test]
fn a_bent_relation_is_seen_with_two_measurements() {
    let items = items(8);
    let budget = budget(&items, 5.7);
    let mut probe = Formula { power: 1.3, ..Formula::new(8) };
    let effort = Effort { anchors: 2, rounds: 0 };
    let found = search(&items, budget, effort, &mut probe, &Silent).unwrap();
    assert!((found.exponent.unwrap() - 1.3).abs() < 1e-9);
    let best = brute(&items, budget, &probe);
    assert!((found.measured.mean / best - 1.0).abs() < 1e-6, "{} {best}", found.measured.mean);
}

#[test]
fn measuring_around_the_result_finds_what_does_not_add_up() {
    let items = items(8);
    let budget = budget(&items, 5.7);
    let run = |rounds| {
        let mut probe = Formula { together: 4.0, ..Formula::new(8) };
        let effort = Effort { anchors: usize::MAX, rounds };
        search(&items, budget, effort, &mut probe, &Silent).unwrap()
    };
    let (plain, refined) = (run(0), run(8));
    assert!(refined.measured.mean < plain.measured.mean);
    assert!(refined.bytes <= budget);
    let kept: Vec<f64> =
        refined.rounds.iter().filter(|r| r.kept).map(|round| round.measured).collect();
    assert!(kept.is_sorted_by(|a, b| a > b) && kept.last() == Some(&refined.measured.mean));
    let best = brute(&items, budget, &Formula { together: 4.0, ..Formula::new(8) });
    assert!(refined.measured.mean < 1.1 * best, "{} {best}", refined.measured.mean);
}

#[test]
fn a_budget_below_the_smallest_formats_is_refused() {
    let items = items(3);
    let effort = Effort { anchors: 1, rounds: 0 };
    let least = total(&items, &[0, 0, 0]);
    assert!(search(&items, least, effort, &mut Formula::new(3), &Silent).is_ok());
    let refused = search(&items, least - 1, effort, &mut Formula::new(3), &Silent).unwrap_err();
    assert!(matches!(refused, Error::Budget { .. }), "{refused}");
}

/// Fails after so many measurements.
struct Failing(Formula, usize);

impl Probe for Failing {
    fn error(&mut self, item: usize, option: usize) -> Result<f64, Error> {
        self.0.error(item, option)
    }

    fn divergence(&mut self, state: &[Option<usize>]) -> Result<Divergence, Error> {
        if self.0.asked == self.1 {
            return Err(lathe_base::Cancelled.into());
        }
        self.0.divergence(state)
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_and_ends_the_same() {
    let items = items(6);
    let budget = budget(&items, 5.7);
    let effort = Effort { anchors: 2, rounds: 3 };
    let folder = tempfile::tempdir().unwrap();
    let model = || Formula { together: 4.0, ..Formula::new(6) };
    let whole = search(&items, budget, effort, &mut model(), &Silent).unwrap();
    let path = folder.path().join("journal");
    let mut asked = 0;
    for stop in [0, 3, 5, usize::MAX] {
        let mut probe = Failing(model(), stop);
        let mut kept = Remembered::open(&path, "a", &items, &mut probe).unwrap();
        let found = search(&items, budget, effort, &mut kept, &Silent);
        asked += probe.0.asked;
        match found {
            Ok(found) => assert_eq!(
                (found.state, found.measured, found.predicted),
                (whole.state.clone(), whole.measured, whole.predicted)
            ),
            Err(error) => assert!(matches!(error, Error::Cancelled(_)) && stop < usize::MAX),
        }
        // A line cut short by a crash is not read.
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&text[..], b"{\"key\": \"tensor.0=q4"].concat()).unwrap();
    }
    let mut direct = model();
    search(&items, budget, effort, &mut direct, &Silent).unwrap();
    assert!(asked <= direct.asked, "nothing is measured twice");
    // Another model's measurements are of no use.
    let mut probe = model();
    let mut other = Remembered::open(&path, "b", &items, &mut probe).unwrap();
    search(&items, budget, effort, &mut other, &Silent).unwrap();
    assert!(probe.asked > asked / 2, "measured anew");
}
