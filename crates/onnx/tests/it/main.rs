//! Tests of what other crates see: written folders are read back and held against their source.

mod coded;
mod folder;
mod graph;
mod written;
