use lathe_models::Experts;

/// Which experts the tokens of a pass go through.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Routes {
    /// For each token its chosen experts, the likeliest first, with their weights \[T, active\].
    pub(crate) chosen: Vec<(usize, f32)>,
    /// Choices per token.
    pub(crate) active: usize,
}

/// The tokens of a pass that go through one expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Routed {
    /// Rows of the pass, ascending.
    pub(crate) rows: Vec<usize>,
    /// Which of its token's choices the expert is, for each row.
    pub(crate) slots: Vec<usize>,
    /// What the expert's output for each row is multiplied by.
    pub(crate) weights: Vec<f32>,
}

impl Routes {
    /// Chooses experts for each row of `scores` \[T, E\].
    ///
    /// Of equal probabilities the expert of the lower index is chosen. A row with a NaN, which a
    /// broken weight gives, goes to the first experts: NaN is found where it comes out.
    pub(crate) fn choose(experts: &Experts, scores: &[f32]) -> Self {
        let active = experts.active;
        let mut chosen = Vec::with_capacity(scores.len() / experts.count.max(1) * active);
        let mut order: Vec<usize> = Vec::with_capacity(experts.count);
        for scores in scores.chunks_exact(experts.count) {
            order.clear();
            order.extend(0..experts.count);
            let by_score = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
            if active < experts.count {
                order.select_nth_unstable_by(active, by_score);
                order.truncate(active);
            }
            order.sort_unstable_by(by_score);
            let largest = scores[order[0]];
            let exp = |score: f32| (score - largest).exp();
            let total: f32 = match experts.normalised {
                true => order.iter().map(|e| exp(scores[*e])).sum(),
                false => scores.iter().map(|score| exp(*score)).sum(),
            };
            chosen.extend(order.iter().map(|e| (*e, exp(scores[*e]) / total)));
        }
        Self { chosen, active }
    }

    /// The rows that go through each expert that any goes through, in the order of the experts.
    pub(crate) fn by_expert(&self, count: usize) -> Vec<(usize, Routed)> {
        let mut all = vec![Routed::default(); count];
        for (i, (expert, weight)) in self.chosen.iter().enumerate() {
            let routed = &mut all[*expert];
            routed.rows.push(i / self.active);
            routed.slots.push(i % self.active);
            routed.weights.push(*weight);
        }
        all.into_iter().enumerate().filter(|(_, routed)| !routed.rows.is_empty()).collect()
    }
}

/// The logistic function, for the score of a shared expert.
pub(crate) fn logistic(score: f32) -> f32 {
    1.0 / (1.0 + (-score).exp())
}

#[cfg(test)]
mod tests {
    use lathe_models::Act;

    use super::*;

    fn experts(normalised: bool) -> Experts {
        Experts { count: 4, active: 2, width: 8, act: Act::Silu, normalised, shared: None }
    }

    #[test]
    fn the_likeliest_experts_are_chosen_and_equal_ones_by_their_index() {
        let scores = [0.0, 2.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0];
        let routes = Routes::choose(&experts(true), &scores);
        let chosen: Vec<usize> = routes.chosen.iter().map(|(expert, _)| *expert).collect();
        assert_eq!(chosen, [1, 3, 0, 1]);
        assert!(routes.chosen.iter().all(|(_, weight)| *weight == 0.5));
        let by_expert = routes.by_expert(4);
        let rows: Vec<_> = by_expert.iter().map(|(e, routed)| (*e, routed.rows.clone())).collect();
        assert_eq!(rows, [(0, vec![1]), (1, vec![0, 1]), (3, vec![0])]);
        assert_eq!(by_expert[1].1.slots, [0, 1]);
    }

    #[test]
    fn weights_are_probabilities_among_all_experts_or_among_the_chosen() {
        let scores = [1.0f32, 0.0, -1.0, 0.5];
        let exp: Vec<f32> = scores.iter().map(|score| score.exp()).collect();
        let all: f32 = exp.iter().sum();
        let weights = |normalised| -> Vec<f32> {
            let routes = Routes::choose(&experts(normalised), &scores);
            routes.chosen.iter().map(|(_, weight)| *weight).collect()
        };
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&weights(false), &[exp[0] / all, exp[3] / all]));
        let both = exp[0] + exp[3];
        assert!(close(&weights(true), &[exp[0] / both, exp[3] / both]));
    }

    #[test]
    fn a_score_that_is_not_a_number_chooses_something() {
        let routes = Routes::choose(&experts(true), &[f32::NAN, 1.0, f32::NEG_INFINITY, 0.0]);
        assert_eq!(routes.chosen.len(), 2);
    }
}
