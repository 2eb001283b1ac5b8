use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use lathe_optimize::{Run, judge};

use crate::{args::Global, exit::Ended, show, ui};

/// Options of `lathe report`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe report lathe-runs/20261121-101500
  lathe report lathe-runs/20261121-101500 --check
  lathe report lathe-runs/20261121-101500 --json | jq .headline")]
pub(crate) struct ReportArgs {
    /// Folder of a run
    run: PathBuf,
    /// Write nothing; fail unless the report's files are what the raw samples say
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: ReportArgs, global: &Global) -> anyhow::Result<Ended> {
    let report = judge(&Run::load(&args.run)?);
    let files = lathe_report::files(&report)?;
    if args.check {
        let differs = |(name, bytes): &&(String, Vec<u8>)| {
            std::fs::read(args.run.join(name)).ok().as_ref() != Some(bytes)
        };
        let wrong: Vec<&str> = files.iter().filter(differs).map(|(n, _)| n.as_str()).collect();
        if !wrong.is_empty() {
            bail!(
                "{}: not what the raw samples say: {}; `lathe report` without --check rebuilds them",
                args.run.display(),
                wrong.join(", ")
            );
        }
    } else {
        show::write(&args.run, &files)?;
    }
    if global.json {
        ui::json(&report)?;
    } else {
        show::summary(&report, &args.run)?;
    }
    Ok(show::ended(&report))
}
