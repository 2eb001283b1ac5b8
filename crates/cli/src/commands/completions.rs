use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{args::Cli, exit::Ended, ui};

/// Options of `lathe completions`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe completions bash > ~/.local/share/bash-completion/completions/lathe
  lathe completions zsh > ~/.zfunc/_lathe
  lathe completions fish > ~/.config/fish/completions/lathe.fish")]
pub(crate) struct CompletionsArgs {
    shell: Shell,
}

pub(crate) fn run(args: CompletionsArgs) -> anyhow::Result<Ended> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lathe", &mut script);
    ui::out(&String::from_utf8_lossy(&script))?;
    Ok(Ended::Well)
}
