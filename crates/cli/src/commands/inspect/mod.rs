mod gather;
mod show;

use clap::Args;
use serde::Serialize;

use crate::{args::Global, commands::optimize::at_least_one, exit::Ended, open, ui};

/// Options of `lathe inspect`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe inspect demo
  lathe inspect ./Qwen2.5-1.5B --context 32768 --batch 8
  lathe inspect model.gguf --tensors
  lathe inspect ./Llama-3.2-1B --template
  lathe inspect org/name --check-finite --json

Only headers are read, unless --check-finite asks for every number. A file whose formats or
architecture Lathe does not run yet is shown as far as it is understood.")]
pub(crate) struct InspectArgs {
    /// `demo`, Hugging Face folder, GGUF or PyTorch file, or hub id
    model: String,
    /// Plan the memory for sequences of so many tokens [default: the model's, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    context: Option<usize>,
    /// Plan the memory for so many sequences at once
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one)]
    batch: usize,
    /// Type of the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = lathe_formats::KvType::NAMES)]
    kv: String,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print the chat template
    #[arg(long)]
    template: bool,
    /// Read every number and look for NaN and infinity
    #[arg(long)]
    check_finite: bool,
}

/// What a model is.
#[derive(Serialize)]
struct Inspection {
    model: String,
    container: String,
    /// What the model calls itself.
    architecture: String,
    /// None where the architecture is not supported.
    spec: Option<SpecFacts>,
    stored_bytes: u64,
    formats: Vec<FormatFacts>,
    tokenizer: Option<TokenizerFacts>,
    template: Option<TemplateFacts>,
    memory: Option<MemoryTable>,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorFacts>>,
}

#[derive(Serialize)]
struct ExpertFacts {
    count: usize,
    /// Experts that a token goes through.
    active: usize,
    /// Width of the expert for all tokens.
    shared_feed_forward: Option<usize>,
    /// Layers that have experts.
    layers: usize,
    /// Parameters that a token is multiplied with.
    active_parameters: u64,
}

#[derive(Serialize)]
struct SpecFacts {
    parameters: u64,
    context: usize,
    vocab: usize,
    width: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Width of the feed-forward block, or of each expert.
    feed_forward: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<ExpertFacts>,
    activation: &'static str,
    tied_head: bool,
    /// One line for each kind of rope among the layers.
    rope: Vec<String>,
    /// Sliding windows, if any.
    window: Option<String>,
    /// What else a forward pass does: norms on queries and keys, soft caps, biases.
    extras: Vec<String>,
}

/// Weights that are stored alike.
#[derive(Serialize)]
struct FormatFacts {
    format: String,
    weights: usize,
    bytes: u64,
    /// Whether the native engine computes with it.
    runs: bool,
}

#[derive(Serialize)]
struct TokenizerFacts {
    kind: String,
    vocab: usize,
    /// Name, id and text of tokens with a role.
    special: Vec<(&'static str, u32, String)>,
    stop_tokens: Vec<u32>,
}

#[derive(Serialize)]
struct TemplateFacts {
    origin: String,
    text: String,
}

/// Memory needed at a context and batch, by weight format.
#[derive(Serialize)]
struct MemoryTable {
    context: usize,
    batch: usize,
    kv: String,
    kv_bytes: u64,
    activation_bytes: u64,
    rows: Vec<MemoryRow>,
}

#[derive(Serialize)]
struct MemoryRow {
    format: String,
    weight_bytes: u64,
    bits_per_weight: f64,
    total_bytes: u64,
}

#[derive(Serialize)]
struct TensorFacts {
    name: String,
    shape: Vec<usize>,
    format: String,
    bytes: u64,
}

pub(crate) fn run(args: InspectArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let checkpoint = open::checkpoint(&args.model, &bar)?;
    let inspection = gather::inspection(&args, &checkpoint, &bar)?;
    bar.clear();
    if global.json {
        ui::json(&inspection)?;
    } else {
        ui::out(&show::text(&inspection, args.template))?;
    }
    Ok(Ended::Well)
}
