//! One suite over the table: what every format must do, with the exceptions by name.

use lathe_formats::{AnyFormat, Blocks, Error, FORMATS, Rows, by_name};
use proptest::prelude::*;

/// Reproducible random bits (xorshift).
fn bits(seed: u64) -> impl FnMut() -> u32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    }
}

/// Reproducible weights, roughly normal, with now and then an outlier, as in real matrices.
fn weights(n: usize, seed: u64) -> Vec<f32> {
    let mut bits = bits(seed);
    let mut uniform = move || (bits() >> 8) as f32 / (1u32 << 24) as f32 - 0.5;
    (0..n)
        .map(|i| {
            let w = 0.02 * (uniform() + uniform() + uniform() + uniform());
            if i % 97 == 13 { 8.0 * w } else { w }
        })
        .collect()
}

fn absmax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, x| most.max(x.abs()))
}

/// The widest block of any format is 128; 256 columns are several blocks of each.
const COLS: usize = 256;

fn assert_within_bound(format: &'static dyn AnyFormat, src: &[f32], decoded: &[f32]) {
    let bound = format.error_bound(absmax(src));
    for (i, (w, d)) in src.iter().zip(decoded).enumerate() {
        let error = (w - d).abs();
        assert!(error <= bound, "{format:?}: weight {i} was {w}, came back as {d}, bound {bound}");
    }
}

#[test]
fn every_name_is_found_and_is_the_only_one() {
    for format in FORMATS {
        assert_eq!(by_name(format.name()).unwrap().name(), format.name());
        assert_eq!(FORMATS.iter().filter(|f| f.name() == format.name()).count(), 1);
    }
    let error = by_name("q9_k").unwrap_err().to_string();
    assert!(error.contains("q9_k") && error.contains("mean q6_k, q5_k, q4_k"), "{error}");
}

#[test]
fn one_block_and_many_come_back_within_the_bound() {
    for &format in FORMATS {
        for (rows, cols) in [(1, format.block()), (3, format.block()), (1, COLS), (37, COLS)] {
            let src = weights(rows * cols, 7);
            let blocks = format.encode(rows, cols, &src, 1).unwrap();
            assert_eq!(blocks.bytes(), format.bytes(rows, cols), "{format:?}");
            assert_within_bound(format, &src, &blocks.decode());
        }
    }
}

#[test]
fn the_bound_is_not_idle() {
    // A bound that nothing comes near would let a broken format pass.
    for &format in FORMATS {
        let src = weights(64 * COLS, 3);
        let decoded = format.encode(64, COLS, &src, 1).unwrap().decode();
        let worst = src.iter().zip(&decoded).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
        let bound = format.error_bound(absmax(&src));
        assert!(worst >= bound / 8.0, "{format:?}: worst {worst}, bound {bound}");
    }
}

#[test]
fn ties_signs_and_tiny_numbers_come_back_within_the_bound() {
    let patterns: [fn(usize) -> f32; 8] = [
        |_| 0.0,
        |_| 1.0,
        |_| -1.0,
        |i| if i % 2 == 0 { 1.0 } else { -1.0 },
        |i| i as f32 - 100.0,
        |i| f32::from_bits(i as u32 * 977),
        |i| (i as f32 - 128.0) * 1e-38,
        |i| if i == 200 { -6e4 } else { 1e-5 * i as f32 },
    ];
    for &format in FORMATS {
        for (p, pattern) in patterns.iter().enumerate() {
            let src: Vec<f32> = (0..COLS).map(pattern).collect();
            let decoded = format.encode(1, COLS, &src, 1).unwrap().decode();
            assert!(decoded.iter().all(|x| x.is_finite()), "{format:?} on pattern {p}");
            assert_within_bound(format, &src, &decoded);
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for &format in FORMATS {
        let decoded = format.encode(2, COLS, &[0.0; 2 * COLS], 1).unwrap().decode();
        assert!(decoded.iter().all(|x| *x == 0.0), "{format:?}");
    }
}

#[test]
fn the_largest_codable_number_comes_back_finite_and_the_next_is_refused() {
    for &format in FORMATS {
        let mut src = vec![0.5; 2 * COLS];
        src[COLS + 5] = -format.limit();
        let decoded = format.encode(2, COLS, &src, 1).unwrap().decode();
        assert!(decoded.iter().all(|x| x.is_finite()), "{format:?}");
        if format.limit() < f32::MAX {
            src[COLS + 5] = -format.limit().next_up();
            let error = format.encode(2, COLS, &src, 1).unwrap_err();
            assert!(matches!(error, Error::TooLarge { row: 1, col: 5, .. }), "{error}");
        }
    }
}

#[test]
fn rejects_nan_and_infinity_with_their_place() {
    for &format in FORMATS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut src = vec![0.25; 300 * COLS];
            src[299 * COLS + 17] = bad;
            src[150 * COLS + 9] = bad;
            for threads in [1, 3] {
                let error = format.encode(300, COLS, &src, threads).unwrap_err();
                assert!(matches!(error, Error::NotFinite { row: 150, col: 9, .. }), "{error}");
            }
        }
    }
}

#[test]
fn rejects_columns_that_are_no_multiple_of_the_block() {
    for &format in FORMATS.iter().filter(|f| f.block() > 1) {
        let cols = format.block() + 1;
        let error = format.encode(1, cols, &vec![0.0; cols], 1).unwrap_err();
        assert!(error.to_string().contains(&cols.to_string()), "{error}");
        assert!(Blocks::new(format, 1, cols, vec![0; 1000].into(), vec![].into()).is_err());
    }
}

#[test]
fn rejects_bytes_of_another_length_and_absurd_shapes() {
    for &format in FORMATS {
        let good = format.encode(3, COLS, &weights(3 * COLS, 1), 1).unwrap();
        let take = |rows, data, side| Blocks::new(format, rows, COLS, data, side);
        assert!(take(3, good.data.clone(), good.side.clone()).is_ok());
        assert!(take(3, good.data.slice(1..), good.side.clone()).is_err());
        assert!(take(4, good.data.clone(), good.side.clone()).is_err());
        assert!(take(3, good.data.clone(), vec![0xff; good.side.len() + 4].into()).is_err());
        let huge = usize::MAX / COLS * COLS;
        assert!(Blocks::new(format, huge, huge, good.data, good.side).is_err());
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    for &format in FORMATS {
        let (rows, src) = (700, weights(700 * COLS, 11));
        let one = format.encode(rows, COLS, &src, 1).unwrap();
        for threads in [0, 2, 3, 7, 1000] {
            let many = format.encode(rows, COLS, &src, threads).unwrap();
            assert_eq!((&one.data, &one.side), (&many.data, &many.side), "{format:?} {threads}");
        }
    }
}

#[test]
fn coding_what_was_decoded_changes_nothing() {
    // These do not keep their scale: the end that sets it is not a code, or is coded again, or a
    // search finds another.
    let moves = |name: &str| {
        lathe_formats::Int::named(name).is_some()
            || name.ends_with("_dq")
            || name.ends_with("_k")
            || name.starts_with("iq")
            || ["q4_1", "q5_1", "int8_tensor"].contains(&name)
    };
    for &format in FORMATS.iter().filter(|f| !moves(f.name())) {
        let first = format.encode(9, COLS, &weights(9 * COLS, 5), 1).unwrap();
        let second = format.encode(9, COLS, &first.decode(), 1).unwrap();
        let (codes, again) = (first.decode(), second.decode());
        // A scale in f32 may move by its last bit.
        let same = codes.iter().zip(&again).all(|(a, b)| (a - b).abs() <= a.abs() * 2f32.powi(-22));
        assert!(same, "{format:?}");
    }
}

#[test]
fn a_slice_of_rows_decodes_as_those_rows_of_the_whole() {
    for &format in FORMATS {
        // 4 blocks of 64 a row: 100 rows are more than one nested block of 256.
        let blocks = format.encode(100, COLS, &weights(100 * COLS, 2), 1).unwrap();
        let whole = blocks.decode();
        for (start, end) in [(0, 100), (0, 1), (63, 65), (70, 100), (99, 100), (50, 50)] {
            let slice = blocks.slice_rows(start..end).unwrap();
            assert_eq!(
                slice.decode(),
                whole[start * COLS..end * COLS],
                "{format:?} {start}..{end}"
            );
            let checked = Blocks::new(format, slice.rows, COLS, slice.data, slice.side);
            assert!(checked.is_ok(), "{format:?}: {checked:?}");
        }
        let twice = blocks.slice_rows(20..90).unwrap().slice_rows(47..60).unwrap();
        assert_eq!(twice.decode(), whole[67 * COLS..80 * COLS], "{format:?}");
        assert!(blocks.slice_rows(99..101).is_err());
    }
}

#[test]
fn an_empty_matrix_is_no_special_case() {
    for &format in FORMATS {
        for (rows, cols) in [(0, COLS), (0, 0), (4, 0)] {
            let blocks = format.encode(rows, cols, &[], 2).unwrap();
            assert!(blocks.decode().is_empty());
            assert_eq!(blocks.bytes(), format.bytes(rows, cols), "{format:?}");
        }
    }
}

#[test]
fn converting_reads_any_format_and_equals_coding_what_it_decodes_to() {
    let from = by_name("bf16").unwrap().encode(40, COLS, &weights(40 * COLS, 8), 1).unwrap();
    for &to in FORMATS {
        let direct = to.encode(40, COLS, &from.decode(), 1).unwrap();
        let converted = from.convert(to, 2).unwrap();
        assert_eq!((direct.data, direct.side), (converted.data, converted.side), "{to:?}");
        assert_eq!(Rows::shape(&from), (40, COLS));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_finite_weights_come_back_within_the_bound(
        seed in any::<u64>(),
        scale in -30i32..4,
    ) {
        let mut bits = bits(seed);
        for &format in FORMATS {
            // Any bit pattern that is finite, brought into reach of the format.
            let src: Vec<f32> = (0..COLS)
                .map(|_| f32::from_bits(bits()))
                .map(|x| if x.is_finite() { x } else { 0.0 })
                .map(|x| (x % 2.0) * 10f32.powi(scale))
                .collect();
            let decoded = format.encode(1, COLS, &src, 1).unwrap().decode();
            assert_within_bound(format, &src, &decoded);
        }
    }
}
