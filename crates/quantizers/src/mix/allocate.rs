/// One way to store a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What it takes in the file.
    pub bytes: u64,
    /// What it costs in quality; costs of tensors add up.
    pub cost: f64,
}

/// One choice for each tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The index of each tensor's choice.
    pub chosen: Vec<usize>,
    /// The sum of their bytes.
    pub bytes: u64,
    /// The sum of their costs.
    pub cost: f64,
    /// Proven: no allocation within the budget costs less than this. Equal to `cost` where the
    /// allocation is optimal, which it is but for very many very similar tensors.
    pub bound: f64,
}

/// Partial allocations kept from one tensor to the next: beyond these, some are dropped and the
/// bound says what they could have saved.
const MOST_STATES: usize = 1 << 16;
/// Partial allocations kept in all, for the way back.
const MOST_STEPS: usize = 1 << 24;

/// The cheapest choice for each tensor such that all together take at most `budget` bytes: the
/// multiple-choice knapsack problem. `None` if not even the smallest choices fit.
///
/// Partial allocations that another one beats in both bytes and cost are dropped, and so are
/// those that a bound shows to lead nowhere (dynamic programming over states, pruned by the
/// Lagrangian relaxation). Costs that are not finite are never chosen.
///
/// **Source**: Kellerer, Pferschy, Pisinger: Knapsack Problems (2004), chapter 11.
pub fn allocate(items: &[Vec<Choice>], budget: u64) -> Option<Allocation> {
    allocate_within(items, budget, MOST_STATES)
}

fn allocate_within(items: &[Vec<Choice>], budget: u64, most: usize) -> Option<Allocation> {
    let items: Option<Vec<Item>> = items.iter().map(|choices| Item::new(choices)).collect();
    let items = items?;
    if items.iter().map(Item::smallest).sum::<u64>() > budget {
        return None;
    }
    let relaxed = Relaxed::new(&items, budget);
    let first = relaxed.rounded;
    let best = total(&items, &first).1;
    let search = Search { items: &items, budget, price: relaxed.price, best };
    let (found, dropped) = search.run(most);
    let path = found.unwrap_or(first);
    let (bytes, cost) = total(&items, &path);
    let chosen = items.iter().zip(&path).map(|(item, at)| item.options[*at].index).collect();
    Some(Allocation { chosen, bytes, cost, bound: cost.min(dropped) })
}

/// A choice that no other one beats.
#[derive(Clone, Copy, Debug)]
struct Chosen {
    /// Its place in the caller's list.
    index: usize,
    bytes: u64,
    cost: f64,
}

/// The choices of one tensor that are worth a look, by bytes ascending and cost descending.
#[derive(Debug)]
struct Item {
    options: Vec<Chosen>,
}

impl Item {
    fn new(choices: &[Choice]) -> Option<Self> {
        let options = choices.iter().enumerate().filter(|(_, choice)| choice.cost.is_finite());
        let mut options: Vec<_> = options
            .map(|(index, choice)| Chosen { index, bytes: choice.bytes, cost: choice.cost })
            .collect();
        options.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)));
        let mut least = f64::INFINITY;
        options.retain(|option| {
            let better = option.cost < least;
            least = least.min(option.cost);
            better
        });
        (!options.is_empty()).then_some(Self { options })
    }

    fn smallest(&self) -> u64 {
        self.options[0].bytes
    }

    /// The steps along the lower convex hull: where each ends, the bytes it adds and what a byte
    /// of it saves, which falls from step to step.
    fn steps(&self) -> Vec<Step> {
        let mut hull: Vec<usize> = vec![0];
        for at in 1..self.options.len() {
            while let [.., before, last] = hull[..]
                && self.saving(last, at) >= self.saving(before, last)
            {
                hull.pop();
            }
            hull.push(at);
        }
        let step = |pair: &[usize]| Step {
            item: 0,
            to: pair[1],
            bytes: self.options[pair[1]].bytes - self.options[pair[0]].bytes,
            saving: self.saving(pair[0], pair[1]),
        };
        hull.windows(2).map(step).collect()
    }

    /// Cost saved per byte from one option to a larger one.
    fn saving(&self, from: usize, to: usize) -> f64 {
        let (from, to) = (self.options[from], self.options[to]);
        (from.cost - to.cost) / (to.bytes - from.bytes) as f64
    }
}

struct Step {
    item: usize,
    to: usize,
    bytes: u64,
    saving: f64,
}

fn total(items: &[Item], path: &[usize]) -> (u64, f64) {
    let options = items.iter().zip(path).map(|(item, at)| item.options[*at]);
    options.fold((0, 0.0), |(bytes, cost), o| (bytes + o.bytes, cost + o.cost))
}

/// The problem with fractions of a step allowed, and what is left of its solution without them.
struct Relaxed {
    /// What a byte is worth at the optimum: the Lagrangian multiplier.
    price: f64,
    /// An allocation within the budget.
    rounded: Vec<usize>,
}

impl Relaxed {
    /// Takes the steps by what a byte of them saves until one does not fit; its saving is the
    /// price. Smaller steps behind it may still fill the rest.
    fn new(items: &[Item], budget: u64) -> Self {
        let mut steps: Vec<Step> = Vec::new();
        for (item, all) in items.iter().enumerate() {
            steps.extend(all.steps().into_iter().map(|step| Step { item, ..step }));
        }
        steps.sort_by(|a, b| {
            b.saving.total_cmp(&a.saving).then((a.item, a.to).cmp(&(b.item, b.to)))
        });
        let mut left = budget - items.iter().map(Item::smallest).sum::<u64>();
        let mut rounded = vec![0; items.len()];
        let (mut price, mut stuck) = (None, vec![false; items.len()]);
        for step in steps {
            if stuck[step.item] {
                continue;
            }
            if step.bytes <= left {
                left -= step.bytes;
                rounded[step.item] = step.to;
            } else {
                price.get_or_insert(step.saving);
                stuck[step.item] = true;
            }
        }
        Self { price: price.unwrap_or(0.0), rounded }
    }
}

/// A partial allocation.
#[derive(Clone, Copy)]
struct State {
    bytes: u64,
    cost: f64,
    /// The state that it continues, and the option taken.
    from: u32,
    option: u32,
}

struct Search<'a> {
    items: &'a [Item],
    budget: u64,
    price: f64,
    /// The cost of the best allocation known.
    best: f64,
}

impl Search<'_> {
    /// The best path, if it beats the one known, and the least cost that any dropped state could
    /// have led to.
    fn run(&self, most: usize) -> (Option<Vec<usize>>, f64) {
        let most = most.min(MOST_STEPS / self.items.len().max(1)).max(1);
        // What the items behind each place take and cost at least.
        let mut behind = vec![(0u64, 0.0f64)];
        for item in self.items.iter().rev() {
            let (bytes, cost) = behind[behind.len() - 1];
            let priced = |o: &Chosen| o.cost + self.price * o.bytes as f64;
            let least = item.options.iter().map(priced).fold(f64::INFINITY, f64::min);
            behind.push((bytes + item.smallest(), cost + least));
        }
        behind.reverse();
        let mut layers = vec![vec![State { bytes: 0, cost: 0.0, from: 0, option: 0 }]];
        let mut dropped = f64::INFINITY;
        for (item, rest) in self.items.iter().zip(&behind[1..]) {
            let mut next = self.extend(&layers[layers.len() - 1], item, *rest);
            if next.len() > most {
                dropped = dropped.min(self.thin(&mut next, *rest, most));
            }
            layers.push(next);
        }
        (self.best_path(&layers), dropped)
    }

    /// All continuations of `states` by `item` that may still lead to something better.
    fn extend(&self, states: &[State], item: &Item, rest: (u64, f64)) -> Vec<State> {
        let mut next = Vec::with_capacity(states.len() * 2);
        for (from, state) in states.iter().enumerate() {
            for (option, chosen) in item.options.iter().enumerate() {
                let made = State {
                    bytes: state.bytes + chosen.bytes,
                    cost: state.cost + chosen.cost,
                    from: from as u32,
                    option: option as u32,
                };
                if made.bytes + rest.0 > self.budget {
                    break;
                }
                if self.bound(&made, rest) < self.best {
                    next.push(made);
                }
            }
        }
        next.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)));
        let mut least = f64::INFINITY;
        next.retain(|state| {
            let better = state.cost < least;
            least = least.min(state.cost);
            better
        });
        next
    }

    /// What an allocation that begins like this costs at least.
    fn bound(&self, state: &State, (_, behind): (u64, f64)) -> f64 {
        state.cost + behind - self.price * (self.budget - state.bytes) as f64
    }

    /// Keeps the `most` states of the lowest bounds; returns the lowest bound of the others.
    fn thin(&self, states: &mut Vec<State>, rest: (u64, f64), most: usize) -> f64 {
        let mut bounds: Vec<f64> = states.iter().map(|state| self.bound(state, rest)).collect();
        bounds.sort_by(f64::total_cmp);
        let limit = bounds[most];
        let mut dropped = f64::INFINITY;
        states.retain(|state| {
            let bound = self.bound(state, rest);
            let kept = bound < limit;
            if !kept {
                dropped = dropped.min(bound);
            }
            kept
        });
        dropped
    }

    fn best_path(&self, layers: &[Vec<State>]) -> Option<Vec<usize>> {
        let last = layers.last()?;
        // States are sorted by bytes ascending and cost descending.
        let mut state = *last.last().filter(|state| state.cost < self.best)?;
        let mut path = Vec::with_capacity(self.items.len());
        for layer in layers[..layers.len() - 1].iter().rev() {
            path.push(state.option as usize);
            state = layer[state.from as usize];
        }
        path.reverse();
        Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator of numbers (xorshift), so that failures come back.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % n
        }
    }

    fn random(numbers: &mut Numbers) -> (Vec<Vec<Choice>>, u64) {
        let coarse = numbers.below(2) == 0;
        let count = 1 + numbers.below(6) as usize;
        let mut item = || {
            let choices = 1 + numbers.below(5);
            let choice = |n: &mut Numbers| Choice {
                bytes: if coarse { 10 * n.below(6) } else { n.below(1000) },
                cost: n.below(if coarse { 5 } else { 1000 }) as f64 / 7.0,
            };
            (0..choices).map(|_| choice(numbers)).collect()
        };
        let items: Vec<Vec<Choice>> = (0..count).map(|_| item()).collect();
        let most: u64 = items.iter().map(|i| i.iter().map(|c| c.bytes).max().unwrap_or(0)).sum();
        (items, numbers.below(most + 2))
    }

    /// The least cost by trying everything.
    fn brute(items: &[Vec<Choice>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = items.split_first() else { return Some(0.0) };
        let fitting = first.iter().filter(|choice| choice.bytes <= budget);
        let costs = fitting.filter_map(|c| Some(c.cost + brute(rest, budget - c.bytes)?));
        costs.min_by(f64::total_cmp)
    }

    #[test]
    fn allocations_are_as_good_as_trying_everything() {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        let mut impossible = 0;
        for round in 0..20_000 {
            let (items, budget) = random(&mut numbers);
            let expected = brute(&items, budget);
            let found = allocate(&items, budget);
            let (Some(expected), Some(found)) = (expected, &found) else {
                assert_eq!(expected.is_none(), found.is_none(), "{round}: {items:?} {budget}");
                impossible += 1;
                continue;
            };
            assert!((found.cost - expected).abs() < 1e-9, "{round}: {items:?} {budget} {found:?}");
            let sums = items.iter().zip(&found.chosen).map(|(item, at)| item[*at]);
            let (bytes, cost) = sums.fold((0, 0.0), |(b, c), x| (b + x.bytes, c + x.cost));
            assert!(bytes == found.bytes && bytes <= budget);
            assert!((cost - found.cost).abs() < 1e-9 && found.bound == found.cost);
        }
        assert!((100..10_000).contains(&impossible), "{impossible}");
    }

    #[test]
    fn with_room_for_few_states_the_bound_still_holds() {
        let mut numbers = Numbers(7);
        let mut loose = 0;
        for _ in 0..5_000 {
            let (items, budget) = random(&mut numbers);
            let Some(expected) = brute(&items, budget) else { continue };
            let found = allocate_within(&items, budget, 2).unwrap();
            assert!(found.bytes <= budget && found.cost >= expected - 1e-9);
            assert!(found.bound <= expected + 1e-9, "{items:?} {budget} {found:?} {expected}");
            loose += usize::from(found.bound < found.cost);
        }
        assert!(loose > 10, "the limit was never felt");
    }

    #[test]
    fn a_model_of_a_thousand_tensors_is_allocated_exactly_or_nearly_so() {
        let mut numbers = Numbers(3);
        let bits = [2.625, 3.4375, 4.5, 5.5, 6.5625, 8.5, 16.0];
        let sizes = [4096.0 * 4096.0, 4096.0 * 1024.0, 4096.0 * 14336.0];
        let items: Vec<Vec<Choice>> = (0..1000)
            .map(|i| {
                let weight = (1 + numbers.below(1000)) as f64 * 1e-6;
                let choice = |bits: &f64| Choice {
                    bytes: (sizes[i % 3] * bits / 8.0) as u64,
                    cost: weight * (-2.0 * bits * 2f64.ln()).exp(),
                };
                bits.iter().map(choice).collect()
            })
            .collect();
        let weights: f64 = (0..1000).map(|i| sizes[i % 3]).sum();
        let budget = (weights * 4.25 / 8.0) as u64;
        let found = allocate(&items, budget).unwrap();
        assert!(found.bytes <= budget && found.bound <= found.cost);
        assert!(found.cost - found.bound < 1e-5 * found.cost, "{} {}", found.cost, found.bound);
    }

    #[test]
    fn choices_without_a_finite_cost_are_not_made() {
        let choice = |bytes, cost| Choice { bytes, cost };
        let items = [vec![choice(1, f64::NAN), choice(2, f64::INFINITY), choice(3, 1.0)]];
        assert_eq!(allocate(&items, 3).unwrap().chosen, [2]);
        assert_eq!(allocate(&items, 2), None);
        assert_eq!(allocate(&[vec![]], 10), None);
        assert_eq!(allocate(&[], 0).unwrap().chosen, [0usize; 0]);
    }
}
