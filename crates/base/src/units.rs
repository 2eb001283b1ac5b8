use std::{fmt, iter::Sum, ops::Add, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// An amount of memory or storage, in bytes.
///
/// Parses `6GiB`, `512 MiB`, `1.5GB`, `4096`; prints the nearest binary unit.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A span of time, in seconds.
///
/// Parses `500ms`, `1.5s`, `20us`, `2m`, `0.25` (seconds); prints the nearest unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub f64);

/// A quantity that could not be read, with what would have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not {what}; write it like {example}")]
pub struct ParseUnitError {
    given: String,
    what: &'static str,
    example: &'static str,
}

fn split(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim().to_ascii_lowercase()))
}

impl FromStr for Bytes {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseUnitError {
            given: text.to_owned(),
            what: "an amount of memory",
            example: "6GiB, 512MiB, 1.5GB or 4096",
        };
        let (number, unit) = split(text).ok_or_else(bad)?;
        let scale: f64 = match unit.as_str() {
            "" | "b" => 1.0,
            "kib" | "k" => 1024.0,
            "mib" | "m" => 1048576.0,
            "gib" | "g" => 1073741824.0,
            "tib" | "t" => 1099511627776.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            _ => return Err(bad()),
        };
        let bytes = number * scale;
        if bytes.is_finite() && bytes < 2f64.powi(63) { Ok(Self(bytes as u64)) } else { Err(bad()) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let text = match unit {
            0 => format!("{} B", self.0),
            _ if value < 10.0 => format!("{value:.2} {}", UNITS[unit]),
            _ if value < 100.0 => format!("{value:.1} {}", UNITS[unit]),
            _ => format!("{value:.0} {}", UNITS[unit]),
        };
        f.pad(&text)
    }
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self(0), Add::add)
    }
}

impl FromStr for Seconds {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseUnitError {
            given: text.to_owned(),
            what: "a span of time",
            example: "500ms, 1.5s, 20us or 2m",
        };
        let (number, unit) = split(text).ok_or_else(bad)?;
        let scale = match unit.as_str() {
            "" | "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        Ok(Self(number * scale))
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0;
        let digits = |value: f64| {
            if value < 10.0 {
                2
            } else if value < 100.0 {
                1
            } else {
                0
            }
        };
        let text = match s.abs() {
            a if a >= 120.0 => {
                format!("{} min {:02.0} s", (s / 60.0) as u64, (s % 60.0).floor())
            }
            a if a >= 1.0 || a == 0.0 => format!("{s:.*} s", digits(a)),
            a if a >= 1e-3 => format!("{:.*} ms", digits(a * 1e3), s * 1e3),
            a if a >= 1e-6 => format!("{:.*} µs", digits(a * 1e6), s * 1e6),
            _ => format!("{:.0} ns", s * 1e9),
        };
        f.pad(&text)
    }
}

impl From<Duration> for Seconds {
    fn from(d: Duration) -> Self {
        Self(d.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_binary_and_decimal_units() {
        assert_eq!("6GiB".parse(), Ok(Bytes(6 << 30)));
        assert_eq!(" 1.5 mib ".parse(), Ok(Bytes(1536 << 10)));
        assert_eq!("2GB".parse(), Ok(Bytes(2_000_000_000)));
        assert_eq!("4096".parse(), Ok(Bytes(4096)));
        for bad in ["", "GiB", "-1GiB", "1..2", "9e9", "99999999999999TiB", "5 parsecs"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad} should not parse");
        }
    }

    #[test]
    fn units_print_with_three_digits_or_so() {
        assert_eq!(Bytes(6 << 30).to_string(), "6.00 GiB");
        assert_eq!(Bytes(999).to_string(), "999 B");
        assert_eq!(Bytes(150 << 20).to_string(), "150 MiB");
        assert_eq!(Seconds(0.0123).to_string(), "12.3 ms");
        assert_eq!(Seconds(125.0).to_string(), "2 min 05 s");
        assert_eq!(Seconds(2.5e-7).to_string(), "250 ns");
    }

    #[test]
    fn time_is_read_in_the_usual_units() {
        assert_eq!("500ms".parse(), Ok(Seconds(0.5)));
        assert_eq!("2m".parse(), Ok(Seconds(120.0)));
        assert!("soon".parse::<Seconds>().is_err());
    }
}
