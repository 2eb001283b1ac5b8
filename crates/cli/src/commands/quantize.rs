mod budget;
mod pruning;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum, builder::ArgPredicate};
use lathe_base::{Bytes, Progress};
use lathe_files::{Activations, Checkpoint, Imatrix, Layout};
use lathe_formats::AnyFormat;
use lathe_models::Model;
use lathe_preflight::Answer;
use lathe_quantizers::{
    Done, METHODS, Method, Mix, Needs, Order, Overrides, Plan, Recipe, Rule, Scheme, Settings,
    Smooth, Stored, Summary, Target, Weights, mix_by_name,
};
use serde::Serialize;

use crate::{
    args::Global,
    change::Change,
    commands::{
        calibration::CalibrationArgs, optimize::at_least_one, options::place,
        system::default_threads,
    },
    exit::Ended,
    how::{How, methods},
    loading::{self, EngineArgs, obstacle_words},
    making::Making,
    open, ui,
};
use pruning::{PruningArgs, Texts};
pub(crate) use pruning::{notes as pruning_notes, prune};

/// Options of `lathe quantize`.
#[derive(Args)]
#[command(after_help = help())]
pub(crate) struct QuantizeArgs {
    /// `demo`, Hugging Face folder, GGUF or PyTorch file, or hub id
    model: String,
    /// Format of the matrices inside the layers, one of llama.cpp's mixes, or a scheme: w8a8,
    /// fp8_dynamic, fp8_static
    #[arg(long, value_name = "FORMAT", value_parser = goal)]
    #[arg(required = false, required_unless_present_any = ["budget", "bpw"])]
    #[arg(default_value_ifs = [("budget", ArgPredicate::IsPresent, "q8_0"), ("bpw", ArgPredicate::IsPresent, "q8_0")])]
    to: Goal,
    #[command(flatten)]
    budget: budget::BudgetArgs,
    /// File (GGUF) or folder to make [default: the model's name and the format, here]
    #[arg(short, long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Format of the token embeddings [default: as stored; in GGUF as --to]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    embeddings: Option<&'static dyn AnyFormat>,
    /// Format of the output head [default: as stored; in GGUF what llama-quantize chooses]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    head: Option<&'static dyn AnyFormat>,
    /// Embeddings and head in the format of --to as well
    #[arg(long)]
    pure: bool,
    /// Format of the matrices whose name a pattern (a regular expression) is found in, as in
    /// ffn_down=q6_k. May be given several times; the first that fits counts
    #[arg(long = "tensor", value_name = "PATTERN=FORMAT", value_parser = rule)]
    tensors: Vec<Rule>,
    /// Kind of file [default: the one that holds the format, else the model's own]
    #[arg(long, value_name = "KIND")]
    container: Option<Container>,
    /// Tool whose layout a Hugging Face folder's weights have: compressed-tensors, gptq, gptq-v2,
    /// awq, bitsandbytes or fp8 [default: the usual one of the format]
    #[arg(long, value_name = "TOOL", value_parser = layout)]
    layout: Option<Layout>,
    /// What engines are to do with the inputs of quantized weights: float (leave them), int8 (a scale
    /// for each token: W8A8, beside int8), fp8 (likewise, beside fp8_*) or fp8-static (scales known
    /// from calibration) [default: fp8 beside fp8_*, else float]
    #[arg(long, value_name = "KIND", value_parser = activations)]
    activations: Option<Activations>,
    /// How codes are chosen [default: gptq where something to calibrate with is given; else search
    /// for int*, fp8_row, mxfp4 and nvfp4; else rtn, which is llama.cpp's and bitsandbytes' own rule]
    #[arg(long, value_name = "METHOD", value_parser = method)]
    method: Option<&'static Method>,
    /// Importance matrix of this model, by `lathe imatrix` or llama.cpp: columns count by it
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Move what is extreme in each matrix's inputs into its weights first, for engines that round
    /// inputs too: a share from 0 to 1 for all, or auto for what loses least at each place
    /// (calibrates)
    #[arg(long, value_name = "ALPHA", num_args = 0..=1, default_missing_value = "auto", value_parser = smooth)]
    smooth: Option<Smooth>,
    /// Code the columns that meet the largest inputs first, with all scales fitted before (gptq's
    /// "act-order" with static groups) [default: from the first to the last]
    #[arg(long)]
    act_order: bool,
    /// Turn the model into another basis first, in which weights have fewer outliers; the number
    /// decides into which
    #[arg(long, value_name = "SEED", num_args = 0..=1, default_missing_value = "0")]
    rotate: Option<u64>,
    /// Threads [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,
    /// Replace an older file or folder of that name
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: EngineArgs,
    /// Make it even where an engine asked for will not load it
    #[arg(long, help_heading = "Deployment")]
    unchecked: bool,
    #[command(flatten)]
    pruning: PruningArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Calibrate a layer's matrices with the layer as it was, not with those before quantized
    #[arg(long, help_heading = "Calibration")]
    whole_layers: bool,
    /// Memory that calibration may take, such as 4GiB [default: what it needs]
    #[arg(long, value_name = "SIZE", help_heading = "Calibration")]
    max_memory: Option<Bytes>,
}

const EXAMPLES: &str = "\
Examples:
  lathe quantize ./Qwen2.5-1.5B --to q4_0 -o qwen-q4_0.gguf
  lathe quantize ./Qwen2.5-1.5B --to nf4                  makes ./Qwen2.5-1.5B-nf4
  lathe quantize ./Qwen2.5-1.5B --to int4_g128_f16 --layout gptq --engine vllm --device a100
  lathe quantize model-f16.gguf --to q8_0 --pure
  lathe quantize demo --to bf16 --container gguf -o demo.gguf
  lathe quantize ./Qwen2.5-1.5B --to int4_g128 --method gptq --max-memory 4GiB
  lathe quantize ./Qwen2.5-1.5B --to int4_g128 --method gptq --calibration chats.jsonl --rotate
  lathe quantize ./Qwen2.5-1.5B --to int4_g128 --method gptq --prune sparsegpt:2:4
  lathe quantize ./Qwen2.5-1.5B --to bf16 --drop-layers 2       the two that do least
  lathe quantize ./Qwen2.5-1.5B --budget 1GiB --calibration chats.jsonl -o qwen-1g.gguf
  lathe quantize ./Qwen2.5-1.5B --to q4_k_m --imatrix qwen.imatrix.gguf -o qwen-q4_k_m.gguf
  lathe quantize ./Qwen2.5-1.5B --to w8a8 --smooth              INT8 weights and inputs
  lathe quantize ./Qwen2.5-1.5B --to fp8_block --layout fp8     as DeepSeek's checkpoints

Formats: f32, f16, bf16; int8, int8_tensor, int{2,3,4,8}[_asym]_{g32,g64,g128,row}[_f16] such as
int4_g128, nf4, nf4_dq, fp4, fp4_dq, fp8_row, fp8_tensor, fp8_block, mxfp4, nvfp4 (Hugging Face
folders).
Types of GGUF files, with more bits for some tensors as llama-quantize chooses them (--pure: for
none): q8_0, q5_1, q5_0, q4_1, q4_0, q6_k, q5_k_m, q5_k_s, q4_k_m, q4_k_s, q3_k_l, q3_k_m, q3_k_s,
q2_k, q2_k_s, iq4_nl, iq4_xs. q5_k, q4_k and q3_k are the medium ones here, and types of a single
matrix elsewhere.
Schemes: w8a8 is int8 with --activations int8, fp8_dynamic is fp8_row with --activations fp8,
fp8_static is fp8_tensor with --activations fp8-static (calibrates).";

const INTERRUPTED: &str = "\
Interrupted, be it by Ctrl-C, a crash or a full disk, the same command goes on where it stopped.
The result appears under its name only when it is complete.";

fn help() -> String {
    format!("{EXAMPLES}\n\nMethods:\n{}\n{INTERRUPTED}", methods())
}

/// What `--to` names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    Format(&'static dyn AnyFormat),
    Mix(&'static Mix),
    Scheme(&'static Scheme),
}

impl Goal {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Format(format) => format.name(),
            Self::Mix(mix) => mix.name,
            Self::Scheme(scheme) => scheme.name,
        }
    }

    pub(crate) fn recipe(self) -> anyhow::Result<Recipe> {
        Ok(match self {
            Self::Format(format) => Recipe::new(format),
            Self::Mix(mix) => Recipe::mix(mix)?,
            Self::Scheme(scheme) => Recipe::scheme(scheme)?,
        })
    }
}

fn layout(name: &str) -> Result<Layout, String> {
    Layout::by_name(name).ok_or_else(|| {
        let known = Layout::ALL.map(Layout::name).join(", ");
        format!("there is no layout `{name}`; the layouts are {known}")
    })
}

fn activations(name: &str) -> Result<Activations, String> {
    Activations::by_name(name).ok_or_else(|| {
        let known = Activations::ALL.map(Activations::name).join(", ");
        format!("there are no activations `{name}`; there are {known}")
    })
}

fn smooth(share: &str) -> Result<Smooth, String> {
    if share == "auto" {
        return Ok(Smooth::default());
    }
    let alpha = share.parse().map_err(|_| format!("`{share}` is neither auto nor a number"))?;
    Smooth::new(alpha).map_err(|error| error.to_string())
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Container {
    Safetensors,
    Gguf,
}

#[derive(Serialize)]
struct Quantized<'a> {
    model: &'a str,
    out: &'a Path,
    #[serde(flatten)]
    summary: &'a Summary,
    /// Σ (weight − coded weight)² over Σ weight², of the tensors that were coded.
    relative_square_error: Option<f64>,
    /// Which engines load it, and with which kernel.
    engines: &'a [Answer],
    run: String,
}

pub(crate) fn run(args: QuantizeArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let checkpoint = open::checkpoint(&args.model, &bar)?;
    let model = Model::read(&checkpoint).with_context(|| args.model.clone())?;
    let threads = args.threads.unwrap_or_else(default_threads);
    let stored = Stored { model: &model, checkpoint: &checkpoint };
    let texts = Texts { args: &args.calibration, checkpoint: &checkpoint, model: &model };
    let dropped = args.pruning.dropped(&stored, &texts, threads, &bar)?;
    let change = Change { dropped, rotate: args.rotate };
    change.view(&stored, &checkpoint, threads, |weights, notes| {
        let work = Work { args: &args, weights, texts: &texts, threads, notes, bar: &bar };
        match args.budget.budget() {
            Some(budget) => budget::run(work, budget, global.json),
            None => work.make(global.json),
        }
    })?;
    Ok(Ended::Well)
}

/// What is to be quantized: a model, changed as asked for.
struct Work<'a> {
    args: &'a QuantizeArgs,
    weights: &'a dyn Weights,
    texts: &'a Texts<'a>,
    threads: usize,
    /// Of what was changed.
    notes: Vec<String>,
    bar: &'a ui::Bar,
}

impl Work<'_> {
    fn make(self, json: bool) -> anyhow::Result<()> {
        let Self { args, weights, texts, threads, notes, bar } = self;
        let checkpoint = texts.checkpoint;
        let plan = Plan::new(weights.model(), checkpoint, &args.recipe()?)?;
        let out = args.out(&plan);
        args.check_out(&out, checkpoint, &plan)?;
        let answers = args.check_loading(weights.model(), checkpoint, &plan, bar)?;
        let how = args.how(texts, &plan, bar)?;
        let making = Making {
            checkpoint,
            weights,
            plan: &plan,
            name: &stem(&args.model),
            out: &out,
            how: &how,
            threads,
            replace: args.force,
            measure: true,
        };
        bar.note(&format!(
            "{} → {}: {} in {}, {:.2} bits per weight",
            args.model,
            out.display(),
            plan.bytes(),
            plan.format.name(),
            plan.bits_per_weight()
        ));
        let mut summary = making.carry_out(bar).with_context(|| args.model.clone())?;
        summary.notes.extend(notes);
        let pruned = args.pruning.prune.is_some();
        if pruned {
            summary.notes.extend(pruning_notes(&plan));
        }
        bar.clear();
        if !json {
            return ui::out(&words(&summary, &out, pruned));
        }
        ui::json(&Quantized {
            model: &args.model,
            out: &out,
            summary: &summary,
            relative_square_error: relative_error(&summary.tensors),
            engines: &answers,
            run: run_line(&out),
        })
    }
}

/// A mix of llama.cpp's, a scheme or a format. Where a mix is called like a format, such as `q4_0`,
/// the mix is meant: who asks for it expects the file that llama-quantize makes.
pub(crate) fn goal(name: &str) -> Result<Goal, String> {
    let name = name.to_lowercase();
    let known = mix_by_name(&name).map(Goal::Mix).or(Scheme::by_name(&name).map(Goal::Scheme));
    match known {
        Some(goal) => Ok(goal),
        None => lathe_formats::by_name(&name).map(Goal::Format).map_err(|e| e.to_string()),
    }
}

fn method(name: &str) -> Result<&'static Method, String> {
    let names = || METHODS.iter().map(|method| method.name).collect::<Vec<_>>().join(", ");
    Method::by_name(name)
        .ok_or_else(|| format!("there is no such method; the methods are {}", names()))
}

fn rule(text: &str) -> Result<Rule, String> {
    text.parse().map_err(|error: lathe_quantizers::Error| error.to_string())
}

fn format(name: &str) -> Result<&'static dyn AnyFormat, String> {
    lathe_formats::by_name(name).map_err(|error| error.to_string())
}

/// The model's name without folders, suffix and revision.
pub(crate) fn stem(model: &str) -> String {
    if open::is_demo(model) {
        return lathe_demo::NAME.to_owned();
    }
    // `.` and `..` have no name of their own; what is not there is a hub id.
    let name = match Path::new(model).canonicalize() {
        Ok(path) if path.is_dir() => path.file_name().map(ToOwned::to_owned),
        Ok(path) => path.file_stem().map(ToOwned::to_owned),
        Err(_) => {
            model.rsplit('/').next().and_then(|id| id.split(['@', ':']).next()).map(Into::into)
        }
    };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

impl QuantizeArgs {
    fn recipe(&self) -> anyhow::Result<Recipe> {
        let by_name = self.out.as_ref().filter(|out| is_gguf(out)).map(|_| Target::Gguf);
        let asked = self.container.map(|container| match container {
            Container::Safetensors => Target::SafeTensors,
            Container::Gguf => Target::Gguf,
        });
        let usual = self.to.recipe()?;
        let folder = self.layout.map(|_| Target::SafeTensors);
        Ok(Recipe {
            importance: self.imatrix.is_some() || self.method.is_some_and(Method::weighs),
            embeddings: self.embeddings,
            head: self.head,
            pure: self.pure,
            tensors: Overrides { rules: self.tensors.clone(), exact: self.budget.exact()? },
            target: asked.or(by_name).or(folder).or(usual.target),
            layout: self.layout.unwrap_or_default(),
            activations: self.activations.or(usual.activations),
            ..usual
        })
    }

    /// The method with everything that it needs, and why it was chosen where nobody asked for it.
    fn how(&self, texts: &Texts<'_>, plan: &Plan, progress: &dyn Progress) -> anyhow::Result<How> {
        let method = match self.method {
            Some(method) => method,
            None => {
                let (method, why) = self.usual_method(plan)?;
                progress.note(&format!("method: {} ({why})", method.name));
                method
            }
        };
        if !(method.suits)(plan.format) {
            let suits = METHODS.iter().filter(|m| (m.suits)(plan.format));
            let others: Vec<_> = suits.map(|m| m.name).collect();
            let (name, format, others) = (method.name, plan.format.name(), others.join(", "));
            bail!("--method {name} cannot choose codes of {format}; these can: {others}");
        }
        let mut settings = Settings::default();
        if self.act_order {
            if !method.orders() {
                bail!("--act-order is gptq's; {} has no order of columns", method.name);
            }
            settings.gptq.order = Order::Importance;
        }
        let mut pipeline = (method.make)(&settings)?;
        if let Some(smooth) = self.smooth {
            pipeline.transforms.insert(0, Box::new(smooth));
        }
        if let Some(prune) = self.pruning.prune {
            pipeline = pipeline.after(prune);
        }
        let fixed = plan.activations == Activations::Fp8Static;
        let calibrates = pipeline.needs() > Needs::Nothing || fixed;
        if !calibrates && self.calibration.given() && !self.pruning.compares_layers() {
            progress.note(&format!("{} does not calibrate: the texts are not used", method.name));
        }
        let imatrix = self.imatrix.as_deref().map(Imatrix::read).transpose()?;
        if calibrates && imatrix.is_some() {
            progress.note("calibration takes the place of --imatrix");
        }
        let calibration = calibrates.then(|| texts.draw(progress)).transpose()?;
        Ok(How {
            pipeline,
            imatrix: imatrix.filter(|_| !calibrates),
            calibration,
            sequential: !self.whole_layers,
            max_memory: self.max_memory,
        })
    }

    fn usual_method(&self, plan: &Plan) -> anyhow::Result<(&'static Method, &'static str)> {
        let suits = |name: &str| Method::by_name(name).filter(|method| (method.suits)(plan.format));
        // Those whose files need not equal another tool's, and where searched scales measurably
        // help (docs/searched-scales.md).
        let searched = ["int", "fp8_row", "mxfp4", "nvfp4"];
        let searched = searched.iter().any(|start| plan.format.name().starts_with(start));
        let choices = [
            (self.calibration.given(), "gptq", "there are texts to calibrate with"),
            (self.calibration.given(), "search", "gptq cannot choose codes of this format"),
            (searched, "search", "calibrate with --method gptq for less loss"),
            (true, "rtn", "the format's own rule"),
        ];
        let fits = |(when, name, why): &(bool, &str, &'static str)| {
            suits(name).filter(|_| *when).map(|method| (method, *why))
        };
        choices.iter().find_map(fits).context("no method suits this format")
    }

    fn out(&self, plan: &Plan) -> PathBuf {
        self.out.clone().unwrap_or_else(|| {
            let name = format!("{}-{}", stem(&self.model), self.to.name());
            match plan.target {
                Target::Gguf => PathBuf::from(name + ".gguf"),
                Target::SafeTensors => PathBuf::from(name),
            }
        })
    }

    /// Says which engines will load the result; refuses where one that was asked for will not, or
    /// where devices or a layout are asked for and no engine will.
    fn check_loading(
        &self,
        model: &Model,
        checkpoint: &Checkpoint,
        plan: &Plan,
        progress: &dyn Progress,
    ) -> anyhow::Result<Vec<Answer>> {
        let artifact = loading::planned(model, checkpoint, plan);
        let answers = self.target.ask(&artifact)?;
        let matrices = artifact.matrices.len();
        loading::sentences(&answers, matrices).iter().for_each(|line| progress.note(line));
        let refused = self.target.refused(&answers).or_else(|| {
            // A layout is asked for that other programs should read; Lathe's own engine, and what
            // is given a graph by Lathe, read every one.
            let reads_all = |answer: &Answer| ["native", "onnxruntime"].contains(&&*answer.engine);
            let counts = |answer: &&Answer| self.layout.is_none() || !reads_all(answer);
            let mut counted = answers.iter().filter(counts).peekable();
            let asked = self.layout.is_some() || self.target.given();
            let first = counted.peek().copied().filter(|_| asked);
            first.filter(|_| !counted.any(Answer::loads))
        });
        match refused {
            Some(answer) if !self.unchecked => {
                let reasons = answer.obstacles.iter().map(|o| obstacle_words(o, matrices));
                let reasons = reasons.collect::<Vec<_>>().join("; ");
                bail!(
                    "{} will not load this on {}: {reasons}; --unchecked makes it all the same",
                    answer.engine,
                    answer.device
                )
            }
            _ => Ok(answers),
        }
    }

    /// Refuses what would end badly before any work is done.
    fn check_out(&self, out: &Path, checkpoint: &Checkpoint, plan: &Plan) -> anyhow::Result<()> {
        let shown = out.display();
        if plan.target == Target::SafeTensors && is_gguf(out) {
            bail!(
                "-o {shown}: {} makes a Hugging Face folder here; choose a name without .gguf",
                self.to.name()
            );
        }
        let same =
            |a: &Path| a.canonicalize().ok().filter(|_| out.exists()) == out.canonicalize().ok();
        if out.exists() && same(&place(checkpoint)) {
            bail!("-o {shown}: this is the model itself; choose another name");
        }
        if out.exists() && !self.force {
            bail!("-o {shown}: there is something of that name; --force replaces it");
        }
        Ok(())
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

fn words(summary: &Summary, out: &Path, pruned: bool) -> String {
    let mut by_format: BTreeMap<&str, Vec<&Done>> = BTreeMap::new();
    for tensor in &summary.tensors {
        by_format.entry(tensor.format).or_default().push(tensor);
    }
    let rows: Vec<Vec<String>> = by_format
        .into_iter()
        .map(|(format, tensors)| {
            let bytes: Bytes = tensors.iter().map(|t| t.bytes).sum();
            vec![
                format.to_owned(),
                tensors.len().to_string(),
                tensors.iter().filter(|t| t.copied).count().to_string(),
                bytes.to_string(),
                mean_square_error(tensors.iter().copied()),
                relative_error(tensors.iter().copied())
                    .map_or_else(String::new, |e| format!("{:.2} %", 100.0 * e.sqrt())),
            ]
        })
        .collect();
    let header =
        ["format", ">tensors", ">copied", ">bytes", ">mean square error", ">relative error (RMS)"];
    let mut text = ui::table(&header, &rows);
    if pruned {
        text += &format!("\n{}", pruning::sparsity(&summary.tensors));
    }
    text.extend(summary.notes.iter().map(|note| ui::note(note)));
    let smaller = summary.bytes_in.0 as f64 / summary.bytes_out.0.max(1) as f64;
    text += &format!(
        "\n{} in {}: {} → {} (× {:.2} smaller), {:.2} bits per weight\n",
        ui::green(&format!("Made {}", out.display())),
        summary.took,
        summary.bytes_in,
        summary.bytes_out,
        smaller,
        summary.bits_per_weight
    );
    text + &format!("Run it: {}\n", run_line(out))
}

fn run_line(out: &Path) -> String {
    format!("lathe generate {} \"Once upon a time\"", quoted(out))
}

/// As a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+@:,".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn elements(tensor: &Done) -> f64 {
    tensor.shape.iter().product::<usize>() as f64
}

/// Over the tensors that were coded here; empty where none was.
fn mean_square_error<'a>(tensors: impl Iterator<Item = &'a Done>) -> String {
    let (mut sum, mut count) = (0.0, 0.0);
    for tensor in tensors {
        if let Some(error) = tensor.mean_square_error {
            sum += error * elements(tensor);
            count += elements(tensor);
        }
    }
    if count > 0.0 { format!("{:.3e}", sum / count) } else { String::new() }
}

fn relative_error<'a>(tensors: impl IntoIterator<Item = &'a Done>) -> Option<f64> {
    let (mut error, mut power) = (0.0, 0.0);
    for tensor in tensors {
        if let (Some(e), Some(p)) = (tensor.mean_square_error, tensor.mean_square) {
            error += e * elements(tensor);
            power += p * elements(tensor);
        }
    }
    (power > 0.0).then_some(error / power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_smoothing_is_auto_or_between_0_and_1() {
        assert_eq!(smooth("auto"), Ok(Smooth::default()));
        assert_eq!(smooth("0.8").unwrap().alpha, Some(0.8));
        for bad in ["", "much", "nan", "inf", "-0.1", "1.5", "1e99"] {
            assert!(smooth(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_quoted_where_a_shell_would_split_them() {
        assert_eq!(quoted(Path::new("a/b-q4_0.gguf")), "a/b-q4_0.gguf");
        assert_eq!(quoted(Path::new("my model")), "'my model'");
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
    }

    #[test]
    fn results_are_named_after_the_model() {
        assert_eq!(stem("org/name@main"), "name");
        assert_eq!(stem("demo"), lathe_demo::NAME);
        assert_eq!(stem("."), "cli");
    }

    #[test]
    fn errors_are_weighted_by_size() {
        let done = |n: usize, error: f64, power: f64| Done {
            name: String::new(),
            shape: vec![n],
            format: "q4_0",
            bytes: Bytes(0),
            copied: false,
            mean_square_error: Some(error),
            mean_square: Some(power),
            zeros: None,
        };
        let tensors = [done(1, 1.0, 4.0), done(3, 0.0, 4.0)];
        assert_eq!(relative_error(&tensors), Some(1.0 / 16.0));
        assert_eq!(mean_square_error(tensors.iter()), "2.500e-1");
    }
}
