use lathe_base::Buf;

use crate::{
    AnyFormat, Blocks, Error, Format, Rows,
    format::encode_by_row,
    round::{half_even, through_f16},
    search::{self, Rounding},
};

/// A format whose codes an algorithm may choose itself, instead of rounding to nearest.
///
/// A row is cut into *spans* that are coded together, a span into *groups* that share one
/// [`Affine`] map: a weight is `scale · level + offset` of its group. An algorithm calls
/// [`Grid::begin`] once, then for each span [`Grid::fit`] for the maps, chooses a level for every
/// weight, and calls [`Grid::pack`].
pub trait Grid: AnyFormat {
    /// Columns that are coded together: a row is `cols / span` runs of `row_bytes(span)` bytes.
    /// Formats with one scale a row give all `cols`.
    fn span(&self, cols: usize) -> usize;

    /// Columns that share one affine map; divides [`Grid::span`].
    fn group(&self, cols: usize) -> usize;

    /// What a code stands for before the affine map.
    fn levels(&self) -> Levels;

    /// The bytes that belong to the whole matrix ([`Blocks::side`]), known before any span is
    /// coded. `importance` is one non-negative number per column.
    fn begin(
        &self,
        _weights: &dyn Rows,
        _importance: Option<&[f32]>,
        _effort: Effort,
        _threads: usize,
    ) -> Buf {
        Buf::new()
    }

    /// Chooses the affine maps of one span; what is in `scales` is replaced.
    fn fit(&self, span: Span<'_>, scales: &mut Scales);

    /// Writes a span to `out`, which has `row_bytes(span)` places: the maps of [`Grid::fit`] and
    /// one code per weight, an index among the [`Levels`].
    fn pack(&self, scales: &Scales, codes: &[u8], out: &mut [u8]);
}

/// One span of a matrix, for [`Grid::fit`].
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// What [`Grid::begin`] gave.
    pub side: &'a [u8],
    /// Which span of the whole matrix, counted along the rows.
    pub index: usize,
    /// The weights of the span.
    pub weights: &'a [f32],
    /// What an error in each of them weighs: finite, not negative. None counts all alike.
    pub importance: Option<&'a [f32]>,
    pub effort: Effort,
}

/// How much is done to choose scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Effort {
    /// The format's own rule, as its reference implementation has it.
    #[default]
    Nearest,
    /// The least squared error, weighted by importance, over a search of scales and zero points.
    Search,
}

/// The map from the levels of a group to its weights: `scale · level + offset`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Affine {
    pub scale: f32,
    pub offset: f32,
}

/// The maps of a span's groups.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scales {
    /// One per group, exactly as stored: what is decoded later equals this up to f32 rounding.
    pub affine: Vec<Affine>,
    /// How the format stores them; nobody else looks into this.
    pub stored: Vec<u8>,
}

impl Scales {
    /// Replaces both.
    pub(crate) fn set(&mut self, affine: Affine, stored: &[u8]) {
        self.affine.clear();
        self.affine.push(affine);
        self.stored.clear();
        self.stored.extend_from_slice(stored);
    }
}

/// What codes stand for before the affine map, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// The integers `low..=high`; a code is the level − low.
    Integers { low: i32, high: i32 },
    /// These numbers; a code is an index.
    Table(&'static [f32]),
}

impl Levels {
    /// How many there are: codes are smaller than this.
    pub fn count(self) -> usize {
        match self {
            Self::Integers { low, high } => (high - low + 1) as usize,
            Self::Table(table) => table.len(),
        }
    }

    /// The level of a code.
    pub fn value(self, code: u8) -> f32 {
        match self {
            Self::Integers { low, .. } => (low + i32::from(code)) as f32,
            Self::Table(table) => table[usize::from(code)],
        }
    }

    /// The code of the level nearest to `x`; NaN gets the lowest.
    #[inline]
    pub fn nearest(self, x: f32) -> u8 {
        match self {
            Self::Integers { low, high } => {
                (half_even(x.max(low as f32).min(high as f32)) - low) as u8
            }
            Self::Table(table) => {
                let above = table.partition_point(|level| *level < x).clamp(1, table.len() - 1);
                let (below, above_level) = (table[above - 1], table[above]);
                (above - usize::from(x - below <= above_level - x || x.is_nan())) as u8
            }
        }
    }

    /// The code of the level whose weight under `affine` is nearest, for each of `weights`.
    pub fn codes(self, affine: Affine, weights: &[f32], codes: &mut [u8]) {
        let Affine { scale, offset } = affine;
        // A scale of 0 decodes everything to the offset; the code is that of level 0 then.
        let step = if scale == 0.0 { f32::INFINITY } else { scale };
        for (code, weight) in codes.iter_mut().zip(weights) {
            *code = self.nearest((weight - offset) / step);
        }
    }
}

/// The typed side of [`Grid`]: a block with one scale, perhaps a zero point, and codes.
pub trait Scaled: Format {
    const LEVELS: Levels;

    /// A block with a chosen scale and any codes.
    fn fit(span: Span<'_>) -> Self;

    /// The map that decoding applies.
    fn affine(&self) -> Affine;

    /// Takes one code per weight.
    fn set_codes(&mut self, codes: &[u8]);
}

impl<F: Scaled> Grid for crate::Erased<F> {
    fn span(&self, _: usize) -> usize {
        F::BLOCK
    }

    fn group(&self, _: usize) -> usize {
        F::BLOCK
    }

    fn levels(&self) -> Levels {
        F::LEVELS
    }

    fn fit(&self, span: Span<'_>, scales: &mut Scales) {
        let block = F::fit(span);
        scales.set(block.affine(), bytemuck::bytes_of(&block));
    }

    fn pack(&self, scales: &Scales, codes: &[u8], out: &mut [u8]) {
        let mut block: F = bytemuck::pod_read_unaligned(&scales.stored);
        block.set_codes(codes);
        out.copy_from_slice(bytemuck::bytes_of(&block));
    }
}

/// Codes a matrix through its grid: scales by [`Effort::Search`], then the nearest level.
pub(crate) fn encode(
    grid: &'static dyn Grid,
    source: &dyn Rows,
    importance: Option<&[f32]>,
    threads: usize,
) -> Result<Blocks, Error> {
    let (rows, cols) = source.shape();
    let format: &'static dyn AnyFormat = grid;
    format.check(cols)?;
    check_importance(importance, cols)?;
    let effort = Effort::Search;
    let side = grid.begin(source, importance, effort, threads);
    let (span, group, levels) = (grid.span(cols).max(1), grid.group(cols).max(1), grid.levels());
    let span_bytes = format.row_bytes(span).max(1);
    let blocks = encode_by_row(format, source, threads, |row, weights, dst| {
        let (mut scales, mut codes) = (Scales::default(), vec![0; span]);
        let first = row * (cols / span);
        let spans = weights.chunks_exact(span).zip(dst.chunks_exact_mut(span_bytes));
        for (i, (weights, dst)) in spans.enumerate() {
            let importance = importance.map(|all| &all[i * span..][..span]);
            let (side, index) = (&*side, first + i);
            grid.fit(Span { side, index, weights, importance, effort }, &mut scales);
            let groups = weights.chunks(group).zip(codes.chunks_mut(group));
            for (affine, (weights, codes)) in scales.affine.iter().zip(groups) {
                levels.codes(*affine, weights, codes);
            }
            grid.pack(&scales, &codes, dst);
        }
    })?;
    debug_assert_eq!(blocks.rows, rows);
    Ok(Blocks { side, ..blocks })
}

/// One finite, non-negative number per column.
pub(crate) fn check_importance(importance: Option<&[f32]>, cols: usize) -> Result<(), Error> {
    let Some(importance) = importance else { return Ok(()) };
    if importance.len() != cols {
        return Err(Error::Importance { cols, found: importance.len() });
    }
    match importance.iter().position(|x| !x.is_finite() || *x < 0.0) {
        Some(col) => Err(Error::BadImportance { col, value: importance[col] }),
        None => Ok(()),
    }
}

/// The scale of a group whose zero is a level, as `stored` rounds it: by the format's own rule, or
/// searched from there.
pub(crate) fn scale(
    rounding: impl Into<Rounding>,
    own: f32,
    span: Span<'_>,
    stored: impl Fn(f32) -> f32,
) -> f32 {
    let group = (span.weights, span.importance);
    match span.effort {
        Effort::Nearest => stored(own),
        Effort::Search => search::scale(rounding.into(), own, group, stored),
    }
}

/// As [`scale`] for ggml's one-sided grids, whose f16 scales may be negative.
pub(crate) fn signed_scale(levels: Levels, own: f32, span: Span<'_>) -> f32 {
    let group = (span.weights, span.importance);
    match span.effort {
        Effort::Nearest => through_f16(own),
        Effort::Search => search::signed_scale(levels.into(), own, group, through_f16),
    }
}
