use super::{TILE, Tile, parallel, tiles, tiles_mut};

/// The lower triangle of a square matrix in tiles: row after row of tiles, each up to and with the
/// one on the diagonal.
#[derive(Clone, Debug)]
pub(crate) struct Triangle {
    pub(super) numbers: Vec<f32>,
    /// Tiles in a column.
    blocks: usize,
}

impl Triangle {
    /// A triangle of at least `size` rows, the numbers at (row, column <= row) being what `number`
    /// says; rows and columns are a whole number of tiles.
    pub(crate) fn new(
        size: usize,
        threads: usize,
        number: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let blocks = size.div_ceil(TILE);
        let numbers = vec![0.0; Self::tiles_before(blocks) * TILE * TILE];
        let mut made = Self { numbers, blocks };
        let rows = made.rows_mut(0).into_iter().enumerate();
        parallel(
            threads,
            rows,
            || (),
            |&mut (), (row, tiles)| {
                for (column, tile) in tiles.iter_mut().enumerate() {
                    for (i, numbers) in tile.iter_mut().enumerate() {
                        let i = row * TILE + i;
                        for (j, x) in numbers.iter_mut().enumerate() {
                            let j = column * TILE + j;
                            *x = if j <= i { number(i, j) } else { 0.0 };
                        }
                    }
                }
            },
        );
        made
    }

    /// Bytes of a triangle of `size` rows.
    pub(crate) fn bytes(size: usize) -> usize {
        Self::tiles_before(size.div_ceil(TILE)) * size_of::<Tile>()
    }

    /// Tiles in a column.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// The tile in that row and column of tiles, `column <= row`.
    pub(crate) fn tile(&self, row: usize, column: usize) -> &Tile {
        &tiles(&self.numbers)[Self::tiles_before(row) + column]
    }

    /// All tiles of row `row`, from the first column to the diagonal.
    pub(crate) fn row(&self, row: usize) -> &[Tile] {
        &tiles(&self.numbers)[Self::tiles_before(row)..Self::tiles_before(row + 1)]
    }

    /// As [`Triangle::row`], to be written to.
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [Tile] {
        &mut tiles_mut(&mut self.numbers)[Self::tiles_before(row)..Self::tiles_before(row + 1)]
    }

    /// The rows of tiles from `first` on, to be written to side by side.
    pub(crate) fn rows_mut(&mut self, first: usize) -> Vec<&mut [Tile]> {
        let mut rest = &mut tiles_mut(&mut self.numbers)[Self::tiles_before(first)..];
        let mut rows = Vec::with_capacity(self.blocks - first);
        for row in first..self.blocks {
            let (this, after) = rest.split_at_mut(row + 1);
            rows.push(this);
            rest = after;
        }
        rows
    }

    /// Tiles of all rows before `row`.
    fn tiles_before(row: usize) -> usize {
        row * (row + 1) / 2
    }
}
