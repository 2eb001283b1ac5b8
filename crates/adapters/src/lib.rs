//! Engines other than Lathe's own behind [`lathe_api::Engine`]: one folder each, which holds how it
//! is started, its wire types, and the engine.

pub mod mock;
