//! One file per command: its options and what it does.

mod answer;
pub(crate) mod bench;
pub(crate) mod calibration;
pub(crate) mod chat;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod engines;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod guard;
pub(crate) mod imatrix;
pub(crate) mod inspect;
mod likely;
pub(crate) mod man;
pub(crate) mod mock;
pub(crate) mod optimize;
pub(crate) mod options;
pub(crate) mod preflight;
pub(crate) mod prompt;
pub(crate) mod quantize;
pub(crate) mod report;
mod structure;
pub(crate) mod system;
pub(crate) mod trial;
pub(crate) mod verify;
