//! Measures an engine: load shapes, trials in fresh processes, raw samples, and the figures that
//! follow from them. Knows engines only through `lathe_api`.

mod child;
mod error;
mod figures;
mod group;
pub mod load;
mod rounds;
mod sample;
mod workload;

pub use child::{Launcher, Limits, Order, answer};
pub use error::Error;
pub use figures::{Figures, Measure, figures, ratio};
pub use rounds::{Next, Round, rounds};
pub use sample::{BatchSample, RequestSample, Trial};
pub use workload::{Text, Workload, measure};
