//! Models with fewer layers: which can go, and the model without them.

mod measure;
mod shortened;
mod similarity;

pub use measure::measure_similarity;
pub use shortened::Shortened;
pub(crate) use shortened::adapt;
pub use similarity::Similarity;
