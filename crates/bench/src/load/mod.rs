//! Load: many requests at once, as users send them, and what each of them saw.
//!
//! A [`Pattern`] says when requests come, a [`Source`] what they ask for; [`drive`] sends them to
//! an engine that is ready and keeps every stamp; [`LoadFigures`] sums one run up, [`Summary`]
//! several at growing load.
//!
//! Where requests come by a timetable, latencies count from the time at which a request was due,
//! not from when it was sent: a client that falls behind must not hide what users would have waited
//! (Tene's *coordinated omission*). How far it fell behind is a figure of its own.

mod arrivals;
mod drive;
mod figures;
mod lengths;
mod live;
mod objective;
mod random;
mod sample;
mod source;
mod sweep;
mod trace;

pub use arrivals::{Pattern, Spacing, timetable};
pub use drive::{Limits, drive};
pub use figures::{Client, Growth, Latency, LoadFigures, Window, load_figures};
pub use lengths::Lengths;
pub use objective::{Objective, Promise};
pub use sample::{Failure, LoadSample, Why};
pub use source::{Asked, Source, Tokens};
pub use sweep::{Level, Summary, summary};
pub use trace::{Caps, Trace, TraceError, conversations};
