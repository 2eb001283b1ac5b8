use lathe_files::Checkpoint;
use lathe_formats::{AnyFormat, Blocks, Rows};
use lathe_models::{
    Model,
    gguf::{Edit, Source},
};

use crate::{Error, Input};

/// The numbers of one planned tensor, read row by row from where they are stored.
#[derive(Debug)]
pub(crate) struct Numbers {
    parts: Vec<Part>,
    rows: usize,
    cols: usize,
}

#[derive(Debug)]
struct Part {
    blocks: Blocks,
    /// The stored row of each row, where the order changes.
    order: Option<Vec<usize>>,
}

impl Numbers {
    /// Opens the input of a tensor of `[rows, cols]`.
    pub(crate) fn open(
        model: &Model,
        checkpoint: &Checkpoint,
        input: &Input,
        (rows, cols): (usize, usize),
    ) -> Result<Self, Error> {
        let parts = match input {
            Input::Stored(name) => vec![Part { blocks: checkpoint.weight(name)?, order: None }],
            Input::Gguf(Source::Values(values)) => vec![vector(values)?],
            Input::Gguf(Source::Weights(weights)) => {
                let mut parts = Vec::with_capacity(weights.len());
                for (located, edit) in weights {
                    parts.push(edited(model.load(checkpoint, located)?, *edit)?);
                }
                parts
            }
        };
        Ok(Self { parts, rows, cols })
    }

    /// Lets go of the memory that the numbers' pages occupy.
    pub(crate) fn release(&self) {
        self.parts.iter().for_each(|part| lathe_files::release(&part.blocks.data));
    }

    /// The one stored matrix that these numbers are, if they are in `format` already and in order.
    pub(crate) fn in_order(&self, format: &dyn AnyFormat) -> Option<&Blocks> {
        match self.parts.as_slice() {
            [Part { blocks, order: None }]
                if blocks.format.name() == format.name() && blocks.order.is_none() =>
            {
                Some(blocks)
            }
            _ => None,
        }
    }
}

fn edited(blocks: Blocks, edit: Edit) -> Result<Part, Error> {
    // A vector is edited number by number, a matrix row by row.
    if blocks.rows == 1 && edit != Edit::None {
        return vector(&edit.vector(&blocks.decode()));
    }
    let order = edit.order(blocks.rows);
    Ok(Part { blocks, order })
}

fn vector(values: &[f32]) -> Result<Part, Error> {
    let encode = |values: &[f32]| lathe_formats::by_name("f32")?.encode(1, values.len(), values, 1);
    let blocks = encode(values).map_err(lathe_models::Error::from)?;
    Ok(Part { blocks, order: None })
}

impl Rows for Numbers {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn read(&self, row: usize, out: &mut [f32]) {
        let mut row = row;
        for part in &self.parts {
            if row < part.blocks.rows {
                let stored = part.order.as_ref().map_or(row, |order| order[row]);
                return part.blocks.decode_row(stored, out);
            }
            row -= part.blocks.rows;
        }
    }
}
