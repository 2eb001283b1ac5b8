//! Orthogonal matrices that cost additions only.

use lathe_simd::{Isa, Op};

/// An orthogonal matrix Q = blockdiag(H, …, H) · diag(±1) / √m, H a Hadamard matrix of order m.
///
/// H is the Kronecker product of a Paley matrix and Sylvester's matrix of a power of two. Where
/// no such H of order n is known to this construction, Q has the fewest equal blocks for which
/// one is.
///
/// **Source** Paley 1933, On Orthogonal Matrices; signs as in QuaRot (arXiv 2404.00456, §3).
#[derive(Clone, Debug, PartialEq)]
pub struct Hadamard {
    /// The Paley factor, row-major ±1; empty for order 1.
    paley: Vec<f32>,
    /// Its order.
    outer: usize,
    /// The power of two.
    inner: usize,
    /// ±1 for each of the n inputs, divided by √m.
    signs: Vec<f32>,
}

impl Hadamard {
    /// The matrix of order `n` with signs drawn from `seed`: the same for the same arguments on
    /// every machine.
    pub fn new(n: usize, seed: u64) -> Self {
        let (outer, inner, paley) = (1..=n)
            .filter(|blocks| n.is_multiple_of(*blocks))
            .find_map(|blocks| factors(n / blocks))
            .unwrap_or((1, 1, Vec::new()));
        let unit = ((outer * inner) as f32).sqrt().recip();
        let mut bits = Bits(seed);
        let signs = (0..n).map(|_| if bits.next() { unit } else { -unit }).collect();
        Self { paley, outer, inner, signs }
    }

    /// The order n.
    pub fn len(&self) -> usize {
        self.signs.len()
    }

    /// Whether the order is 0.
    pub fn is_empty(&self) -> bool {
        self.signs.is_empty()
    }

    /// The order of one block: n where the whole is mixed.
    pub fn block(&self) -> usize {
        self.outer * self.inner
    }

    /// Replaces x by Qx, for each run of n numbers in `data`.
    pub fn rows(&self, data: &mut [f32]) {
        let mut scratch = vec![0.0; if self.outer > 1 { self.block() } else { 0 }];
        for x in data.chunks_exact_mut(self.len().max(1)) {
            x.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
            lathe_simd::run(Mix { of: self, width: 1, data: x, scratch: &mut scratch });
        }
    }

    /// Replaces X by QX, for a row-major matrix X of n rows of `width` numbers.
    pub fn columns(&self, data: &mut [f32], width: usize) {
        let width = width.max(1);
        let mut scratch = vec![0.0; if self.outer > 1 { self.block() * width } else { 0 }];
        for (row, sign) in data.chunks_exact_mut(width).zip(&self.signs) {
            row.iter_mut().for_each(|x| *x *= sign);
        }
        lathe_simd::run(Mix { of: self, width, data, scratch: &mut scratch });
    }
}

/// The order of the Paley matrix, the power of two, and the matrix, for a Hadamard matrix of
/// order m.
fn factors(m: usize) -> Option<(usize, usize, Vec<f32>)> {
    let mut outer = m >> m.trailing_zeros();
    if outer == 1 {
        return Some((1, m, Vec::new()));
    }
    while outer <= m {
        if let Some(matrix) = paley(outer) {
            return Some((outer, m / outer, matrix));
        }
        outer *= 2;
    }
    None
}

/// A Hadamard matrix of order m, where m − 1 or m / 2 − 1 is a suitable prime or its square.
fn paley(m: usize) -> Option<Vec<f32>> {
    if !m.is_multiple_of(4) {
        return None;
    }
    if (m - 1) % 4 == 3
        && let Some(field) = Field::new(m - 1)
    {
        return Some(paley_one(&field));
    }
    let field = Field::new(m / 2 - 1).filter(|field| field.order() % 4 == 1)?;
    Some(paley_two(&field))
}

/// I + S with S = [0 1; −1 Q] skew, for q ≡ 3 mod 4: order q + 1.
fn paley_one(field: &Field) -> Vec<f32> {
    let q = field.order();
    let at = |i: usize, j: usize| match (i, j) {
        _ if i == j => 1.0,
        (0, _) => 1.0,
        (_, 0) => -1.0,
        _ => field.character_of_difference(i - 1, j - 1),
    };
    square(q + 1, at)
}

/// C ⊗ [1 1; 1 −1] + I ⊗ [1 −1; −1 −1] with C = [0 1; 1 Q] symmetric, for q ≡ 1 mod 4: order
/// 2 (q + 1).
fn paley_two(field: &Field) -> Vec<f32> {
    let conference = |i: usize, j: usize| match (i, j) {
        _ if i == j => 0.0,
        (0, _) | (_, 0) => 1.0,
        _ => field.character_of_difference(i - 1, j - 1),
    };
    square(2 * (field.order() + 1), |i, j| match (i / 2 == j / 2, i % 2, j % 2) {
        (true, 0, 0) => 1.0,
        (true, ..) => -1.0,
        (false, 1, 1) => -conference(i / 2, j / 2),
        (false, ..) => conference(i / 2, j / 2),
    })
}

fn square(order: usize, at: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    (0..order * order).map(|k| at(k / order, k % order)).collect()
}

/// A finite field of odd order p or p², by the squares in it. Elements are numbered from 0; in
/// the field of p², number a + p·b is a + b√r with r no square modulo p.
struct Field {
    p: usize,
    degree: usize,
    /// +1 for squares modulo p, −1 for the others, 0 for 0.
    legendre: Vec<i8>,
    /// A number that is no square modulo p.
    r: usize,
}

impl Field {
    fn new(q: usize) -> Option<Self> {
        let root = q.isqrt();
        let (p, degree) = if root * root == q { (root, 2) } else { (q, 1) };
        if p < 3 || p.is_multiple_of(2) || (2..=p.isqrt()).any(|d| p.is_multiple_of(d)) {
            return None;
        }
        let mut legendre = vec![-1; p];
        legendre[0] = 0;
        (1..p).for_each(|x| legendre[x * x % p] = 1);
        let r = legendre.iter().position(|l| *l == -1)?;
        Some(Self { p, degree, legendre, r })
    }

    fn order(&self) -> usize {
        self.p.pow(self.degree as u32)
    }

    /// +1 where i − j is a nonzero square of the field, −1 where it is none, 0 where i = j.
    fn character_of_difference(&self, i: usize, j: usize) -> f32 {
        let p = self.p;
        let difference = |i: usize, j: usize| (i % p + p - j % p) % p;
        let (a, b) = (difference(i, j), difference(i / p, j / p));
        // An element of the field of p² is a square exactly where its norm a² − r·b² is one.
        let norm = if self.degree == 1 { a } else { (a * a + (p - self.r) * (b * b % p)) % p };
        f32::from(self.legendre[norm])
    }
}

/// Random bits: the top ones of SplitMix64 (Steele, Lea and Flood 2014).
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) >> 63 == 1
    }
}

/// Multiplies by H along the rows of `data`, which has as many rows as Q, of `width` numbers.
struct Mix<'a> {
    of: &'a Hadamard,
    width: usize,
    data: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Op for Mix<'_> {
    type Out = ();

    /// Plain loops: within `run` the compiler may use the vectors of the instruction set.
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Hadamard { paley, outer, inner, .. } = self.of;
        for block in self.data.chunks_exact_mut(outer * inner * self.width) {
            let mut done = self.width;
            if self.width == 1 && inner.is_multiple_of(SMALL) {
                for run in block.as_chunks_mut::<SMALL>().0 {
                    small(run);
                }
                done = SMALL;
            }
            while done < inner * self.width {
                for pair in block.chunks_exact_mut(2 * done) {
                    let (low, high) = pair.split_at_mut(done);
                    for (a, b) in low.iter_mut().zip(high) {
                        (*a, *b) = (*a + *b, *a - *b);
                    }
                }
                done *= 2;
            }
            if *outer > 1 {
                combine(paley, block, self.scratch);
            }
        }
    }
}

/// A run whose butterflies stay in registers.
const SMALL: usize = 16;

#[inline(always)]
fn small(x: &mut [f32; SMALL]) {
    for half in [1, 2, 4, 8] {
        let from = *x;
        for (i, x) in x.iter_mut().enumerate() {
            let other = from[i ^ half];
            *x = if i & half == 0 { from[i] + other } else { other - from[i] };
        }
    }
}

/// Multiplies the rows of `block`, as many as `matrix` has, by `matrix`.
#[inline(always)]
fn combine(matrix: &[f32], block: &mut [f32], scratch: &mut [f32]) {
    let order = matrix.len().isqrt();
    let width = block.len() / order;
    for (signs, out) in matrix.chunks_exact(order).zip(scratch.chunks_exact_mut(width)) {
        out.fill(0.0);
        for (sign, row) in signs.iter().zip(block.chunks_exact(width)) {
            out.iter_mut().zip(row).for_each(|(o, x)| *o += sign * x);
        }
    }
    block.copy_from_slice(scratch);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Widths and head widths of published models, and some that no construction mixes whole.
    const ORDERS: [usize; 18] =
        [1, 2, 12, 13, 16, 20, 28, 36, 52, 60, 64, 80, 92, 96, 100, 128, 172, 576];

    fn matrix(q: &Hadamard) -> Vec<f32> {
        let n = q.len();
        let mut identity = vec![0.0; n * n];
        (0..n).for_each(|i| identity[i * n + i] = 1.0);
        q.columns(&mut identity, n);
        identity
    }

    #[test]
    fn every_order_gives_an_orthogonal_matrix_of_equal_magnitudes() {
        for n in ORDERS {
            let q = Hadamard::new(n, 7);
            let entries = matrix(&q);
            let magnitude = (q.block() as f32).sqrt().recip();
            for (i, row) in entries.chunks_exact(n).enumerate() {
                let nonzero = row.iter().filter(|x| **x != 0.0);
                assert_eq!(nonzero.clone().count(), q.block(), "order {n}");
                assert!(nonzero.clone().all(|x| (x.abs() - magnitude).abs() < 1e-6));
                for (j, other) in entries.chunks_exact(n).enumerate() {
                    let dot: f32 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                    let expected = f32::from(u8::from(i == j));
                    assert!((dot - expected).abs() < 1e-4, "order {n}: rows {i} and {j}: {dot}");
                }
            }
        }
    }

    #[test]
    fn widths_of_published_models_are_mixed_whole() {
        for n in [576, 896, 960, 1152, 1536, 2304, 2560, 3072, 3584, 4096, 5120, 6656, 8192, 80, 96]
        {
            assert_eq!(Hadamard::new(n, 0).block(), n);
        }
        assert_eq!(Hadamard::new(92, 0).block(), 4, "92 = q + 1 = 2 (q + 1) has no prime power q");
        assert_eq!(Hadamard::new(13, 0).block(), 1);
    }

    #[test]
    fn rows_and_columns_are_multiplied_by_the_same_matrix_on_every_instruction_set() {
        for n in ORDERS {
            let q = Hadamard::new(n, 3);
            let x: Vec<f32> = (0..3 * n).map(|i| (i as f32 * 0.71).sin()).collect();
            let entries = matrix(&q);
            let plain: Vec<f32> = x
                .chunks_exact(n)
                .flat_map(|x| {
                    entries
                        .chunks_exact(n)
                        .map(move |row| row.iter().zip(x).map(|(a, b)| a * b).sum::<f32>())
                })
                .collect();
            let mut transposed: Vec<f32> = (0..3 * n).map(|i| x[i % 3 * n + i / 3]).collect();
            for isa in lathe_simd::available() {
                let mut rows = x.clone();
                lathe_simd::with_isa(isa, || q.rows(&mut rows)).unwrap();
                let worst = plain.iter().zip(&rows).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
                assert!(worst < 1e-4, "order {n} on {isa}: {worst}");
            }
            q.columns(&mut transposed, 3);
            let mut rows = x;
            q.rows(&mut rows);
            for (i, value) in transposed.iter().enumerate() {
                assert!((value - rows[i % 3 * n + i / 3]).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn the_signs_depend_on_the_seed_alone() {
        assert_eq!(Hadamard::new(64, 5), Hadamard::new(64, 5));
        assert_ne!(Hadamard::new(64, 5), Hadamard::new(64, 6));
        let positive = Hadamard::new(4096, 1).signs.iter().filter(|s| **s > 0.0).count();
        assert!((1900..2200).contains(&positive), "{positive}");
    }
}
