/// The work was interrupted by the user; what is finished so far is kept and can be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; run the same command again to continue where it stopped")]
pub struct Cancelled;

/// How long work tells its caller how far it is, and hears whether to stop.
///
/// Libraries never print: the command line shows a bar, tests count, the report keeps a log.
pub trait Progress: Sync {
    /// `done` of `total` steps (tensors, tokens, rounds: whatever `what` names) are finished.
    fn at(&self, what: &str, done: u64, total: u64);

    /// What is going on at this moment, in some lines below how far it is; no lines take them away.
    /// Shown where there is room for it.
    fn live(&self, lines: &[String]) {
        let _ = lines;
    }

    /// A line worth keeping, such as a decision and its reason.
    fn note(&self, line: &str);

    /// Whether the user asked to stop.
    fn cancelled(&self) -> bool;

    /// Returns `Err(Cancelled)` once the user asked to stop, so that loops can say `check()?`.
    fn check(&self) -> Result<(), Cancelled> {
        if self.cancelled() { Err(Cancelled) } else { Ok(()) }
    }
}

/// Progress that nobody watches and nobody interrupts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn at(&self, _: &str, _: u64, _: u64) {}
    fn note(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}
