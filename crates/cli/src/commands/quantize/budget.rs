//! `lathe quantize --budget` and `--bpw`: a format for each matrix, by what is measured.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use lathe_base::Bytes;
use lathe_files::gguf::Metadata;
use lathe_formats::AnyFormat;
use lathe_models::{Kind, Model, Spec};
use lathe_quantizers::{
    About, Calibration, Gptq, Job, Plan, Quantizer, Search, Stored, Target,
    mix::{Assignment, Budget, Divergence, Fit, Fitted, Round, class, fit},
};
use serde::Serialize;

use super::{QuantizeArgs, format, stem};
use crate::{
    args::Global,
    commands::{optimize::at_least_one, system::default_threads},
    exit::Ended,
    open, ui,
};

/// Memory for the products of inputs.
const MOST_HESSIANS: u64 = 4 << 30;

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
    /// Whether the inputs' products of all matrices may be held at once, as GPTQ wants them.
    fn holds_hessians(&self, spec: &Spec) -> bool {
        let matrices = spec.weights().into_iter().filter(|weight| weight.kind == Kind::Linear);
        matrices.map(|weight| 4 * (weight.cols as u64).pow(2)).sum::<u64>() <= MOST_HESSIANS
    }

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
pub(super) fn run(args: &QuantizeArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let own = &args.budget;
    let budget = own.budget().context("--budget or --bpw is needed")?;
    args.pruning.refuse("--budget and --bpw")?;
    let checkpoint = open::checkpoint(&args.model, &bar)?;
    let model = Model::read(&checkpoint).with_context(|| args.model.clone())?;
    let recipe = args.recipe()?;
    let plan = Plan::new(&model, &checkpoint, &recipe)?;
    let out = args.out.clone().context("-o: say what file or folder to make")?;
    args.check_out(&out, &checkpoint, &plan)?;
    let calibration = args.calibration.draw(&checkpoint, &model, &bar)?;
    let tokenizer = match plan.target == Target::Gguf && checkpoint.gguf.is_none() {
        true => open::tokenizer(&checkpoint)?.export(model.spec.vocab)?.metadata,
        false => Metadata::new(),
    };
    let (gptq, search) = (Gptq::default(), Search);
    let quantizer: &dyn Quantizer = if own.holds_hessians(&model.spec) { &gptq } else { &search };
    let job = Job {
        checkpoint: &checkpoint,
        weights: &Stored { model: &model, checkpoint: &checkpoint },
        plan: &plan,
        out: &out,
        replace: args.force,
        quantizer,
        imatrix: None,
        threads: args.threads.unwrap_or_else(default_threads),
        measure: true,
        about: &About { name: stem(&args.model), tokenizer },
    };
    let journal = out.with_added_extension("measured.jsonl");
    let request = Fit {
        job: &job,
        recipe: &recipe,
        budget,
        reserved: own.reserved(&model.spec)?,
        formats: &own.formats,
        texts: &calibration.sequences,
        effort: None,
        recoder: Some(&gptq),
        max_memory: args.max_memory,
        journal: &journal,
    };
    let fitted = fit(&request, &bar)?;
    if let Some(path) = &own.save_assignment {
        Assignment::of(&fitted.plan, about(&fitted, &calibration)).write(path)?;
    }
    bar.clear();
    if global.json {
        ui::json(&Report::new(&out, &fitted, &calibration))?;
    } else {
        ui::out(&words(&out, &fitted, &journal))?;
    }
    Ok(Ended::Well)
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
    fn new(out: &'a Path, fitted: &'a Fitted, calibration: &'a Calibration) -> Self {
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
    ui::table(&header, &table)
        + &format!(
            "\nKL {:.5} ± {:.5} nats per token measured, {:.5} predicted; no other formats of this \
             size are predicted to be better by more than {bound:.1e}\n{recoded}{} in {}, {:.2} bits \
             per weight\n{} measurements are kept in {} for other budgets\n",
            fitted.divergence.mean,
            fitted.divergence.error,
            found.predicted,
            ui::green(&format!("Made {}", out.display())),
            fitted.length,
            fitted.plan.bits_per_weight(),
            fitted.measured,
            journal.display()
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
