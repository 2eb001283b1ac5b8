use std::{ffi::OsString, path::PathBuf};

use clap::Args;

use crate::exit::Ended;

/// Options of `lathe guard`.
#[derive(Args)]
pub(crate) struct GuardArgs {
    /// Process id of the one that the program must not outlive
    parent: u32,
    program: PathBuf,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Becomes another program, which the kernel kills when the thread that started this process ends,
/// however it ends. The request for that outlives `exec`, and a child can only make it itself.
#[cfg(target_os = "linux")]
pub(crate) fn run(args: GuardArgs) -> anyhow::Result<Ended> {
    use std::os::unix::process::CommandExt;

    use anyhow::{Context, bail};
    use nix::{
        sys::{prctl::set_pdeathsig, signal::Signal},
        unistd::getppid,
    };

    set_pdeathsig(Signal::SIGKILL).context("cannot tie an engine to this process")?;
    // Whoever was gone before the request is not noticed by it.
    if getppid().as_raw().cast_unsigned() != args.parent {
        bail!("the process that wanted {} is gone", args.program.display());
    }
    let error = std::process::Command::new(&args.program).args(&args.arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", args.program.display()))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn run(args: GuardArgs) -> anyhow::Result<Ended> {
    anyhow::bail!("{} can be tied to a process on Linux only", args.program.display())
}
