//! Engines set up in environments of their own, and taken away again.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use lathe_base::{Progress, Seconds, Silent};

use super::{
    packages::{self, Environment, pinned},
    samples::{Kind, Source},
    source,
    tried::{Bench, Outcome},
};
use crate::{
    args::Global,
    exit::Ended,
    peers::{Peer, Places, engines_folder},
    ui,
};

/// Options of `lathe engines install`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe engines install llama.cpp
  lathe engines install vllm --python python3.12
  lathe engines install transformers --release 5.23.0
  lathe engines install llama.cpp --from ~/src/llama.cpp/build

The engine is set up beside nothing else, in ~/.local/share/lathe/engines/NAME, with the releases of
its packages that Lathe was tested with, and runs the built-in model before it counts as installed.
llama.cpp is compiled here, which needs a C++ compiler and some minutes.
`lathe engines remove NAME` takes it away.")]
pub(crate) struct InstallArgs {
    /// llama.cpp, onnxruntime, transformers or vllm; with --from, any engine
    name: String,
    /// Use what is there: a program, an installation's folder, or a virtual environment
    #[arg(long, value_name = "PATH", conflicts_with_all = ["python", "release"])]
    from: Option<PathBuf>,
    /// The Python to make the environment with
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    /// Another release of the engine's package
    #[arg(long, value_name = "VERSION")]
    release: Option<String>,
}

/// Options of `lathe engines remove`.
#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// As it was installed
    name: String,
}

/// What is compiled here.
const LLAMA_CPP: &str = "llama.cpp";

/// What an engine may take to start with the built-in model.
const PATIENCE: Seconds = Seconds(600.0);

pub(crate) fn install(args: &InstallArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let place = free_place(&args.name)?;
    let partial = place.with_file_name(format!("{}.partial", args.name));
    // What an earlier attempt left is of no use.
    remove(&partial)?;
    let checked = || check(&args.name, &partial, &bar);
    let made = match &args.from {
        Some(path) => link(path, &partial).and_then(|()| checked()),
        None if args.name == LLAMA_CPP => compile(args, &partial, &bar),
        None => build(args, &partial, &bar).and_then(|()| checked()),
    };
    let words = match made {
        Ok(words) => words,
        Err(error) => {
            remove(&partial)?;
            return Err(error);
        }
    };
    fs::rename(&partial, &place).with_context(|| format!("cannot write {}", place.display()))?;
    bar.clear();
    ui::out(&format!(
        "{} {words}\n    {}\n",
        ui::bold(&args.name),
        ui::dim(&place.display().to_string())
    ))?;
    Ok(Ended::Well)
}

pub(crate) fn uninstall(args: &RemoveArgs) -> anyhow::Result<Ended> {
    let place = place(&args.name)?;
    if fs::symlink_metadata(&place).is_err() {
        bail!("{}: nothing is installed at {}", args.name, place.display());
    }
    remove(&place)?;
    ui::out(&format!("{} is removed\n", args.name))?;
    Ok(Ended::Well)
}

/// Where an engine belongs.
fn place(name: &str) -> anyhow::Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        bail!("`{name}` is no name of an engine");
    }
    let folder = engines_folder().context("there is no home folder; set XDG_DATA_HOME")?;
    Ok(folder.join(name))
}

/// As [`place`], with nothing there yet.
fn free_place(name: &str) -> anyhow::Result<PathBuf> {
    let place = place(name)?;
    if fs::symlink_metadata(&place).is_ok() {
        bail!(
            "{name} is at {} already; `lathe engines remove {name}` takes it away",
            place.display()
        );
    }
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(place)
}

/// Removes a folder, or a link but not what it points to.
fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

fn link(from: &Path, to: &Path) -> anyhow::Result<()> {
    let from = fs::canonicalize(from).with_context(|| format!("--from {}", from.display()))?;
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(&from, to);
    #[cfg(not(unix))]
    let linked =
        Err(std::io::Error::other("links are made on Unix only; set its variable instead"));
    linked.with_context(|| format!("cannot link {} to {}", to.display(), from.display()))
}

/// Compiles an engine for this machine, and again for less of it where that does not run.
fn compile(args: &InstallArgs, at: &Path, progress: &dyn Progress) -> anyhow::Result<String> {
    let (name, release) = (&args.name, args.release.as_deref());
    let place = source::fetch(name, (&args.python, release), at, progress)?;
    let mut refused = None;
    for &target in source::Target::all() {
        place.build(target, progress)?;
        match check(name, at, progress) {
            Ok(words) => {
                place.tidy()?;
                return Ok(words);
            }
            Err(why) => {
                progress.check()?;
                progress.note(&format!("compiled {target}: {why:#}"));
                refused = Some(why);
            }
        }
    }
    Err(refused.unwrap_or_else(|| anyhow!("{name} cannot be compiled here")))
}

/// Makes an environment and installs an engine's packages.
fn build(args: &InstallArgs, at: &Path, progress: &dyn Progress) -> anyhow::Result<()> {
    let (name, release) = (&args.name, args.release.as_deref());
    let Some(packages) = packages::of(name) else {
        bail!(
            "{name} cannot be installed, {LLAMA_CPP}, onnxruntime, transformers and vllm can; build \
             it, and say where it is by --from PATH"
        );
    };
    let environment = Environment::make(at, &args.python, name, progress)?;
    environment.install(&pinned(packages, release), name, progress)
}

/// Runs the built-in model on it; which version it is.
fn check(name: &str, at: &Path, progress: &dyn Progress) -> anyhow::Result<String> {
    progress.at(&format!("{name}: runs the built-in model"), 0, 0);
    let paths = vec![(name.to_owned(), at.display().to_string())];
    let peer = Peer::find(name, &Places { paths, arguments: Vec::new() })?;
    let source = Source::open()?;
    let folder = tempfile::tempdir()?;
    let kind = if peer.reads_folders() { "bf16" } else { "q8_0" };
    let kind = Kind::by_name(kind).context("there is no such sample")?;
    let sample = source.make(kind, folder.path(), &Silent)?;
    match Bench::new(&source, PATIENCE)?.peer(&peer, &sample, progress)? {
        Outcome::Runs { .. } => Ok(peer.place().1),
        Outcome::Refuses { why } | Outcome::Late { why } => {
            bail!("{name} does not run the built-in model: {why}")
        }
    }
}
