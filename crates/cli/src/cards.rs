//! What was measured, into the model card of a folder that Lathe made.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use lathe_base::AtomicFile;
use lathe_eval::{PassFigures, Role};
use lathe_files::{Card, Figure};
use lathe_optimize::Run;
use lathe_report::Report;
use lathe_stats::Interval;

/// The name under which the hub looks for a card.
const CARD: &str = "README.md";

/// Writes a run's figures into the cards of the models that it keeps.
pub(crate) fn of_run(folder: &Path, run: &Run, report: &Report) -> anyhow::Result<()> {
    let on = format!("{}, {} documents", run.data.name, run.data.documents);
    for (id, made) in &run.made {
        let model = folder.join(&made.path);
        let row = report.rows.iter().find(|row| row.id == *id);
        let Some(row) = row.filter(|_| made.path.is_relative() && model.join(CARD).is_file())
        else {
            continue;
        };
        let figures = [
            figure("KL divergence from the original, nats per token", &on, row.kl),
            figure("Perplexity", &on, row.perplexity),
            figure("Perplexity over the original's", &on, row.perplexity_ratio),
            figure("Same likeliest token as the original", &on, row.top1),
        ];
        write(&model, &figures.into_iter().flatten().collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Writes an evaluation's figures into the card of the model that was evaluated.
///
/// **Errors**: the folder has no card by Lathe.
pub(crate) fn of_evaluation(model: &Path, on: &str, passes: &[PassFigures]) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for pass in passes {
        let own = pass.models.iter().find(|model| model.role == Role::Candidate);
        let Some(own) = own.or(pass.models.first()) else { continue };
        let what = format!("Perplexity ({})", pass.label);
        all.extend(figure(&what, on, interval(own.perplexity)));
        let Some(versus) = own.versus.as_ref().filter(|_| all.len() == 1) else { continue };
        let kl = "KL divergence from the original, nats per token";
        all.extend(figure(kl, on, interval(versus.kl)));
        all.extend(figure("Same likeliest token as the original", on, interval(versus.same_top)));
    }
    if !model.join(CARD).is_file() || !write(model, &all)? {
        bail!("--card: {} has no {CARD} made by `lathe quantize`", model.display());
    }
    Ok(())
}

fn interval(figure: lathe_eval::Figure) -> Option<Interval> {
    figure.interval.or(Some(Interval::exact(figure.point)))
}

fn figure(what: &str, on: &str, value: Option<Interval>) -> Option<Figure> {
    let Interval { low, point, high, level, .. } = value?;
    let value = match high > low {
        true => format!("{point:.5} ({low:.5} to {high:.5}, {:.0} % interval)", 100.0 * level),
        false => format!("{point:.5}"),
    };
    Some(Figure { what: what.to_owned(), on: on.to_owned(), value })
}

/// Whether there was a card of ours to write to: somebody's own page is not for us to change.
fn write(model: &Path, figures: &[Figure]) -> anyhow::Result<bool> {
    let path = model.join(CARD);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let Some(text) = Card::with_figures(&text, figures) else { return Ok(false) };
    AtomicFile::write_all(&path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}
