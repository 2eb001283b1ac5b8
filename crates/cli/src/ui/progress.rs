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
    last: Mutex<Instant>,
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
        if let Ok(style) = ProgressStyle::with_template("{wide_msg} {bar:24} {pos}/{len} {elapsed}")
        {
            bar.set_style(style.progress_chars("━━╌"));
        }
        Self { bar, terminal, quiet, last: Mutex::new(Instant::now()) }
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
        self.bar.set_message(what.to_owned());
        if !self.terminal && !self.quiet {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= LINE_EVERY {
                *last = Instant::now();
                eprintln!("{what} ({done} of {total})");
            }
        }
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
