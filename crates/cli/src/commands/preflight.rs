use anyhow::Context;
use clap::Args;
use lathe_models::Model;
use lathe_preflight::Answer;
use lathe_quantizers::Plan;
use serde::Serialize;

use crate::{
    args::Global,
    commands::quantize::{Goal, goal},
    exit::Ended,
    loading::{self, EngineArgs, obstacle_words},
    open, ui,
};

/// Options of `lathe preflight`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe preflight ./Qwen2.5-1.5B --to int4_g128           every engine, every kind of device
  lathe preflight ./Qwen2.5-1.5B --to int4_g64 --engine vllm --device h100 --tensor-parallel 2
  lathe preflight ./downloaded-awq-model                  files as they are

Nothing is quantized: shapes, formats and layout are held against what engines say that they load.
Exit code 3 where an engine that was asked for will not load the files.")]
pub(crate) struct PreflightArgs {
    /// `demo`, Hugging Face folder, GGUF file, or hub id
    model: String,
    /// Format that it would be quantized to [default: the files as they are]
    #[arg(long, value_name = "FORMAT", value_parser = goal)]
    to: Option<Goal>,
    #[command(flatten)]
    target: EngineArgs,
}

#[derive(Serialize)]
struct Asked<'a> {
    model: &'a str,
    to: Option<&'a str>,
    layout: &'a str,
    answers: &'a [Answer],
}

pub(crate) fn run(args: PreflightArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let checkpoint = open::checkpoint(&args.model, &bar)?;
    let model = Model::read(&checkpoint).with_context(|| args.model.clone())?;
    let artifact = match args.to {
        Some(goal) => {
            let plan = Plan::new(&model, &checkpoint, &goal.recipe()?)?;
            loading::planned(&model, &checkpoint, &plan)
        }
        None => loading::stored(&model, &checkpoint),
    };
    let answers = args.target.ask(&artifact)?;
    bar.clear();
    if global.json {
        let to = args.to.map(Goal::name);
        let layout = &artifact.layout;
        ui::json(&Asked { model: &args.model, to, layout, answers: &answers })?;
    } else {
        ui::out(&words(&answers, artifact.matrices.len()))?;
    }
    Ok(if args.target.refused(&answers).is_some() { Ended::Unmet } else { Ended::Well })
}

/// One line an engine and device; devices of one engine with the same answer share a line.
fn words(answers: &[Answer], matrices: usize) -> String {
    let mut lines: Vec<(&Answer, Vec<String>)> = Vec::new();
    for answer in answers {
        let same = lines.iter_mut().find(|(other, _)| {
            other.engine == answer.engine
                && (&other.kernels, &other.obstacles) == (&answer.kernels, &answer.obstacles)
        });
        match same {
            Some((_, devices)) => devices.push(answer.device.to_string()),
            None => lines.push((answer, vec![answer.device.to_string()])),
        }
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|(answer, devices)| {
            let verdict = if answer.loads() { ui::green("loads") } else { ui::red("does not") };
            let engine = format!("{} {}", answer.engine, answer.version);
            vec![engine, devices.join(", "), verdict, reasons(answer, matrices)]
        })
        .collect();
    ui::table(&["engine", "on", "", "kernel, or what is in the way"], &rows)
}

fn reasons(answer: &Answer, matrices: usize) -> String {
    let mut parts: Vec<String> = Vec::new();
    for kernel in &answer.kernels {
        let note = kernel.note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
        let share = match answer.kernels.len() {
            1 => String::new(),
            _ => format!(" for {} of the matrices", kernel.matrices),
        };
        parts.push(format!("{}{share}{note}", kernel.name));
    }
    parts.extend(answer.notes.iter().cloned());
    parts.extend(answer.obstacles.iter().map(|obstacle| obstacle_words(obstacle, matrices)));
    parts.join("; ")
}
