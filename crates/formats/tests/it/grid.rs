//! The second way into a format: scales from its grid, codes from whoever wants to choose them.

use std::sync::Arc;

use lathe_formats::{Affine, Blocks, Effort, Error, FORMATS, Grid, Rows, Scales, Span, by_name};

const COLS: usize = 256;
const ROWS: usize = 70;

/// Reproducible weights, roughly normal, with now and then an outlier.
fn weights(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..n)
        .map(|i| {
            let w = 0.02 * (uniform() + uniform() + uniform() + uniform());
            if i % 97 == 13 { 8.0 * w } else { w }
        })
        .collect()
}

fn grids() -> impl Iterator<Item = &'static dyn Grid> {
    FORMATS.iter().filter_map(|format| format.grid())
}

/// Codes a matrix span by span as an algorithm would, with the weights that its maps stand for.
fn by_hand(
    grid: &'static dyn Grid,
    source: &Blocks,
    importance: Option<&[f32]>,
    effort: Effort,
) -> (Blocks, Vec<f32>) {
    let (rows, cols) = source.shape();
    let (span, group, levels) = (grid.span(cols), grid.group(cols), grid.levels());
    let side = grid.begin(source, importance, effort, 2);
    let (mut data, mut expected) = (Vec::new(), Vec::new());
    let mut scales = Scales::default();
    for (index, weights) in source.decode().chunks(span).enumerate() {
        let first = index * span % cols;
        let importance = importance.map(|all| &all[first..][..span]);
        grid.fit(Span { side: &side, index, weights, importance, effort }, &mut scales);
        assert_eq!(scales.affine.len(), span / group, "{grid:?}");
        let mut codes = vec![0; span];
        let groups = weights.chunks(group).zip(codes.chunks_mut(group));
        for (affine, (weights, codes)) in scales.affine.iter().zip(groups) {
            levels.codes(*affine, weights, codes);
            expected.extend(codes.iter().map(|c| affine.scale * levels.value(*c) + affine.offset));
        }
        let mut out = vec![0xaa; grid.row_bytes(span)];
        grid.pack(&scales, &codes, &mut out);
        data.extend(out);
    }
    (Blocks::new(grid, rows, cols, data.into(), side).unwrap(), expected)
}

fn squared_error(a: &[f32], b: &[f32], importance: Option<&[f32]>) -> f64 {
    let weight = |i: usize| importance.map_or(1.0, |all| f64::from(all[i % all.len()]));
    a.iter().zip(b).enumerate().map(|(i, (a, b))| weight(i) * f64::from(a - b).powi(2)).sum()
}

#[test]
fn every_format_that_rounds_to_levels_has_a_grid() {
    let without: Vec<_> = FORMATS.iter().filter(|f| f.grid().is_none()).map(|f| f.name()).collect();
    assert_eq!(without, ["f32", "f16", "bf16"]);
}

#[test]
fn what_is_packed_decodes_as_its_level_under_its_map() {
    let source = by_name("f32").unwrap().encode(ROWS, COLS, &weights(ROWS * COLS, 3), 1).unwrap();
    for grid in grids() {
        for effort in [Effort::Nearest, Effort::Search] {
            let (blocks, expected) = by_hand(grid, &source, None, effort);
            let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for (i, (found, expected)) in blocks.decode().iter().zip(&expected).enumerate() {
                let error = (found - expected).abs();
                assert!(error <= 4e-6 * largest, "{grid:?} {i}: {found} for {expected}");
            }
        }
    }
}

#[test]
fn every_code_can_be_packed_beside_every_other() {
    let source = by_name("f32").unwrap().encode(1, COLS, &weights(COLS, 4), 1).unwrap();
    for grid in grids() {
        let (span, group, levels) = (grid.span(COLS), grid.group(COLS), grid.levels());
        let side = grid.begin(&source, None, Effort::Nearest, 1);
        let mut scales = Scales::default();
        let (mut data, mut expected) = (Vec::new(), Vec::new());
        for (index, weights) in source.decode().chunks(span).enumerate() {
            let (side, effort) = (&*side, Effort::Nearest);
            grid.fit(Span { side, index, weights, importance: None, effort }, &mut scales);
            let codes: Vec<u8> =
                (0..span).map(|i| ((i * 7 + index) % levels.count()) as u8).collect();
            let mut out = vec![0; grid.row_bytes(span)];
            grid.pack(&scales, &codes, &mut out);
            data.extend(out);
            expected.extend(codes.iter().enumerate().map(|(i, code)| {
                let Affine { scale, offset } = scales.affine[i / group];
                scale * levels.value(*code) + offset
            }));
        }
        let found = Blocks::new(grid, 1, COLS, data.into(), side).unwrap().decode();
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() <= 4e-6 * largest, "{grid:?} {i}: {found} {expected}");
        }
    }
}

#[test]
fn the_nearest_level_is_the_nearest() {
    for grid in grids() {
        let levels = grid.levels();
        let values: Vec<f32> = (0..levels.count()).map(|c| levels.value(c as u8)).collect();
        assert!(values.is_sorted_by(|a, b| a < b), "{grid:?}");
        let most = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for i in -500..=500 {
            let x = 1.1 * most * i as f32 / 500.0;
            let found = (values[usize::from(levels.nearest(x))] - x).abs();
            let least = values.iter().fold(f32::INFINITY, |least, v| least.min((v - x).abs()));
            assert_eq!(found, least, "{grid:?} {x}");
        }
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(usize::from(levels.nearest(x)) < levels.count(), "{grid:?} {x}");
        }
    }
}

#[test]
fn a_search_never_loses_to_the_formats_own_rule_and_follows_importance() {
    let source = by_name("f32").unwrap().encode(ROWS, COLS, &weights(ROWS * COLS, 5), 1).unwrap();
    let plain = source.decode();
    let importance: Vec<f32> = (0..COLS).map(|i| if i % 16 == 3 { 100.0 } else { 0.01 }).collect();
    for grid in grids() {
        let code = |importance, effort| {
            let blocks = grid.encode_weighted(&source, importance, effort, 2).unwrap();
            assert_eq!(blocks.data.len() + blocks.side.len(), grid.bytes(ROWS, COLS));
            blocks.decode()
        };
        let own = code(None, Effort::Nearest);
        let flat = code(None, Effort::Search);
        let weighted = code(Some(&importance), Effort::Search);
        let error = |coded: &[f32], importance| squared_error(&plain, coded, importance);
        assert!(error(&flat, None) <= error(&own, None), "{grid:?}");
        let important = Some(&*importance);
        assert!(error(&weighted, important) <= error(&flat, important), "{grid:?}");
    }
}

#[test]
fn a_search_survives_zeros_tiny_numbers_and_no_importance_at_all() {
    let patterns: [fn(usize) -> f32; 5] = [
        |_| 0.0,
        |i| if i == 7 { 1.0 } else { 0.0 },
        |i| 1e-38 * i as f32,
        |i| f32::from_bits(i as u32 * 977),
        |i| if i == 200 { -6e4 } else { 1e-5 * i as f32 },
    ];
    for grid in grids() {
        for pattern in patterns {
            let plain: Vec<f32> = (0..COLS).map(pattern).collect();
            let source = by_name("f32").unwrap().encode(1, COLS, &plain, 1).unwrap();
            for importance in [vec![0.0; COLS], vec![1e-30; COLS], vec![1e30; COLS]] {
                let coded = grid.encode_weighted(&source, Some(&importance), Effort::Search, 1);
                let decoded = coded.unwrap().decode();
                let bound = 2.0 * grid.error_bound(plain.iter().fold(0.0, |m, x| m.max(x.abs())));
                for (a, b) in plain.iter().zip(&decoded) {
                    assert!((a - b).abs() <= bound, "{grid:?}: {a} became {b}");
                }
            }
        }
    }
}

#[test]
fn threads_do_not_change_what_a_search_finds() {
    let source = by_name("f32").unwrap().encode(700, COLS, &weights(700 * COLS, 9), 1).unwrap();
    for grid in grids() {
        let code = |threads| grid.encode_weighted(&source, None, Effort::Search, threads).unwrap();
        let one = code(1);
        for threads in [2, 5] {
            let many = code(threads);
            assert_eq!((&one.data, &one.side), (&many.data, &many.side), "{grid:?}");
        }
    }
}

#[test]
fn rejects_importance_that_does_not_fit() {
    let source = by_name("f32").unwrap().encode(1, COLS, &[0.5; COLS], 1).unwrap();
    let format = by_name("q8_0").unwrap();
    let code = |importance: &[f32]| {
        format.encode_weighted(&source, Some(importance), Effort::Search, 1).unwrap_err()
    };
    assert!(matches!(code(&[1.0; 3]), Error::Importance { cols: COLS, found: 3 }));
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let mut importance = [1.0; COLS];
        importance[9] = bad;
        assert!(matches!(code(&importance), Error::BadImportance { col: 9, .. }));
    }
}

#[test]
fn columns_in_another_order_decode_to_their_places() {
    let order: Arc<[u32]> = (0..COLS as u32).map(|j| j * 37 % COLS as u32).collect();
    for &format in FORMATS {
        let coded = format.encode(6, COLS, &weights(6 * COLS, 6), 1).unwrap();
        let moved = coded.clone().with_order(order.clone()).unwrap();
        let (plain, found) = (coded.decode(), moved.decode());
        for row in 0..6 {
            for (j, col) in order.iter().enumerate() {
                let at = row * COLS + *col as usize;
                assert_eq!(found[at], plain[row * COLS + j], "{format:?}");
            }
        }
        let slice = moved.slice_rows(2..5).unwrap();
        assert_eq!(slice.decode(), found[2 * COLS..5 * COLS], "{format:?}");
    }
}

#[test]
fn rejects_orders_that_are_none_and_drops_one_that_moves_nothing() {
    let coded = by_name("q8_0").unwrap().encode(1, 32, &[0.5; 32], 1).unwrap();
    let with = |order: Vec<u32>| coded.clone().with_order(order.into());
    assert!(with((0..31).collect()).is_err());
    assert!(with((1..33).collect()).is_err());
    assert!(with(vec![0; 32]).is_err());
    assert!(with((0..32).collect()).unwrap().order.is_none());
    assert!(with((0..32).rev().collect()).unwrap().order.is_some());
}
