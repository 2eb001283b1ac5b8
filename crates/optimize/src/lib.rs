//! The main job: plan, make candidates, try them, judge them with confidence bounds, choose.
//!
//! A run is a folder whose `run.json` holds raw samples only ([`Run`]); [`judge`] is a pure
//! function from it to a [`lathe_report::Report`].

mod candidate;
mod error;
mod hash;
mod judge;
mod picks;
mod plan;
mod record;
mod requirements;
mod verdict;
mod walk;

pub use candidate::{BASE, Candidate, Coding, NATIVE, PLAIN, WAYS, Way};
pub use error::Error;
pub use hash::{sha256, sha256_file};
pub use judge::judge;
pub use plan::{Basis, Cost, Planned, Sizes, plan, rank};
pub use record::{
    Binary, DataFacts, EngineChoice, EngineFacts, LAYOUT, Made, ModelFacts, Run, Settings,
};
pub use requirements::Requirements;
pub use walk::{EngineOrder, Guesses, MemoryUse, Precision, Start, Walk, Workshop, size_of};
