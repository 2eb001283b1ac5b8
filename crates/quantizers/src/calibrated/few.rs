//! Experts that the calibration texts hardly went through.

use lathe_models::Inputs;

use super::layer::Gathered;
use crate::Stats;

/// Inputs that are enough to tell of `cols` columns: with an eighth of the columns or fewer most
/// directions were never seen, and the scales of single columns are as good as guessed.
fn enough(cols: usize) -> u64 {
    (cols as u64 / 8).max(32)
}

/// Makes up for experts that few tokens went through, and says which these are.
///
/// Where an expert saw n of the m inputs that are enough, what is known of its inputs is mixed
/// with what is usual in the layer, m − n parts of m: in front of the gates that is what all
/// tokens' inputs are; behind them, where each expert has columns of its own, their mean over all
/// columns. Without a single input and without a usual one, nothing is known: such an expert is
/// coded by its weights alone.
pub(super) fn support(layer: usize, stats: &mut Gathered) -> Vec<String> {
    let total = stats.iter().filter(|(inputs, _)| inputs.expert.is_some());
    // Each token is sent to the same number of experts, the first of a step as good as any.
    let Some(step) = total.map(|(inputs, _)| inputs.step).next() else { return Vec::new() };
    let all = stats.get(&Inputs { step, expert: None }).filter(|_| step == 2).cloned();
    let mut few = Vec::new();
    let experts = stats.iter_mut().filter(|(inputs, _)| inputs.expert.is_some());
    for (inputs, own) in experts {
        let enough = enough(own.importance.len());
        if own.count < enough {
            few.push((inputs.expert.unwrap_or(0), own.count));
            let share = 1.0 - own.count as f32 / enough as f32;
            match &all {
                Some(usual) => mix(own, usual, share),
                None if own.count > 0 => mix(own, &even(own), share),
                None => {}
            }
        }
    }
    // What is seen before the gates and behind them is the same.
    let tokens = all.as_ref().map(|all| all.count);
    stats.retain(|inputs, own| inputs.expert.is_none() || own.count > 0);
    match (few.as_slice(), tokens) {
        ([], _) | (_, None) => Vec::new(),
        (few, Some(tokens)) => few
            .iter()
            .map(|(expert, count)| {
                format!(
                    "layer {layer}: expert {expert} saw {count} of {tokens} tokens; its statistics \
                     are mixed with those of all tokens"
                )
            })
            .collect(),
    }
}

/// Changes statistics to `share` parts of others.
fn mix(own: &mut Stats, other: &Stats, share: f32) {
    let blend = |own: &mut [f32], other: &[f32]| {
        own.iter_mut().zip(other).for_each(|(a, b)| *a += (b - *a) * share);
    };
    blend(&mut own.mean_abs, &other.mean_abs);
    blend(&mut own.importance, &other.importance);
    own.absmax.iter_mut().zip(&other.absmax).for_each(|(a, b)| *a = a.max(*b));
    if own.sample.len() < other.sample.len() {
        own.sample.clone_from(&other.sample);
    }
    if let (Some(own), Some(other)) = (&mut own.hessian, &other.hessian) {
        blend(own, other);
    }
    own.count = own.count.max(1);
}

/// Statistics of columns that are all alike and have nothing to do with each other.
fn even(of: &Stats) -> Stats {
    let cols = of.importance.len();
    let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len().max(1) as f32;
    let square = mean(&of.importance);
    let hessian = of.hessian.as_ref().map(|_| {
        let mut hessian = vec![0.0; cols * cols];
        hessian.iter_mut().step_by(cols + 1).for_each(|x| *x = square);
        hessian
    });
    Stats {
        count: of.count,
        mean_abs: vec![mean(&of.mean_abs); cols],
        importance: vec![square; cols],
        absmax: Vec::new(),
        sample: Vec::new(),
        hessian,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(count: u64, square: f32) -> Stats {
        Stats {
            count,
            mean_abs: vec![square; 2],
            importance: vec![square; 2],
            absmax: vec![square; 2],
            hessian: Some(vec![square, square / 2.0, square / 2.0, square]),
            ..Stats::default()
        }
    }

    fn inputs(step: usize, expert: Option<usize>) -> Inputs {
        Inputs { step, expert }
    }

    #[test]
    fn experts_with_few_tokens_are_named_and_get_what_is_usual() {
        let mut gathered = Gathered::from([
            (inputs(2, None), stats(500, 8.0)),
            (inputs(2, Some(0)), stats(400, 2.0)),
            (inputs(2, Some(1)), stats(8, 4.0)),
            (inputs(2, Some(2)), stats(0, 0.0)),
        ]);
        let notes = support(3, &mut gathered);
        assert_eq!(notes.len(), 2);
        assert!(notes[0].starts_with("layer 3: expert 1 saw 8 of 500 tokens"), "{notes:?}");
        assert!(notes[1].starts_with("layer 3: expert 2 saw 0 of 500 tokens"), "{notes:?}");
        let of = |expert| &gathered[&inputs(2, Some(expert))];
        assert_eq!(of(0).importance, [2.0; 2]);
        assert_eq!(of(1).importance, [7.0; 2], "three quarters are those of all tokens");
        assert_eq!(of(1).hessian.as_ref().unwrap()[1], 3.5);
        assert_eq!(of(2).hessian, stats(0, 8.0).hessian);
    }

    #[test]
    fn behind_the_gates_columns_become_alike_and_unknown_experts_stay_unknown() {
        let mut own = stats(8, 0.0);
        own.importance = vec![2.0, 6.0];
        own.hessian = Some(vec![2.0, 1.0, 1.0, 6.0]);
        let mut gathered =
            Gathered::from([(inputs(3, Some(0)), own), (inputs(3, Some(1)), stats(0, 0.0))]);
        assert!(support(0, &mut gathered).is_empty(), "said of the gates' inputs already");
        let own = &gathered[&inputs(3, Some(0))];
        assert_eq!(own.importance, [3.5, 4.5]);
        assert_eq!(own.hessian, Some(vec![3.5, 0.25, 0.25, 4.5]));
        assert!(!gathered.contains_key(&inputs(3, Some(1))));
    }
}
