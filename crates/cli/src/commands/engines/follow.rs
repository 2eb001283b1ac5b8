//! Programs that are run for a user, who sees how far they are and can stop them.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::bail;
use lathe_base::Progress;

use crate::peers::guard;

/// How often an interruption is looked for.
const TICK: Duration = Duration::from_millis(200);
/// Lines of a program's output that are looked through for what went wrong.
const KEPT: usize = 400;
/// As much of a line as is shown.
const SHOWN: usize = 60;

/// A command that does not outlive this program, however it ends.
pub(super) fn command(program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
    let guard = guard()?;
    let mut words = guard.iter();
    Ok(match words.next() {
        Some(first) => {
            let mut command = Command::new(first);
            command.args(words).arg(program);
            command
        }
        None => Command::new(program),
    })
}

/// Runs a program, shows its last line or, where `[3/40]` says how far it is, the count meanwhile,
/// and ends it with all that it has started when interrupted; its last lines.
///
/// **Errors**: it fails, with what it said of that.
pub(super) fn follow(
    mut program: Command,
    what: &str,
    progress: &dyn Progress,
) -> anyhow::Result<Vec<String>> {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut program, 0);
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
    let mut said: VecDeque<String> = VecDeque::new();
    let mut steps = None;
    loop {
        progress.check()?;
        match lines.recv_timeout(TICK) {
            Ok(line) => {
                steps = self::steps(&line).or(steps);
                if said.len() == KEPT {
                    said.pop_front();
                }
                said.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        match steps {
            Some((done, total)) => progress.at(what, done, total),
            None => {
                let last = said.back().map_or("", String::as_str);
                let shown: String = last.trim().chars().take(SHOWN).collect();
                progress.at(&format!("{what}: {shown}"), 0, 0);
            }
        }
    }
    let status = child.0.wait()?;
    if status.success() {
        return Ok(said.into());
    }
    let errors = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    bail!("{status}: {}", reason(&errors, said.make_contiguous()))
}

/// `(3, 40)` of `[3/40] Building …`, as ninja says.
fn steps(line: &str) -> Option<(u64, u64)> {
    let (done, total) = line.strip_prefix('[')?.split_once(']')?.0.split_once('/')?;
    Some((done.trim().parse().ok()?, total.trim().parse().ok()?))
}

/// The last lines on stderr, else the first error on stdout, else its last line.
fn reason(errors: &str, said: &[String]) -> String {
    let errors: Vec<&str> = errors.lines().filter(|line| !line.trim().is_empty()).collect();
    if !errors.is_empty() {
        return errors[errors.len().saturating_sub(3)..].join(" / ");
    }
    // A compiler's errors are in what ninja prints, followed by those of others.
    let first = said.iter().find(|line| line.contains("error: "));
    first.or(said.last()).cloned().unwrap_or_default()
}

/// A process that ends with its guard, and the group that it leads.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        // Its own name was not given to another meanwhile: nobody has waited for it.
        #[cfg(unix)]
        if let Ok(id) = i32::try_from(self.0.id()) {
            // It has ended already, or it has to.
            let _ = nix::sys::signal::killpg(
                nix::unistd::Pid::from_raw(id),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use lathe_base::Silent;

    use super::*;

    #[test]
    fn a_builders_steps_are_read() {
        assert_eq!(steps("[12/345] Building CXX object a.o"), Some((12, 345)));
        assert_eq!(steps("[ 2/2] Linking"), Some((2, 2)));
        for other in ["", "[", "12/345", "[notice] a/b", "Collecting [x/y]"] {
            assert_eq!(steps(other), None, "{other}");
        }
    }

    #[test]
    fn what_went_wrong_is_told_by_the_first_error() {
        let said = ["[1/2] Building", "a.cpp:1: error: no such thing", "b.cpp:2: error: also", "x"];
        let said = said.map(str::to_owned);
        assert_eq!(reason("", &said), "a.cpp:1: error: no such thing");
        assert_eq!(reason("\na\nb\n\nc\nd\n", &said), "b / c / d");
        assert_eq!(reason(" \n", &said[3..]), "x");
    }

    /// Interrupted at once.
    struct Stopped;

    impl Progress for Stopped {
        fn at(&self, _: &str, _: u64, _: u64) {}
        fn note(&self, _: &str) {}
        fn cancelled(&self) -> bool {
            true
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_a_program_has_started_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let alive = folder.path().join("alive");
        let mut shell = Command::new("sh");
        // The grandchild would write after a moment.
        shell.args(["-c", "(sleep 1; echo > \"$0\") & wait"]).arg(&alive);
        assert!(follow(shell, "x", &Stopped).is_err());
        thread::sleep(Duration::from_millis(1500));
        assert!(!alive.exists());
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo one; echo two"]);
        assert_eq!(follow(shell, "x", &Silent).unwrap(), ["one", "two"]);
    }
}
