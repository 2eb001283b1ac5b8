//! Which format each tensor gets: llama.cpp's mixes, the user's rules, an assignment from a file,
//! or the allocation that loses least within a budget.

mod allocate;
mod assignment;
mod coded;
mod cost;
mod curve;
mod divergence;
mod fit;
mod items;
mod journal;
mod llama;
mod model;
mod paths;
mod prepared;
mod probe;
mod recode;
mod rules;
mod search;
mod texts;

pub use allocate::{Allocation, Choice, allocate};
pub use assignment::Assignment;
pub use fit::{Budget, Expected, Fit, Fitted, class, expected, fit};
pub use items::items;
pub use journal::Remembered;
pub use llama::{MIXES, Matrix, Mix, Shape, fallback, mix_by_name};
pub use model::{ModelProbe, Subject};
pub use probe::{Candidate, Divergence, Item, Probe};
pub(crate) use rules::Applied;
pub use rules::{Overrides, Rule};
pub use search::{Effort, Found, Round, Sensitivity, search};
pub use texts::Texts;
