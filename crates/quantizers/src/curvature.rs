use crate::linalg::{Feedback, NotPositive, TILE, Tile};

/// How the error of a layer's output grows with errors in its weights: the Hessian of its inputs,
/// made fit to be solved with.
///
/// Columns that calibration never reached, or where it met numbers that are not finite, are taken
/// out: they count as independent of all others and as important as the mean.
#[derive(Debug)]
pub(crate) struct Curvature<'a> {
    hessian: &'a [f32],
    size: usize,
    /// What stands on the diagonal before damping.
    diagonal: Vec<f32>,
    out: Vec<bool>,
    any_out: bool,
    mean: f32,
    /// What is added to each number of the diagonal.
    ridge: f32,
    notes: Vec<String>,
}

/// Added to each number of the diagonal, as a part of it: what 32-bit sums cannot tell from 0.
const ROUNDING: f32 = 1e-5;

/// By how much damping grows when it was not enough.
const ESCALATION: f32 = 3.0;

/// Damping beyond this is not tried: the matrix is no sum of squares then.
const MOST_DAMPING: f32 = 1.0;

impl<'a> Curvature<'a> {
    /// The mean of x·xᵀ over the inputs x of `size` columns, `damping` times the mean of its
    /// diagonal added to the diagonal.
    pub(crate) fn new(hessian: &'a [f32], size: usize, damping: f32) -> Self {
        debug_assert_eq!(hessian.len(), size * size);
        let mut diagonal: Vec<f32> = (0..size).map(|i| hessian[i * size + i]).collect();
        let strange = strange(hessian, size, &diagonal);
        let dead: Vec<bool> = diagonal.iter().map(|x| *x <= 0.0).collect();
        let out: Vec<bool> = strange.iter().zip(&dead).map(|(a, b)| *a || *b).collect();
        let live = || diagonal.iter().zip(&out).filter(|(_, out)| !**out).map(|(x, _)| *x);
        let sum: f64 = live().map(f64::from).sum();
        let mean = if sum > 0.0 { (sum / live().count() as f64) as f32 } else { 1.0 };
        for (x, out) in diagonal.iter_mut().zip(&out) {
            if *out {
                *x = mean;
            }
        }
        let mut notes = Vec::new();
        let count = |which: &[bool]| which.iter().filter(|x| **x).count();
        match count(&strange) {
            0 => {}
            n => notes.push(format!(
                "calibration gave no finite numbers for {n} of {size} input columns: rounded alone"
            )),
        }
        match count(&dead) {
            0 => {}
            n => notes.push(format!(
                "{n} of {size} input columns are always 0 in calibration: rounded alone"
            )),
        }
        let any_out = out.contains(&true);
        Self { hessian, size, diagonal, out, any_out, mean, ridge: damping * mean, notes }
    }

    /// The number for a pair of columns, damped.
    pub(crate) fn at(&self, i: usize, j: usize) -> f32 {
        if i == j {
            self.diagonal[i] * (1.0 + ROUNDING) + self.ridge
        } else if self.out[i] || self.out[j] {
            0.0
        } else {
            self.hessian[i * self.size + j]
        }
    }

    /// The columns by falling diagonal, those that were taken out last.
    pub(crate) fn by_importance(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.size as u32).collect();
        let key = |i: &u32| (self.out[*i as usize], -self.diagonal[*i as usize]);
        order.sort_by(|a, b| {
            let ((out_a, a), (out_b, b)) = (key(a), key(b));
            out_a.cmp(&out_b).then(a.total_cmp(&b))
        });
        order
    }

    /// Splits the matrix with its columns in `order`, with more damping where it is needed.
    pub(crate) fn solve(&mut self, order: &[u32], threads: usize) -> Feedback {
        let asked = self.ridge / self.mean;
        let mut first = None;
        loop {
            let number = |s: usize, t: usize| self.at(order[s] as usize, order[t] as usize);
            let failed = match Feedback::new(self.size, threads, number) {
                Ok(feedback) => {
                    self.note_damping(asked, first);
                    return feedback;
                }
                Err(at) => *first.get_or_insert(at),
            };
            self.ridge = ESCALATION * self.ridge.max(ROUNDING * self.mean);
            if self.ridge > MOST_DAMPING * self.mean {
                self.notes.push(format!(
                    "the Hessian is no sum of squares (column {} fails at any damping): \
                     columns rounded alone",
                    order[failed.row]
                ));
                (self.any_out, self.out) = (true, vec![true; self.size]);
                self.ridge = asked * self.mean;
            }
        }
    }

    fn note_damping(&mut self, asked: f32, first: Option<NotPositive>) {
        let Some(at) = first else { return };
        if self.out.iter().all(|out| *out) {
            return;
        }
        self.notes.push(format!(
            "damping raised from {:.3} % to {:.3} % of the mean diagonal: the Hessian of {} columns \
             is singular (pivot {})",
            100.0 * asked,
            100.0 * self.ridge / self.mean,
            self.size,
            at.row
        ));
    }

    /// The numbers for the pairs of two tiles' columns in `order`; 0 beyond the last.
    pub(crate) fn tile(&self, order: &[u32], row: usize, column: usize, to: &mut Tile) {
        let part = |tile: usize| &order[tile * TILE..order.len().min((tile + 1) * TILE)];
        let (rows, columns) = (part(row), part(column));
        for (i, to) in rows.iter().zip(&mut *to) {
            let from = &self.hessian[*i as usize * self.size..][..self.size];
            self.pick(from, columns, to);
            if self.out[*i as usize] {
                to.fill(0.0);
            }
        }
        to[rows.len()..].as_flattened_mut().fill(0.0);
        if row == column {
            for (at, i) in rows.iter().enumerate() {
                to[at][at] = self.at(*i as usize, *i as usize);
            }
        }
    }

    /// The numbers of a row at these columns, 0 at those that are taken out and beyond the last.
    fn pick(&self, from: &[f32], columns: &[u32], to: &mut [f32; TILE]) {
        let (to, beyond) = to.split_at_mut(columns.len());
        beyond.fill(0.0);
        let first = columns.first().map_or(0, |first| *first as usize);
        // Neighbours, as in the natural order, are copied at once.
        if columns.iter().enumerate().all(|(i, column)| *column as usize == first + i) {
            to.copy_from_slice(&from[first..first + columns.len()]);
        } else {
            to.iter_mut().zip(columns).for_each(|(to, column)| *to = from[*column as usize]);
        }
        if self.any_out {
            let out = columns.iter().map(|column| self.out[*column as usize]);
            to.iter_mut().zip(out).filter(|(_, out)| *out).for_each(|(to, _)| *to = 0.0);
        }
    }

    /// What a reader should know of the matrix, columns taken out and damping raised.
    pub(crate) fn into_notes(self) -> Vec<String> {
        self.notes
    }
}

/// Which columns have a number that is not finite.
fn strange(hessian: &[f32], size: usize, diagonal: &[f32]) -> Vec<bool> {
    let mut strange: Vec<bool> = diagonal.iter().map(|x| !x.is_finite()).collect();
    for (i, row) in hessian.chunks_exact(size.max(1)).enumerate() {
        // A sum is not finite if one of its numbers is not, and mostly only then.
        if row.iter().sum::<f32>().is_finite() || strange[i] {
            continue;
        }
        let mut others = row.iter().zip(&strange);
        strange[i] = others.any(|(x, strange)| !x.is_finite() && !strange);
    }
    strange
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_hold_the_numbers_of_their_pairs_in_any_order() {
        let size = TILE + 37;
        let mut hessian: Vec<f32> =
            (0..size * size).map(|at| (at / size + at % size) as f32 + 1.0).collect();
        for spoilt in [false, true] {
            if spoilt {
                hessian[3 * size + 3] = 0.0;
                hessian[140 * size + 140] = f32::NAN;
            }
            let curvature = Curvature::new(&hessian, size, 0.1);
            assert_eq!(curvature.out[3], spoilt);
            let natural: Vec<u32> = (0..size as u32).collect();
            let shuffled = natural.iter().map(|i| (i * 7 + 5) % size as u32).collect();
            for order in [natural, shuffled] {
                let number = |s: usize, t: usize| match (order.get(s), order.get(t)) {
                    (Some(i), Some(j)) => curvature.at(*i as usize, *j as usize),
                    _ => 0.0,
                };
                for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let mut tile = [[f32::NAN; TILE]; TILE];
                    curvature.tile(&order, row, column, &mut tile);
                    for (i, numbers) in tile.iter().enumerate() {
                        for (j, x) in numbers.iter().enumerate() {
                            assert_eq!(*x, number(row * TILE + i, column * TILE + j), "{i} {j}");
                        }
                    }
                }
            }
        }
    }
}
