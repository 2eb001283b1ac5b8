use lathe_base::Seconds;
use serde::{Deserialize, Serialize};

/// One request under load, stamped by the harness. Times are in seconds since the run began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadSample {
    /// Its place in the order of requests.
    pub number: usize,
    pub prompt_tokens: usize,
    /// New tokens that it asked for.
    pub asked: usize,
    /// When it was due by the timetable. In a closed loop nothing is due: when it was sent.
    pub due: Seconds,
    /// When it was handed to the engine.
    pub sent: Seconds,
    /// When each token came.
    pub tokens: Vec<Seconds>,
    /// When it ended.
    pub end: Seconds,
    /// Why it did not give what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// What went wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub why: Why,
    pub words: String,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The engine did not take it.
    Refused,
    /// It broke, or the connection to it.
    Broken,
    /// Other than the asked number of tokens came.
    Short,
    /// It had not ended when the run did.
    Unfinished,
    /// The client could not send it.
    Client,
}

impl Why {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Broken => "broken off",
            Self::Short => "wrong number of tokens",
            Self::Unfinished => "unfinished",
            Self::Client => "not sent",
        }
    }
}

impl LoadSample {
    /// From when it was due until its first token.
    pub fn ttft(&self) -> Option<f64> {
        self.tokens.first().map(|first| first.0 - self.due.0)
    }

    /// Time per output token after the first; `None` for a single token.
    pub fn tpot(&self) -> Option<f64> {
        let (first, last) = (self.tokens.first()?, self.tokens.last()?);
        let further = self.tokens.len() - 1;
        (further > 0).then(|| (last.0 - first.0) / further as f64)
    }

    /// From when it was due until its last token.
    pub fn end_to_end(&self) -> Option<f64> {
        self.tokens.last().map(|last| last.0 - self.due.0)
    }

    /// The gaps between tokens.
    pub fn gaps(&self) -> impl Iterator<Item = f64> + '_ {
        self.tokens.windows(2).map(|pair| pair[1].0 - pair[0].0)
    }

    /// How long after it was due it was sent.
    pub fn lag(&self) -> f64 {
        self.sent.0 - self.due.0
    }

    /// Whether it gave what was asked for.
    pub fn completed(&self) -> bool {
        self.failure.is_none()
    }
}
