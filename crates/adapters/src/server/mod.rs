//! An engine's own process: started, watched, and ended with us.

mod cause;
mod place;
mod tail;

use std::{
    ffi::OsString,
    io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use lathe_api::Error;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::http::Client;
pub(crate) use place::{absolute, absolute_word};
use tail::Tail;

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub path: PathBuf,
    pub arguments: Vec<OsString>,
    /// Added to the environment.
    pub environment: Vec<(String, String)>,
    /// A program and its first arguments that start this one in their place and see to it that it
    /// does not outlive us, even where we are killed; empty for none.
    pub guard: Vec<OsString>,
}

impl Program {
    fn command(&self, folder: &Path) -> Command {
        let path = place::program(&self.path);
        let mut words = self.guard.iter();
        let mut command = match words.next() {
            Some(guard) => {
                let mut command = Command::new(guard);
                command.args(words).arg(path);
                command
            }
            None => Command::new(path),
        };
        command
            .current_dir(folder)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// A running process. Killed when dropped.
///
/// It works in an empty folder of its own, which ends with it: some engines leave logs where they
/// are started. What it is given must therefore not be named as seen from our folder.
#[derive(Debug)]
pub struct Server {
    child: Mutex<Child>,
    said: Tail,
    errors: Tail,
    /// Dropped after the process was killed.
    folder: TempDir,
}

impl Server {
    /// Starts `program`; its output is kept for [`Server::last_words`].
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(program: &Program) -> io::Result<Self> {
        let folder = folder()?;
        let mut child = program.command(folder.path()).stdin(Stdio::null()).spawn()?;
        let (said, errors) = (Tail::of(child.stdout.take()), Tail::of(child.stderr.take()));
        Ok(Self { child: Mutex::new(child), said, errors, folder })
    }

    /// As [`Server::start`], for a program that is spoken to on its stdin and stdout.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_talking(program: &Program) -> io::Result<(Self, ChildStdin, ChildStdout)> {
        let folder = folder()?;
        let mut child = program.command(folder.path()).stdin(Stdio::piped()).spawn()?;
        let broken = || io::Error::other("it has no stdin or stdout");
        let stdin = child.stdin.take().ok_or_else(broken)?;
        let stdout = child.stdout.take().ok_or_else(broken)?;
        let (said, errors) = (Tail::of(None::<io::Empty>), Tail::of(child.stderr.take()));
        let server = Self { child: Mutex::new(child), said, errors, folder };
        Ok((server, stdin, stdout))
    }

    /// How the process ended, with the error that it printed, else its last lines; `None` while it
    /// runs.
    pub fn ended(&self) -> Option<String> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        match child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(match self.cause() {
                Some(cause) => format!("its process ended ({status}): {cause}"),
                None => {
                    format!("its process ended ({status}); it last said: {}", self.last_words())
                }
            }),
            Err(error) => Some(format!("its process cannot be watched: {error}")),
        }
    }

    /// As [`Server::ended`], where the connection broke: the process may take a moment to be gone.
    pub fn ended_soon(&self) -> Option<String> {
        let start = Instant::now();
        loop {
            let ended = self.ended();
            if ended.is_some() || start.elapsed() > Duration::from_secs(1) {
                return ended;
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// The error on stderr, else on stdout, that others follow from.
    fn cause(&self) -> Option<String> {
        let find = |tail: &Tail| {
            tail.settle();
            cause::cause(tail.all().lines()).map(str::to_owned)
        };
        find(&self.errors).or_else(|| find(&self.said))
    }

    /// The last lines on stderr, else on stdout.
    pub fn last_words(&self) -> String {
        let errors = self.errors.last();
        let words = if errors.is_empty() { self.said.last() } else { errors };
        if words.is_empty() { "nothing".to_owned() } else { words }
    }

    /// Everything that is kept of stderr.
    pub fn errors(&self) -> String {
        self.errors.all()
    }

    /// The process id.
    pub fn process(&self) -> u32 {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// Ends the process and waits for it; then what it has started and left.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // What has ended already needs no killing.
        let _ = child.kill();
        let _ = child.wait();
        place::end_all_in(self.folder.path());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn folder() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("lathe-engine-").tempdir()
}

/// How waiting for a server ended.
pub(crate) enum Ready {
    Yes,
    /// Its process ended, and what it said.
    Ended(String),
}

/// How often a starting server is asked whether it is ready.
const PERIOD: Duration = Duration::from_millis(5);

/// Waits until `/health` at `base` is answered with 200.
///
/// # Errors
/// It is not ready in time.
pub(crate) fn wait(
    server: &Server,
    name: &str,
    base: &str,
    within: Duration,
) -> Result<Ready, Error> {
    let client = Client::new(name, base, Duration::from_secs(2));
    let start = Instant::now();
    let mut said = String::new();
    loop {
        if let Some(ended) = server.ended() {
            return Ok(Ready::Ended(ended));
        }
        match client.get("/health") {
            // A server that could not listen is about to end, and somebody else answered.
            Ok(answer) if answer.status == 200 => {
                return Ok(server.ended().map_or(Ready::Yes, Ready::Ended));
            }
            Ok(answer) => said = format!(" (it answers {})", answer.status),
            // Nobody listens yet.
            Err(_) => {}
        }
        if start.elapsed() > within {
            let (seconds, last) = (within.as_secs_f64(), server.last_words());
            let why = format!("not ready after {seconds:.0} s{said}; it last said: {last}");
            return Err(Error::Failed { engine: name.to_owned(), why });
        }
        sleep(PERIOD);
    }
}

/// A port on loopback that is free now; somebody else may take it before it is used.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Whether a server ended because its port was taken.
pub(crate) fn port_was_taken(errors: &str) -> bool {
    let errors = errors.to_lowercase();
    ["couldn't bind", "failed to bind", "address already in use", "error while attempting to bind"]
        .iter()
        .any(|words| errors.contains(words))
}
