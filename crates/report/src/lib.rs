//! What a reader is told about a run, and the forms it is told in.

mod model;

pub use model::{
    Dropped, NoiseFloor, Outcome, Pick, Point, Report, Requirement, Row, Timeline, Verdict, Weights,
};
