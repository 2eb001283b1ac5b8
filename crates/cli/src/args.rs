use clap::{Args, Parser, Subcommand};

use crate::commands;

const ABOUT: &str = "Turn a base language model into a measured, justified deployment.";

const EXAMPLES: &str = "\
Examples:
  lathe optimize                                   try everything on the built-in demo model
  lathe optimize ./Qwen2.5-1.5B --max-memory 2GiB --max-kl 0.02
  lathe quantize ./Qwen2.5-1.5B --to q4_0 -o qwen-q4_0.gguf
  lathe chat qwen-q4_0.gguf

Exit codes: 0 done, 1 error, 2 wrong command line, 3 requirements not met, 4 undecided,
130 interrupted.";

#[derive(Parser)]
#[command(name = "lathe", version, about = ABOUT, after_help = EXAMPLES, max_term_width = 100)]
#[command(propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Print no progress
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// Say more of what happens; twice for debugging (RUST_LOG overrides it)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Find the best configuration of a model for this machine and your requirements
    Optimize(Box<commands::optimize::OptimizeArgs>),
    /// Rebuild a run's report from its raw samples
    Report(commands::report::ReportArgs),
    /// Make a quantized copy of a model
    Quantize(Box<commands::quantize::QuantizeArgs>),
    /// Write a model as files of another kind: ONNX, for ONNX Runtime
    Convert(commands::convert::ConvertArgs),
    /// Ask which engines will load a model in a format, and with which kernel
    Preflight(commands::preflight::PreflightArgs),
    /// Measure how much each input of each matrix matters, as llama-imatrix does
    Imatrix(commands::imatrix::ImatrixArgs),
    /// Show what a model is: architecture, formats, tokenizer, memory needed
    Inspect(commands::inspect::InspectArgs),
    /// Measure quality: perplexity, and divergence from a base model
    Eval(commands::eval::EvalArgs),
    /// Measure speed and memory, several models in turn
    Bench(Box<commands::bench::BenchArgs>),
    /// Show which engines are here, and what is missing
    Engines(commands::engines::EnginesArgs),
    /// Check that engines compute the same thing on the same files
    Verify(commands::verify::VerifyArgs),
    /// Compare two models or two runs side by side
    Compare(commands::compare::CompareArgs),
    /// Continue a text
    Generate(commands::generate::GenerateArgs),
    /// Talk to a model
    Chat(commands::chat::ChatArgs),
    /// Show a prompt as the model sees it: rendered text and token ids
    Prompt(commands::prompt::PromptArgs),
    /// Show what this machine is and what it can run
    System(commands::system::SystemArgs),
    /// Print a completion script for your shell
    Completions(commands::completions::CompletionsArgs),
    /// Write the manual pages
    Man(commands::man::ManArgs),
    /// One measurement in a process of its own; used by bench and optimize
    #[command(name = "trial", hide = true)]
    Trial,
    /// Whether an engine computes the same, found out in a process of its own; used by optimize
    #[command(name = "conform", hide = true)]
    Conform,
    /// A server with set latencies; used by bench --load
    #[command(name = "mock", hide = true)]
    Mock(commands::mock::MockArgs),
    /// Another engine's process, tied to ours; used by trials
    #[command(name = "guard", hide = true)]
    Guard(commands::guard::GuardArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:"), "{} has no examples", command.get_name());
        }
    }
}
