use lathe_base::Buf;
use lathe_files::Checkpoint;
use lathe_formats::{AnyFormat, Blocks, Rows, by_name};
use lathe_models::{
    Role,
    gguf::{Edit, Source},
};

use crate::{Dense, Error, Input, Planned, Weights};

/// The numbers of one planned tensor, read row by row from where they are.
pub(crate) struct Numbers<'a> {
    parts: Vec<Part<'a>>,
    rows: usize,
    cols: usize,
}

/// One weight's rows within a tensor.
struct Part<'a> {
    source: Rowwise<'a>,
    rows: usize,
    /// The source's row of each row, where the order changes.
    order: Option<Vec<usize>>,
}

enum Rowwise<'a> {
    /// As stored, or a layer's own numbers.
    Blocks(Blocks),
    /// Computed as they are read.
    View(Box<dyn Rows + 'a>),
}

impl<'a> Numbers<'a> {
    /// Opens the input of a planned tensor.
    pub(crate) fn open(
        weights: &'a dyn Weights,
        checkpoint: &Checkpoint,
        planned: &Planned,
    ) -> Result<Self, Error> {
        let parts = match &planned.input {
            Input::Stored(name) if planned.roles.iter().all(|role| weights.is_stored(*role)) => {
                vec![Part::stored(checkpoint.weight(name)?)]
            }
            Input::Stored(_) => {
                let open = |role: &Role| Part::open(weights, *role, Edit::None);
                planned.roles.iter().map(open).collect::<Result<_, _>>()?
            }
            Input::Gguf(Source::Values(values)) => vec![Part::vector(values)?],
            Input::Gguf(Source::Weights(parts)) => {
                let open = |(located, edit): &(lathe_models::Located, Edit)| {
                    Part::open(weights, located.weight.role, *edit)
                };
                parts.iter().map(open).collect::<Result<_, _>>()?
            }
        };
        Ok(Self { parts, rows: planned.rows, cols: planned.cols })
    }

    /// Lets go of the memory that the numbers' pages occupy.
    pub(crate) fn release(&self) {
        for part in &self.parts {
            if let Rowwise::Blocks(blocks) = &part.source {
                lathe_files::release(&blocks.data);
            }
        }
    }

    /// The stored matrix that these numbers are, if they are in `format` already and in order.
    pub(crate) fn in_order(&self, format: &'static dyn AnyFormat) -> Option<Blocks> {
        let same = |part: &Part<'a>| match part {
            Part { source: Rowwise::Blocks(blocks), order: None, .. }
                if blocks.format.name() == format.name() && blocks.order.is_none() =>
            {
                Some(blocks.clone())
            }
            _ => None,
        };
        if let [part] = self.parts.as_slice() {
            return same(part);
        }
        let mut data = Vec::new();
        for part in &self.parts {
            let blocks = same(part).filter(|blocks| blocks.side.is_empty())?;
            data.extend_from_slice(&blocks.data);
        }
        Blocks::new(format, self.rows, self.cols, data.into(), Buf::new()).ok()
    }

    /// Weights that these numbers are of.
    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The numbers of one of the weights.
    pub(crate) fn part(&self, nth: usize) -> OnePart<'_, 'a> {
        OnePart { part: &self.parts[nth], cols: self.cols }
    }
}

impl<'a> Part<'a> {
    fn stored(blocks: Blocks) -> Self {
        Self { rows: blocks.rows, source: Rowwise::Blocks(blocks), order: None }
    }

    fn vector(values: &[f32]) -> Result<Self, Error> {
        let blocks = by_name("f32")?.encode(1, values.len(), values, 1)?;
        Ok(Self::stored(blocks))
    }

    fn open(weights: &'a dyn Weights, role: Role, edit: Edit) -> Result<Self, Error> {
        if weights.is_stored(role) {
            let blocks = weights.matrix(role)?;
            // A vector is edited number by number, a matrix row by row.
            if blocks.rows == 1 && edit != Edit::None {
                return Self::vector(&edit.vector(&blocks.decode()));
            }
            let order = edit.order(blocks.rows);
            return Ok(Self { order, ..Self::stored(blocks) });
        }
        let source = weights.rows(role)?;
        let (rows, cols) = source.shape();
        if rows == 1 && edit != Edit::None {
            let mut values = vec![0.0; cols];
            source.read(0, &mut values);
            return Self::vector(&edit.vector(&values));
        }
        Ok(Self { rows, source: Rowwise::View(source), order: edit.order(rows) })
    }
}

impl Part<'_> {
    fn read(&self, row: usize, out: &mut [f32]) {
        let from = self.order.as_ref().map_or(row, |order| order[row]);
        match &self.source {
            Rowwise::Blocks(blocks) => blocks.decode_row(from, out),
            Rowwise::View(rows) => rows.read(from, out),
        }
    }
}

/// One of the weights in a tensor.
pub(crate) struct OnePart<'n, 'a> {
    part: &'n Part<'a>,
    cols: usize,
}

impl Rows for OnePart<'_, '_> {
    fn shape(&self) -> (usize, usize) {
        (self.part.rows, self.cols)
    }

    fn read(&self, row: usize, out: &mut [f32]) {
        self.part.read(row, out);
    }
}

impl Rows for Numbers<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn read(&self, row: usize, out: &mut [f32]) {
        let mut row = row;
        for part in &self.parts {
            if row < part.rows {
                return part.read(row, out);
            }
            row -= part.rows;
        }
    }
}

impl TryFrom<Dense> for Blocks {
    type Error = Error;

    /// The same numbers as f32 blocks, without a copy.
    fn try_from(dense: Dense) -> Result<Self, Error> {
        let Dense { rows, cols, data } = dense;
        Ok(Self::new(by_name("f32")?, rows, cols, Buf::from_owner(Floats(data)), Buf::new())?)
    }
}

/// Numbers as the bytes that they are on little-endian machines, which all of Lathe's are.
struct Floats(Vec<f32>);

impl AsRef<[u8]> for Floats {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}
