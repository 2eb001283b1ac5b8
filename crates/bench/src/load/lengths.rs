use std::{fmt, str::FromStr};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::random::normal;

/// How many tokens requests have.
///
/// Parses and prints `128`, `uniform:64:256`, `normal:512:128` (mean, standard deviation) and
/// `lognormal:512:0.8` (median, standard deviation of the logarithm); never below 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lengths {
    Fixed(usize),
    Uniform { from: usize, to: usize },
    Normal { mean: f64, deviation: f64 },
    Lognormal { median: f64, sigma: f64 },
}

impl Lengths {
    /// The longest that is drawn: three standard deviations above the middle where there is no end.
    pub fn longest(self) -> usize {
        let end = match self {
            Self::Fixed(n) => return n,
            Self::Uniform { to, .. } => return to,
            Self::Normal { mean, deviation } => mean + 3.0 * deviation,
            Self::Lognormal { median, sigma } => median * (3.0 * sigma).exp(),
        };
        (end.round() as usize).max(1)
    }

    /// One length, from 1 to [`Lengths::longest`].
    pub(super) fn draw(self, rng: &mut ChaCha8Rng) -> usize {
        let length = match self {
            Self::Fixed(n) => n as f64,
            Self::Uniform { from, to } => rng.random_range(from..=to) as f64,
            Self::Normal { mean, deviation } => mean + deviation * normal(rng),
            Self::Lognormal { median, sigma } => median * (sigma * normal(rng)).exp(),
        };
        (length.round().max(1.0) as usize).min(self.longest())
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{text}` is no length in tokens; write it like 128, uniform:64:256, \
                 normal:512:128 or lognormal:512:0.8"
            )
        };
        let parts: Vec<&str> = text.split(':').map(str::trim).collect();
        let whole = |text: &str| text.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(bad);
        let number = |text: &str, most: f64| {
            let number = text.parse::<f64>().ok();
            number.filter(|x| x.is_finite() && *x >= 0.0 && *x <= most).ok_or_else(bad)
        };
        /// Beyond any context.
        const MOST: f64 = 1e8;
        Ok(match parts[..] {
            [n] => Self::Fixed(whole(n)?),
            ["uniform", from, to] => {
                let (from, to) = (whole(from)?, whole(to)?);
                if from > to {
                    return Err(bad());
                }
                Self::Uniform { from, to }
            }
            ["normal", mean, deviation] => {
                Self::Normal { mean: number(mean, MOST)?, deviation: number(deviation, MOST)? }
            }
            ["lognormal", median, sigma] => {
                Self::Lognormal { median: number(median, MOST)?, sigma: number(sigma, 5.0)? }
            }
            _ => return Err(bad()),
        })
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Uniform { from, to } => write!(f, "uniform:{from}:{to}"),
            Self::Normal { mean, deviation } => write!(f, "normal:{mean}:{deviation}"),
            Self::Lognormal { median, sigma } => write!(f, "lognormal:{median}:{sigma}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn lengths_are_read_as_they_are_printed_and_drawn_within_their_ends() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for text in ["7", "uniform:3:9", "normal:50:20", "lognormal:20:1.5"] {
            let lengths: Lengths = text.parse().unwrap();
            assert_eq!(lengths.to_string(), text);
            let drawn: Vec<usize> = (0..2000).map(|_| lengths.draw(&mut rng)).collect();
            assert!(drawn.iter().all(|n| (1..=lengths.longest()).contains(n)), "{text}");
        }
        for bad in ["", "0", "uniform:9:3", "normal:5", "normal:nan:1", "x:1:2", "1:2", "-4"] {
            assert!(bad.parse::<Lengths>().is_err(), "{bad}");
        }
    }
}
