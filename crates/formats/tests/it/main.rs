//! Every weight format: its bytes, its grid, and its place in the table.

mod conformance;
mod docs;
mod ggml;
mod goldens;
mod grid;
mod safetensors;
mod small_floats;
