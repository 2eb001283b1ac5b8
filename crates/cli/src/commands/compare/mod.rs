mod models;
mod runs;

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use lathe_optimize::Run;

use crate::{
    args::Global,
    commands::{bench::Timing, optimize::at_least_one},
    exit::Ended,
};

/// Options of `lathe compare`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe compare ./Qwen2.5-1.5B qwen-q4_0.gguf
  lathe compare a.gguf b.gguf --prompt \"The capital of France is\" --prompt \"def main():\"
  lathe compare ./base ./quantized --data my-texts.jsonl --rounds 10
  lathe compare lathe-runs/20261120-180000 lathe-runs/20261121-101500

Of two models: how many times as fast B decodes as A, how far its predictions are from A's, and what
both write. Of two runs of `lathe optimize`: their configurations side by side.")]
pub(crate) struct CompareArgs {
    /// A model, or the folder of a run
    a: String,
    /// Another of the same kind
    b: String,
    /// A text for both to continue; may be given several times [default: three openings]
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// New tokens for each prompt
    #[arg(short = 'n', long, value_name = "N", default_value = "48", value_parser = at_least_one)]
    max_tokens: usize,
    /// Text for the divergence: a file, or JSONL with `text` or `messages`
    /// [default: sixty short stories]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Most tokens of that text
    #[arg(long, value_name = "N", default_value = "8192", value_parser = at_least_one)]
    data_tokens: usize,
    #[command(flatten)]
    timing: Timing,
}

pub(crate) fn run(args: CompareArgs, global: &Global) -> anyhow::Result<Ended> {
    match (is_run(&args.a), is_run(&args.b)) {
        (true, true) => runs::compare(Path::new(&args.a), Path::new(&args.b), global)?,
        (false, false) => models::compare(&args, global)?,
        (true, false) => bail!("{} is a run and {} is not; compare two of a kind", args.a, args.b),
        (false, true) => bail!("{} is a run and {} is not; compare two of a kind", args.b, args.a),
    }
    Ok(Ended::Well)
}

fn is_run(name: &str) -> bool {
    Path::new(name).join(Run::FILE).is_file()
}
