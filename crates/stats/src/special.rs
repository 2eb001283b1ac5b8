//! Distribution functions. Written from their definitions (incomplete gamma and beta functions by
//! series and continued fraction); quantiles by bisection, because they are asked for rarely and
//! bisection cannot go astray.

use std::f64::consts::PI;

/// P(Z ≤ x) of a standard normal Z.
pub fn normal_cdf(x: f64) -> f64 {
    // P(|Z| ≤ |x|) is the chi-squared(1) distribution at x².
    let tail = 0.5 * (1.0 - lower_gamma_half(x * x / 2.0));
    if x >= 0.0 { 1.0 - tail } else { tail }
}

/// The x with P(Z ≤ x) = `p`; infinite at 0 and 1, NaN outside.
pub fn normal_quantile(p: f64) -> f64 {
    invert(p, normal_cdf)
}

/// P(T ≤ x) of Student's t with `df` degrees of freedom.
pub fn student_cdf(x: f64, df: f64) -> f64 {
    let tail = 0.5 * incomplete_beta(df / 2.0, 0.5, df / (df + x * x));
    if x >= 0.0 { 1.0 - tail } else { tail }
}

/// The x with P(T ≤ x) = `p`; infinite at 0 and 1, NaN outside.
pub fn student_quantile(p: f64, df: f64) -> f64 {
    invert(p, |x| student_cdf(x, df))
}

/// P(X ≤ k) of a binomial count of `n` trials of probability `p`.
pub(crate) fn binomial_cdf(k: i64, n: usize, p: f64) -> f64 {
    if k < 0 {
        0.0
    } else if k as usize >= n {
        1.0
    } else {
        incomplete_beta((n as i64 - k) as f64, k as f64 + 1.0, 1.0 - p)
    }
}

/// Inverts a distribution function that is symmetric around 0, so that small tails keep precision.
fn invert(p: f64, cdf: impl Fn(f64) -> f64) -> f64 {
    if p.is_nan() || !(0.0..=1.0).contains(&p) {
        return f64::NAN;
    }
    if p > 0.5 {
        return -invert(1.0 - p, cdf);
    }
    if p == 0.0 {
        return f64::NEG_INFINITY;
    }
    if p == 0.5 {
        return 0.0;
    }
    let mut low = -1.0;
    while cdf(low) > p {
        low *= 2.0;
        if low < -1e300 {
            return f64::NEG_INFINITY;
        }
    }
    let mut high = 0.0;
    // Each step halves the bracket: 80 steps pass below the spacing of doubles.
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if cdf(middle) > p { high = middle } else { low = middle }
    }
    0.5 * (low + high)
}

/// Regularised lower incomplete gamma function P(1/2, x).
fn lower_gamma_half(x: f64) -> f64 {
    let a = 0.5;
    if x <= 0.0 {
        return 0.0;
    }
    let scale = (-x + a * x.ln() - PI.sqrt().ln()).exp();
    if x < a + 1.0 {
        let (mut term, mut sum, mut k) = (1.0 / a, 1.0 / a, a);
        for _ in 0..500 {
            k += 1.0;
            term *= x / k;
            sum += term;
            if term < sum * 1e-17 {
                break;
            }
        }
        return sum * scale;
    }
    // Γ(a, x) = e^-x x^a / (x + 1 - a - 1·(1-a) / (x + 3 - a - 2·(2-a) / …)), by Lentz's method.
    let mut b = x + 1.0 - a;
    let mut c = 1.0 / TINY;
    let mut d = 1.0 / b;
    let mut h = d;
    for i in 1..500 {
        let i = f64::from(i);
        let numerator = -i * (i - a);
        b += 2.0;
        d = 1.0 / away_from_zero(numerator * d + b);
        c = away_from_zero(b + numerator / c);
        h *= d * c;
        if (d * c - 1.0).abs() < 1e-16 {
            break;
        }
    }
    1.0 - scale * h
}

/// Regularised incomplete beta function I_x(a, b).
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp();
    // The continued fraction converges fast on this side of the mean.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * beta_fraction(a, b, x) / a
    } else {
        1.0 - front * beta_fraction(b, a, 1.0 - x) / b
    }
}

fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut h = d;
    for m in 1..1000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for numerator in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + numerator * d);
            c = away_from_zero(1.0 + numerator / c);
            step = d * c;
            h *= step;
        }
        if (step - 1.0).abs() < 1e-16 {
            break;
        }
    }
    h
}

/// ln Γ(x) for x > 0 by Lanczos' approximation (g = 7, nine terms), good to about 1e-14.
fn ln_gamma(x: f64) -> f64 {
    const C: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        return (PI / (PI * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let t = x + 7.5;
    let sum = C.iter().enumerate().skip(1).fold(C[0], |s, (i, c)| s + c / (x + i as f64));
    0.5 * (2.0 * PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

const TINY: f64 = 1e-300;

fn away_from_zero(x: f64) -> f64 {
    if x.abs() < TINY { TINY } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() < tolerance, "{a} is not {b}");
    }

    #[test]
    fn normal_values_match_the_tables() {
        near(normal_cdf(0.0), 0.5, 1e-15);
        near(normal_cdf(1.0), 0.841_344_746_068_543, 1e-13);
        near(normal_cdf(-3.0), 0.001_349_898_031_630, 1e-14);
        near(normal_quantile(0.975), 1.959_963_984_540, 1e-10);
        near(normal_quantile(0.05), -1.644_853_626_951, 1e-10);
    }

    #[test]
    fn student_values_match_the_tables() {
        near(student_quantile(0.975, 1.0), 12.706_204_736, 1e-6);
        near(student_quantile(0.975, 2.0), 4.302_652_730, 1e-7);
        near(student_quantile(0.975, 4.0), 2.776_445_105, 1e-7);
        near(student_quantile(0.95, 9.0), 1.833_112_933, 1e-7);
        near(student_quantile(0.975, 1e7), 1.959_964, 1e-5);
        near(student_cdf(1.0, 1.0), 0.75, 1e-12);
    }

    #[test]
    fn binomial_values_match_the_sums() {
        near(binomial_cdf(0, 5, 0.5), 1.0 / 32.0, 1e-13);
        near(binomial_cdf(2, 5, 0.5), 0.5, 1e-13);
        near(binomial_cdf(1, 3, 0.9), 0.028, 1e-13);
        assert_eq!(binomial_cdf(-1, 5, 0.5), 0.0);
        assert_eq!(binomial_cdf(5, 5, 0.5), 1.0);
    }

    #[test]
    fn quantiles_at_and_past_the_edges_do_not_hang() {
        assert_eq!(normal_quantile(0.0), f64::NEG_INFINITY);
        assert_eq!(normal_quantile(1.0), f64::INFINITY);
        assert!(normal_quantile(1.5).is_nan());
        assert!(student_quantile(f64::NAN, 3.0).is_nan());
    }
}
