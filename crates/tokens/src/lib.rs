//! Text to token ids and back, and chats to text.
//!
//! A [`Tokenizer`] is made from what a model comes with: `tokenizer.json`, a SentencePiece
//! `tokenizer.model`, or a GGUF's own vocabulary. The ids are those of the reference: transformers
//! for Hugging Face files, llama.cpp for GGUF.

mod affixes;
mod error;
mod export;
mod gguf;
mod hf;
mod pre;
mod prompt;
mod protobuf;
mod sentencepiece;
mod settings;
mod source;
mod spm;
mod stream;
mod surface;
mod template;
mod tokenizer;
mod vocabulary;

pub use error::Error;
pub use export::Export;
pub use prompt::{Prompt, Shown};
pub use source::Source;
pub use stream::Stream;
pub use template::{FORMATS, Format, Message, Render, Template};
pub use tokenizer::Tokenizer;
pub use vocabulary::TokenKind;

/// What everything here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
