//! Rotations folded into the weights, so that no number stands out from its neighbours.

mod hadamard;
mod rotated;

pub use hadamard::Hadamard;
pub use rotated::Rotated;
