use lathe_simd::{Isa, LANES, Op};

/// Rows and columns of a tile. Three tiles (64 KiB each) stay in the second-level cache.
pub(crate) const TILE: usize = 128;

/// Vectors in a tile's row.
const WIDTH: usize = TILE / LANES;

/// A row-major square of numbers.
pub(crate) type Tile = [[f32; TILE]; TILE];

/// Numbers as tiles; what does not fill one at the end is left out.
pub(crate) fn tiles(numbers: &[f32]) -> &[Tile] {
    numbers.as_chunks::<TILE>().0.as_chunks::<TILE>().0
}

/// As [`tiles`], to be written to.
pub(crate) fn tiles_mut(numbers: &mut [f32]) -> &mut [Tile] {
    numbers.as_chunks_mut::<TILE>().0.as_chunks_mut::<TILE>().0
}

/// `c += a·b`, for as many rows as `c` and `a` both have; `b` has [`TILE`] rows.
///
/// Each sum of [`TILE`] products is taken by itself from the first on and then added: sums of many
/// tiles lose less to rounding that way.
pub(crate) fn add_product(c: &mut [[f32; TILE]], a: &[[f32; TILE]], b: &Tile) {
    lathe_simd::run(Product { c, a, b });
}

struct Product<'a> {
    c: &'a mut [[f32; TILE]],
    a: &'a [[f32; TILE]],
    b: &'a Tile,
}

impl Op for Product<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        // Accumulators, a row of `b` and a number of `a` must fit in the registers.
        if I::REGISTERS >= 32 {
            self.strips::<I, 8, 2>(isa);
        } else {
            self.strips::<I, 4, 1>(isa);
        }
    }
}

impl Product<'_> {
    /// All of `c`, in blocks of `R` rows and `V` vectors; a column of blocks keeps its part of
    /// `b` in the first-level cache.
    #[inline(always)]
    fn strips<I: Isa, const R: usize, const V: usize>(self, isa: I) {
        let rows = self.c.len().min(self.a.len());
        let (c, a) = (&mut self.c[..rows], &self.a[..rows]);
        for first in (0..WIDTH).step_by(V) {
            let (whole_c, rest_c) = c.as_chunks_mut::<R>();
            let (whole_a, rest_a) = a.as_chunks::<R>();
            for (c, a) in whole_c.iter_mut().zip(whole_a) {
                block::<I, R, V>(isa, c, a, self.b, first);
            }
            for (c, a) in rest_c.iter_mut().zip(rest_a) {
                let (c, a) = (std::array::from_mut(c), std::array::from_ref(a));
                block::<I, 1, V>(isa, c, a, self.b, first);
            }
        }
    }
}

/// `R` rows of the product, of the `V` vectors from `first` on.
#[inline(always)]
fn block<I: Isa, const R: usize, const V: usize>(
    isa: I,
    c: &mut [[f32; TILE]; R],
    a: &[[f32; TILE]; R],
    b: &Tile,
    first: usize,
) {
    let mut total = [[isa.splat(0.0); V]; R];
    for (k, row) in b.iter().enumerate() {
        let row = vectors::<V>(row, first);
        for r in 0..R {
            let x = isa.splat(a[r][k]);
            for v in 0..V {
                total[r][v] = isa.fma(x, isa.load(&row[v]), total[r][v]);
            }
        }
    }
    for (row, total) in c.iter_mut().zip(total) {
        let row = row.as_chunks_mut::<LANES>().0[first..].first_chunk_mut::<V>();
        for (to, total) in row.expect("a block lies within the row").iter_mut().zip(total) {
            isa.store(isa.add(isa.load(to), total), to);
        }
    }
}

/// `V` vectors of a row.
#[inline(always)]
fn vectors<const V: usize>(row: &[f32; TILE], first: usize) -> &[[f32; LANES]; V] {
    let row: &[[f32; LANES]] = row.as_chunks::<LANES>().0;
    row[first..].first_chunk().expect("a block lies within the row")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lathe_simd::{available, with_isa};

    fn filled(rows: usize, seed: usize) -> Vec<[f32; TILE]> {
        let number = |i: usize| ((i * 7919 + seed) % 1013) as f32 / 506.0 - 1.0;
        (0..rows).map(|r| std::array::from_fn(|c| number(r * TILE + c))).collect()
    }

    #[test]
    fn the_product_is_the_plain_one_on_every_instruction_set() {
        for rows in [0, 1, 3, 8, 13, TILE] {
            let (a, before) = (filled(rows, 1), filled(rows, 3));
            let b: Box<Tile> = filled(TILE, 2).into_boxed_slice().try_into().unwrap();
            let mut expected = before.clone();
            for (r, row) in expected.iter_mut().enumerate() {
                for (c, x) in row.iter_mut().enumerate() {
                    *x += (0..TILE).fold(0.0f32, |sum, k| a[r][k].mul_add(b[k][c], sum));
                }
            }
            for isa in available() {
                let mut c = before.clone();
                with_isa(isa, || add_product(&mut c, &a, &b)).unwrap();
                assert!(c == expected, "{isa}, {rows} rows");
            }
        }
    }
}
