//! Other engines' adapters against servers that can do everything wrong.
#![cfg(unix)]

mod common;
mod fake;
mod llamacpp;
mod mock;
mod openai;
mod transformers;
