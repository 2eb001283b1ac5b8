//! What callers of the crate rely on, seen with the mock engine.

mod load;
