use std::{
    io::{self, BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use lathe_base::{Bytes, Progress};
use lathe_machine::Monitor;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, Trial, Workload, group};

/// What a trial's process is told: which model on which engine, and what to do with it.
///
/// `engine` is opaque here; only the command line knows how to make one of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub engine: serde_json::Value,
    pub workload: Workload,
}

/// What a trial's process answers: one line of JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer<T> {
    Done(T),
    Failed(String),
}

/// What a trial's processes may use of the machine, whatever engine they run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Logical processors that they may run on; all of ours where `None` or where the system cannot
    /// be told.
    pub cores: Option<usize>,
    /// Memory of all of them together, without the pages of files; a trial that takes more is
    /// stopped.
    pub memory: Option<Bytes>,
}

/// Starts trials in fresh processes.
#[derive(Clone, Debug)]
pub struct Launcher {
    pub program: PathBuf,
    /// The arguments that make `program` call [`answer`].
    pub arguments: Vec<String>,
    /// A trial that takes longer is stopped.
    pub timeout: Duration,
    pub limits: Limits,
}

impl Launcher {
    /// Runs one trial in a process of its own and waits for its samples.
    ///
    /// # Errors
    /// As [`Launcher::ask`].
    pub fn run(
        &self,
        order: &Order,
        monitor: &Monitor,
        progress: &dyn Progress,
    ) -> Result<Trial, Error> {
        self.ask(order, monitor, progress)
    }

    /// Starts the program, tells it what to do and waits for its answer.
    ///
    /// # Errors
    /// A process that dies, hangs, takes too much memory or refuses costs this answer alone; the
    /// error says which, with the last thing that it printed.
    pub fn ask<T: DeserializeOwned>(
        &self,
        order: &impl Serialize,
        monitor: &Monitor,
        progress: &dyn Progress,
    ) -> Result<T, Error> {
        let spawn = |source| Error::Spawn { program: self.program.display().to_string(), source };
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        group::lead(&mut command);
        let mut child = command.spawn().map_err(spawn)?;
        // Before it is told what to do, and so before it has started anything.
        self.limits.cores.inspect(|cores| group::confine(&child, *cores));
        monitor.watch(Some(child.id()));
        let outcome = self.talk(&mut child, order, monitor, progress);
        // What it started goes with it, however it ended.
        if !matches!(outcome, Err(Error::Died { .. })) {
            group::kill(&mut child);
        }
        monitor.watch(None);
        let _ = child.wait();
        outcome
    }

    fn talk<T: DeserializeOwned>(
        &self,
        child: &mut Child,
        order: &impl Serialize,
        monitor: &Monitor,
        progress: &dyn Progress,
    ) -> Result<T, Error> {
        let said = tail_of(child.stderr.take());
        let stdout = child.stdout.take();
        // The pipe stays open while we live: its end tells the child to stop (see `answer`).
        let mut stdin = child.stdin.take();
        let mut line = serde_json::to_vec(order).map_err(|e| Error::Refused(e.to_string()))?;
        line.push(b'\n');
        let sent = stdin.as_mut().map(|pipe| pipe.write_all(&line).and_then(|()| pipe.flush()));
        let (sender, answer) = mpsc::channel();
        thread::spawn(move || {
            let mut text = String::new();
            let read = stdout.map(|pipe| BufReader::new(pipe).read_to_string(&mut text));
            let _ = sender.send((read.is_some_and(|r| r.is_ok()), text));
        });
        let mut waited = Duration::ZERO;
        let step = Duration::from_millis(100);
        let text = loop {
            match answer.recv_timeout(step) {
                Ok((_, text)) => break text,
                Err(mpsc::RecvTimeoutError::Disconnected) => break String::new(),
                Err(mpsc::RecvTimeoutError::Timeout) => waited += step,
            }
            progress.check()?;
            if let Some((limit, took)) = self.limits.memory.zip(monitor.private())
                && took > limit
            {
                return Err(Error::TookTooMuch { took, limit });
            }
            if waited > self.timeout {
                return Err(Error::TimedOut { seconds: self.timeout.as_secs() });
            }
        };
        drop(stdin);
        match serde_json::from_str(&text) {
            Ok(Answer::Done(answer)) => Ok(answer),
            Ok(Answer::Failed(why)) => Err(Error::Refused(why)),
            Err(_) => {
                let status = group::ended(child);
                let how = match sent {
                    Some(Ok(())) => format!("ended without an answer ({status})"),
                    _ => format!("ended before it was told what to do ({status})"),
                };
                Err(Error::Died { how, said: said.join().unwrap_or_default() })
            }
        }
    }
}

/// Reads a pipe to its end and keeps the last lines.
fn tail_of(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(3)..].join(" / ");
        if tail.is_empty() { "nothing".to_owned() } else { tail }
    })
}

/// The other side of [`Launcher::ask`]: reads an order from stdin, has it carried out, and answers on
/// stdout. Ends the process when the parent is gone.
///
/// # Errors
/// Only where stdin or stdout break; everything else is part of the answer.
pub fn answer<O: DeserializeOwned, T: Serialize>(
    carry_out: impl FnOnce(O) -> Result<T, String>,
) -> io::Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    thread::spawn(|| {
        // Nothing more is ever sent: the end of the pipe means that the parent is gone.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        group::end();
    });
    let outcome = serde_json::from_str(&line)
        .map_err(|error| format!("the order is not understood: {error}"))
        .and_then(carry_out);
    let answer = match outcome {
        Ok(done) => Answer::Done(done),
        Err(why) => Answer::Failed(why),
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &answer)?;
    out.flush()
}
