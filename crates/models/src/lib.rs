//! A decoder architecture as data.
//!
//! A [`Spec`] holds every number that a forward pass, a loader, a quantizer, an exporter or a
//! memory estimate needs; [`Spec::weights`] is the one list of shapes that all of them read.
//! An architecture is an [`Arch`]: one file under `archs/` that turns a `config.json` into a
//! `Spec` and a [`Role`] into a tensor's name.

mod arch;
pub mod archs;
mod config;
mod error;
mod experts;
pub mod gguf;
mod memory;
mod model;
mod rope;
mod spec;
mod stage;
mod weights;

pub use arch::{Arch, Gguf, TensorRef, WindowKey, by_id, read_config};
pub use archs::ARCHS;
pub use config::Config;
pub use error::Error;
pub use experts::Experts;
pub use model::{Located, Model};
pub use rope::{Frequencies, Layout, Rope, Scaling};
pub use spec::{Act, Attention, Biases, Layer, Mixer, Mlp, Norm, Norms, QkNorm, Spec};
pub use stage::{Before, Fold, Inputs, Stage};
pub use weights::{Factors, Kind, Part, Role, Weight};
