//! Two models: speed, divergence, and what they write.

use lathe_api::Engine;
use lathe_base::Progress;
use lathe_eval::{PassFigures, Role, Split, Versus};
use lathe_optimize::Guesses;
use lathe_stats::{Bootstrap, Interval};
use serde::Serialize;
use similar::{ChangeTag, TextDiff};

use super::CompareArgs;
use crate::{
    args::Global,
    commands::{
        answer::answer,
        bench::{self, Bench},
        eval,
        options::{Loaded, SpeculationArgs},
    },
    open::plain,
    ui,
};

/// Openings that show differences soon, in prose and in other text.
const PROMPTS: [&str; 3] = [
    "Once upon a time",
    "The most important thing about science is",
    "Question: What is a river?\nAnswer:",
];

#[derive(Serialize)]
struct Comparison {
    a: String,
    b: String,
    /// How many times as fast B decodes as A.
    speed_ratio: Option<Interval>,
    speed: Bench,
    /// What B predicts against what A predicts.
    divergence: Option<Versus>,
    noise_floor: Option<String>,
    outputs: Vec<Output>,
    notes: Vec<String>,
}

/// What both write after one prompt.
#[derive(Serialize)]
struct Output {
    prompt: String,
    a: String,
    b: String,
    same: bool,
}

pub(super) fn compare(args: &CompareArgs, global: &Global) -> anyhow::Result<()> {
    let bar = ui::Bar::new(global.quiet);
    let names = [args.a.clone(), args.b.clone()];
    let outputs = outputs(args, &bar)?;
    let mut notes = Vec::new();
    let (divergence, noise_floor) = match divergence(args, &mut notes, &bar) {
        Ok(found) => found,
        Err(error) => {
            bar.check()?;
            notes.push(format!("no divergence: {error:#}"));
            (None, None)
        }
    };
    let asked = bench::Asked {
        models: &names,
        against: &[],
        guesses: Guesses::Off,
        text: None,
        timing: &args.timing,
        streams: &[1],
    };
    let mut speed = bench::measure(&asked, &bar)?;
    bar.clear();
    speed.rounds.clear();
    speed.timeline.clear();
    let speed_ratio = speed.models.get(1).and_then(|b| b.ratio);
    let [a, b] = names;
    let all = Comparison { a, b, speed_ratio, speed, divergence, noise_floor, outputs, notes };
    if global.json { ui::json(&all) } else { ui::out(&text(&all)) }
}

/// What both write, one model loaded after the other.
fn outputs(args: &CompareArgs, progress: &dyn Progress) -> anyhow::Result<Vec<Output>> {
    let prompts: Vec<String> = match args.prompt.is_empty() {
        true => PROMPTS.map(str::to_owned).to_vec(),
        false => args.prompt.clone(),
    };
    let a = write(&args.a, &prompts, args, progress)?;
    let b = write(&args.b, &prompts, args, progress)?;
    let outputs = prompts.into_iter().zip(a).zip(b);
    Ok(outputs.map(|((prompt, a), b)| Output { prompt, same: a == b, a, b }).collect())
}

fn write(
    model: &str,
    prompts: &[String],
    args: &CompareArgs,
    progress: &dyn Progress,
) -> anyhow::Result<Vec<String>> {
    let loaded = Loaded::new(model, &args.timing.engine, &SpeculationArgs::off(), progress)?;
    let mut texts = Vec::new();
    for (done, prompt) in prompts.iter().enumerate() {
        progress.at(&format!("{model} writes"), done as u64, prompts.len() as u64);
        let ids = plain(&loaded.tokenizer, prompt)?;
        let room = loaded.engine.info().context.saturating_sub(ids.len());
        let request = lathe_api::Request {
            prompt: ids,
            max_tokens: args.max_tokens.min(room),
            sampling: lathe_api::Sampling::default(),
            stop_tokens: loaded.tokenizer.stop_tokens().to_vec(),
            stop_strings: Vec::new(),
            ignore_stop: false,
            grammar: None,
        };
        let answer = answer(&loaded.engine, request.into(), progress, &mut |_| Ok(()))?;
        progress.check()?;
        texts.push(answer.text);
    }
    Ok(texts)
}

fn divergence(
    args: &CompareArgs,
    notes: &mut Vec<String>,
    progress: &dyn Progress,
) -> anyhow::Result<(Option<Versus>, Option<String>)> {
    let question = eval::EvalArgs {
        model: args.b.clone(),
        base: Some(args.a.clone()),
        data: args.data.clone(),
        choices: None,
        no_choices: true,
        conventions: vec!["documents".to_owned()],
        max_tokens: args.data_tokens,
        split: Split::Auto,
        level: args.timing.level,
        seed: 0,
        exact: false,
        save: None,
        card: false,
        engine: args.timing.engine.clone(),
    };
    let (raw, remarks) = eval::measure(&question, progress)?;
    notes.extend(remarks);
    let bootstrap = Bootstrap { level: args.timing.level, ..Bootstrap::default() };
    let Some(pass) = raw.passes.first() else { return Ok((None, None)) };
    let figures = PassFigures::new(pass, &bootstrap)?;
    let floor = figures.floor.as_ref().map(lathe_eval::NoiseFloor::label);
    let model = figures.models.into_iter().find(|m| m.role == Role::Candidate);
    Ok((model.and_then(|m| m.versus), floor))
}

fn text(all: &Comparison) -> String {
    let mut facts = vec![("A".to_owned(), line(all, 0)), ("B".to_owned(), line(all, 1))];
    if let Some(ratio) = all.speed_ratio {
        facts.push(("B decodes".to_owned(), format!("{ratio:.3} times as fast as A")));
    }
    if let Some(versus) = &all.divergence {
        let kl = versus
            .kl
            .interval
            .map_or_else(String::new, |i| format!(" ({:.5} to {:.5})", i.low, i.high));
        let kl = format!("{:.5}{kl} nats per token", versus.kl.point);
        facts.push(("KL divergence of B".to_owned(), kl));
        let top = 100.0 * versus.same_top.point;
        facts.push(("Same top token".to_owned(), format!("{top:.2} %")));
        let ratio = versus.perplexity_ratio.point;
        facts.push(("Perplexity, B / A".to_owned(), format!("{ratio:.4}")));
    }
    let mut text = ui::facts(&facts);
    if let Some(floor) = &all.noise_floor {
        text += &format!("{}\n", ui::dim(floor));
    }
    for output in &all.outputs {
        text += &format!("\n{}\n{}", ui::bold(&output.prompt), written(output));
    }
    for warning in all.notes.iter().chain(&all.speed.warnings) {
        text += &format!("{} {warning}\n", ui::yellow("note:"));
    }
    text
}

/// Name, size, decode speed and memory of one of the two.
fn line(all: &Comparison, index: usize) -> String {
    let name = if index == 0 { &all.a } else { &all.b };
    let Some(model) = all.speed.models.get(index) else { return name.clone() };
    let mut words = format!("{name}, {}", model.size);
    if let Some(decode) = model.figures.decode {
        words += &format!(", {:.1} tokens/s", decode.point);
    }
    if let Some(peak) = model.figures.peak_memory {
        words += &format!(", peak memory {peak}");
    }
    words
}

/// Both texts, with what the other does not have in brackets and colour.
fn written(output: &Output) -> String {
    if output.same {
        return format!("{} {}\n", ui::dim("A = B"), output.a.trim());
    }
    let diff = TextDiff::from_words(output.a.trim(), output.b.trim());
    let a = side(&diff, ChangeTag::Delete, ui::red);
    let b = side(&diff, ChangeTag::Insert, ui::green);
    format!("{} {a}\n{} {b}\n", ui::dim("A"), ui::dim("B"))
}

/// One side's text, its own words marked.
fn side(diff: &TextDiff<'_, '_, str>, own: ChangeTag, colour: fn(&str) -> String) -> String {
    let mut spans: Vec<(bool, String)> = Vec::new();
    for change in diff.iter_all_changes() {
        let changed = change.tag() == own;
        if !changed && change.tag() != ChangeTag::Equal {
            continue;
        }
        match spans.last_mut() {
            Some((last, words)) if *last == changed => *words += change.value(),
            _ => spans.push((changed, change.value().to_owned())),
        }
    }
    joined(spans)
        .into_iter()
        .map(|(changed, words)| if changed { colour(&bracket(&words)) } else { words })
        .collect()
}

/// Changed words with nothing but space between them are one change.
fn joined(spans: Vec<(bool, String)>) -> Vec<(bool, String)> {
    let mut out: Vec<(bool, String)> = Vec::new();
    let mut spans = spans.into_iter().peekable();
    while let Some((changed, words)) = spans.next() {
        let between = words.trim().is_empty() && spans.peek().is_some();
        match out.last_mut() {
            Some((true, before)) if changed || between => *before += &words,
            _ => out.push((changed, words)),
        }
    }
    out
}

/// Brackets around the words, not around the space at their ends.
fn bracket(words: &str) -> String {
    let core = words.trim();
    if core.is_empty() {
        return words.to_owned();
    }
    let start = words.len() - words.trim_start().len();
    format!("{}[{core}]{}", &words[..start], &words[start + core.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_bracketed_on_its_side() {
        let output = Output {
            prompt: String::new(),
            a: "the red fox ran home".to_owned(),
            b: "the big dog ran home fast".to_owned(),
            same: false,
        };
        assert_eq!(written(&output), "A the [red fox] ran home\nB the [big dog] ran home [fast]\n");
    }

    #[test]
    fn equal_texts_are_shown_once() {
        let (a, b) = ("same".to_owned(), "same".to_owned());
        let output = Output { prompt: String::new(), a, b, same: true };
        assert_eq!(written(&output), "A = B same\n");
    }
}
