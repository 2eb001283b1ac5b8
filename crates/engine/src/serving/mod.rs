//! The serving core: requests come at any time, share every pass over the weights and the pages of
//! the KV cache, and never make it run out of memory.
//!
//! `Scheduler` decides what runs and is the only one in the house: [`crate::Native`] runs its
//! calls through it on the caller's thread, [`Service`] on a thread of its own for as long as it
//! lives. A text never depends on what else runs, on what was found in the cache, on who guesses how
//! it goes on ([`Speculation`]), nor on whether it had to give up its pages in between.

mod active;
mod grammars;
mod limits;
mod log_probs;
mod places;
mod plan;
mod queue;
mod response;
mod scheduler;
mod service;
mod snapshot;
mod speculation;
mod submission;
#[cfg(test)]
mod tests;
mod tokens;

pub(crate) use grammars::Grammars;
pub use limits::Limits;
pub use log_probs::{Distribution, LogProbs, LogProbsWanted};
pub use response::Response;
pub(crate) use scheduler::{Rules, Scheduler, Step};
pub use service::{Ending, Service};
pub use snapshot::Snapshot;
pub use speculation::Speculation;
pub(crate) use speculation::{Learnt, Speculator};
pub use submission::{Served, Submission, Update, derived_seed};
