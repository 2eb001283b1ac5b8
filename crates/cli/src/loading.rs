//! What an engine would be given, described for the rules of `lathe-preflight`.

use lathe_files::{Checkpoint, Container, Layout};
use lathe_models::{Kind, Model, Part, Role};
use lathe_preflight::{Artifact, Matrix, Split};
use lathe_quantizers::{Plan, Target};
use serde_json::Value;

/// A model's files as they are.
pub(crate) fn stored(model: &Model, checkpoint: &Checkpoint) -> Artifact {
    let matrices = model
        .weights
        .iter()
        .filter(|located| located.weight.kind != Kind::Vector)
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
    artifact(model, checkpoint, layout, desc_act && !whole_rows, matrices)
}

/// The files that a plan leads to.
pub(crate) fn planned(model: &Model, checkpoint: &Checkpoint, plan: &Plan) -> Artifact {
    let matrices: Vec<Matrix> = plan
        .tensors
        .iter()
        .filter(|planned| planned.kind != Kind::Vector)
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
    artifact(model, checkpoint, layout.to_owned(), false, matrices)
}

fn artifact(
    model: &Model,
    checkpoint: &Checkpoint,
    layout: String,
    act_order: bool,
    matrices: Vec<Matrix>,
) -> Artifact {
    let attention = model.spec.layers.first().map(lathe_models::Layer::attention);
    Artifact {
        architecture: model.spec.arch.to_owned(),
        layout,
        activations: activations(checkpoint),
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
        Role::Layer(_, Part::Out | Part::Down) => Split::Cols,
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

fn quantization<'a>(checkpoint: &'a Checkpoint, key: &str) -> Option<&'a Value> {
    checkpoint.config.get("quantization_config")?.get(key)
}

fn version(checkpoint: &Checkpoint, method: &str) -> String {
    match quantization(checkpoint, "checkpoint_format").and_then(Value::as_str) {
        Some("gptq_v2") if method == "gptq" => "gptq_v2".to_owned(),
        _ => method.to_owned(),
    }
}
