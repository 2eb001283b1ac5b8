use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use lathe_base::AtomicFile;

use crate::{args::Cli, exit::Ended};

/// Options of `lathe man`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe man ~/.local/share/man/man1
  man lathe-optimize")]
pub(crate) struct ManArgs {
    /// Folder for lathe.1, lathe-optimize.1, …
    folder: PathBuf,
}

pub(crate) fn run(args: ManArgs) -> anyhow::Result<Ended> {
    let mut command = Cli::command();
    command.build();
    let pages =
        std::iter::once(&command).chain(command.get_subcommands().filter(|sub| !sub.is_hide_set()));
    for page in pages {
        let name = page.get_display_name().unwrap_or(page.get_name()).to_owned();
        let mut text = Vec::new();
        clap_mangen::Man::new(page.clone()).title(name.clone()).render(&mut text)?;
        let path = args.folder.join(format!("{name}.1"));
        AtomicFile::write_all(&path, &text)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Ended::Well)
}
