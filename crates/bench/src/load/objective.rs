use std::{fmt, str::FromStr};

use lathe_base::Seconds;
use serde::{Deserialize, Serialize};

use super::LoadSample;

/// A service objective: what a user is promised of every request.
///
/// Parses and prints `ttft=500ms,tpot=50ms,e2e=5s`, any of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    pub promises: Vec<(Promise, Seconds)>,
}

/// What can be promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// Time to first token.
    Ttft,
    /// Time per output token after the first: the mean gap of a request.
    Tpot,
    /// The longest gap between two tokens of a request.
    Itl,
    /// From arrival to the last token.
    E2e,
}

impl Promise {
    const ALL: [(&'static str, Self); 4] =
        [("ttft", Self::Ttft), ("tpot", Self::Tpot), ("itl", Self::Itl), ("e2e", Self::E2e)];

    /// As it is typed.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, one)| *one == self).map_or("", |(name, _)| name)
    }

    fn of(self, sample: &LoadSample) -> Option<f64> {
        match self {
            Self::Ttft => sample.ttft(),
            // A single token has no gap that could be too long.
            Self::Tpot => Some(sample.tpot().unwrap_or(0.0)),
            Self::Itl => Some(sample.gaps().fold(0.0, f64::max)),
            Self::E2e => sample.end_to_end(),
        }
    }
}

impl Objective {
    /// Whether a request completed and kept every promise.
    pub fn kept(&self, sample: &LoadSample) -> bool {
        let kept = |(promise, most): &(Promise, Seconds)| {
            promise.of(sample).is_some_and(|took| took <= most.0)
        };
        sample.completed() && self.promises.iter().all(kept)
    }
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut promises: Vec<(Promise, Seconds)> = Vec::new();
        for part in text.split(',') {
            let named = part.split_once('=').and_then(|(name, time)| {
                let (_, promise) = Promise::ALL.iter().find(|(n, _)| *n == name.trim())?;
                Some((*promise, time))
            });
            let Some((promise, time)) = named else {
                return Err(format!(
                    "`{part}` is no promise; write them like ttft=500ms,tpot=50ms,itl=200ms,e2e=5s"
                ));
            };
            if promises.iter().any(|(other, _)| *other == promise) {
                return Err(format!("{} is promised twice", promise.name()));
            }
            let time: Seconds = time.parse().map_err(|error| format!("{part}: {error}"))?;
            if !(time.0 > 0.0 && time.0.is_finite()) {
                return Err(format!("{part}: a time above 0 is needed"));
            }
            promises.push((promise, time));
        }
        Ok(Self { promises })
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> =
            self.promises.iter().map(|(p, most)| format!("{} ≤ {most}", p.name())).collect();
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_must_keep_every_promise_and_complete() {
        let objective: Objective = "ttft=500ms, itl=0.31,e2e=1s".parse().unwrap();
        let mut sample = LoadSample {
            number: 0,
            prompt_tokens: 1,
            asked: 3,
            due: Seconds(1.0),
            sent: Seconds(1.2),
            tokens: [1.5, 1.7, 2.0].map(Seconds).to_vec(),
            end: Seconds(2.0),
            failure: None,
        };
        assert!(objective.kept(&sample));
        assert!(!"tpot=200ms".parse::<Objective>().unwrap().kept(&sample));
        sample.tokens[0] = Seconds(1.51);
        assert!(!objective.kept(&sample), "it counts from when it was due");
        assert!(Objective::default().kept(&sample));
        sample.tokens.truncate(1);
        assert!("tpot=1ms,e2e=1s".parse::<Objective>().unwrap().kept(&sample));
    }

    #[test]
    fn promises_are_named_once_with_a_time() {
        for bad in ["", "ttft", "ttft=x", "speed=1s", "ttft=1s,ttft=2s", "e2e=0"] {
            assert!(bad.parse::<Objective>().is_err(), "{bad}");
        }
        let objective: Objective = "ttft=500ms,e2e=5s".parse().unwrap();
        assert_eq!(objective.to_string(), "ttft ≤ 500 ms, e2e ≤ 5.00 s");
    }
}
