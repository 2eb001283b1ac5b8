//! Which format each tensor gets: llama.cpp's mixes, the user's rules, an assignment from a file,
//! or the allocation that loses least within a budget.

mod allocate;
mod llama;
mod rules;

pub use allocate::{Allocation, Choice, allocate};
pub use llama::{MIXES, Matrix, Mix, Shape, fallback, mix_by_name};
pub(crate) use rules::Applied;
pub use rules::{Overrides, Rule};
