//! Every operation on every instruction set of this machine against plain Rust, bit by bit.

use half::{bf16, f16};
use lathe_simd::{HalfRows, HalfTokens, Isa, LANES, Op, run_all, with_isa};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Floats = [f32; LANES];

/// Numbers that operations trip over, then random ones of all sizes.
fn floats(rng: &mut ChaCha8Rng) -> Floats {
    const HARD: [f32; 8] =
        [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, 1e-42, f32::MAX, -1.5];
    std::array::from_fn(|_| {
        let kind = rng.random_range(0..4);
        match kind {
            0 => HARD[rng.random_range(0..HARD.len())],
            1 => rng.random::<f32>() * 200.0 - 100.0,
            2 => f32::from_bits(rng.random()),
            _ => rng.random_range(-40i32..40) as f32 / 2.0,
        }
    })
    .map(|x: f32| if x.is_nan() { 1.0 } else { x })
}

/// What every operation makes of the same inputs.
#[derive(Clone)]
struct Everything {
    a: Floats,
    b: Floats,
    c: Floats,
    whole: [i32; LANES],
    codes: [u8; 64],
    nibbles: [u8; 64],
    x: [i8; 4],
    tokens: [i8; 16],
    mask: [u8; 8],
    table: [u8; 16],
}

impl Op for Everything {
    const BF16: bool = true;
    const BYTES: bool = true;
    const TILES: bool = true;
    type Out = Vec<(&'static str, Vec<u32>)>;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Out {
        let mut all = Vec::new();
        let (a, b, c) = (isa.load(&self.a), isa.load(&self.b), isa.load(&self.c));
        for (name, result) in [
            ("add", isa.add(a, b)),
            ("sub", isa.sub(a, b)),
            ("mul", isa.mul(a, b)),
            ("div", isa.div(a, b)),
            ("fma", isa.fma(a, b, c)),
            ("max", isa.max(a, b)),
            ("min", isa.min(a, b)),
            ("abs", isa.abs(a)),
            ("splat", isa.splat(self.a[3])),
            ("exp", isa.exp(a)),
            ("load_f32", isa.load_f32(&self.codes)),
            ("load_f16", isa.load_f16(self.codes.first_chunk().unwrap())),
            ("load_e4m3", isa.load_e4m3(self.codes.first_chunk().unwrap())),
            ("load_bf16", isa.load_bf16(self.codes.first_chunk().unwrap())),
        ] {
            all.push((name, bits(isa, result)));
        }
        all.push(("sum", vec![isa.sum(a).to_bits()]));
        let four = isa.sums([a, b, isa.load(&self.c), isa.add(b, b)]);
        all.push(("sums", four.map(f32::to_bits).to_vec()));
        all.push(("quarter_sums", isa.quarter_sums(a).map(f32::to_bits).to_vec()));
        let quarter = self.codes.first_chunk().unwrap();
        all.push(("splat_quarter_f32", bits(isa, isa.splat_quarter_f32(quarter))));
        all.push(("max_lane", vec![isa.max_lane(a).to_bits()]));
        let mut halves = [0; 32];
        isa.store_f16(a, &mut halves);
        all.push(("store_f16", halves.map(u32::from).to_vec()));
        isa.store_bf16(a, &mut halves);
        all.push(("store_bf16", halves.map(u32::from).to_vec()));
        self.pairs(isa, &mut all);
        self.integers(isa, &mut all);
        all
    }
}

/// Neighbours as bfloat16, none of them subnormal, as are no products of theirs.
fn pairs_of(x: &Floats, shift: usize) -> [u8; 64] {
    let mut pairs = [0; 64];
    for (i, pair) in pairs.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let x = x[(i + shift) % LANES];
        let x = if x.is_finite() && (1e-9..1e9).contains(&x.abs()) { x } else { 0.75 };
        *pair = bf16::from_f32(x).to_le_bytes();
    }
    pairs
}

impl Everything {
    #[inline(always)]
    fn pairs<I: Isa>(&self, isa: I, all: &mut Vec<(&'static str, Vec<u32>)>) {
        let [low, high] = isa.bf16_pairs(isa.load_e4m3_pairs(self.codes.first_chunk().unwrap()));
        all.push(("load_e4m3_pairs, low", bits(isa, low)));
        all.push(("load_e4m3_pairs, high", bits(isa, high)));
        let [low, high] = isa.bf16_pairs(isa.load_f16_pairs(&self.codes));
        all.push(("load_f16_pairs, low", bits(isa, low)));
        all.push(("load_f16_pairs, high", bits(isa, high)));
        let [low, high] = isa.bf16_pairs(isa.load_bytes(&self.codes));
        all.push(("bf16_pairs, low", bits(isa, low)));
        all.push(("bf16_pairs, high", bits(isa, high)));
        let (a, b) = (pairs_of(&self.a, 3), pairs_of(&self.b, 5));
        let (x, y) = (isa.load_bytes(&a), isa.load_bytes(&b));
        let z = isa.splat_quarter(self.codes.first_chunk().unwrap());
        for part in isa.transpose_quarters([x, z, isa.load_bytes(&self.codes), y]) {
            all.push(("transpose_quarters", lanes_of(isa, part)));
        }
        let mut rows = [x; LANES];
        for (row, i) in rows.iter_mut().zip(0u8..) {
            *row = isa.load_bytes(&self.codes.map(|byte| byte.wrapping_add(16 * i + 1)));
        }
        for column in isa.transpose(rows) {
            all.push(("transpose", lanes_of(isa, column)));
        }
        let acc = isa.load(&self.a.map(|x| if x.is_finite() && x.abs() < 1e9 { x } else { 1.0 }));
        let acc = isa.mul(acc, isa.splat(8.0));
        let dot = isa.dot_bf16(acc, isa.load_bytes(&a), isa.load_bytes(&b));
        all.push(("dot_bf16", bits(isa, dot)));
    }

    #[inline(always)]
    fn integers<I: Isa>(&self, isa: I, all: &mut Vec<(&'static str, Vec<u32>)>) {
        let small = isa.load(&self.whole.map(|i| i as f32 / 8.0));
        let rounded = isa.round(small);
        all.push(("round", bits(isa, isa.to_f32(rounded))));
        all.push(("exp2_int", bits(isa, isa.exp2_int(rounded))));
        let mut low = [0; LANES];
        isa.store_low_bytes(rounded, &mut low);
        all.push(("store_low_bytes", low.map(|b| b as u32).to_vec()));
        let bytes = isa.load_u8(self.codes.first_chunk().unwrap());
        all.push(("load_u8", bits(isa, isa.to_f32(bytes))));
        let [low, high] = isa.split_nibbles(bytes);
        all.push(("split_nibbles low", bits(isa, isa.to_f32(low))));
        all.push(("split_nibbles high", bits(isa, isa.to_f32(high))));
        let (codes, nibbles) = (isa.load_bytes(&self.codes), isa.load_bytes(&self.nibbles));
        for (name, result) in [
            ("load_bytes", codes),
            ("low_nibbles", isa.low_nibbles(codes)),
            ("high_nibbles", isa.high_nibbles(codes)),
            ("add_fifth_bit", isa.add_fifth_bit(nibbles, &self.mask)),
            ("add_bit_pair 0", isa.add_bit_pair::<0>(nibbles, codes)),
            ("add_bit_pair 1", isa.add_bit_pair::<1>(nibbles, codes)),
            ("add_bit_pair 2", isa.add_bit_pair::<2>(nibbles, codes)),
            ("add_bit_pair 3", isa.add_bit_pair::<3>(nibbles, codes)),
            ("lookup", isa.lookup(nibbles, &self.table)),
        ] {
            all.push((name, lanes_of(isa, result)));
        }
        let table = std::array::from_fn(|i| self.a[i]);
        all.push(("byte_table 0", bits(isa, isa.byte_table::<0>(nibbles, &table))));
        all.push(("byte_table 3", bits(isa, isa.byte_table::<3>(nibbles, &table))));
        let x = isa.splat_bytes(&self.x);
        let start = isa.splat_i(-1_000);
        let five = isa.add_fifth_bit(nibbles, &self.mask);
        all.push(("dot_small", bits(isa, isa.to_f32(isa.dot_small(start, five, x)))));
        let less: i32 = self.x.iter().map(|x| i32::from(*x)).sum::<i32>() * (128 - I::DOT_BIAS);
        let start = isa.splat_i(-less);
        all.push(("dot", bits(isa, isa.to_f32(isa.dot(start, codes, x)))));
        let pair = isa.splat_pair_i([self.whole[0], self.whole[1]]);
        all.push(("splat_pair_i", bits(isa, isa.to_f32(pair))));
        self.matrix(isa, all);
        self.half_tiles(isa, all);
        isa.prefetch(std::ptr::null());
    }

    /// The products of sixteen rows' eight codes with two tokens' eight inputs.
    #[inline(always)]
    fn matrix<I: Isa>(&self, isa: I, all: &mut Vec<(&'static str, Vec<u32>)>) {
        let codes = [isa.load_bytes(&self.codes), isa.load_bytes(&self.nibbles)];
        let rows = isa.matrix_codes(codes);
        let x = isa.splat_quarter(&self.tokens.map(i8::cast_unsigned));
        let less = isa.splat_quarter(&self.tokens.map(|x| (-x).cast_unsigned()));
        let middle = isa.load_bytes(&[128; 64]);
        let mut sums = [isa.splat_pair_i([-1_000, 1_000]); 2];
        for (sum, rows) in sums.iter_mut().zip(rows) {
            all.push(("matrix_codes", lanes_of(isa, rows)));
            // The bias is 128 or 0: together they take 128 off every code, whichever it is.
            *sum = isa.dot_matrix(isa.dot_matrix(*sum, rows, x), middle, less);
        }
        for (name, sums) in ["a token's", "the other's"].into_iter().zip(isa.matrix_sums(sums)) {
            let sums = bits(isa, sums);
            let (start, at) = if name == "a token's" { (-1_000, 0) } else { (1_000, 8) };
            let product = |row: usize| -> i32 {
                let codes = self.codes[4 * row..][..4].iter().chain(&self.nibbles[4 * row..][..4]);
                let pairs = codes.zip(&self.tokens[at..at + 8]);
                start + pairs.map(|(code, x)| (i32::from(*code) - 128) * i32::from(*x)).sum::<i32>()
            };
            let known: Vec<u32> = (0..LANES).map(|row| (product(row) as f32).to_bits()).collect();
            assert_eq!(sums, known, "{name} sums on {}", I::NAME);
            all.push((name, sums));
        }
    }

    /// The products of 32 rows with one tile of some tokens, and with two of sixteen.
    #[inline(always)]
    fn half_tiles<I: Isa>(&self, isa: I, all: &mut Vec<(&'static str, Vec<u32>)>) {
        /// Of a tile of sixteen rows or tokens, of two steps.
        const BYTES: usize = 2 * 16 * 64;
        let bytes = |x: &Floats| -> Vec<u8> {
            (0..2 * BYTES / 64).flat_map(|i| pairs_of(&x.map(|x| x + i as f32), i)).collect()
        };
        let (w, x) = (bytes(&self.a), bytes(&self.b));
        let rows = HalfRows { at: w.as_ptr(), row: 128, step: 64, next: BYTES };
        let tokens = 1 + usize::from(self.mask[0]) % 16;
        for (tokens, next) in [(tokens, 0), (16, BYTES)] {
            let x = HalfTokens { at: x.as_ptr(), pair: 4 * tokens, step: 64 * tokens, next };
            let mut sums = [[[1.5; LANES]; LANES]; 4];
            isa.half_tiles_on(tokens);
            // SAFETY: they are on, and both have two steps of two tiles.
            unsafe { isa.half_tiles(rows, x, 2, &mut sums) };
            isa.tiles_off();
            let sums = sums.as_flattened().as_flattened();
            all.push(("half_tiles", sums.iter().map(|sum| sum.to_bits()).collect()));
        }
    }
}

#[inline(always)]
fn bits<I: Isa>(isa: I, x: I::F) -> Vec<u32> {
    let mut lanes = [0.0; LANES];
    isa.store(x, &mut lanes);
    lanes.map(f32::to_bits).to_vec()
}

/// The four bytes of each lane, one after the other.
#[inline(always)]
fn lanes_of<I: Isa>(isa: I, x: I::B) -> Vec<u32> {
    let bytes =
        [isa.byte_f32::<0>(x), isa.byte_f32::<1>(x), isa.byte_f32::<2>(x), isa.byte_f32::<3>(x)];
    bytes.into_iter().flat_map(|x| bits(isa, x)).collect()
}

fn random(rng: &mut ChaCha8Rng) -> Everything {
    let codes = std::array::from_fn(|_| match rng.random_range(0..4) {
        0 => 0,
        1 => 255,
        _ => rng.random(),
    });
    Everything {
        a: floats(rng),
        b: floats(rng),
        c: floats(rng),
        whole: std::array::from_fn(|_| rng.random_range(-1016..=1016)),
        codes: finite(codes),
        nibbles: std::array::from_fn(|_| rng.random_range(0..16)),
        x: signed(rng),
        tokens: signed(rng),
        mask: rng.random(),
        table: rng.random(),
    }
}

fn signed<const N: usize>(rng: &mut ChaCha8Rng) -> [i8; N] {
    std::array::from_fn(|_| [-127, 127, rng.random_range(-127..=127)][rng.random_range(0..3)])
}

/// Bytes that are no NaN in any float format: which bits of a NaN survive is the machine's choice.
fn finite(mut codes: [u8; 64]) -> [u8; 64] {
    for pair in codes.as_chunks_mut::<2>().0 {
        if f16::from_le_bytes(*pair).is_nan() || bf16::from_le_bytes(*pair).is_nan() {
            pair[1] &= 0x83;
        }
    }
    codes
}

#[test]
fn every_operation_gives_the_same_bits_on_every_instruction_set() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for round in 0..2_000 {
        let all = run_all(random(&mut rng));
        let (_, truth) = &all[0];
        for (isa, results) in &all {
            for ((name, found), (_, expected)) in results.iter().zip(truth) {
                let same = found.iter().zip(expected).all(|(f, e)| {
                    // Operations may make NaN of infinities; its bits are the machine's choice.
                    f == e || f32::from_bits(*f).is_nan() && f32::from_bits(*e).is_nan()
                });
                assert!(same, "{name} on {isa}, round {round}: {found:x?}, not {expected:x?}");
            }
        }
    }
}

#[derive(Clone)]
struct Exp(Floats);

impl Op for Exp {
    type Out = Floats;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Floats {
        let mut out = [0.0; LANES];
        isa.store(isa.exp(isa.load(&self.0)), &mut out);
        out
    }
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    for i in 0..20_000 {
        let x: Floats = std::array::from_fn(|lane| -87.0 + (16 * i + lane) as f32 * 0.000_546);
        for (isa, found) in run_all(Exp(x)) {
            for (x, found) in x.iter().zip(found) {
                let truth = f64::from(*x).exp();
                let unit = f64::from(f32::EPSILON) * truth;
                let error = (f64::from(found) - truth).abs();
                assert!(error <= 2.0 * unit, "{isa}: exp({x}) is {found}, off by {}", error / unit);
            }
        }
    }
}

#[test]
fn exp_ends_in_zero_a_bound_and_nan() {
    let mut x = [0.0; LANES];
    x[..5].copy_from_slice(&[f32::NEG_INFINITY, -100.0, f32::INFINITY, 1e9, f32::NAN]);
    for (isa, y) in run_all(Exp(x)) {
        assert_eq!(y[..2], [0.0, 0.0], "{isa}");
        assert!(y[2].is_finite() && y[2] > 1e38 && y[3] == y[2], "{isa}: {y:?}");
        assert!(y[4].is_nan() && y[5] == 1.0, "{isa}: {y:?}");
    }
}

#[test]
fn a_forced_instruction_set_lasts_until_its_closure_ends() {
    struct Which;
    impl Op for Which {
        const BF16: bool = true;
        const BYTES: bool = true;
        const TILES: bool = true;
        type Out = &'static str;
        fn run<I: Isa>(self, _: I) -> &'static str {
            I::NAME
        }
    }
    let usual = lathe_simd::run(Which);
    for isa in lathe_simd::available() {
        assert_eq!(with_isa(isa, || lathe_simd::run(Which)), Some(isa));
    }
    let panic = std::panic::catch_unwind(|| with_isa("scalar", || panic!("on the way")));
    assert!(panic.is_err());
    assert_eq!(lathe_simd::run(Which), usual);
    assert_eq!(with_isa("mmx", || ()), None);
}
