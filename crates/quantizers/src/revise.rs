use crate::{
    curvature::Curvature,
    linalg::{TILE, Tile, add_product},
    panel::{Lane, Panel, Spread},
};

/// Goes once over all columns of a panel whose steps are settled, and lets each have the values
/// that are best given all others: coordinate descent on tr(E·H·Eᵀ). Whether any value changed.
///
/// `choose` is given the step and, for each row, the number whose nearest allowed value is best
/// there; it answers with the values, or None where they stay.
pub(crate) fn revise(
    panel: &mut Panel,
    curvature: &Curvature<'_>,
    order: &[u32],
    mut choose: impl FnMut(usize, &Lane) -> Option<Lane>,
) -> bool {
    let mut changed = false;
    let blocks = order.len().div_ceil(TILE);
    let (mut part, mut slope) = ([[0.0; TILE]; TILE], [[0.0; TILE]; TILE]);
    for block in 0..blocks {
        slope.as_flattened_mut().fill(0.0);
        for other in 0..blocks {
            curvature.tile(order, block, other, &mut part);
            add_product(&mut slope, &part, &panel.errors()[other]);
        }
        curvature.tile(order, block, block, &mut part);
        for at in 0..TILE.min(order.len() - block * TILE) {
            let step = block * TILE + at;
            let wanted = wanted(panel, step, &slope[at], part[at][at]);
            let Some(values) = choose(step, &wanted) else { continue };
            changed = true;
            let change = panel.replace(step, &values);
            spread(&part, at, &change, &mut slope);
        }
    }
    changed
}

/// What is best at `step`, if `slope` is the step's part of H·e.
fn wanted(panel: &Panel, step: usize, slope: &Lane, diagonal: f32) -> Lane {
    let (weights, error) = (panel.weights(step), panel.state(step));
    let inverse = 1.0 / diagonal;
    std::array::from_fn(|i| weights[i] - error[i] + slope[i] * inverse)
}

/// Tells the steps of a tile after `at` how their slopes change.
fn spread(part: &Tile, at: usize, change: &Lane, slope: &mut Tile) {
    let (factors, to) = (&part[at + 1..], &mut slope[at + 1..]);
    lathe_simd::run(Spread { error: change, factors, column: at, to });
}
