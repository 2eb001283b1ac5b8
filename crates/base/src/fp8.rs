/// A finite FP8 number: one sign, four exponent and three fraction bits, without infinities
/// (OCP 8-bit floating point specification, `E4M3`; `float8_e4m3fn` in PyTorch).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // As its siblings of the `half` crate.
pub struct e4m3(u8);

impl e4m3 {
    /// The largest number.
    pub const MAX: f32 = 448.0;

    /// The nearest number, ties to even; what is larger than [`e4m3::MAX`] becomes that, and NaN
    /// stays NaN.
    pub fn from_f32(x: f32) -> Self {
        /// The smallest normal number, 2^-6, and how many steps it has.
        const NORMAL: f32 = 0.015_625;
        const STEPS: f32 = 512.0;
        let sign = if x.is_sign_negative() { 128 } else { 0 };
        let size = x.abs();
        if size.is_nan() {
            return Self(sign | 127);
        }
        let size = size.min(Self::MAX);
        let code = if size < NORMAL {
            (size * STEPS).round_ties_even() as u8
        } else {
            // Half of the dropped 20 bits' unit, less one where the kept part is even.
            let bits = size.to_bits();
            let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
            ((rounded >> 20) - (120 << 3)) as u8
        };
        Self(sign | code)
    }

    /// The number of a code.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Its code.
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// The same number.
    pub fn to_f32(self) -> f32 {
        let size = match self.0 & 127 {
            127 => f32::NAN,
            code @ ..8 => f32::from(code) / 512.0,
            code => f32::from_bits((u32::from(code) << 20) + (120 << 23)),
        };
        if self.0 < 128 { size } else { -size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All finite numbers that are not negative, ascending.
    fn numbers() -> Vec<f32> {
        (0..127).map(|code| e4m3::from_bits(code).to_f32()).collect()
    }

    #[test]
    fn codes_are_ascending_and_lead_back_to_themselves() {
        let all = numbers();
        assert_eq!((all[1], all[8], all[0x38], all[126]), (1.0 / 512.0, 0.015_625, 1.0, 448.0));
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        for code in 0..=255 {
            let number = e4m3::from_bits(code);
            assert_eq!(e4m3::from_f32(number.to_f32()), number, "{code}");
        }
    }

    #[test]
    fn what_lies_between_goes_to_the_nearest_and_ties_to_the_even_code() {
        for (code, pair) in numbers().windows(2).enumerate() {
            let code = code as u8;
            let middle = (pair[0] + pair[1]) / 2.0;
            let even = code + code % 2;
            assert_eq!(e4m3::from_f32(middle).to_bits(), even, "{middle}");
            assert_eq!(e4m3::from_f32(middle.next_down()).to_bits(), code, "below {middle}");
            assert_eq!(e4m3::from_f32(middle.next_up()).to_bits(), code + 1, "above {middle}");
            assert_eq!(e4m3::from_f32(-middle).to_bits(), 128 | even, "-{middle}");
        }
    }

    #[test]
    fn what_is_too_large_becomes_the_largest() {
        for x in [449.0, 1e9, f32::INFINITY] {
            assert_eq!(e4m3::from_f32(x).to_f32(), 448.0);
            assert_eq!(e4m3::from_f32(-x).to_f32(), -448.0);
        }
        assert!(e4m3::from_f32(f32::NAN).to_f32().is_nan());
    }
}
