//! The small things every other crate of Lathe needs: units, shared byte buffers, progress and
//! atomic files. Nothing here knows about models.

mod atomic;

mod fp8;
mod progress;
mod units;

pub use atomic::AtomicFile;
/// A cheaply cloned, sliceable run of bytes with an owner: a memory map or a vector.
pub use bytes::Bytes as Buf;
pub use fp8::e4m3;
pub use half::{bf16, f16};
pub use progress::{Cancelled, Progress, Silent};
pub use units::{Bytes, ParseUnitError, Seconds};
