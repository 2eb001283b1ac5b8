use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Lines kept, and lines told. A Python that breaks in several processes prints hundreds.
const KEPT: usize = 1000;
const TOLD: usize = 5;
/// A line longer than this is cut: a program may print no line ends at all.
const LONGEST: u64 = 4096;

/// The last lines of a pipe, which is read to its end so that its writer never waits.
#[derive(Debug)]
pub(super) struct Tail {
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Tail {
    pub(super) fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let reader = pipe.map(|pipe| {
            let lines = lines.clone();
            thread::spawn(move || read(pipe, &lines))
        });
        Self { lines, reader }
    }

    /// Waits a moment for what is still in the pipe.
    pub(super) fn settle(&self) {
        let start = Instant::now();
        // A grandchild may hold the pipe open: the end of the pipe is not waited for for long.
        while self.reader.as_ref().is_some_and(|reader| !reader.is_finished())
            && start.elapsed() < Duration::from_millis(200)
        {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What was said last, in one line.
    pub(super) fn last(&self) -> String {
        self.settle();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let told: Vec<&str> =
            lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
        told[told.len().saturating_sub(TOLD)..].join(" / ")
    }

    /// All lines kept.
    pub(super) fn all(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

fn read(pipe: impl Read, lines: &Mutex<VecDeque<String>>) {
    let mut pipe = BufReader::new(pipe);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match pipe.by_ref().take(LONGEST).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}
