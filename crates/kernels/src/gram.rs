use lathe_simd::{Isa, LANES, Op};

use crate::{Error, Pool, output::Output};

/// Sums x xᵀ over many inputs x: the Hessian of a linear map's squared error.
///
/// Only the upper triangle is computed. Inputs are gathered until there are [`CHUNK`]; the products
/// of a chunk are summed in f32, in registers, and chunks in f64, so that neither how the inputs
/// are cut into calls nor the number of threads changes a bit.
pub struct Gram {
    cols: usize,
    /// Panels of [`LANES`] columns; the last one may be padded with zeros.
    panels: usize,
    /// Inputs that were gathered, panel by panel `[panels, CHUNK, LANES]`.
    staged: Vec<[f32; LANES]>,
    filled: usize,
    /// For each pair of panels p ≤ q the sums `[LANES, LANES]`, in the order of (p, q).
    sums: Vec<Tile>,
}

type Tile = [[f64; LANES]; LANES];

/// Inputs whose products are summed in f32.
const CHUNK: usize = 512;

/// Panels that one task is about: they stay in the second-level cache.
const TASK: usize = 4;

impl Gram {
    /// Sums for inputs of `cols` numbers.
    ///
    /// **Errors**: not enough memory.
    pub fn new(cols: usize) -> Result<Self, Error> {
        let panels = cols.div_ceil(LANES);
        let refused =
            |_| Error::Memory { format: "f64", rows: cols, cols, bytes: Self::bytes(cols) };
        let (mut staged, mut sums) = (Vec::new(), Vec::new());
        staged.try_reserve_exact(panels * CHUNK).map_err(refused)?;
        sums.try_reserve_exact(panels * (panels + 1) / 2).map_err(refused)?;
        staged.resize(panels * CHUNK, [0.0; LANES]);
        sums.resize(panels * (panels + 1) / 2, [[0.0; LANES]; LANES]);
        Ok(Self { cols, panels, staged, filled: 0, sums })
    }

    /// Bytes that sums over `cols` columns take until [`Gram::finish`].
    pub fn bytes(cols: usize) -> usize {
        let panels = cols.div_ceil(LANES);
        let staged = panels.saturating_mul(CHUNK * size_of::<[f32; LANES]>());
        staged.saturating_add(panels.saturating_mul(panels + 1) / 2 * size_of::<Tile>())
    }

    /// Adds inputs `[T, cols]`.
    pub fn add(&mut self, pool: &Pool, x: &[f32]) {
        assert!(x.len().is_multiple_of(self.cols.max(1)), "x is not [T, {}]", self.cols);
        let mut x = x;
        while !x.is_empty() {
            let count = (CHUNK - self.filled).min(x.len() / self.cols);
            let (now, rest) = x.split_at(count * self.cols);
            self.stage(pool, now);
            self.filled += count;
            if self.filled == CHUNK {
                self.flush(pool);
            }
            x = rest;
        }
    }

    /// The sums times `scale`, as a full `[cols, cols]` matrix.
    ///
    /// **Errors**: not enough memory.
    pub fn finish(mut self, pool: &Pool, scale: f64) -> Result<Vec<f32>, Error> {
        self.flush(pool);
        let (cols, panels) = (self.cols, self.panels);
        drop(std::mem::take(&mut self.staged));
        let bytes = 4 * cols * cols;
        let mut full = Vec::new();
        full.try_reserve_exact(cols * cols).map_err(|_| Error::Memory {
            format: "f32",
            rows: cols,
            cols,
            bytes,
        })?;
        full.resize(cols * cols, 0.0f32);
        let out = Output::new(&mut full);
        let sums = &self.sums;
        pool.run(panels, &|panel| {
            let rows = panel * LANES..cols.min((panel + 1) * LANES);
            // SAFETY: a panel's rows are one task's alone.
            let out = unsafe { out.part(rows.start * cols, rows.len() * cols) };
            for (r, out) in out.chunks_exact_mut(cols).enumerate() {
                for (c, out) in out.iter_mut().enumerate() {
                    let (q, lane) = (c / LANES, c % LANES);
                    let sum = match q >= panel {
                        true => sums[at(panels, panel, q)][r][lane],
                        false => sums[at(panels, q, panel)][lane][r],
                    };
                    *out = (sum * scale) as f32;
                }
            }
        });
        Ok(full)
    }

    fn stage(&mut self, pool: &Pool, x: &[f32]) {
        let Self { cols, panels, filled, .. } = *self;
        let staged = Output::new(&mut self.staged);
        pool.run(panels, &|panel| {
            // SAFETY: a panel is one task's alone.
            let staged = unsafe { staged.part(panel * CHUNK + filled, x.len() / cols) };
            let columns = panel * LANES..cols.min((panel + 1) * LANES);
            for (to, x) in staged.iter_mut().zip(x.chunks_exact(cols)) {
                to[..columns.len()].copy_from_slice(&x[columns.clone()]);
            }
        });
    }

    /// Adds the products of what was gathered to the sums.
    fn flush(&mut self, pool: &Pool) {
        let Self { panels, filled, .. } = *self;
        if filled == 0 {
            return;
        }
        let staged = &self.staged;
        let sums = Output::new(&mut self.sums);
        pool.run(panels.div_ceil(TASK), &|task| {
            let first = task * TASK;
            let last = (first + TASK).min(panels);
            let start = at(panels, first, first);
            // SAFETY: the sums of a task's panels lie side by side and are its alone.
            let sums = unsafe { sums.part(start, at(panels, last, last) - start) };
            lathe_simd::run(Products { staged, filled, panels, first, last, sums });
        });
        self.filled = 0;
    }
}

/// Where the sums of panels p ≤ q lie; `at(panels, panels, panels)` is their number.
fn at(panels: usize, p: usize, q: usize) -> usize {
    p * panels - p * p.saturating_sub(1) / 2 + q - p
}

/// The products of panels `first .. last` with all that follow.
struct Products<'a> {
    staged: &'a [[f32; LANES]],
    filled: usize,
    panels: usize,
    first: usize,
    last: usize,
    sums: &'a mut [Tile],
}

impl Op for Products<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let wide = I::REGISTERS >= 32;
        let mut q = self.first;
        while q < self.panels {
            let two = wide && q + 2 <= self.panels;
            // Of a pair that straddles the diagonal the part below it is left out.
            for p in self.first..self.last.min(q + 1) {
                match two {
                    true => self.rows::<I, 8, 2>(isa, p, q),
                    false => self.rows::<I, 4, 1>(isa, p, q),
                }
            }
            if two && q + 1 < self.last {
                self.rows::<I, 4, 1>(isa, q + 1, q + 1);
            }
            q += if two { 2 } else { 1 };
        }
    }
}

impl Products<'_> {
    fn panel(&self, panel: usize) -> &[[f32; LANES]] {
        &self.staged[panel * CHUNK..][..self.filled]
    }

    /// All rows of panel `p` with panels `q .. q + Q`, `R` rows at a time.
    #[inline(always)]
    fn rows<I: Isa, const R: usize, const Q: usize>(&mut self, isa: I, p: usize, q: usize) {
        let start = at(self.panels, self.first, self.first);
        for row in (0..LANES).step_by(R) {
            let sums = self.tile::<I, R, Q>(isa, p, q, row);
            for (i, sums) in sums.iter().enumerate() {
                let to = &mut self.sums[at(self.panels, p, q + i) - start];
                for (to, sums) in to[row..row + R].iter_mut().zip(sums) {
                    let mut lanes = [0.0; LANES];
                    isa.store(*sums, &mut lanes);
                    to.iter_mut().zip(lanes).for_each(|(to, sum)| *to += f64::from(sum));
                }
            }
        }
    }

    #[inline(always)]
    fn tile<I: Isa, const R: usize, const Q: usize>(
        &self,
        isa: I,
        p: usize,
        q: usize,
        row: usize,
    ) -> [[I::F; R]; Q] {
        let left = self.panel(p);
        let right: [&[[f32; LANES]]; Q] = std::array::from_fn(|i| self.panel(q + i));
        let mut sums = [[isa.splat(0.0); R]; Q];
        for (t, left) in left.iter().enumerate() {
            let mut vectors = [isa.splat(0.0); Q];
            for i in 0..Q {
                vectors[i] = isa.load(&right[i][t]);
            }
            for r in 0..R {
                let x = isa.splat(left[row + r]);
                for i in 0..Q {
                    sums[i][r] = isa.fma(x, vectors[i], sums[i][r]);
                }
            }
        }
        sums
    }
}

impl std::fmt::Debug for Gram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gram").field("cols", &self.cols).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(tokens: usize, cols: usize) -> Vec<f32> {
        (0..tokens * cols).map(|i| ((i * 7919 % 1009) as f32 - 504.0) * 1e-3).collect()
    }

    /// As [`Gram::add`], on one instruction set.
    fn sums<I: Isa>(isa: I, x: &[f32], cols: usize) -> Vec<Tile> {
        let mut gram = Gram::new(cols).unwrap();
        let pool = Pool::new(1);
        gram.stage(&pool, x);
        let Gram { panels, staged, sums, .. } = &mut gram;
        let filled = x.len() / cols;
        Products { staged, filled, panels: *panels, first: 0, last: *panels, sums }.run(isa);
        gram.sums
    }

    #[derive(Clone)]
    struct Sums(Vec<f32>, usize);

    impl Op for Sums {
        type Out = Vec<Tile>;
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Vec<Tile> {
            sums(isa, &self.0, self.1)
        }
    }

    #[test]
    fn sums_are_those_of_a_plain_loop_on_every_instruction_set() {
        for cols in [1, 15, 16, 17, 48, 80, 130] {
            let x = inputs(29, cols);
            for (name, sums) in lathe_simd::run_all(Sums(x.clone(), cols)) {
                let panels = cols.div_ceil(LANES);
                for (a, b) in (0..cols).flat_map(|a| (a..cols).map(move |b| (a, b))) {
                    let tile = sums[at(panels, a / LANES, b / LANES)];
                    let plain: f64 =
                        x.chunks(cols).map(|x| f64::from(x[a]) * f64::from(x[b])).sum();
                    let found = tile[a % LANES][b % LANES];
                    assert!((found - plain).abs() < 1e-5, "{name} {cols} {a} {b}");
                }
            }
        }
    }

    #[test]
    fn neither_threads_nor_the_cut_of_calls_changes_a_bit() {
        let (tokens, cols) = (1300, 72);
        let x = inputs(tokens, cols);
        let whole = |threads| {
            let pool = Pool::new(threads);
            let mut gram = Gram::new(cols).unwrap();
            gram.add(&pool, &x);
            gram.finish(&pool, 1.0 / tokens as f64).unwrap()
        };
        let one = whole(1);
        assert!((0..cols).all(|a| (0..cols).all(|b| one[a * cols + b] == one[b * cols + a])));
        assert_eq!(whole(3), one);
        let pool = Pool::new(2);
        let mut gram = Gram::new(cols).unwrap();
        x.chunks(cols * 37).for_each(|part| gram.add(&pool, part));
        assert_eq!(gram.finish(&pool, 1.0 / tokens as f64).unwrap(), one);
    }

    #[test]
    fn long_sums_stay_exact_to_single_precision() {
        let (tokens, cols) = (40_000, 16);
        let x: Vec<f32> = inputs(tokens, cols).iter().map(|x| x + 1.0).collect();
        let pool = Pool::new(2);
        let mut gram = Gram::new(cols).unwrap();
        gram.add(&pool, &x);
        let found = gram.finish(&pool, 1.0 / tokens as f64).unwrap();
        let plain: f64 = x.chunks(cols).map(|x| f64::from(x[3]) * f64::from(x[5])).sum();
        let plain = plain / tokens as f64;
        assert!((f64::from(found[3 * cols + 5]) / plain - 1.0).abs() < 1e-6);
    }
}
