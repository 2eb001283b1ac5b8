use std::{
    io::{self, IsTerminal},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use lathe_base::Progress;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Between two lines of progress where stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// A bar on a terminal, an occasional line in a log, nothing with `--quiet`.
pub(crate) struct Bar {
    bar: ProgressBar,
    terminal: bool,
    quiet: bool,
    pace: Mutex<Pace>,
}

/// How fast the work at hand goes.
struct Pace {
    total: u64,
    /// Where it was first seen: resumed work does not begin at 0.
    first: u64,
    latest: u64,
    start: Instant,
    /// When a line was written last.
    last: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { total: 0, first: 0, latest: 0, start: Instant::now(), last: Instant::now() }
    }

    /// What the rest will take, in words; empty before there is something to go by.
    fn left(&mut self, done: u64, total: u64) -> String {
        // Work of another size, or that is behind where it was, is other work.
        if total != self.total || done < self.latest {
            (self.total, self.first, self.start) = (total, done, Instant::now());
        }
        self.latest = done;
        let (gone, rest) = (done - self.first, total.saturating_sub(done));
        let took = self.start.elapsed();
        if gone == 0 || rest == 0 || took < LINE_EVERY {
            return String::new();
        }
        let left = took.mul_f64(rest as f64 / gone as f64).as_secs();
        match left {
            0..=99 => format!(", about {left} s left"),
            100..=5999 => format!(", about {} min left", left.div_ceil(60)),
            _ => format!(", about {:.1} h left", left as f64 / 3600.0),
        }
    }
}

impl Bar {
    /// The first Ctrl-C asks the work to stop at the next safe place; the second stops at once.
    pub(crate) fn new(quiet: bool) -> Self {
        // Fails only when a handler is there already: from an earlier bar.
        let _ = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        });
        let terminal = io::stderr().is_terminal();
        let bar = if terminal && !quiet { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let template = "{wide_msg} {bar:24} {pos}/{len} {elapsed}{prefix:.dim}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━━╌"));
        }
        Self { bar, terminal, quiet, pace: Mutex::new(Pace::new()) }
    }

    /// Forgets an interruption that has done its work, such as ending one answer of a chat.
    pub(crate) fn forgive(&self) {
        INTERRUPTED.store(false, Ordering::Relaxed);
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Progress for Bar {
    fn at(&self, what: &str, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let left = pace.left(done, total);
        self.bar.set_message(format!("{what}{left}"));
        if !self.terminal && !self.quiet && pace.last.elapsed() >= LINE_EVERY {
            pace.last = Instant::now();
            match total {
                0 => eprintln!("{what}"),
                _ => eprintln!("{what} ({done} of {total}{left})"),
            }
        }
    }

    fn live(&self, lines: &[String]) {
        let below: Vec<String> = lines.iter().map(|line| format!("\n{line}")).collect();
        self.bar.set_prefix(below.concat());
    }

    fn note(&self, line: &str) {
        if !self.quiet {
            self.bar.suspend(|| eprintln!("{line}"));
        }
    }

    fn cancelled(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_from_where_the_work_was_taken_up() {
        let mut pace = Pace::new();
        assert_eq!(pace.left(50, 100), "", "nothing to go by yet");
        pace.start -= Duration::from_secs(20);
        assert_eq!(pace.left(60, 100), ", about 80 s left");
        pace.start -= Duration::from_secs(1180);
        assert_eq!(pace.left(60, 100), ", about 80 min left");
        assert_eq!(pace.left(100, 100), "", "done");
        assert_eq!(pace.left(3, 10), "", "other work");
        assert_eq!((pace.first, pace.total), (3, 10));
        pace.start -= Duration::from_secs(20);
        assert_eq!(pace.left(5, 10), ", about 50 s left");
        assert_eq!(pace.left(4, 10), "", "behind where it was: another round");
    }
}
