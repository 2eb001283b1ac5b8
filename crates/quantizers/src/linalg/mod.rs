//! Dense linear algebra on square symmetric matrices, in tiles: what second-order quantizers and
//! pruners solve with.
//!
//! Matrices are cut into tiles of [`TILE`] × [`TILE`] numbers that lie one after the other, so that
//! one product of tiles ([`add_product`]) is the inner loop of everything here. Each number of a
//! result is computed by one thread, in an order that the sizes alone decide: results are the same
//! bits at any number of threads and on any instruction set.

mod cholesky;
mod feedback;
mod parallel;
mod tile;
mod triangle;

pub(crate) use cholesky::NotPositive;
pub(crate) use feedback::Feedback;
pub(crate) use parallel::parallel;
pub(crate) use tile::{TILE, Tile, add_product, tiles, tiles_mut};
pub(crate) use triangle::Triangle;
