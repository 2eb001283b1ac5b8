//! What is read and written, and what is refused.

mod card;
mod folders;
mod goldens;
mod hostile;
mod hub;
mod imatrix;
mod layouts;
mod peers;
mod pytorch;
mod quants;
mod writers;
