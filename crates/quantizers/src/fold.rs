//! Moving scales through a stage of a layer.

use lathe_models::{Before, Stage};

use crate::{Block, Stats};

/// Divides the channels of a stage by `scales`, in the weights and in the statistics of its
/// inputs; the layer computes what it did. Returns the scales that were used, by column.
///
/// Scales that divide a norm's gains are moved a little, so that the new gains are numbers of
/// bf16: no container that holds them rounds them again. A scale that is no positive finite number
/// becomes 1.
pub(crate) fn fold(
    block: &mut Block<'_>,
    stage: &Stage,
    stats: &mut Stats,
    scales: &[f32],
) -> Vec<f32> {
    let mut scales: Vec<f32> =
        scales.iter().map(|s| if s.is_normal() && *s > 0.0 { *s } else { 1.0 }).collect();
    if let Before::Norm { part, offset } = stage.before
        && let Some(stored) = block.vector(part)
    {
        for (scale, stored) in scales.iter_mut().zip(stored) {
            *scale = exact(*scale, *stored, offset);
        }
    }
    for (part, fold) in stage.folds() {
        if let Some(matrix) = block.matrix_mut(part) {
            fold.apply(&scales, &mut matrix.data);
        } else if let Some(vector) = block.vector_mut(part) {
            fold.apply(&scales, vector);
        }
    }
    let scales = stage.before.by_column(&scales);
    divide(stats, &scales);
    scales
}

/// The scale near `scale` for which the stored number of the new gain has the bits of bf16.
fn exact(scale: f32, stored: f32, offset: f32) -> f32 {
    let gain = stored + offset;
    // Rounded to nearest, half away from zero: at the 8th bit of the significand.
    let wanted = gain / scale - offset;
    let rounded = f32::from_bits(wanted.to_bits().wrapping_add(0x8000) & 0xffff_0000);
    let moved = gain / (rounded + offset);
    if moved.is_normal() && moved > 0.0 && (moved / scale - 1.0).abs() < 0.01 {
        moved
    } else {
        scale
    }
}

/// Statistics of inputs that are divided by `scales`, by column.
pub(crate) fn divide(stats: &mut Stats, scales: &[f32]) {
    let by = |values: &mut [f32]| values.iter_mut().zip(scales).for_each(|(x, s)| *x /= s);
    by(&mut stats.mean_abs);
    by(&mut stats.absmax);
    by(&mut stats.importance);
    by(&mut stats.importance);
    stats.sample.chunks_exact_mut(scales.len().max(1)).for_each(by);
    if let Some(hessian) = &mut stats.hessian {
        for (row, scale) in hessian.chunks_exact_mut(scales.len().max(1)).zip(scales) {
            row.iter_mut().zip(scales).for_each(|(x, s)| *x /= s * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gains_stay_numbers_of_bf16_and_scales_near_what_was_asked() {
        for (stored, offset) in [(0.7265625, 0.0), (-1.5, 0.0), (0.03125, 1.0), (-0.25, 1.0)] {
            for nth in 1..200 {
                let wanted = (nth as f32 * 0.31).exp().min(1e4) * 0.01;
                let scale = exact(wanted, stored, offset);
                assert!((scale / wanted - 1.0).abs() < 0.01, "{scale} for {wanted}");
                let gain = (stored + offset) / scale - offset;
                let nearest = f32::from_bits(gain.to_bits().wrapping_add(0x8000) & 0xffff_0000);
                let off = ((gain - nearest) / (gain + offset)).abs();
                if offset == 0.0 {
                    assert!(off < 1e-6, "{gain} is {off} from bf16");
                }
            }
        }
        assert_eq!(exact(2.0, 0.0, 0.0), 2.0, "a dead gain stays dead");
    }

    #[test]
    fn statistics_follow_the_scales() {
        let mut stats = Stats {
            count: 3,
            mean_abs: vec![2.0, 3.0],
            importance: vec![4.0, 9.0],
            absmax: vec![4.0, 6.0],
            sample: vec![1.0, -6.0, 4.0, 0.5],
            hessian: Some(vec![4.0, 1.0, 1.0, 9.0]),
        };
        divide(&mut stats, &[2.0, 0.5]);
        assert_eq!(stats.mean_abs, [1.0, 6.0]);
        assert_eq!(stats.importance, [1.0, 36.0]);
        assert_eq!(stats.absmax, [2.0, 12.0]);
        assert_eq!(stats.sample, [0.5, -12.0, 2.0, 1.0]);
        assert_eq!(stats.hessian, Some(vec![1.0, 1.0, 1.0, 36.0]));
    }
}
