//! Integer codes repacked once, at load, for every use after.
//!
//! A panel is [`LANES`] rows side by side. Its columns are cut into groups that share a scale per
//! row; a group is a head (the sixteen scales, and zero points if any) followed by its sub-blocks
//! of [`SUB`] columns. In a sub-block four neighbouring columns of all sixteen rows make one
//! vector of 64 bytes, row by row: a 32-bit lane is a row, and one dot-product instruction takes
//! four columns of sixteen rows forward. Codes are unsigned, as wide as in their format, so that
//! a panel takes as many bytes as the rows did. All instruction sets share this layout.

mod activations;
mod exact;
mod kind;
mod pack;
mod product;

use lathe_formats::Blocks;
use lathe_simd::LANES;

use crate::{Error, Pool, Precision};

pub(crate) use kind::Kind;

/// Columns of a sub-block, and of activations that share a scale.
pub(crate) const SUB: usize = 32;

/// Weights as panels.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    kind: Kind,
    /// Sub-blocks per group.
    group: usize,
    /// Groups per panel.
    groups: usize,
    rows: usize,
    cols: usize,
    lines: Vec<Line>,
}

/// Panels start where cache lines do.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Panels {
    /// Repacks `blocks`, if their format has a panel kind.
    pub(crate) fn pack(pool: &Pool, blocks: &Blocks) -> Option<Result<Self, Error>> {
        let source = pack::Source::of(blocks)?;
        Some(pack::pack(pool, &source))
    }

    /// Room for `rows` × `cols` weights, zeroed.
    fn empty(kind: Kind, group: usize, blocks: &Blocks) -> Result<Self, Error> {
        let (rows, cols) = (blocks.rows, blocks.cols);
        let groups = cols.div_ceil(SUB * group);
        let mut panels = Self { kind, group, groups, rows, cols, lines: Vec::new() };
        let lines = panels.panel_bytes() / 64 * panels.count();
        let bytes = lines * 64;
        let format = blocks.format.name();
        let refused = |_| Error::Memory { format, rows, cols, bytes };
        panels.lines.try_reserve_exact(lines).map_err(refused)?;
        panels.lines.resize(lines, Line([0; 64]));
        Ok(panels)
    }

    /// Panels, the last one perhaps not full.
    fn count(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Columns with the padding of the last group.
    fn padded(&self) -> usize {
        self.groups * self.group * SUB
    }

    fn group_bytes(&self) -> usize {
        self.kind.head_bytes() + self.group * self.kind.sub_bytes()
    }

    fn panel_bytes(&self) -> usize {
        (self.groups * self.group_bytes() + self.kind.tail_bytes()).next_multiple_of(64)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lines.len() * 64
    }

    fn data(&self) -> &[u8] {
        // SAFETY: a line is 64 bytes without padding.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.bytes()) }
    }

    fn data_mut(&mut self) -> &mut [u8] {
        let bytes = self.bytes();
        // SAFETY: a line is 64 bytes without padding, and any bytes are a line.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), bytes) }
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
            Precision::Fast => product::matmul(pool, self, x, t, out),
            Precision::Exact => exact::matmul(pool, self, x, t, out),
        }
    }

    /// Writes the weights of one row.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        lathe_simd::run(exact::DecodeRow { panels: self, row, out });
    }
}
