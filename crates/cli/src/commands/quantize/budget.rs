//! `lathe quantize --budget` and `--bpw`: a format for each matrix, by what is measured.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use lathe_base::Bytes;
use lathe_formats::AnyFormat;
use lathe_models::Spec;
use lathe_preflight::Answer;
use lathe_quantizers::{
    Calibration, Plan,
    mix::{Assignment, Budget, Divergence, Fitted, Round, class},
};
use serde::Serialize;

use super::{QuantizeArgs, Work, format, run_line, stem};
use crate::{commands::optimize::at_least_one, fitting::Fitting, open, ui};

/// How large the result may be, and what counts.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Budget")]
pub(crate) struct BudgetArgs {
    /// Size of all weights' files at most, such as 4.2GiB: each matrix gets the format with which
    /// the model, measured on the calibration texts, loses least
    #[arg(long, value_name = "SIZE")]
    budget: Option<Bytes>,
    /// The same by stored bits per weight, such as 4.25
    #[arg(long, value_name = "BITS", conflicts_with = "budget", value_parser = bits)]
    bpw: Option<f64>,
    /// Formats to choose among, separated by commas [default: all that suit the container]
    #[arg(long, value_name = "FORMATS", value_delimiter = ',', value_parser = format)]
    formats: Vec<&'static dyn AnyFormat>,
    /// The budget also holds the KV cache of sequences this long
    #[arg(long, value_name = "TOKENS", requires = "budget", value_parser = at_least_one)]
    context: Option<usize>,
    /// Type of that KV cache
    #[arg(long, value_name = "TYPE", requires = "context", default_value = "f16")]
    kv: String,
    /// Sequences in that KV cache
    #[arg(long, value_name = "N", requires = "context", default_value = "1", value_parser = at_least_one)]
    batch: usize,
    /// Write the format of every matrix to this file, for --assignment
    #[arg(long, value_name = "FILE")]
    save_assignment: Option<PathBuf>,
    /// Formats by matrix from a file of --save-assignment
    #[arg(long, value_name = "FILE", conflicts_with_all = ["budget", "bpw"])]
    assignment: Option<PathBuf>,
}

impl BudgetArgs {
    /// What was asked for, if anything.
    pub(crate) fn budget(&self) -> Option<Budget> {
        self.budget.map(Budget::Bytes).or(self.bpw.map(Budget::Bits))
    }

    /// The formats of `--assignment`.
    pub(crate) fn exact(&self) -> anyhow::Result<BTreeMap<String, &'static dyn AnyFormat>> {
        match &self.assignment {
            Some(path) => Ok(Assignment::read(path)?.exact()?),
            None => Ok(BTreeMap::new()),
        }
    }

    /// Bytes of the KV cache that the budget also holds.
    fn reserved(&self, spec: &Spec) -> anyhow::Result<Bytes> {
        let Some(context) = self.context else { return Ok(Bytes(0)) };
        Ok(spec.cache_bytes(context, self.batch, open::kv(&self.kv)?))
    }
}

fn bits(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(bits) if bits > 0.0 && bits <= 64.0 => Ok(bits),
        _ => Err("a number of bits such as 4.25 is needed".to_owned()),
    }
}

/// Carries out the search and makes the file.
pub(super) fn run(work: Work<'_>, budget: Budget, json: bool) -> anyhow::Result<()> {
    let Work { args, weights, texts, threads, notes, bar } = work;
    let (own, checkpoint) = (&args.budget, texts.checkpoint);
    refuse(args)?;
    let recipe = args.recipe()?;
    let plan = Plan::new(weights.model(), checkpoint, &recipe)?;
    let out = args.out.clone().context("-o: say what file or folder to make")?;
    args.check_out(&out, checkpoint, &plan)?;
    let answers = args.check_loading(weights.model(), checkpoint, &plan, bar)?;
    let calibration = texts.draw(bar)?;
    let fitting = Fitting {
        checkpoint,
        weights,
        plan: &plan,
        recipe: &recipe,
        budget,
        reserved: own.reserved(weights.spec())?,
        formats: &own.formats,
        calibration: &calibration,
        name: &stem(&args.model),
        out: &out,
        threads,
        max_memory: args.max_memory,
        replace: args.force,
        measure: true,
    };
    let mut fitted = fitting.carry_out(bar)?;
    fitted.summary.notes.extend(notes);
    if let Some(path) = &own.save_assignment {
        Assignment::of(&fitted.plan, about(&fitted, &calibration)).write(path)?;
    }
    bar.clear();
    match json {
        true => ui::json(&Report::new(&out, &fitted, &calibration, &answers)),
        false => ui::out(&words(&out, &fitted, &fitting.journal())),
    }
}

/// Refuses what a search for formats does not look at.
fn refuse(args: &QuantizeArgs) -> anyhow::Result<()> {
    let given = [
        (args.method.is_some(), "--method", "codes are chosen by gptq here"),
        (args.imatrix.is_some(), "--imatrix", "the calibration texts take its place"),
        (args.smooth.is_some(), "--smooth", "smooth a bf16 copy first (--to bf16 --smooth 0.5)"),
        (args.act_order, "--act-order", "codes are chosen by gptq in the natural order here"),
        (args.pruning.prune.is_some(), "--prune", "prune a bf16 copy first (--to bf16 --prune)"),
    ];
    match given.into_iter().find(|(given, ..)| *given) {
        Some((_, flag, instead)) => bail!("{flag} does not go with --budget and --bpw: {instead}"),
        None => Ok(()),
    }
}

fn about(fitted: &Fitted, calibration: &Calibration) -> String {
    format!(
        "{}, KL {:.5} nats per token, fitted to and measured on {} tokens of {} (seed {})",
        fitted.length,
        fitted.divergence.mean,
        calibration.about.tokens,
        calibration.about.name,
        calibration.about.seed
    )
}

#[derive(Serialize)]
struct Report<'a> {
    out: &'a Path,
    bytes: Bytes,
    bits_per_weight: f64,
    /// Of the matrices alone, added up, in nats per token.
    predicted: f64,
    /// No other choice of formats has a lower prediction.
    bound: f64,
    measured: Divergence,
    /// With the codes made anew layer by layer.
    recoded: Option<Divergence>,
    /// Of the file: the better of both.
    divergence: Divergence,
    /// The power of its error that a matrix's divergence grows with.
    exponent: Option<f64>,
    rounds: &'a [Round],
    measurements: usize,
    calibration: &'a lathe_quantizers::CalibrationData,
    matrices: Vec<Row<'a>>,
    notes: &'a [String],
    /// Which engines load it, and with which kernel.
    engines: &'a [Answer],
    run: String,
}

#[derive(Serialize)]
struct Row<'a> {
    tensors: &'a [String],
    class: String,
    format: &'static str,
    bytes: u64,
    weights: u64,
    /// Divergence per relative squared error.
    sensitivity: f64,
    relative_square_error: f64,
    predicted: f64,
}

impl<'a> Report<'a> {
    fn new(
        out: &'a Path,
        fitted: &'a Fitted,
        calibration: &'a Calibration,
        engines: &'a [Answer],
    ) -> Self {
        Self {
            out,
            bytes: fitted.length,
            bits_per_weight: fitted.plan.bits_per_weight(),
            predicted: fitted.found.predicted,
            bound: fitted.found.bound,
            measured: fitted.found.measured,
            recoded: fitted.recoded,
            divergence: fitted.divergence,
            exponent: fitted.found.exponent,
            rounds: &fitted.found.rounds,
            measurements: fitted.measured,
            calibration: &calibration.about,
            matrices: rows(fitted),
            notes: &fitted.summary.notes,
            engines,
            run: run_line(out),
        }
    }
}

fn rows(fitted: &Fitted) -> Vec<Row<'_>> {
    let found = &fitted.found;
    let chosen = fitted.items.iter().zip(&found.state).zip(&found.items);
    chosen
        .map(|((item, option), known)| Row {
            tensors: &item.tensors,
            class: item.roles.first().map_or_else(String::new, |role| class(*role, &item.name)),
            format: item.options[*option].format.name(),
            bytes: item.options[*option].bytes,
            weights: item.weights,
            sensitivity: known.slope,
            relative_square_error: known.errors[*option],
            predicted: known.costs[*option],
        })
        .collect()
}

fn words(out: &Path, fitted: &Fitted, journal: &Path) -> String {
    let mut classes: BTreeMap<&str, Vec<&Row<'_>>> = BTreeMap::new();
    let rows = rows(fitted);
    for row in &rows {
        classes.entry(&row.class).or_default().push(row);
    }
    let line = |(class, rows): (&str, Vec<&Row<'_>>)| {
        let bytes: u64 = rows.iter().map(|row| row.bytes).sum();
        let weights: u64 = rows.iter().map(|row| row.weights).sum();
        let sensitivity = rows.iter().map(|row| row.sensitivity).sum::<f64>() / rows.len() as f64;
        let predicted: f64 = rows.iter().map(|row| row.predicted).sum();
        vec![
            class.to_owned(),
            counted(&rows),
            Bytes(bytes).to_string(),
            format!("{:.2}", 8.0 * bytes as f64 / weights as f64),
            format!("{sensitivity:.3}"),
            format!("{predicted:.5}"),
        ]
    };
    let header = ["matrices", "formats", ">bytes", ">bits", ">KL per relative error", ">KL"];
    let table: Vec<_> = classes.into_iter().map(line).collect();
    let found = &fitted.found;
    let bound = (found.predicted - found.bound).max(0.0);
    let recoded = match fitted.recoded {
        Some(recoded) if recoded.mean < found.measured.mean => format!(
            "codes made anew layer by layer: KL {:.5} instead of {:.5}\n",
            recoded.mean, found.measured.mean
        ),
        Some(recoded) => format!(
            "codes made anew layer by layer would give KL {:.5}, and are left out\n",
            recoded.mean
        ),
        None => String::new(),
    };
    let notes: String = fitted.summary.notes.iter().map(|note| ui::note(note)).collect();
    ui::table(&header, &table)
        + &notes
        + &format!(
            "\nKL {:.5} ± {:.5} nats per token measured, {:.5} predicted; no other formats of this \
             size are predicted to be better by more than {bound:.1e}\n{recoded}{} in {}, {:.2} bits \
             per weight\n{} measurements are kept in {} for other budgets\nRun it: {}\n",
            fitted.divergence.mean,
            fitted.divergence.error,
            found.predicted,
            ui::green(&format!("Made {}", out.display())),
            fitted.length,
            fitted.plan.bits_per_weight(),
            fitted.measured,
            journal.display(),
            run_line(out)
        )
}

/// Such as `q4_k × 3, q6_k`.
fn counted(rows: &[&Row<'_>]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    rows.iter().for_each(|row| *counts.entry(row.format).or_default() += 1);
    let word = |(format, count): (&str, usize)| match count {
        1 => format.to_owned(),
        many => format!("{format} × {many}"),
    };
    counts.into_iter().map(word).collect::<Vec<_>>().join(", ")
}
