//! What every inference engine, ours or another's, can be asked: generate text, and say how
//! likely a text is. A leaf: no runtime, no maths, no I/O.

mod engine;
mod error;
mod grammar;
mod request;
mod score;

pub use engine::{Caps, Engine, Info};
pub use error::Error;
pub use grammar::Grammar;
pub use request::{Event, Finish, Flow, Request, Sampling, Turn, UNKNOWN_TOKEN, Usage};
pub use score::{Logits, Scorer};
