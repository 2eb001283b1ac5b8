use lathe_eval::{ChoiceFigures, Figure, ModelFigures, PassFigures, Role, Rule, Units, Versus};
use lathe_stats::Interval;

use super::Evaluation;
use crate::ui;

/// The evaluation for people.
pub(super) fn text(seen: &Evaluation) -> String {
    let mut facts = vec![("Model".to_owned(), seen.model.clone())];
    if let Some(base) = &seen.base {
        facts.push(("Base".to_owned(), base.clone()));
    }
    let data = &seen.data;
    let text = format!("{}: {} documents, {} tokens", data.name, data.documents, data.tokens);
    facts.push(("Text".to_owned(), text));
    let mut text = ui::facts(&facts) + "\n";
    text += &perplexities(seen);
    for pass in seen.passes.iter().filter(|_| seen.base.is_some()).take(1) {
        text += "\n";
        text += &divergence(pass);
    }
    if !seen.choices.is_empty() {
        text += "\n";
        text += &choices(&seen.choices);
    }
    if seen.passes.iter().any(|p| p.units == Units::Segments) {
        text += &format!(
            "{} where fewer than {} documents are met, intervals are over the pieces of text \
             and somewhat too short\n",
            ui::yellow("note:"),
            lathe_stats::SMALLEST_BOOTSTRAP
        );
    }
    for note in &seen.notes {
        text += &format!("{} {note}\n", ui::yellow("note:"));
    }
    text
}

fn perplexities(seen: &Evaluation) -> String {
    if seen.base.is_none() {
        let rows: Vec<Vec<String>> = seen.passes.iter().filter_map(alone).collect();
        let header = ["perplexity of", ">tokens", ">perplexity", ">interval", ">bits per byte"];
        return ui::table(&header, &rows);
    }
    let rows: Vec<Vec<String>> = seen.passes.iter().filter_map(against).collect();
    let header =
        ["perplexity of", ">tokens", ">base", ">model", ">model / base", ">KL", ">same top token"];
    ui::table(&header, &rows)
}

fn alone(pass: &PassFigures) -> Option<Vec<String>> {
    let model = pass.models.first()?;
    Some(vec![
        pass.label.clone(),
        model.tokens.to_string(),
        format!("{:.4}", model.perplexity.point),
        range(&model.perplexity, |x| format!("{x:.4}")),
        model.bits_per_byte.map_or_else(String::new, |b| format!("{:.4}", b.point)),
    ])
}

fn against(pass: &PassFigures) -> Option<Vec<String>> {
    let (base, model, versus) = pair(pass)?;
    Some(vec![
        pass.label.clone(),
        model.tokens.to_string(),
        format!("{:.4}", base.perplexity.point),
        format!("{:.4}", model.perplexity.point),
        with_range(&versus.perplexity_ratio, |x| format!("{x:.4}")),
        format!("{:.5}", versus.kl.point),
        percent(versus.same_top.point),
    ])
}

fn pair(pass: &PassFigures) -> Option<(&ModelFigures, &ModelFigures, &Versus)> {
    let model = pass.models.iter().find(|m| m.role == Role::Candidate)?;
    Some((pass.models.first()?, model, model.versus.as_ref()?))
}

fn divergence(pass: &PassFigures) -> String {
    let Some((_, _, versus)) = pair(pass) else { return String::new() };
    let nats = |x: f64| format!("{x:.5}");
    let row = |label: &str, value: String| (label.to_owned(), value);
    let mut facts = vec![
        row("KL divergence, mean", with_range(&versus.kl, nats) + " nats per token"),
        row("median", nats(versus.kl_median)),
        row("99th percentile", with_range(&versus.kl_p99, nats)),
        row("largest", nats(versus.kl_max)),
        row("Same top token", with_range(&versus.same_top, percent)),
        row("Flips", with_range(&versus.flips, percent)),
        row(
            "Change of the right token's probability",
            with_range(&versus.delta_p, |x| format!("{:+.3} %", 100.0 * x))
                + &format!(", RMS {}", percent(versus.delta_p_rms.point)),
        ),
    ];
    if let Some(above) = &versus.kl_above_floor {
        facts.push(row("KL above the noise floor", with_range(above, nats)));
    }
    let mut text =
        ui::dim(&format!("Against the base, {}", pass.label)) + "\n" + &ui::facts(&facts);
    if let Some(floor) = &pass.floor {
        text += &format!("{}\n", ui::dim(&floor.label()));
    }
    text
}

fn choices(all: &[ChoiceFigures]) -> String {
    let mut rows = Vec::new();
    for figures in all {
        let rule = match figures.rule {
            Rule::Sum => "by likelihood",
            Rule::PerByte => "by likelihood per byte",
        };
        for model in &figures.models {
            let versus = model.versus.as_ref();
            rows.push(vec![
                format!("{} {rule}", figures.name),
                model.name.clone(),
                figures.items.to_string(),
                percent(model.accuracy.point),
                between(&model.accuracy, percent),
                percent(figures.chance),
                versus.map_or_else(String::new, |v| percent(v.flips.point)),
                versus.map_or_else(String::new, |v| format!("{:.3}", v.p_value)),
            ]);
        }
    }
    let header = [
        "multiple choice",
        "model",
        ">items",
        ">accuracy",
        ">interval",
        ">guessing",
        ">flips",
        ">p of the change",
    ];
    ui::table(&header, &rows)
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn with_range(figure: &Figure, show: impl Fn(f64) -> String) -> String {
    let range = range(figure, &show);
    let gap = if range.is_empty() { "" } else { " " };
    format!("{}{gap}{range}", show(figure.point))
}

fn range(figure: &Figure, show: impl Fn(f64) -> String) -> String {
    figure.interval.as_ref().map_or_else(String::new, |interval| between(interval, show))
}

/// `(18.41 to 19.33)`.
fn between(interval: &Interval, show: impl Fn(f64) -> String) -> String {
    format!("({} to {})", show(interval.low), show(interval.high))
}
