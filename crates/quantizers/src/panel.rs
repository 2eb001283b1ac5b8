use std::ops::Range;

use lathe_formats::{Affine, Levels, Rows};
use lathe_simd::{Isa, LANES, Op};

use crate::{
    linalg::{Feedback, TILE, Tile, add_product, tiles, tiles_mut},
    prune::Mask,
};

/// Numbers of a panel's rows for one column, side by side.
pub(crate) type Lane = [f32; TILE];

/// Up to [`TILE`] rows of weights while their columns are settled one after the other.
///
/// Rows do not depend on one another, columns on all columns before: rows lie side by side, so
/// that a column of all of them is worked on at once. Columns are in the order of the steps.
#[derive(Debug)]
pub(crate) struct Panel {
    /// The weights, step by step.
    weights: Vec<Lane>,
    /// For steps that are settled the error `weight − value`; for those to come what is best
    /// coded instead of the weight, as far as their tile has been told.
    state: Vec<Lane>,
    /// For each tile the number of settled tiles whose errors are in its state.
    told: Vec<usize>,
}

impl Panel {
    /// A panel for `steps` columns.
    pub(crate) fn new(steps: usize) -> Self {
        let blocks = steps.div_ceil(TILE);
        let empty = vec![[0.0; TILE]; blocks * TILE];
        Self { weights: empty.clone(), state: empty, told: vec![0; blocks] }
    }

    /// Reads `rows` rows from `first` on, their columns in `order`.
    pub(crate) fn load(&mut self, source: &dyn Rows, first: usize, rows: usize, order: &[u32]) {
        let mut strip = vec![0.0; LANES * order.len()];
        for lane in (0..rows).step_by(LANES) {
            let count = LANES.min(rows - lane);
            for (i, row) in strip.chunks_exact_mut(order.len().max(1)).take(count).enumerate() {
                source.read(first + lane + i, row);
            }
            for (to, column) in self.weights.iter_mut().zip(order) {
                for (i, to) in to[lane..lane + count].iter_mut().enumerate() {
                    *to = strip[i * order.len() + *column as usize];
                }
            }
        }
        for to in &mut self.weights {
            to[rows..].fill(0.0);
        }
        self.state.copy_from_slice(&self.weights);
        self.told.fill(0);
    }

    /// Tells tile `block` the errors of all tiles before `settled`.
    pub(crate) fn tell(&mut self, feedback: &Feedback, block: usize, settled: usize) {
        let (before, rest) = tiles_mut(self.state.as_flattened_mut()).split_at_mut(block);
        for (earlier, errors) in before.iter().enumerate().take(settled).skip(self.told[block]) {
            add_product(&mut rest[0], feedback.tile(block, earlier), errors);
        }
        self.told[block] = self.told[block].max(settled);
    }

    /// What is best coded at `step`, as far as its tile has been told; its error once settled.
    pub(crate) fn state(&self, step: usize) -> &Lane {
        &self.state[step]
    }

    /// What the weights of `steps`, none of them settled, become if those that `mask` leaves are
    /// free to make up for the errors so far: what scales are fitted to and masks are chosen by.
    pub(crate) fn foresee(
        &self,
        feedback: &Feedback,
        mask: &Mask,
        steps: Range<usize>,
    ) -> Vec<Lane> {
        let mut ahead = self.state[steps.clone()].to_vec();
        for step in steps.clone() {
            let (done, mut rest) = ahead.split_at_mut(step - steps.start + 1);
            let (value, mut error) = (&mut done[step - steps.start], self.weights[step]);
            mask.apply(step, value);
            error.iter_mut().zip(value).for_each(|(e, x)| *e -= *x);
            let mut later = step + 1;
            while later < steps.end {
                let block = later / TILE;
                let count = steps.end.min((block + 1) * TILE) - later;
                let factors = &feedback.tile(block, step / TILE)[later % TILE..][..count];
                let (to, after) = rest.split_at_mut(count);
                lathe_simd::run(Spread { error: &error, factors, column: step % TILE, to });
                (rest, later) = (after, later + count);
            }
        }
        ahead
    }

    /// The weights at `step`.
    pub(crate) fn weights(&self, step: usize) -> &Lane {
        &self.weights[step]
    }

    /// Makes `values` the coded weights at `step` and tells the steps after it in its tile.
    pub(crate) fn settle(&mut self, feedback: &Feedback, step: usize, values: &Lane) {
        let (block, at) = (step / TILE, step % TILE);
        let (head, rest) = self.state[block * TILE..(block + 1) * TILE].split_at_mut(at + 1);
        let error = &mut head[at];
        for ((e, w), q) in error.iter_mut().zip(&self.weights[step]).zip(values) {
            *e = w - q;
        }
        let factors = &feedback.tile(block, block)[at + 1..];
        lathe_simd::run(Spread { error, factors, column: at, to: rest });
    }

    /// The errors as tiles, once all steps are settled.
    pub(crate) fn errors(&self) -> &[Tile] {
        tiles(self.state.as_flattened())
    }

    /// Makes `values` the coded weights at a settled step; by how much its errors change.
    pub(crate) fn replace(&mut self, step: usize, values: &Lane) -> Lane {
        let (weights, error) = (&self.weights[step], &mut self.state[step]);
        std::array::from_fn(|i| {
            let before = error[i];
            error[i] = weights[i] - values[i];
            error[i] - before
        })
    }
}

/// `to[i] += factors[i][column]·error`.
pub(crate) struct Spread<'a> {
    pub(crate) error: &'a Lane,
    pub(crate) factors: &'a [[f32; TILE]],
    pub(crate) column: usize,
    pub(crate) to: &'a mut [Lane],
}

impl Op for Spread<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let error = self.error.as_chunks::<LANES>().0;
        for (to, factors) in self.to.iter_mut().zip(self.factors) {
            let factor = isa.splat(factors[self.column]);
            for (to, error) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(error) {
                isa.store(isa.fma(factor, isa.load(error), isa.load(to)), to);
            }
        }
    }
}

/// The affine maps of one group of columns, a row each.
#[derive(Clone, Debug)]
pub(crate) struct Maps {
    pub(crate) scale: Lane,
    pub(crate) offset: Lane,
    /// 1 / scale, or 0 where every level decodes to the offset.
    pub(crate) inverse: Lane,
}

impl Maps {
    pub(crate) const NONE: Self =
        Self { scale: [0.0; TILE], offset: [0.0; TILE], inverse: [0.0; TILE] };

    /// Sets the map of one row.
    pub(crate) fn set(&mut self, row: usize, affine: Affine) {
        let inverse = 1.0 / affine.scale;
        self.scale[row] = affine.scale;
        self.offset[row] = affine.offset;
        self.inverse[row] = if inverse.is_finite() { inverse } else { 0.0 };
    }
}

/// Levels in the form that the nearest of them is found in.
#[derive(Debug)]
pub(crate) enum Ladder {
    Integers {
        low: f32,
        high: f32,
    },
    /// Levels and the numbers halfway between neighbours.
    Table {
        levels: &'static [f32],
        between: Vec<f32>,
    },
}

impl From<Levels> for Ladder {
    fn from(levels: Levels) -> Self {
        match levels {
            Levels::Integers { low, high } => Self::Integers { low: low as f32, high: high as f32 },
            Levels::Table(levels) => {
                let between = levels.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
                Self::Table { levels, between }
            }
        }
    }
}

/// Finds for each of `wanted` the nearest level of its row: the code, and the value it decodes to.
pub(crate) fn nearest(
    ladder: &Ladder,
    maps: &Maps,
    wanted: &Lane,
    codes: &mut [u8; TILE],
    values: &mut Lane,
) {
    lathe_simd::run(Nearest { ladder, maps, wanted, codes, values });
}

struct Nearest<'a> {
    ladder: &'a Ladder,
    maps: &'a Maps,
    wanted: &'a Lane,
    codes: &'a mut [u8; TILE],
    values: &'a mut Lane,
}

impl Op for Nearest<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.ladder {
            Ladder::Integers { low, high } => self.integers(isa, *low, *high),
            Ladder::Table { levels, between } if between.len() <= FEW => self.few(levels, between),
            Ladder::Table { levels, between } => self.many(levels, between),
        }
    }
}

/// Up to this many levels are compared with one after the other.
const FEW: usize = 32;

impl Nearest<'_> {
    #[inline(always)]
    fn integers<I: Isa>(self, isa: I, low: f32, high: f32) {
        let [scale, offset, inverse, wanted] =
            [&self.maps.scale, &self.maps.offset, &self.maps.inverse, self.wanted]
                .map(|lane| lane.as_chunks::<LANES>().0);
        let values = self.values.as_chunks_mut::<LANES>().0;
        let codes = self.codes.as_chunks_mut::<LANES>().0;
        let (low, high) = (isa.splat(low), isa.splat(high));
        for (i, (values, codes)) in values.iter_mut().zip(codes).enumerate() {
            let (scale, offset) = (isa.load(&scale[i]), isa.load(&offset[i]));
            let x = isa.mul(isa.sub(isa.load(&wanted[i]), offset), isa.load(&inverse[i]));
            let level = isa.to_f32(isa.round(isa.min(isa.max(x, low), high)));
            isa.store(isa.add(isa.mul(scale, level), offset), values);
            let mut bytes = [0; LANES];
            isa.store_low_bytes(isa.round(isa.sub(level, low)), &mut bytes);
            *codes = bytes.map(i8::cast_unsigned);
        }
    }

    #[inline(always)]
    fn few(self, levels: &[f32], between: &[f32]) {
        let mut places = [0u32; TILE];
        let mut x = *self.wanted;
        for (i, x) in x.iter_mut().enumerate() {
            *x = (*x - self.maps.offset[i]) * self.maps.inverse[i];
        }
        for between in between {
            for (place, x) in places.iter_mut().zip(&x) {
                *place += u32::from(x > between);
            }
        }
        self.take(levels, places.map(|place| place as usize));
    }

    #[inline(always)]
    fn many(self, levels: &[f32], between: &[f32]) {
        let place = |i: usize| {
            let x = (self.wanted[i] - self.maps.offset[i]) * self.maps.inverse[i];
            between.partition_point(|between| *between < x)
        };
        let places = std::array::from_fn(place);
        self.take(levels, places);
    }

    #[inline(always)]
    fn take(self, levels: &[f32], places: [usize; TILE]) {
        for (i, place) in places.into_iter().enumerate() {
            self.codes[i] = place as u8;
            self.values[i] = self.maps.scale[i] * levels[place] + self.maps.offset[i];
        }
    }
}
