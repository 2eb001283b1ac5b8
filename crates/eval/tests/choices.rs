//! Multiple choice with a mock model that knows which token follows which.

use std::path::Path;

use lathe_adapters::mock::{Distribution, Mock, Options};
use lathe_base::Silent;
use lathe_eval::{
    ChoiceFigures, ChoiceRun, ChoiceSet, ChoicesRaw, Encoder, Error, Role, Rule, Subject,
    score_choices,
};

const V: usize = 128;

fn bytes(text: &str) -> Result<Vec<u32>, String> {
    Ok(text.bytes().map(u32::from).collect())
}

const ENCODER: Encoder<'static> = Encoder { encode: &bytes, bos: Some(0) };

/// Likes the next letter of the alphabet, by `bonus`.
fn alphabet(bonus: f32, context: usize) -> Mock {
    let distribution = Distribution::function(move |history, row| {
        row.fill(0.0);
        let next = (*history.last().unwrap() as usize + 1) % row.len();
        row[next] = bonus;
    });
    Mock::new(Options { vocab: V, context, distribution, ..Options::default() }).unwrap()
}

fn set() -> ChoiceSet {
    let text = "{\"context\":\"ab \",\"choices\":[\"defg\",\"zz\"],\"answer\":0}\n\
                {\"context\":\"xy \",\"choices\":[\"qrs\",\"azby\"],\"answer\":1}\n";
    ChoiceSet::from_bytes(Path::new("s.jsonl"), text.as_bytes()).unwrap()
}

fn score(engine: &Mock, role: Role) -> Result<ChoiceRun, Error> {
    let subject = Subject { name: "m", role, engine };
    score_choices(&subject, &set(), ENCODER, &Silent)
}

#[test]
fn scores_are_sums_of_log_probabilities_of_the_choice_alone() {
    let run = score(&alphabet(4.0, 64), Role::Base).unwrap();
    let log_total = (4.0_f64.exp() + 127.0).ln();
    // In "defg" the d after a space is an unlikely token; e, f and g are the likely ones.
    assert!((run.log_p[0][0] - (3.0 * 4.0 - 4.0 * log_total)).abs() < 1e-9);
    assert!((run.log_p[0][1] + 2.0 * log_total).abs() < 1e-9);
}

#[test]
fn rules_and_flips_come_from_the_scores_alone() {
    let mut raw = ChoicesRaw::new(&set());
    raw.models.push(score(&alphabet(4.0, 64), Role::Base).unwrap());
    raw.models.push(score(&alphabet(-4.0, 64), Role::Candidate).unwrap());
    assert_eq!(raw.bytes, [[4, 2], [3, 4]]);
    let by_sum = ChoiceFigures::new(&raw, Rule::Sum, 0.95).unwrap();
    let per_byte = ChoiceFigures::new(&raw, Rule::PerByte, 0.95).unwrap();
    // The base likes runs of the alphabet (defg, qrs); the other dislikes them (zz, azby).
    assert_eq!(per_byte.models[0].accuracy.point, 0.5);
    let versus = per_byte.models[1].versus.as_ref().unwrap();
    assert_eq!((versus.right_to_wrong, versus.wrong_to_right), (1, 1));
    let back: ChoicesRaw = serde_json::from_str(&serde_json::to_string(&raw).unwrap()).unwrap();
    assert_eq!(ChoiceFigures::new(&back, Rule::Sum, 0.95).unwrap(), by_sum);
}

#[test]
fn a_long_context_loses_its_beginning_and_the_score_stays() {
    let long = score(&alphabet(4.0, 64), Role::Base).unwrap();
    // This model looks at the last token only.
    let short = score(&alphabet(4.0, 6), Role::Base).unwrap();
    assert_eq!(long.log_p, short.log_p);
    assert!(matches!(score(&alphabet(4.0, 5), Role::Base), Err(Error::TooShort { .. })));
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let small = Mock::new(Options { vocab: 100, ..Options::default() }).unwrap();
    assert!(matches!(score(&small, Role::Base), Err(Error::Tokenizer { .. })));
}
