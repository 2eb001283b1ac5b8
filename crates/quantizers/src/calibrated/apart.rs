use std::collections::BTreeMap;

use lathe_formats::Blocks;
use lathe_models::{
    Role,
    gguf::{Edit, Source},
};

use crate::{Dense, Error, Input, Planned};

/// The rows of each weight within a coded tensor, in their own order: the tensor taken apart again.
///
/// **Errors**: rows that the tensor does not have.
pub(super) fn take_apart(
    planned: &Planned,
    coded: &Blocks,
    rows_of: impl Fn(Role) -> usize,
) -> Result<BTreeMap<Role, Blocks>, Error> {
    let edits: BTreeMap<Role, Edit> = match &planned.input {
        Input::Gguf(Source::Weights(parts)) => {
            parts.iter().map(|(located, edit)| (located.weight.role, *edit)).collect()
        }
        _ => BTreeMap::new(),
    };
    let mut parts = BTreeMap::new();
    let mut at = 0;
    for role in &planned.roles {
        let rows = rows_of(*role);
        let part = coded.slice_rows(at..at + rows)?;
        let order = edits.get(role).and_then(|edit| edit.order(rows));
        let part = match order {
            Some(order) => put_back(&part, &order)?,
            None => part,
        };
        parts.insert(*role, part);
        at += rows;
    }
    Ok(parts)
}

/// Undoes an order of rows.
fn put_back(blocks: &Blocks, order: &[usize]) -> Result<Blocks, Error> {
    if blocks.side.is_empty() {
        let bytes = blocks.format.row_bytes(blocks.cols);
        let mut data = vec![0; blocks.data.len()];
        for (row, from) in order.iter().enumerate() {
            data[from * bytes..][..bytes].copy_from_slice(blocks.row(row));
        }
        return Ok(Blocks { data: data.into(), ..blocks.clone() });
    }
    // Whatever the side data is about, the weights are the same.
    let mut dense = Dense { rows: blocks.rows, cols: blocks.cols, data: blocks.decode() };
    for (row, from) in order.iter().enumerate() {
        blocks.decode_row(row, dense.row_mut(*from));
    }
    Blocks::try_from(dense)
}

#[cfg(test)]
mod tests {
    use lathe_formats::by_name;

    use super::*;

    #[test]
    fn an_order_of_rows_is_undone_with_and_without_side_data() {
        let (rows, cols) = (8, 64);
        let weights: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.7).sin()).collect();
        let order = Edit::Interleave { heads: 2 }.order(rows).unwrap();
        let moved: Vec<f32> =
            order.iter().flat_map(|row| weights[row * cols..][..cols].to_vec()).collect();
        for format in ["q4_0", "nf4_dq"] {
            let format = by_name(format).unwrap();
            let coded = format.encode(rows, cols, &moved, 1).unwrap();
            let back = put_back(&coded, &order).unwrap();
            let decoded = coded.decode();
            for (row, from) in order.iter().enumerate() {
                let mut found = vec![0.0; cols];
                back.decode_row(*from, &mut found);
                assert_eq!(found, decoded[row * cols..][..cols], "{format:?} row {row}");
            }
        }
    }
}
