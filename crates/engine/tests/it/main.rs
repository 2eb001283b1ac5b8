//! The engine as its callers use it: alone, layer by layer, and serving.

mod behaviour;
mod goldens;
mod guided;
mod runner;
mod serving;
mod soak;
mod stages;
