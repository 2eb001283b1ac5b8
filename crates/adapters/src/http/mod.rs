//! HTTP as engines speak it: JSON in, JSON or a stream of server-sent events out.

mod client;
mod sse;

pub(crate) use client::{Client, message};
