use lathe_base::Progress;
use serde::Serialize;

use super::{
    allocate::{Allocation, Choice, allocate},
    curve::{Curve, exponent},
    probe::{Candidate, Divergence, Item, Probe},
};
use crate::Error;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Formats of each item whose divergence is measured; that of the others follows from their
    /// errors. `usize::MAX` measures all.
    pub anchors: usize,
    /// How often the assembled model is measured with each item one step better and one step
    /// worse, and allocated anew from that.
    pub rounds: usize,
}

/// The formats that lose least within a budget.
#[derive(Clone, Debug)]
pub struct Found {
    /// The option of each item.
    pub state: Vec<usize>,
    /// What the items take.
    pub bytes: u64,
    /// The divergences of the items alone in their formats, added up.
    pub predicted: f64,
    /// No other formats within the budget have a lower prediction than this.
    pub bound: f64,
    /// The divergence measured with all items in their formats.
    pub measured: Divergence,
    /// What was tried after that, in order.
    pub rounds: Vec<Round>,
    /// What is known of each item.
    pub items: Vec<Sensitivity>,
    /// How divergence grows with an item's error, as a power: the median over the items with at
    /// least two measurements. 1 is linear.
    pub exponent: Option<f64>,
}

/// An attempt to do better than the allocation that adds items up.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Round {
    /// Items whose format changed.
    pub moved: usize,
    pub predicted: f64,
    pub measured: f64,
    /// Whether it was better, and kept.
    pub kept: bool,
}

/// How much a model suffers from one item.
#[derive(Clone, Debug, Serialize)]
pub struct Sensitivity {
    /// Divergence per relative squared error, in nats per token.
    pub slope: f64,
    /// The relative squared error of each option.
    pub errors: Vec<f64>,
    /// The divergence of each option alone: measured or predicted.
    pub costs: Vec<f64>,
    /// Which of them were measured.
    pub measured: Vec<bool>,
}

/// Finds the option of each item such that all of them take at most `budget` bytes and the
/// model's divergence is least.
///
/// Each item's error is taken with every option and its divergence with some; the rest follows
/// from divergence being nearly proportional to squared error (Malinovskii et al., "Pushing the
/// Limits of Large Language Model Quantization via the Linearity Theorem", arXiv 2411.17525).
/// Divergences of items nearly add up, so that the allocation is a knapsack problem, solved
/// exactly. What they do not add up to is found by measuring around the result.
///
/// **Errors**: [`Error::Budget`] where even the smallest formats take more; the probe's.
pub fn search(
    items: &[Item],
    budget: u64,
    effort: Effort,
    probe: &mut dyn Probe,
    progress: &dyn Progress,
) -> Result<Found, Error> {
    let least: u64 = items.iter().filter_map(|i| i.options.iter().map(|o| o.bytes).min()).sum();
    if least > budget {
        return Err(Error::Budget { budget, least });
    }
    let mut search = Search { items, budget, probe, progress };
    let curves = search.curves(effort.anchors)?;
    let first = search.allocate(|item, option| curves[item].cost(option))?;
    let mut found = Found {
        measured: search.measure(&first.chosen)?,
        state: first.chosen,
        bytes: first.bytes,
        predicted: first.cost,
        bound: first.bound,
        rounds: Vec::new(),
        exponent: exponent(&curves),
        items: curves.iter().map(Curve::sensitivity).collect(),
    };
    search.refine(&curves, effort.rounds, &mut found)?;
    let alone = curves.iter().zip(&found.state).map(|(curve, option)| curve.cost(*option));
    found.predicted = alone.sum();
    Ok(found)
}

struct Search<'a> {
    items: &'a [Item],
    budget: u64,
    probe: &'a mut dyn Probe,
    progress: &'a dyn Progress,
}

impl Search<'_> {
    /// Measures every item by itself.
    fn curves(&mut self, anchors: usize) -> Result<Vec<Curve>, Error> {
        let options: u64 = self.items.iter().map(|item| item.options.len() as u64).sum();
        let mut curves = Vec::with_capacity(self.items.len());
        let mut done = 0;
        for (at, item) in self.items.iter().enumerate() {
            let mut errors = Vec::with_capacity(item.options.len());
            for option in 0..item.options.len() {
                self.progress.check()?;
                self.progress.at("formats tried on tensors", done, options);
                errors.push(self.probe.error(at, option)?);
                done += 1;
            }
            curves.push(Curve::new(errors));
        }
        let weights = self.items.iter().map(|item| item.weights).sum::<u64>().max(1);
        let wanted: Vec<Vec<usize>> = curves
            .iter()
            .zip(self.items)
            .map(|(curve, item)| {
                let bytes: Vec<u64> = item.options.iter().map(|option| option.bytes).collect();
                let usual = u128::from(self.budget) * u128::from(item.weights);
                curve.anchors(&bytes, (usual / u128::from(weights)) as u64, anchors)
            })
            .collect();
        let total: u64 = wanted.iter().map(|wanted| wanted.len() as u64).sum();
        let mut done = 0;
        for (at, (curve, wanted)) in curves.iter_mut().zip(wanted).enumerate() {
            for option in wanted {
                self.progress.check()?;
                self.progress.at("sensitivities measured", done, total);
                let mut state = vec![None; self.items.len()];
                state[at] = Some(option);
                curve.set(option, self.probe.divergence(&state)?.mean);
                done += 1;
            }
        }
        Ok(curves)
    }

    fn allocate(&self, cost: impl Fn(usize, usize) -> f64) -> Result<Allocation, Error> {
        let choices: Vec<Vec<Choice>> = self
            .items
            .iter()
            .enumerate()
            .map(|(at, item)| {
                let options = item.options.iter().enumerate();
                options
                    .map(|(o, option)| Choice { bytes: option.bytes, cost: cost(at, o) })
                    .collect()
            })
            .collect();
        let least = self.items.iter().filter_map(|i| i.options.iter().map(|o| o.bytes).min()).sum();
        allocate(&choices, self.budget).ok_or(Error::Budget { budget: self.budget, least })
    }

    fn measure(&mut self, state: &[usize]) -> Result<Divergence, Error> {
        self.progress.check()?;
        self.probe.divergence(&state.iter().map(|option| Some(*option)).collect::<Vec<_>>())
    }

    /// Measures the assembled model with each item a step better and a step worse, allocates anew
    /// from what that says, and keeps the result where it is better when measured.
    fn refine(&mut self, curves: &[Curve], rounds: usize, found: &mut Found) -> Result<(), Error> {
        for _ in 0..rounds {
            let around = self.around(curves, found)?;
            let mut better = false;
            // Once as measured, and where that promised too much, counting gains half.
            for caution in [1.0, 2.0] {
                let weigh =
                    |change: f64| if change < 0.0 { change / caution } else { change * caution };
                let cost = |item: usize, option: usize| match around[item]
                    .iter()
                    .find(|(o, _)| *o == option)
                {
                    Some((_, change)) => weigh(*change),
                    None => f64::INFINITY,
                };
                let next = self.allocate(cost)?;
                let moved = next.chosen.iter().zip(&found.state).filter(|(a, b)| a != b).count();
                if moved == 0 {
                    break;
                }
                let measured = self.measure(&next.chosen)?;
                better = measured.mean < found.measured.mean;
                let predicted = found.measured.mean + next.cost;
                found.rounds.push(Round {
                    moved,
                    predicted,
                    measured: measured.mean,
                    kept: better,
                });
                if better {
                    (found.state, found.bytes, found.measured) =
                        (next.chosen, next.bytes, measured);
                    break;
                }
            }
            if !better {
                break;
            }
        }
        Ok(())
    }

    /// For each item the options next to its own, where the change might pay, with what it does.
    fn around(&mut self, curves: &[Curve], found: &Found) -> Result<Vec<Vec<(usize, f64)>>, Error> {
        let price = Price::new(self.items, curves, &found.state);
        let mut all = Vec::with_capacity(self.items.len());
        for (at, (item, curve)) in self.items.iter().zip(curves).enumerate() {
            self.progress.at(
                "steps measured around the result",
                at as u64,
                self.items.len() as u64,
            );
            let mut near = vec![(found.state[at], 0.0)];
            let bytes: Vec<u64> = item.options.iter().map(|option| option.bytes).collect();
            for option in curve.next_to(&bytes, found.state[at]) {
                if !price.is_near(&item.options, curve, (found.state[at], option)) {
                    continue;
                }
                let mut state = found.state.clone();
                state[at] = option;
                near.push((option, self.measure(&state)?.mean - found.measured.mean));
            }
            all.push(near);
        }
        Ok(all)
    }
}

/// What a byte is worth at a result: the most that one more would save, and the least that one less
/// would cost.
struct Price {
    more: f64,
    less: f64,
}

/// How much worse than the best a step may be predicted to be and still be measured.
const SLACK: f64 = 16.0;

impl Price {
    fn new(items: &[Item], curves: &[Curve], state: &[usize]) -> Self {
        let mut price = Self { more: 0.0, less: f64::INFINITY };
        for ((item, curve), at) in items.iter().zip(curves).zip(state) {
            let bytes: Vec<u64> = item.options.iter().map(|option| option.bytes).collect();
            for option in curve.next_to(&bytes, *at) {
                let each = per_byte(&item.options, curve, (*at, option));
                match bytes[option] > bytes[*at] {
                    true => price.more = price.more.max(each),
                    false => price.less = price.less.min(each),
                }
            }
        }
        price
    }

    /// Whether a step may be worth its bytes if predictions are a little wrong.
    fn is_near(&self, options: &[Candidate], curve: &Curve, step: (usize, usize)) -> bool {
        let each = per_byte(options, curve, step);
        match options[step.1].bytes > options[step.0].bytes {
            true => each * SLACK >= self.more,
            false => each <= self.less * SLACK,
        }
    }
}

/// The change of divergence per byte, from one option to another.
fn per_byte(options: &[Candidate], curve: &Curve, (from, to): (usize, usize)) -> f64 {
    let bytes = options[from].bytes.abs_diff(options[to].bytes);
    (curve.cost(from) - curve.cost(to)).abs() / bytes.max(1) as f64
}
