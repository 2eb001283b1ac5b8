//! Tokenizers and templates against their references, and against files made to hurt.

mod goldens;
mod hostile;
mod templates;
mod usage;
