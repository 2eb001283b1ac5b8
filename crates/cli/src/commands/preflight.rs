use anyhow::Context;
use clap::Args;
use lathe_models::Model;
use lathe_preflight::{Answer, Device, Obstacle, Rules, check, check_all};
use lathe_quantizers::Plan;
use serde::Serialize;

use crate::{
    args::Global,
    commands::{
        optimize::at_least_one,
        quantize::{Goal, goal},
    },
    exit::Ended,
    loading, open, ui,
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
    /// Only this engine: native, llama.cpp, vllm, transformers
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Only this device: cpu, a compute capability such as sm80, or a GPU such as h100 [default:
    /// the kinds that differ]
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    device: Option<Device>,
    /// Devices that share each layer
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one)]
    tensor_parallel: usize,
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
    let devices = args.device.as_ref().map_or(Device::USUAL, std::slice::from_ref);
    let (rules, ranks) = (Rules::built_in(), args.tensor_parallel);
    let answers: Vec<Answer> = match &args.engine {
        Some(name) => {
            let runs = rules.engine(name).context("--engine")?;
            let mut asked: Vec<Device> =
                devices.iter().copied().filter(|device| runs.runs_on(*device)).collect();
            if asked.is_empty() {
                asked = devices.to_vec();
            }
            let ask = |device| check(rules, &artifact, name, device, ranks);
            asked.into_iter().map(ask).collect::<Result<_, _>>()?
        }
        None => check_all(rules, &artifact, devices, ranks),
    };
    bar.clear();
    if global.json {
        let to = args.to.map(Goal::name);
        let layout = &artifact.layout;
        ui::json(&Asked { model: &args.model, to, layout, answers: &answers })?;
    } else {
        ui::out(&words(&answers, artifact.matrices.len()))?;
    }
    let refused = args.engine.is_some() && !answers.iter().any(Answer::loads);
    Ok(if refused { Ended::Unmet } else { Ended::Well })
}

fn device(text: &str) -> Result<Device, String> {
    text.parse().map_err(|error: lathe_preflight::Error| error.to_string())
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

/// The reason, and an example of what it is about.
pub(crate) fn obstacle_words(obstacle: &Obstacle, matrices: usize) -> String {
    let about = match obstacle.matrices.as_slice() {
        [] => String::new(),
        all if all.len() == matrices => String::new(),
        [one] => format!(" ({one})"),
        [first, rest @ ..] => format!(" ({first} and {} more)", rest.len()),
    };
    let source = match obstacle.source.as_str() {
        "" => String::new(),
        source => format!(" [{source}]"),
    };
    format!("{}{about}{source}", obstacle.reason)
}
