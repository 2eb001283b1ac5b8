//! The `lathe` program.

use clap::Parser;

#[derive(Parser)]
#[command(name = "lathe", version, about)]
struct Cli {}

fn main() {
    Cli::parse();
}
