//! What an engine would be given, described for the rules of `lathe-preflight`.

use anyhow::Context;
use clap::Args;
use lathe_files::{Checkpoint, Container, Layout};
use lathe_models::{Model, Part, Role};
use lathe_preflight::{Answer, Artifact, Device, Matrix, Obstacle, Rules, Split, check, check_all};
use lathe_quantizers::{Plan, Target};
use serde_json::Value;

use crate::commands::optimize::at_least_one;

/// Where the files are to be loaded.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Deployment")]
pub(crate) struct EngineArgs {
    /// An engine that has to load the result: native, llama.cpp, vllm, transformers, onnxruntime. May
    /// be given several times
    #[arg(long = "engine", value_name = "NAME")]
    engines: Vec<String>,
    /// Only on this device: cpu, a compute capability such as sm80, or a GPU such as h100
    /// [default: the kinds that differ]
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    device: Option<Device>,
    /// Devices that share each layer
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one)]
    tensor_parallel: usize,
}

impl EngineArgs {
    /// Whether anything was asked for.
    pub(crate) fn given(&self) -> bool {
        !self.engines.is_empty() || self.device.is_some() || self.tensor_parallel > 1
    }

    /// What the engines that were asked for, or all, say of files.
    pub(crate) fn ask(&self, artifact: &Artifact) -> anyhow::Result<Vec<Answer>> {
        let devices = self.device.as_ref().map_or(Device::USUAL, std::slice::from_ref);
        let (rules, ranks) = (Rules::built_in(), self.tensor_parallel);
        if self.engines.is_empty() {
            return Ok(check_all(rules, artifact, devices, ranks));
        }
        let mut answers = Vec::new();
        for name in &self.engines {
            let runs = rules.engine(name).context("--engine")?;
            let runs_on = |device: &Device| runs.runs_on(*device);
            let suiting: Vec<Device> = devices.iter().copied().filter(runs_on).collect();
            // That it does not run on the only device asked for is an answer too.
            let asked = if suiting.is_empty() { devices.to_vec() } else { suiting };
            for device in asked {
                answers.push(check(rules, artifact, name, device, ranks)?);
            }
        }
        Ok(answers)
    }

    /// The first engine asked for that loads the files on none of the devices.
    pub(crate) fn refused<'a>(&self, answers: &'a [Answer]) -> Option<&'a Answer> {
        let of = |name: &String| {
            let mut own = answers.iter().filter(|answer| answer.engine == *name).peekable();
            let first = own.peek().copied();
            first.filter(|_| !own.any(Answer::loads))
        };
        self.engines.iter().find_map(of)
    }
}

fn device(text: &str) -> Result<Device, String> {
    text.parse().map_err(|error: lathe_preflight::Error| error.to_string())
}

/// Who loads the files and who does not, and why, in a sentence for each engine.
pub(crate) fn sentences(answers: &[Answer], matrices: usize) -> Vec<String> {
    let mut engines: Vec<&str> = answers.iter().map(|answer| answer.engine.as_str()).collect();
    engines.dedup();
    let of = |engine: &str| {
        let own: Vec<&Answer> = answers.iter().filter(|answer| answer.engine == engine).collect();
        let devices = |loads: bool| -> Vec<String> {
            let which = own.iter().filter(|answer| answer.loads() == loads);
            which.map(|answer| answer.device.to_string()).collect()
        };
        let (loads, fails) = (devices(true), devices(false));
        let reason = own.iter().flat_map(|answer| answer.obstacles.first()).next();
        let reason =
            reason.map_or_else(String::new, |o| format!(": {}", obstacle_words(o, matrices)));
        match (loads.is_empty(), fails.is_empty()) {
            (false, true) => format!("{engine} loads it ({})", loads.join(", ")),
            (false, false) => {
                let (loads, fails) = (loads.join(", "), fails.join(", "));
                format!("{engine} loads it on {loads}, not on {fails}{reason}")
            }
            _ => format!("{engine} does not load it{reason}"),
        }
    };
    engines.into_iter().map(of).collect()
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

/// A model's files as they are.
pub(crate) fn stored(model: &Model, checkpoint: &Checkpoint) -> Artifact {
    let matrices = model
        .weights
        .iter()
        .filter(|located| located.weight.kind.may_be_coded())
        .map(|located| {
            let name = &located.tensor.name;
            let format = checkpoint.format(name).unwrap_or_default();
            let weight = located.weight;
            matrix(name, (weight.rows, weight.cols), &format, split(weight.role))
        })
        .collect();
    let layout = match checkpoint.container {
        Container::Gguf => "gguf".to_owned(),
        _ => quantization(checkpoint, "quant_method")
            .and_then(Value::as_str)
            .map_or_else(|| "plain".to_owned(), |method| version(checkpoint, method)),
    };
    let whole_rows = quantization(checkpoint, "group_size").and_then(Value::as_i64) == Some(-1);
    let desc_act = quantization(checkpoint, "desc_act").and_then(Value::as_bool) == Some(true);
    let inputs = inputs(checkpoint);
    artifact(model, checkpoint, (layout, inputs), desc_act && !whole_rows, matrices)
}

/// The files that a plan leads to.
pub(crate) fn planned(model: &Model, checkpoint: &Checkpoint, plan: &Plan) -> Artifact {
    let matrices: Vec<Matrix> = plan
        .tensors
        .iter()
        .filter(|planned| planned.kind.may_be_coded())
        .map(|planned| {
            let shape = (planned.rows, planned.cols);
            let split = planned.roles.first().map_or(Split::Outside, |role| split(*role));
            matrix(&planned.name, shape, planned.format.name(), split)
        })
        .collect();
    let layout = match plan.target {
        Target::Gguf => "gguf",
        Target::SafeTensors if matrices.iter().all(Matrix::is_dense) => "plain",
        Target::SafeTensors => match plan.layout {
            Layout::GptqV2 => "gptq_v2",
            layout => layout.name(),
        },
    };
    // Lathe keeps groups contiguous, whatever the order in which columns were coded.
    let inputs = plan.activations.name();
    artifact(model, checkpoint, (layout.to_owned(), inputs), false, matrices)
}

fn artifact(
    model: &Model,
    checkpoint: &Checkpoint,
    (layout, inputs): (String, &str),
    act_order: bool,
    matrices: Vec<Matrix>,
) -> Artifact {
    let attention = model.spec.layers.first().map(lathe_models::Layer::attention);
    Artifact {
        architecture: model.spec.arch.to_owned(),
        layout,
        activations: activations(checkpoint),
        inputs: inputs.to_owned(),
        act_order,
        heads: attention.map_or(1, |a| a.heads),
        kv_heads: attention.map_or(1, |a| a.kv_heads),
        head_dim: attention.map_or(0, |a| a.head_dim),
        matrices,
    }
}

fn matrix(name: &str, (rows, cols): (usize, usize), format: &str, split: Split) -> Matrix {
    let group = format.split('_').find_map(|word| word.strip_prefix('g')?.parse().ok());
    Matrix {
        name: name.to_owned(),
        rows,
        cols,
        format: format.to_owned(),
        group,
        zero_point: format.contains("asym"),
        split,
    }
}

/// Which side of a weight tensor parallelism cuts.
fn split(role: Role) -> Split {
    match role {
        Role::Layer(_, Part::Out | Part::Down | Part::ExpertDown(_) | Part::SharedDown) => {
            Split::Cols
        }
        Role::Layer(..) => Split::Rows,
        _ => Split::Outside,
    }
}

/// What the model computes in, by its config; GGUF files are run in f16.
fn activations(checkpoint: &Checkpoint) -> String {
    let named = ["torch_dtype", "dtype"].iter().find_map(|key| checkpoint.config.get(*key));
    match named.and_then(Value::as_str) {
        Some("bfloat16") => "bf16",
        Some("float32") => "f32",
        _ => "f16",
    }
    .to_owned()
}

/// What a folder's configuration says of inputs.
fn inputs(checkpoint: &Checkpoint) -> &'static str {
    let scheme = quantization(checkpoint, "activation_scheme").and_then(Value::as_str);
    match scheme {
        Some("static") => return "fp8-static",
        Some(_) => return "fp8",
        None => {}
    }
    let groups = quantization(checkpoint, "config_groups").and_then(Value::as_object);
    let first = groups.and_then(|groups| groups.values().next());
    let Some(arguments) = first.and_then(|group| group.get("input_activations")) else {
        return "float";
    };
    let fixed = arguments["dynamic"] == false;
    match (arguments["type"].as_str(), arguments["num_bits"].as_u64()) {
        (Some("int"), Some(8)) => "int8",
        (Some("float"), Some(8)) if fixed => "fp8-static",
        (Some("float"), Some(8)) => "fp8",
        (Some("float"), Some(4)) => "fp4",
        _ => "float",
    }
}

fn quantization<'a>(checkpoint: &'a Checkpoint, key: &str) -> Option<&'a Value> {
    checkpoint.config.get("quantization_config")?.get(key)
}

fn version(checkpoint: &Checkpoint, method: &str) -> String {
    match quantization(checkpoint, "checkpoint_format").and_then(Value::as_str) {
        Some("gptq_v2") if method == "gptq" => "gptq_v2".to_owned(),
        _ => method.to_owned(),
    }
}
