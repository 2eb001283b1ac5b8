//! Grammars that a generated text must follow: JSON Schemas, regular expressions, lists of texts,
//! Lark and GBNF, each as masks over a tokenizer's tokens.
//!
//! A [`Vocabulary`] knows what each token writes and is made once for a tokenizer; with it a
//! [`lathe_api::Grammar`] becomes a [`Compiled`] one, which gives a [`Guide`] to each text. A guide
//! says what may come next and takes what came, token by token. Two texts never share anything
//! that changes, so that none depends on what another met.
//!
//! Only this crate knows which library does the work.

mod compiled;
mod error;
mod gbnf;
mod guide;
mod library;
mod limits;
mod vocabulary;

pub use compiled::{Compiled, check};
pub use error::Error;
pub use guide::Guide;
pub use vocabulary::Vocabulary;

/// What everything here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
