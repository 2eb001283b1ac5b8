//! Architectures: what is read of a configuration, and what others say of the same models.

mod archs;
mod gguf;
mod published;
