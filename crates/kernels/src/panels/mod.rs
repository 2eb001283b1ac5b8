//! Integer codes repacked once, at load, for every use after.
//!
//! A panel is [`LANES`] rows side by side. Its columns are cut into groups that share a scale per
//! row; a group is a head (the sixteen scales, and zero points if any) followed by its sub-blocks
//! of [`SUB`] columns. In a sub-block four neighbouring columns of all sixteen rows make one
//! vector of 64 bytes, row by row: a 32-bit lane is a row, and one dot-product instruction takes
//! four columns of sixteen rows forward. Codes are unsigned, as wide as in their format, so that
//! a panel takes as many bytes as the rows did. All instruction sets share this layout.

mod activations;
mod codes;
mod columns;
mod exact;
mod head;
mod kind;
mod pack;
mod plain;
mod product;
mod superblocks;

use std::sync::Arc;

use lathe_formats::Blocks;
use lathe_simd::LANES;

use crate::{Error, Pool, Precision, inputs::Rounded, memory::Room};

pub(crate) use kind::Kind;

/// Columns of a sub-block, and of activations that share a scale.
pub(crate) const SUB: usize = 32;

/// Weights as panels. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    shape: Shape,
    data: Arc<Room>,
}

/// Where things are in panels.
#[derive(Clone, Copy, Debug)]
struct Shape {
    kind: Kind,
    /// Sub-blocks per group.
    group: usize,
    /// Groups per panel.
    groups: usize,
    rows: usize,
    cols: usize,
}

impl Shape {
    fn new(kind: Kind, group: usize, rows: usize, cols: usize) -> Self {
        Self { kind, group, groups: cols.div_ceil(SUB * group), rows, cols }
    }

    /// Panels, the last one perhaps not full.
    fn count(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Sub-blocks of a panel.
    fn subs(&self) -> usize {
        self.groups * self.group
    }

    fn group_bytes(&self) -> usize {
        self.kind.head_bytes() + self.group * self.kind.sub_bytes()
    }

    fn panel_bytes(&self) -> usize {
        (self.groups * self.group_bytes() + self.kind.tail_bytes()).next_multiple_of(64)
    }
}

impl Panels {
    /// Repacks `blocks`, if their format has a panel kind.
    pub(crate) fn pack(pool: &Pool, blocks: &Blocks) -> Option<Result<Self, Error>> {
        let source = pack::Source::of(blocks)?;
        Some(pack::pack(pool, &source))
    }

    /// Whether there are panels for a format.
    pub(crate) fn take(blocks: &Blocks) -> bool {
        pack::Source::of(blocks).is_some()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }

    /// What is read for each token.
    pub(crate) fn memory(&self) -> &[u8] {
        &self.data
    }

    /// `out = x · wᵀ`; see [`crate::matmul`].
    pub(crate) fn matmul(
        &self,
        pool: &Pool,
        x: &[f32],
        t: usize,
        precision: Precision,
        out: &mut [f32],
    ) {
        match precision {
            Precision::Fast => Self::matmuls(pool, x, t, &mut [(self, out)]),
            Precision::Exact => exact::matmul(pool, self, x, t, out),
        }
    }

    /// The products of the same inputs with several matrices.
    pub(crate) fn matmuls(pool: &Pool, x: &[f32], t: usize, of: &mut [(&Self, &mut [f32])]) {
        product::matmul(pool, (x, None), t, of);
    }

    /// Where a thread begins to read in [`Panels::matmuls`].
    pub(crate) fn begin(pool: &Pool, of: &[&Self], t: usize, thread: usize) -> Option<*const u8> {
        product::begin(pool, of, t, thread)
    }

    /// The same with inputs that are eight-bit multiples of a scale per token, but for outliers.
    pub(crate) fn matmul_integers(&self, pool: &Pool, x: &Rounded, t: usize, out: &mut [f32]) {
        product::matmul(pool, (&x.x, Some(&x.scales)), t, &mut [(self, out)]);
        if !x.outliers.is_empty() {
            columns::add(pool, self, &x.outliers, out);
        }
    }

    /// Writes the weights of one row.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        exact::decode_row(self, row, out);
    }
}
