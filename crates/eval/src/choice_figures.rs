use lathe_stats::{Interval, paired_difference, sign_test, wilson};
use serde::{Deserialize, Serialize};

use crate::{ChoiceRun, ChoicesRaw, Error, Role};

/// How the choice is picked from the scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The highest log-likelihood (`acc` of lm-evaluation-harness).
    Sum,
    /// The highest log-likelihood per byte of the choice, so that long choices have their chance.
    /// (`acc_norm` there, which counts characters: the same on ASCII.)
    PerByte,
}

/// All figures of one set of items under one rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceFigures {
    pub name: String,
    pub rule: Rule,
    pub items: usize,
    /// The accuracy of guessing.
    pub chance: f64,
    /// The base first.
    pub models: Vec<ChoiceModel>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceModel {
    pub name: String,
    pub role: Role,
    /// Share of right answers, with Wilson's interval.
    pub accuracy: Interval,
    /// `None` for the base.
    pub versus: Option<ChoiceVersus>,
}

/// A model against the base on the same items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceVersus {
    /// Items that the base has right and this one wrong.
    pub right_to_wrong: usize,
    pub wrong_to_right: usize,
    /// Both wrong, with different answers.
    pub wrong_to_wrong: usize,
    /// Share of items with a different answer, of all three kinds.
    pub flips: Interval,
    /// Change of accuracy, paired by item; `None` below two items.
    pub accuracy_change: Option<Interval>,
    /// McNemar's exact test that as many turned right as turned wrong.
    pub p_value: f64,
}

impl ChoiceFigures {
    /// Computes every figure from the scores.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where scores are missing or the first run is not the base's;
    /// [`Error::Stats`] for the level.
    pub fn new(raw: &ChoicesRaw, rule: Rule, level: f64) -> Result<Self, Error> {
        check(raw)?;
        let picks: Vec<Vec<usize>> = raw.models.iter().map(|m| picks(raw, m, rule)).collect();
        let items = raw.answers.len();
        let chance = raw.bytes.iter().map(|b| 1.0 / b.len() as f64).sum::<f64>() / items as f64;
        let right = |picks: &[usize]| {
            picks.iter().zip(&raw.answers).map(|(p, a)| p == a).collect::<Vec<bool>>()
        };
        let mut models = Vec::with_capacity(raw.models.len());
        for (model, picked) in raw.models.iter().zip(&picks) {
            let hits = right(picked);
            models.push(ChoiceModel {
                name: model.name.clone(),
                role: model.role,
                accuracy: wilson(hits.iter().filter(|&&h| h).count(), items, level)?,
                versus: match model.role {
                    Role::Base => None,
                    _ => Some(versus(&right(&picks[0]), &picks[0], &hits, picked, level)?),
                },
            });
        }
        Ok(Self { name: raw.name.clone(), rule, items, chance, models })
    }
}

fn versus(
    base: &[bool],
    base_picks: &[usize],
    hits: &[bool],
    picks: &[usize],
    level: f64,
) -> Result<ChoiceVersus, Error> {
    let n = base.len();
    let count = |f: &dyn Fn(usize) -> bool| (0..n).filter(|&i| f(i)).count();
    let right_to_wrong = count(&|i| base[i] && !hits[i]);
    let wrong_to_right = count(&|i| !base[i] && hits[i]);
    let wrong_to_wrong = count(&|i| !base[i] && !hits[i] && base_picks[i] != picks[i]);
    let number = |right: &[bool]| right.iter().map(|&r| f64::from(r)).collect::<Vec<_>>();
    let change = paired_difference(&number(hits), &number(base), level);
    Ok(ChoiceVersus {
        right_to_wrong,
        wrong_to_right,
        wrong_to_wrong,
        flips: wilson(right_to_wrong + wrong_to_right + wrong_to_wrong, n, level)?,
        accuracy_change: change.ok(),
        p_value: sign_test(wrong_to_right, right_to_wrong),
    })
}

/// The choice that a model picks for each item, the first of equals.
fn picks(raw: &ChoicesRaw, model: &ChoiceRun, rule: Rule) -> Vec<usize> {
    let pick = |(scores, bytes): (&Vec<f64>, &Vec<usize>)| {
        let score = |i: usize| match rule {
            Rule::Sum => scores[i],
            Rule::PerByte => scores[i] / bytes[i].max(1) as f64,
        };
        (1..scores.len()).fold(0, |best, i| if score(i) > score(best) { i } else { best })
    };
    model.log_p.iter().zip(&raw.bytes).map(pick).collect()
}

fn check(raw: &ChoicesRaw) -> Result<(), Error> {
    let mismatch = |why: String| Err(Error::Mismatch { why });
    let lengths = |m: &ChoiceRun| m.log_p.iter().map(Vec::len).eq(raw.bytes.iter().map(Vec::len));
    if raw.answers.is_empty() || raw.answers.len() != raw.bytes.len() {
        return mismatch(format!("{} has no items, or sizes for only some", raw.name));
    }
    if let Some(broken) = raw.models.iter().find(|m| !lengths(m)) {
        return mismatch(format!("{} does not have a score for each choice", broken.name));
    }
    match raw.models.first().map(|m| m.role) {
        Some(Role::Base) => Ok(()),
        _ => mismatch("the first model is not the base".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, role: Role, log_p: &[[f64; 2]]) -> ChoiceRun {
        ChoiceRun { name: name.into(), role, log_p: log_p.iter().map(|p| p.to_vec()).collect() }
    }

    fn raw() -> ChoicesRaw {
        ChoicesRaw {
            name: "set".into(),
            sha256: String::new(),
            answers: vec![0, 0, 1],
            bytes: vec![vec![4, 8]; 3],
            models: vec![
                run("base", Role::Base, &[[-1.0, -3.0], [-3.0, -1.0], [-1.0, -3.0]]),
                run("small", Role::Candidate, &[[-3.0, -1.0], [-1.0, -3.0], [-2.0, -3.0]]),
            ],
        }
    }

    #[test]
    fn counts_answers_and_flips_by_kind() {
        let f = ChoiceFigures::new(&raw(), Rule::Sum, 0.95).unwrap();
        assert_eq!(f.models[0].accuracy.point, 1.0 / 3.0);
        let v = f.models[1].versus.as_ref().unwrap();
        assert_eq!((v.right_to_wrong, v.wrong_to_right, v.wrong_to_wrong), (1, 1, 0));
        assert_eq!(v.flips.point, 2.0 / 3.0);
        assert_eq!((v.p_value, f.chance), (1.0, 0.5));
    }

    #[test]
    fn the_length_decides_under_the_other_rule() {
        // −2 / 4 is below −3 / 8: the long choice wins the third item.
        let f = ChoiceFigures::new(&raw(), Rule::PerByte, 0.95).unwrap();
        assert_eq!(f.models[1].accuracy.point, 2.0 / 3.0);
    }

    #[test]
    fn rejects_scores_that_do_not_fit_the_items() {
        let mut broken = raw();
        broken.models[1].log_p[2].pop();
        assert!(matches!(
            ChoiceFigures::new(&broken, Rule::Sum, 0.95),
            Err(Error::Mismatch { .. })
        ));
        let mut headless = raw();
        headless.models.remove(0);
        assert!(ChoiceFigures::new(&headless, Rule::Sum, 0.95).is_err());
    }
}
