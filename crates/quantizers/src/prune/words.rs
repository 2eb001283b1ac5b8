//! How pruning is spelt: `sparsegpt:50%`, `wanda:2:4`.

use std::{fmt, str::FromStr};

use super::{Criterion, Pattern, Prune};
use crate::Error;

impl Criterion {
    /// All, the simplest first.
    pub const ALL: [Self; 3] = [Self::Magnitude, Self::Wanda, Self::SparseGpt];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Magnitude => "magnitude",
            Self::Wanda => "wanda",
            Self::SparseGpt => "sparsegpt",
        }
    }
}

impl fmt::Display for Prune {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.criterion.name(), self.pattern)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Of 0.55 in f32 a hundredfold is not 55.
            Self::Share(share) => write!(f, "{}%", (f64::from(*share) * 1e6).round() / 1e4),
            Self::Of { keep, of } => write!(f, "{keep}:{of}"),
        }
    }
}

/// `METHOD:SHARE` with a share such as `50%` or `0.5`, or `METHOD:N:M`, which keeps N of M.
///
/// **Errors**: [`Error::Unsupported`], which says what is possible.
impl FromStr for Prune {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim().to_lowercase();
        let bad = |instead: &str| Error::Unsupported {
            what: format!("pruning by `{text}`"),
            instead: instead.to_owned(),
        };
        let (name, amount) = text.split_once(':').ok_or_else(|| bad(SPELLING))?;
        let criterion = Criterion::ALL.into_iter().find(|criterion| criterion.name() == name);
        let criterion = criterion.ok_or_else(|| bad(SPELLING))?;
        let pattern = pattern(amount).ok_or_else(|| bad(SPELLING))?;
        pattern.refusal().map_or(Ok(Self { criterion, pattern }), |why| Err(bad(why)))
    }
}

const SPELLING: &str = "write METHOD:SHARE or METHOD:N:M, as in sparsegpt:50% or wanda:2:4; the \
                        methods are magnitude, wanda and sparsegpt";

fn pattern(amount: &str) -> Option<Pattern> {
    if let Some((keep, of)) = amount.split_once(':') {
        return Some(Pattern::Of { keep: keep.parse().ok()?, of: of.parse().ok()? });
    }
    let share = match amount.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().ok()? / 100.0,
        None => amount.parse::<f64>().ok()?,
    };
    Some(Pattern::Share(share as f32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for (text, written) in [
            ("sparsegpt:50%", "sparsegpt:50%"),
            ("Wanda:2:4", "wanda:2:4"),
            ("magnitude:0.55", "magnitude:55%"),
            ("magnitude:12.5%", "magnitude:12.5%"),
        ] {
            let prune: Prune = text.parse().unwrap();
            assert_eq!(prune.to_string(), written);
            assert_eq!(written.parse::<Prune>().unwrap(), prune);
        }
    }

    #[test]
    fn rejects_what_is_no_pruning() {
        for text in ["", "wanda", "wanda:", "wanda:x", "half:50%", "wanda:2:4:8"] {
            let error = text.parse::<Prune>().unwrap_err().to_string();
            assert!(error.contains("sparsegpt:50%"), "{text}: {error}");
        }
        for text in ["wanda:100%", "wanda:-1", "wanda:nan"] {
            let error = text.parse::<Prune>().unwrap_err().to_string();
            assert!(error.contains("above 0 and below"), "{text}: {error}");
        }
        for text in ["wanda:4:4", "wanda:0:4", "wanda:1:3", "wanda:1:64"] {
            let error = text.parse::<Prune>().unwrap_err().to_string();
            assert!(error.contains("fewer than M"), "{text}: {error}");
        }
    }
}
