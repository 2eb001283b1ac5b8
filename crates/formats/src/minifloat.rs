//! Floating-point numbers of eight and four bits.

/// A float of few bits without infinities: what lies beyond the largest number becomes that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Minifloat {
    mantissa: i32,
    smallest_normal: f32,
    largest: f32,
}

/// E4M3 of the OCP 8-bit Floating Point Specification ("fn": one NaN, no infinities).
pub(crate) const E4M3: Minifloat =
    Minifloat { mantissa: 3, smallest_normal: 0.015_625, largest: 448.0 };
/// E2M1 of the OCP Microscaling Formats Specification: 0, ½, 1, 1½, 2, 3, 4, 6 and negatives.
pub(crate) const E2M1: Minifloat = Minifloat { mantissa: 1, smallest_normal: 1.0, largest: 6.0 };

/// The numbers of E4M3 in ascending order, 0 once.
pub(crate) static E4M3_LEVELS: [f32; 253] = ascending();
/// The numbers of E2M1 in ascending order, 0 once.
pub(crate) static E2M1_LEVELS: [f32; 15] =
    [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// What each byte stands for as E4M3.
pub(crate) static E4M3_VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        values[byte] = e4m3_value(byte as u8);
        byte += 1;
    }
    values
};

/// What each nibble stands for as E2M1.
pub(crate) static E2M1_VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

const fn e4m3_value(byte: u8) -> f32 {
    let (exponent, mantissa) = ((byte >> 3 & 15) as u32, (byte & 7) as u32);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, mantissa) => mantissa as f32 / 512.0,
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    if byte < 128 { magnitude } else { -magnitude }
}

const fn ascending() -> [f32; 253] {
    let mut levels = [0.0; 253];
    let mut i = 0;
    while i < 253 {
        levels[i] = e4m3_value(e4m3_of_level(i as u8));
        i += 1;
    }
    levels
}

/// The byte of a number in [`E4M3_LEVELS`].
pub(crate) const fn e4m3_of_level(level: u8) -> u8 {
    if level < 126 { 0x80 | (126 - level) } else { level - 126 }
}

/// The nibble of a number in [`E2M1_LEVELS`].
pub(crate) const fn e2m1_of_level(level: u8) -> u8 {
    if level < 7 { 8 | (7 - level) } else { level - 7 }
}

impl Minifloat {
    /// How many numbers there are.
    pub(crate) fn count(self) -> usize {
        2 * usize::from(self.bits(self.largest))
    }

    /// The nearest number, ties to the one with an even mantissa, of what is not NaN.
    #[inline(always)]
    pub(crate) fn round(self, x: f32) -> f32 {
        const EXPONENT: u32 = 0x7f80_0000;
        let a = x.abs();
        let a = if a < self.largest { a } else { self.largest };
        let power = f32::from_bits(a.to_bits() & EXPONENT);
        let power = if power > self.smallest_normal { power } else { self.smallest_normal };
        // One and a half times the power of two whose last bit is what is rounded to.
        let places = f32::from_bits((127 + 23 - self.mantissa as u32) << 23);
        let magic = 1.5 * power * places;
        ((a + magic) - magic).copysign(x)
    }

    /// The bits of a number that this float has.
    #[inline(always)]
    fn bits(self, x: f32) -> u8 {
        let a = x.abs();
        let (shift, one) = (23 - self.mantissa, 1 << self.mantissa);
        let first = (self.smallest_normal.to_bits() >> shift) as i32;
        let normal = (a.to_bits() >> shift) as i32 - first + one;
        let tiny = (a * (one as f32 / self.smallest_normal)) as i32;
        (if a < self.smallest_normal { tiny } else { normal }) as u8
    }
}

/// The byte of the E4M3 number nearest to `x`, saturating.
#[inline(always)]
pub(crate) fn e4m3(x: f32) -> u8 {
    E4M3.bits(E4M3.round(x)) | (x.to_bits() >> 24) as u8 & 0x80
}

/// The nibble of the E2M1 number nearest to `x`, saturating.
#[inline(always)]
pub(crate) fn e2m1(x: f32) -> u8 {
    E2M1.bits(E2M1.round(x)) | (x.to_bits() >> 28) as u8 & 8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest level by looking at all of them, ties to the even code.
    fn naive(x: f32, values: &[f32]) -> f32 {
        let x = x.clamp(
            -values.iter().copied().fold(0.0, f32::max),
            values.iter().copied().fold(0.0, f32::max),
        );
        let key = |code: usize| ((f64::from(values[code]) - f64::from(x)).abs(), code % 2);
        let finite = (0..values.len()).filter(|code| !values[*code].is_nan());
        values[finite.min_by(|a, b| key(*a).partial_cmp(&key(*b)).unwrap()).unwrap()]
    }

    #[test]
    fn every_number_is_its_own_code_and_what_lies_between_goes_to_the_nearest_or_even_one() {
        for (values, code) in
            [(&E4M3_VALUES[..], e4m3 as fn(f32) -> u8), (&E2M1_VALUES[..], e2m1 as fn(f32) -> u8)]
        {
            let finite: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
            for (byte, value) in values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
                assert_eq!(usize::from(code(*value)), byte, "{value}");
            }
            for (a, b) in finite.iter().zip(finite.iter().skip(1)) {
                for part in [0.0, 0.25, 0.499, 0.5, 0.501, 0.75] {
                    let x = a + part * (b - a);
                    assert_eq!(values[usize::from(code(x))], naive(x, values), "{x}");
                }
            }
            for x in [1e-9, 449.0, 1e30, f32::INFINITY] {
                assert_eq!(values[usize::from(code(x))], naive(x, values), "{x}");
                assert_eq!(values[usize::from(code(-x))], -values[usize::from(code(x))], "{x}");
            }
        }
    }

    #[test]
    fn levels_ascend_and_name_their_codes() {
        for (i, level) in E4M3_LEVELS.iter().enumerate() {
            assert_eq!(E4M3_VALUES[usize::from(e4m3_of_level(i as u8))], *level);
        }
        for (i, level) in E2M1_LEVELS.iter().enumerate() {
            assert_eq!(E2M1_VALUES[usize::from(e2m1_of_level(i as u8))], *level);
        }
        assert!(E4M3_LEVELS.is_sorted_by(|a, b| a < b) && E2M1_LEVELS.is_sorted_by(|a, b| a < b));
    }
}
