use half::bf16;

use crate::Op;

/// Lanes of 32 bits in a vector, on every instruction set.
pub const LANES: usize = 16;

/// Sums of sixteen rows, of sixteen tokens each.
pub type HalfSums = [[f32; LANES]; LANES];

/// Where bfloat16 weights of twice sixteen rows are, in steps of 32 columns.
#[derive(Clone, Copy, Debug)]
pub struct HalfRows {
    pub at: *const u8,
    /// Bytes from a row to the next, from a step to the next, and to the other sixteen rows.
    pub row: usize,
    pub step: usize,
    pub next: usize,
}

/// Where bfloat16 inputs are, in steps of sixteen pairs of columns: those of all tokens side by side.
#[derive(Clone, Copy, Debug)]
pub struct HalfTokens {
    pub at: *const u8,
    /// Bytes of a pair of all of a tile's tokens, from a step to the next, and to another tile of
    /// sixteen tokens; 0 where there is none.
    pub pair: usize,
    pub step: usize,
    pub next: usize,
}

/// An instruction set that this machine has: the token is the proof, only [`Isa::detect`] makes it.
///
/// Only the operations in use are here. All are `#[inline(always)]`; they become single
/// instructions when they are called below [`Isa::enter`].
pub trait Isa: Copy + Send + Sync + 'static {
    /// What `LATHE_ISA` calls it.
    const NAME: &'static str;
    /// Vectors that the register file holds: kernels choose their tiles by it.
    const REGISTERS: usize;
    /// What [`Isa::dot`] subtracts from its codes on its way (128 where the machine multiplies
    /// signed bytes only, 0 elsewhere).
    const DOT_BIAS: i32;

    /// Whether [`Isa::dot_bf16`] is an instruction here.
    const BF16: bool = false;
    /// Whether [`Isa::dot_matrix`] is an instruction here: then products of several tokens take it.
    const MATRIX: bool = false;

    /// Whether [`Isa::half_tiles`] are instructions here: then products of bfloat16 take them.
    const TILES: bool = false;

    /// 16 lanes of f32.
    type F: Copy;
    /// 16 lanes of i32.
    type I: Copy;
    /// 64 bytes; four of them lie in each 32-bit lane.
    type B: Copy;

    /// The token, if this machine has the instruction set.
    fn detect() -> Option<Self>;
    /// Runs `op` compiled for this instruction set.
    fn enter<O: Op>(self, op: O) -> O::Out;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Sixteen floats from memory.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// Sixteen little-endian floats at any alignment.
    fn load_f32(self, from: &[u8; 64]) -> Self::F;
    /// Sixteen little-endian IEEE halves at any alignment, widened exactly.
    fn load_f16(self, from: &[u8; 32]) -> Self::F;
    /// Sixteen little-endian bfloat16 at any alignment, widened exactly.
    fn load_bf16(self, from: &[u8; 32]) -> Self::F;
    /// Sixteen FP8 e4m3 (finite, as OCP and NVIDIA have it), widened exactly; the two NaN codes
    /// read as ±480.
    fn load_e4m3(self, from: &[u8; LANES]) -> Self::F;
    /// Sixteen floats to memory.
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    /// Sixteen floats to memory as IEEE halves, rounded to nearest even.
    fn store_f16(self, x: Self::F, to: &mut [u8; 32]);
    /// Sixteen floats to memory as bfloat16, rounded to nearest even.
    fn store_bf16(self, x: Self::F, to: &mut [u8; 32]);
    /// Thirty-two FP8 e4m3 as pairs of bfloat16, widened exactly; the two NaN codes read as ±480.
    #[inline(always)]
    fn load_e4m3_pairs(self, from: &[u8; 2 * LANES]) -> Self::B {
        let mut pairs = [[0; 32]; 2];
        let (from, _) = from.as_chunks::<LANES>();
        for (from, pairs) in from.iter().zip(&mut pairs) {
            self.store_bf16(self.load_e4m3(from), pairs);
        }
        let mut bytes = [0; 64];
        bytes.copy_from_slice(pairs.as_flattened());
        self.load_bytes(&bytes)
    }
    /// Thirty-two IEEE halves as pairs of bfloat16: exactly where they have at most eight
    /// significant bits, cut off there where they have more.
    #[inline(always)]
    fn load_f16_pairs(self, from: &[u8; 64]) -> Self::B {
        let mut pairs = [0; 64];
        let places = pairs.as_chunks_mut::<32>().0.iter_mut();
        for (from, to) in from.as_chunks::<32>().0.iter().zip(places) {
            let mut lanes = [0.0; LANES];
            self.store(self.load_f16(from), &mut lanes);
            for (x, to) in lanes.iter().zip(to.as_chunks_mut::<2>().0) {
                let [_, _, low, high] = x.to_bits().to_le_bytes();
                *to = [low, high];
            }
        }
        self.load_bytes(&pairs)
    }
    /// The bfloat16 in the low halves of the lanes, and those in the high halves.
    fn bf16_pairs(self, x: Self::B) -> [Self::F; 2];
    /// Adds to each lane its two products of bfloat16, that of the high halves first, each rounded
    /// as [`Isa::fma`] rounds. Machines that have an instruction for it may take subnormal numbers
    /// for 0.
    #[inline(always)]
    fn dot_bf16(self, acc: Self::F, a: Self::B, b: Self::B) -> Self::F {
        pairs_of_bf16(self, acc, a, b)
    }
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each pair; `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each pair; `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `|x|`
    fn abs(self, x: Self::F) -> Self::F;
    /// The nearest integer, ties to even; lanes must lie within ±2^31.
    fn round(self, x: Self::F) -> Self::I;
    /// The sum of the lanes: lane i with i+8, then i+4, i+2, i+1.
    fn sum(self, x: Self::F) -> f32;
    /// [`Isa::sum`] of each of four.
    #[inline(always)]
    fn sums(self, x: [Self::F; 4]) -> [f32; 4] {
        [self.sum(x[0]), self.sum(x[1]), self.sum(x[2]), self.sum(x[3])]
    }
    /// The sums of the four lanes of each quarter: lane i with i+2, then i+1.
    fn quarter_sums(self, x: Self::F) -> [f32; 4];
    /// The largest lane.
    fn max_lane(self, x: Self::F) -> f32;
    /// `2^n`, for `n` in −127 ..= 127 (−127 gives 0).
    fn exp2_int(self, n: Self::I) -> Self::F;

    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// The two in turn.
    fn splat_pair_i(self, x: [i32; 2]) -> Self::I;
    /// Each lane as f32.
    fn to_f32(self, x: Self::I) -> Self::F;
    /// Sixteen unsigned bytes as i32.
    fn load_u8(self, from: &[u8; LANES]) -> Self::I;
    /// The low four bits of each lane, and the four above them.
    fn split_nibbles(self, x: Self::I) -> [Self::I; 2];
    /// The low byte of each lane to memory.
    fn store_low_bytes(self, x: Self::I, to: &mut [i8; LANES]);

    /// 64 bytes from memory.
    fn load_bytes(self, from: &[u8; 64]) -> Self::B;
    /// 64 bytes to memory.
    fn store_bytes(self, x: Self::B, to: &mut [u8; 64]);
    /// The same four bytes in every lane.
    fn splat_bytes(self, x: &[i8; 4]) -> Self::B;
    /// The same sixteen bytes in every quarter.
    fn splat_quarter(self, from: &[u8; 16]) -> Self::B;
    /// The same four little-endian floats in every quarter.
    fn splat_quarter_f32(self, from: &[u8; 16]) -> Self::F;
    /// Quarter `i` of vector `j` becomes quarter `j` of vector `i`.
    fn transpose_quarters(self, x: [Self::B; 4]) -> [Self::B; 4];
    /// Lane `i` of vector `j` becomes lane `j` of vector `i`.
    #[inline(always)]
    fn transpose(self, x: [Self::B; LANES]) -> [Self::B; LANES] {
        let mut rows = [[0; 64]; LANES];
        for (x, row) in x.iter().zip(&mut rows) {
            self.store_bytes(*x, row);
        }
        let mut columns = x;
        for (i, to) in columns.iter_mut().enumerate() {
            let mut column = [0; 64];
            for (lane, row) in column.as_chunks_mut::<4>().0.iter_mut().zip(&rows) {
                lane.copy_from_slice(&row[4 * i..4 * i + 4]);
            }
            *to = self.load_bytes(&column);
        }
        columns
    }
    /// The low four bits of each byte.
    fn low_nibbles(self, x: Self::B) -> Self::B;
    /// The high four bits of each byte.
    fn high_nibbles(self, x: Self::B) -> Self::B;
    /// Adds 16 to byte `i` where bit `i` of the little-endian mask is set; bytes must be below 16.
    fn add_fifth_bit(self, x: Self::B, mask: &[u8; 8]) -> Self::B;
    /// Adds to each byte 16 times bit pair `N` of the byte in `pairs`; bytes must be below 16.
    fn add_bit_pair<const N: i32>(self, x: Self::B, pairs: Self::B) -> Self::B;
    /// Byte `i` becomes `table[x[i]]`; bytes must be below 16.
    fn lookup(self, x: Self::B, table: &[u8; 16]) -> Self::B;
    /// Byte `J` of each lane, unsigned, as f32.
    fn byte_f32<const J: i32>(self, x: Self::B) -> Self::F;
    /// `table[byte J of each lane]`; bytes must be below 16.
    fn byte_table<const J: i32>(self, x: Self::B, table: &[f32; 16]) -> Self::F;
    /// Adds to each lane its four products `codes · x`, for unsigned codes below 128 and signed
    /// x in −127 ..= 127.
    fn dot_small(self, acc: Self::I, codes: Self::B, x: Self::B) -> Self::I;
    /// Adds to each lane its four products `(codes − DOT_BIAS) · x`, for any unsigned codes and
    /// signed x in −127 ..= 127.
    fn dot(self, acc: Self::I, codes: Self::B, x: Self::B) -> Self::I;
    /// Vectors of four columns of all rows, and of the next four, as eight columns for
    /// [`Isa::dot_matrix`]: in each quarter lanes 0 and 1 of both in turn, then lanes 2 and 3.
    #[inline(always)]
    fn matrix_codes(self, [a, b]: [Self::B; 2]) -> [Self::B; 2] {
        let (mut from, mut to) = ([[0; 64]; 2], [[0; 64]; 2]);
        self.store_bytes(a, &mut from[0]);
        self.store_bytes(b, &mut from[1]);
        for lane in 0..LANES {
            let (quarter, row) = (lane / 4, lane % 4);
            for (half, from) in from.iter().enumerate() {
                let at = 16 * quarter + 8 * (row % 2) + 4 * half;
                to[row / 2][at..at + 4].copy_from_slice(&from[4 * lane..4 * lane + 4]);
            }
        }
        [self.load_bytes(&to[0]), self.load_bytes(&to[1])]
    }
    /// In each quarter, the product of two matrices of two rows and eight columns: adds to lane
    /// `2 i + j` the eight products `(codes − DOT_BIAS) · x` of half `i` of the codes and half `j`
    /// of x, for any unsigned codes and signed x in −127 ..= 127.
    #[inline(always)]
    fn dot_matrix(self, acc: Self::I, codes: Self::B, x: Self::B) -> Self::I {
        matrix_by_dots(self, acc, codes, x)
    }
    /// What [`Isa::dot_matrix`] has made of both [`Isa::matrix_codes`], as f32: one vector of all
    /// rows for each of the two tokens.
    #[inline(always)]
    fn matrix_sums(self, [a, b]: [Self::I; 2]) -> [Self::F; 2] {
        let (mut from, mut to) = ([[0.0; LANES]; 2], [[0.0; LANES]; 2]);
        self.store(self.to_f32(a), &mut from[0]);
        self.store(self.to_f32(b), &mut from[1]);
        for (token, to) in to.iter_mut().enumerate() {
            for (lane, to) in to.iter_mut().enumerate() {
                *to = from[lane % 4 / 2][lane / 4 * 4 + 2 * (lane % 2) + token];
            }
        }
        [self.load(&to[0]), self.load(&to[1])]
    }

    /// Makes this thread ready for [`Isa::half_tiles`] with so many tokens in a tile, at most sixteen.
    #[inline(always)]
    fn half_tiles_on(self, _tokens: usize) {}
    /// Lets go of what [`Isa::half_tiles_on`] took.
    #[inline(always)]
    fn tiles_off(self) {}
    /// Adds the products of 32 rows with a tile of tokens, or two: `sums` are those of the first
    /// sixteen rows with the first tile and with the second, then those of the others. Of the columns
    /// of a step, the products of even ones are summed from 0 in their order, those of odd ones as
    /// well, each rounded as [`Isa::fma`] rounds; what is added is the sum of both. Machines that have
    /// an instruction for it may take subnormal numbers for 0.
    ///
    /// # Safety
    /// Both places can be read as they say; this thread has called [`Isa::half_tiles_on`] with the
    /// tokens of a tile, sixteen where there are two, and not [`Isa::tiles_off`] since.
    #[inline(always)]
    unsafe fn half_tiles(self, w: HalfRows, x: HalfTokens, steps: usize, sums: &mut [HalfSums; 4]) {
        // SAFETY: the caller vouches for the places.
        unsafe { half_tiles_by_loops(w, x, steps, sums) };
    }
    /// Multiplies tiles with each other so often, to see what a machine that has them can do at most;
    /// gives the operations, a multiplication and an addition being two.
    #[inline(always)]
    fn spin_tiles(self, _rounds: usize) -> usize {
        0
    }

    /// Asks for the line at `at` to be brought near; any address is allowed.
    fn prefetch(self, at: *const u8);

    /// `e^x`, within 2 units in the last place; 0 below −87.7 and capped at e^88.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        // Cody and Waite's reduction x = n ln 2 + r, then the Taylor series of e^r on |r| <= 0.35,
        // whose remainder after the seventh power is below a tenth of a unit in the last place.
        // The bounds come first in min and max so that a NaN stays one.
        let x = self.min(self.splat(88.0), self.max(self.splat(-88.0), x));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let whole = self.to_f32(n);
        let r = self.fma(whole, self.splat(-0.693_359_4), x);
        let r = self.fma(whole, self.splat(2.121_944_4e-4), r);
        let p = self.splat(1.0 / 5040.0);
        let p = self.fma(p, r, self.splat(1.0 / 720.0));
        let p = self.fma(p, r, self.splat(1.0 / 120.0));
        let p = self.fma(p, r, self.splat(1.0 / 24.0));
        let p = self.fma(p, r, self.splat(1.0 / 6.0));
        let p = self.fma(p, r, self.splat(0.5));
        let p = self.fma(p, r, self.splat(1.0));
        let p = self.fma(p, r, self.splat(1.0));
        self.mul(p, self.exp2_int(n))
    }
}

/// [`Isa::dot_bf16`] by multiply-adds.
#[inline(always)]
pub(crate) fn pairs_of_bf16<I: Isa>(isa: I, acc: I::F, a: I::B, b: I::B) -> I::F {
    let ([a_low, a_high], [b_low, b_high]) = (isa.bf16_pairs(a), isa.bf16_pairs(b));
    isa.fma(a_low, b_low, isa.fma(a_high, b_high, acc))
}

/// [`Isa::dot_matrix`] by products of four columns.
#[inline(always)]
pub(crate) fn matrix_by_dots<I: Isa>(isa: I, acc: I::I, codes: I::B, x: I::B) -> I::I {
    let (mut rows, mut tokens) = ([0; 64], [0; 64]);
    isa.store_bytes(codes, &mut rows);
    isa.store_bytes(x, &mut tokens);
    let mut acc = acc;
    for four in [0, 4] {
        let (mut a, mut b) = ([0; 64], [0; 64]);
        for lane in 0..LANES {
            let (to, quarter) = (4 * lane..4 * lane + 4, 16 * (lane / 4) + four);
            let (i, j) = (quarter + 8 * (lane % 4 / 2), quarter + 8 * (lane % 2));
            a[to.clone()].copy_from_slice(&rows[i..i + 4]);
            b[to].copy_from_slice(&tokens[j..j + 4]);
        }
        acc = isa.dot(acc, isa.load_bytes(&a), isa.load_bytes(&b));
    }
    acc
}

/// [`Isa::half_tiles`], a product at a time.
///
/// # Safety
/// As for that function.
#[inline(always)]
pub(crate) unsafe fn half_tiles_by_loops(
    w: HalfRows,
    x: HalfTokens,
    steps: usize,
    sums: &mut [HalfSums; 4],
) {
    // SAFETY: the caller vouches for the places.
    let half = |at: *const u8| unsafe { bf16::from_le_bytes(at.cast::<[u8; 2]>().read()) }.to_f32();
    let tiles = if x.next == 0 { 1 } else { 2 };
    for step in 0..steps {
        for (index, sums) in sums.iter_mut().enumerate().filter(|(index, _)| index % 2 < tiles) {
            let rows = w.at.wrapping_add(index / 2 * w.next + step * w.step);
            let tokens = x.at.wrapping_add(index % 2 * x.next + step * x.step);
            for (row, sums) in sums.iter_mut().enumerate() {
                for (token, sum) in sums[..x.pair / 4].iter_mut().enumerate() {
                    let mut both = [0.0f32; 2];
                    for pair in 0..LANES {
                        for (odd, sum) in both.iter_mut().enumerate() {
                            let weight = rows.wrapping_add(row * w.row + 4 * pair + 2 * odd);
                            let input = tokens.wrapping_add(pair * x.pair + 4 * token + 2 * odd);
                            *sum = half(weight).mul_add(half(input), *sum);
                        }
                    }
                    *sum += both[0] + both[1];
                }
            }
        }
    }
}
