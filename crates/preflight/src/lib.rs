//! Will it load, and with which kernel: artifact × engine × device, before any long work.
//!
//! What engines accept is data ([`Rules`], `data/rules.json`), each line with its source: a file of
//! the engine's release, or a load that was tried. [`check`] holds an [`Artifact`] — the shapes,
//! formats and layout of a model's files, made already or only planned — against it. An engine that
//! the rules do not know is never guessed about.

mod artifact;
mod check;
mod device;
mod error;
mod rules;

pub use artifact::{Artifact, Matrix, Split};
pub use check::{Answer, Kernel, Obstacle, check, check_all};
pub use device::Device;
pub use error::Error;
pub use rules::{EngineRules, Rules};
