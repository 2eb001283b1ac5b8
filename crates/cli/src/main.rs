//! The `lathe` program: typed-in options in, calls to the libraries, words and tables out.

mod args;
mod cards;
mod change;
mod commands;
mod conformance;
mod exit;
mod fitting;
mod graphs;
mod how;
mod loading;
mod making;
mod open;
mod peers;
#[cfg(test)]
mod reference;
mod show;
mod texts;
mod ui;
mod walk;

use std::{io::IsTerminal, process::ExitCode};

use args::{Cli, Command};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.global.verbose);
    let global = &cli.global;
    let outcome = match cli.command {
        Command::Optimize(args) => commands::optimize::run(args, global),
        Command::Report(args) => commands::report::run(args, global),
        Command::Quantize(args) => commands::quantize::run(*args, global),
        Command::Convert(args) => commands::convert::run(&args, global),
        Command::Preflight(args) => commands::preflight::run(args, global),
        Command::Imatrix(args) => commands::imatrix::run(args, global),
        Command::Inspect(args) => commands::inspect::run(args, global),
        Command::Eval(args) => commands::eval::run(args, global),
        Command::Bench(args) => commands::bench::run(*args, global),
        Command::Engines(args) => commands::engines::run(&args, global),
        Command::Verify(args) => commands::verify::run(&args, global),
        Command::Compare(args) => commands::compare::run(args, global),
        Command::Generate(args) => commands::generate::run(args, global),
        Command::Chat(args) => commands::chat::run(args, global),
        Command::Prompt(args) => commands::prompt::run(args, global),
        Command::System(args) => commands::system::run(args, global),
        Command::Completions(args) => commands::completions::run(args),
        Command::Man(args) => commands::man::run(args),
        Command::Trial => commands::trial::run(),
        Command::Conform => commands::trial::conform(),
        Command::Mock(args) => commands::mock::run(&args),
        Command::Guard(args) => commands::guard::run(args),
    };
    exit::code(outcome)
}

/// `RUST_LOG` decides; without it, `--verbose` shows what Lathe itself does.
/// A chart's bar of no width is drawn as nothing: no warning of it.
fn start_log(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let default = match verbose {
        0 => "warn,usvg=error",
        1 => "warn,usvg=error,lathe=info",
        _ => "warn,usvg=error,lathe=debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .init();
}
