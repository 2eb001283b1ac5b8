//! Every kernel against naive sums, on every instruction set of this machine.

mod attention;
mod grouped;
mod inputs;
mod matmul;
mod rowwise;
