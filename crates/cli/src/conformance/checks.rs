//! What is asked of an engine.

use lathe_api::{Engine, Error, Turn, UNKNOWN_TOKEN};
use lathe_eval::Divergence;
use lathe_kernels::{Matrix, Pool, Precision};
use lathe_models::{Located, Role};
use lathe_report::{Agreement, Check};
use lathe_tokens::{Message, Render, Template};

use super::{
    Subject,
    reference::{Noise, Reference, likeliest, rows, written},
};
use crate::open::plain;

pub(crate) type Asks = fn(&Subject, &dyn Engine, &Reference, &Noise) -> anyhow::Result<Check>;

/// All of them, in the order in which a deviation explains those that follow.
pub(crate) const ALL: [(&str, Asks); 5] = [
    ("tokens", tokens),
    ("template", template),
    ("weights", weights),
    ("logits", logits),
    ("text", text),
];

/// Texts that tokenizers differ in: spaces, lines, digits, accents, other scripts, symbols.
const TEXTS: [&str; 8] = [
    "Plain words, and a full stop.",
    "  two spaces before,  two between ",
    "line one\nline two\n\n\tindented\r\nend",
    "In 1987 it cost 12,345.67 and not 0.5 %",
    "naïve façade – “quoted” … Ærø",
    "Привет, мир; 東京は大きい; שלום",
    "fn f(x: &[u8]) -> Option<u8> { x.first().copied() } // ok?",
    "🚲🌧️ e\u{301}",
];

fn checked(what: &str, outcome: Agreement, words: String) -> Check {
    Check { what: what.to_owned(), outcome, words, kl: None }
}

/// What cannot be asked is said so. **Errors**: the engine broke, which is no answer.
fn refused(what: &str, error: Error) -> anyhow::Result<Check> {
    match error {
        Error::Unsupported { .. } | Error::BadRequest { .. } => {
            Ok(checked(what, Agreement::Unasked, error.to_string()))
        }
        broken => Err(broken.into()),
    }
}

fn tokens(
    subject: &Subject,
    engine: &dyn Engine,
    _: &Reference,
    _: &Noise,
) -> anyhow::Result<Check> {
    const WHAT: &str = "tokens";
    for text in TEXTS {
        let own = plain(&subject.tokenizer, text)?;
        let theirs = match engine.tokenize(text) {
            Ok(ids) => ids,
            Err(error) => return refused(WHAT, error),
        };
        if own != theirs {
            let at = first_difference(&own, &theirs);
            let words = format!(
                "{text:?}: token {at} is {}, not {}",
                shown(subject, theirs.get(at)),
                shown(subject, own.get(at))
            );
            return Ok(checked(WHAT, Agreement::Deviates, words));
        }
    }
    Ok(checked(WHAT, Agreement::Same, format!("{} texts", TEXTS.len())))
}

fn template(
    subject: &Subject,
    engine: &dyn Engine,
    _: &Reference,
    _: &Noise,
) -> anyhow::Result<Check> {
    const WHAT: &str = "template";
    let Ok(template) = Template::choose(&subject.checkpoint, &subject.tokenizer, None) else {
        let words = "the model has no chat template".to_owned();
        return Ok(checked(WHAT, Agreement::Unasked, words));
    };
    let turns = [
        Turn { role: "user", content: "What is the tallest tree?" },
        Turn { role: "assistant", content: "A redwood." },
        Turn { role: "user", content: "  And how tall is it?\n" },
    ];
    let messages: Vec<Message> = turns
        .iter()
        .map(|turn| match turn.role {
            "user" => Message::user(turn.content),
            _ => Message::assistant(turn.content),
        })
        .collect();
    let own = match template.prompt(&messages, &Render::reply()) {
        Ok(prompt) => prompt.text,
        Err(error) => {
            let words = format!("the model's template fails: {error}");
            return Ok(checked(WHAT, Agreement::Unasked, words));
        }
    };
    let theirs = match engine.render(&turns) {
        Ok(text) => text,
        Err(error) => return refused(WHAT, error),
    };
    // Some leave the first token to the tokenizer, which puts it there anyway.
    let bos = subject.tokenizer.bos().and_then(|id| subject.tokenizer.token_text(id)).unwrap_or("");
    let [own, theirs] = [&own, &theirs].map(|text| text.strip_prefix(bos).unwrap_or(text));
    if own == theirs {
        return Ok(checked(WHAT, Agreement::Same, "a conversation of three turns".to_owned()));
    }
    let [own, theirs] = [own, theirs].map(|text| text.chars().collect::<Vec<_>>());
    let at = first_difference(&own, &theirs);
    let around =
        |text: &[char]| -> String { text.iter().skip(at.saturating_sub(8)).take(24).collect() };
    let words = format!("at character {at}: {:?}, not {:?}", around(&theirs), around(&own));
    Ok(checked(WHAT, Agreement::Deviates, words))
}

/// Some rows of some matrices, decoded by the engine and by us.
fn weights(
    subject: &Subject,
    engine: &dyn Engine,
    _: &Reference,
    _: &Noise,
) -> anyhow::Result<Check> {
    const WHAT: &str = "weights";
    /// Of the largest weight of a row: engines decode into the type that they compute in, and
    /// bfloat16 has eight bits.
    const ALLOWED: f32 = 1.0 / 128.0;
    if subject.checkpoint.gguf.is_some() {
        let words = "a GGUF file's names are not those of an engine's modules".to_owned();
        return Ok(checked(WHAT, Agreement::Unasked, words));
    }
    let (mut worst, mut looked_at) = (0f32, 0);
    for located in sampled(subject) {
        let name = &located.tensor.name;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let first = located.tensor.rows.as_ref().map_or(0, |rows| rows.start);
        let count = located.weight.rows.min(ROWS);
        let theirs = match engine.weights(module, first..first + count) {
            Ok(weights) => weights,
            Err(error) => return refused(WHAT, error),
        };
        let blocks = subject.model.load(&subject.checkpoint, located)?;
        let own = Matrix::in_place(blocks, Precision::Exact, &Pool::new(1));
        if theirs.len() != count * own.cols() {
            let words = format!("{name}: {} weights, not {count} × {}", theirs.len(), own.cols());
            return Ok(checked(WHAT, Agreement::Deviates, words));
        }
        let mut row = vec![0.0; own.cols()];
        for (r, theirs) in theirs.chunks_exact(own.cols().max(1)).enumerate() {
            own.decode_row(r, &mut row);
            let largest = row.iter().fold(f32::MIN_POSITIVE, |most, w| most.max(w.abs()));
            for (col, (own, theirs)) in row.iter().zip(theirs).enumerate() {
                let off = (own - theirs).abs() / largest;
                // NaN is no weight.
                if off.is_nan() || off > ALLOWED {
                    let words = format!("{name}: row {r}, column {col} is {theirs:e}, not {own:e}");
                    return Ok(checked(WHAT, Agreement::Deviates, words));
                }
                worst = worst.max(off);
            }
        }
        looked_at += 1;
    }
    let words =
        format!("rows of {looked_at} matrices, off by {worst:.0e} of a row's largest at most");
    Ok(checked(WHAT, Agreement::Same, words))
}

/// Rows of a matrix that are looked at, and matrices.
const ROWS: usize = 32;
const MATRICES: usize = 8;

/// Matrices of layers, spread over the model; those of experts are not modules of their own.
fn sampled(subject: &Subject) -> Vec<&Located> {
    let linear = |located: &&Located| {
        located.weight.rows > 1
            && located.tensor.name.ends_with(".weight")
            && matches!(located.weight.role, Role::Layer(..))
    };
    let all: Vec<&Located> = subject.model.weights.iter().filter(linear).collect();
    // An odd step goes through the kinds of matrices as well as through the layers.
    let step = (all.len() / MATRICES).max(1) | 1;
    all.into_iter().step_by(step).take(MATRICES).collect()
}

fn logits(
    subject: &Subject,
    engine: &dyn Engine,
    reference: &Reference,
    noise: &Noise,
) -> anyhow::Result<Check> {
    const WHAT: &str = "logits";
    let mut between = Divergence::default();
    let (mut all, mut agreed, mut first) = (Vec::new(), 0, None);
    for (number, probe) in reference.probes.iter().enumerate() {
        let found = match rows(engine, &probe.tokens) {
            Ok(rows) => rows,
            Err(error) => return refused(WHAT, error),
        };
        if found.len() != probe.rows.len() {
            let words = format!("{} rows of logits, not {}", found.len(), probe.rows.len());
            return Ok(checked(WHAT, Agreement::Deviates, words));
        }
        for (at, (exact, found)) in probe.rows.iter().zip(&found).enumerate() {
            let exact = &exact[..subject.vocab.min(exact.len())];
            let Some(kl) = between.between(exact, &found[..exact.len().min(found.len())]) else {
                let words = format!("no probabilities at position {at} of text {}", number + 1);
                return Ok(checked(WHAT, Agreement::Deviates, words));
            };
            agreed += usize::from(likeliest(exact)[0] == likeliest(found)[0]);
            if kl > noise.limit() && first.is_none() {
                first = Some((number, at, kl));
            }
            all.push(kl);
        }
    }
    let mean = all.iter().sum::<f64>() / all.len().max(1) as f64;
    let outcome = if mean > noise.limit() { Agreement::Deviates } else { Agreement::Same };
    let mut words =
        format!("KL {mean:.1e} nats, the likeliest token the same at {agreed} of {}", all.len());
    if let (Agreement::Deviates, Some((number, at, kl))) = (outcome, first) {
        words += &format!("; first at position {at} of text {}, with {kl:.1e}", number + 1);
    }
    Ok(Check { kl: Some(mean), ..checked(WHAT, outcome, words) })
}

fn text(
    subject: &Subject,
    engine: &dyn Engine,
    reference: &Reference,
    noise: &Noise,
) -> anyhow::Result<Check> {
    const WHAT: &str = "text";
    let (mut same, mut ties) = (0, Vec::new());
    for (number, text) in reference.texts.iter().enumerate() {
        let (theirs, told) = match written(engine, &text.request) {
            Ok(written) => written,
            Err(error) => return refused(WHAT, error),
        };
        if theirs.contains(&UNKNOWN_TOKEN) && told != text.text {
            let [own, told] = [&text.text, &told].map(|text| text.chars().collect::<Vec<_>>());
            let words = format!(
                "text {} is another from character {} on; it does not tell which tokens it writes, \
                 so that this may be a tie",
                number + 1,
                first_difference(&own, &told)
            );
            return Ok(checked(WHAT, Agreement::Unasked, words));
        }
        if theirs == text.tokens || theirs.contains(&UNKNOWN_TOKEN) {
            same += 1;
            continue;
        }
        let at = first_difference(&text.tokens, &theirs);
        let before: Vec<u32> =
            text.request.prompt.iter().chain(&text.tokens[..at]).copied().collect();
        let (own, other) = (text.tokens.get(at).copied(), theirs.get(at).copied());
        // Where a text ends, the token that ended it is not told.
        let lead = match (own, other) {
            (Some(own), Some(other)) => Some(reference.lead(&before, own, other)?),
            _ => None,
        };
        match lead.filter(|lead| *lead <= noise.tie()) {
            Some(lead) => ties.push(format!("{lead:.0e} nats after {at} tokens")),
            None => {
                let lead = lead.map(|lead| format!(", {lead:.1e} nats less likely"));
                let words = format!(
                    "text {}: token {at} is {}, not {}{}",
                    number + 1,
                    shown(subject, other.as_ref()),
                    shown(subject, own.as_ref()),
                    lead.unwrap_or_default()
                );
                return Ok(checked(WHAT, Agreement::Deviates, words));
            }
        }
    }
    let mut words = format!("{same} of {} the same", reference.texts.len());
    if !ties.is_empty() {
        words += &format!(", the others up to a tie: {}", ties.join(", "));
    }
    Ok(checked(WHAT, Agreement::Same, words))
}

fn first_difference<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn shown(subject: &Subject, id: Option<&u32>) -> String {
    match id {
        Some(id) => format!("{id} ({:?})", subject.tokenizer.decode_with(&[*id], false)),
        None => "the end".to_owned(),
    }
}
