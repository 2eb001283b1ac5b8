use lathe_base::Bytes;
use lathe_stats::{
    Bootstrap, Error, Interval, Method, SMALLEST_BOOTSTRAP, mean_interval, median, paired_ratio,
    quantile,
};
use serde::{Deserialize, Serialize};

use crate::{BatchSample, RequestSample, Round, Trial};

/// What the rounds of one candidate say. A figure that the samples do not hold is `None`.
///
/// The unit is the round: each round's requests give one number (their median, or a quantile of
/// all their gaps), and the intervals are over these numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Rounds with samples, and rounds that failed.
    pub rounds: usize,
    pub failed: usize,
    /// Seconds from the start of reading the model until it could answer.
    pub load: Option<Interval>,
    /// Seconds.
    pub ttft: Option<Interval>,
    /// Tokens per second.
    pub prefill: Option<Interval>,
    pub decode: Option<Interval>,
    /// Seconds between tokens.
    pub itl_p50: Option<Interval>,
    pub itl_p90: Option<Interval>,
    pub itl_p99: Option<Interval>,
    /// Requests per second, one after another.
    pub requests: Option<Interval>,
    /// Decode tokens per second of all streams together, by number of streams.
    pub batch: Vec<(usize, Interval)>,
    /// The largest resident set of any round.
    pub peak_memory: Option<Bytes>,
}

/// Sums up the rounds of `candidate`; two-sided intervals at `level`.
pub fn figures(rounds: &[Round], candidate: &str, level: f64) -> Figures {
    let own: Vec<&Round> = rounds.iter().filter(|r| r.candidate == candidate).collect();
    let trials: Vec<&Trial> = own.iter().filter_map(|r| r.outcome.as_ref().ok()).collect();
    let over = |measure: Measure| -> Option<Interval> {
        let values: Vec<f64> = trials.iter().filter_map(|trial| measure.of(trial)).collect();
        across(&values, level).ok()
    };
    let requests: Vec<f64> = trials
        .iter()
        .filter_map(|trial| of_requests(trial, |request| Some(1.0 / request.end.0)))
        .collect();
    let mut streams: Vec<usize> =
        trials.iter().flat_map(|t| t.batches.iter().map(|b| b.streams)).collect();
    streams.sort_unstable();
    streams.dedup();
    Figures {
        rounds: trials.len(),
        failed: own.len() - trials.len(),
        load: over(Measure::Load),
        ttft: over(Measure::Ttft),
        prefill: over(Measure::Prefill),
        decode: over(Measure::Decode),
        itl_p50: over(Measure::ItlP50),
        itl_p90: over(Measure::ItlP90),
        itl_p99: over(Measure::ItlP99),
        requests: across(&requests, level).ok(),
        batch: streams.into_iter().filter_map(|n| Some((n, over(Measure::Batch(n))?))).collect(),
        peak_memory: trials.iter().filter_map(|t| t.peak_memory).max(),
    }
}

/// A figure in which two candidates can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    Load,
    Ttft,
    Prefill,
    Decode,
    ItlP50,
    ItlP90,
    ItlP99,
    /// Decode tokens per second of so many streams together.
    Batch(usize),
    PeakMemory,
}

impl Measure {
    /// The figure of one trial: seconds, tokens per second, or bytes.
    pub fn of(self, trial: &Trial) -> Option<f64> {
        match self {
            Self::Load => (!trial.info.found_running).then_some(trial.load.0),
            Self::Ttft => of_requests(trial, |request| request.ttft().map(|s| s.0)),
            Self::Prefill => of_requests(trial, RequestSample::prefill_rate),
            Self::Decode => of_requests(trial, RequestSample::decode_rate),
            Self::ItlP50 => gap(trial, 0.50),
            Self::ItlP90 => gap(trial, 0.90),
            Self::ItlP99 => gap(trial, 0.99),
            Self::Batch(streams) => batch_rate(trial, streams),
            Self::PeakMemory => trial.peak_memory.map(|bytes| bytes.0 as f64),
        }
    }

    /// Whether more is better.
    pub fn is_rate(self) -> bool {
        matches!(self, Self::Prefill | Self::Decode | Self::Batch(_))
    }

    /// How many times as good `candidate` is as `baseline`, paired by round: above 1 it is faster,
    /// or takes less.
    ///
    /// `None` with fewer than two rounds that have both.
    pub fn advantage(
        self,
        rounds: &[Round],
        candidate: &str,
        baseline: &str,
        level: f64,
    ) -> Option<Interval> {
        match self.is_rate() {
            true => paired(rounds, (candidate, baseline), level, |trial| self.of(trial)),
            false => paired(rounds, (baseline, candidate), level, |trial| self.of(trial)),
        }
    }
}

/// Decode speed of `candidate` over that of `baseline`, paired by round.
///
/// `None` with fewer than two rounds that have both.
pub fn ratio(rounds: &[Round], candidate: &str, baseline: &str, level: f64) -> Option<Interval> {
    Measure::Decode.advantage(rounds, candidate, baseline, level)
}

fn paired(
    rounds: &[Round],
    (candidate, baseline): (&str, &str),
    level: f64,
    of: impl Fn(&Trial) -> Option<f64>,
) -> Option<Interval> {
    let rate = |id: &str, round: usize| {
        let found = rounds.iter().find(|r| r.candidate == id && r.round == round)?;
        of(found.outcome.as_ref().ok()?)
    };
    let (ours, theirs): (Vec<f64>, Vec<f64>) = rounds
        .iter()
        .filter(|r| r.candidate == candidate)
        .filter_map(|r| Some((rate(candidate, r.round)?, rate(baseline, r.round)?)))
        .unzip();
    paired_ratio(&ours, &theirs, level).ok()
}

/// The interval of a positive figure over rounds: Student's t on the logarithms while the rounds
/// are few, the bootstrap of the median once there are enough for it.
fn across(values: &[f64], level: f64) -> Result<Interval, Error> {
    if values.len() >= SMALLEST_BOOTSTRAP {
        let bootstrap = Bootstrap { level, ..Bootstrap::default() };
        return bootstrap.over(values.len(), |chosen| {
            let drawn: Vec<f64> = chosen.iter().map(|&i| values[i]).collect();
            median(&drawn).unwrap_or(f64::NAN)
        });
    }
    if let [only] = values {
        // One round says nothing of the spread: an interval that decides nothing.
        let (low, high) = (0.0, f64::MAX);
        let (point, n) = (*only, 1);
        return Ok(Interval { low, point, high, level, n, method: Method::StudentTOnLogs });
    }
    let logs: Vec<f64> = values.iter().map(|v| v.ln()).collect();
    let interval = mean_interval(&logs, level)?.map(f64::exp);
    // The middle round is what people expect to see quoted; the interval is about the same centre.
    let point = median(values)?.clamp(interval.low, interval.high);
    Ok(Interval { point, method: Method::StudentTOnLogs, ..interval })
}

fn of_requests(trial: &Trial, of: impl Fn(&RequestSample) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = trial.requests.iter().filter_map(of).collect();
    median(&values).ok()
}

fn gap(trial: &Trial, p: f64) -> Option<f64> {
    let gaps: Vec<f64> = trial.requests.iter().flat_map(RequestSample::gaps).collect();
    quantile(&gaps, p).ok()
}

fn batch_rate(trial: &Trial, streams: usize) -> Option<f64> {
    let same = trial.batches.iter().filter(|b| b.streams == streams);
    let rates: Vec<f64> = same.filter_map(BatchSample::decode_rate).collect();
    median(&rates).ok()
}

#[cfg(test)]
mod tests {
    use lathe_api::{Caps, Info};
    use lathe_base::Seconds;

    use super::*;

    fn round(round: usize, candidate: &str, gap: f64) -> Round {
        let tokens = (1..=11).map(|i| Seconds(0.2 + gap * f64::from(i))).collect();
        let request = RequestSample {
            prompt_tokens: 10,
            prefilled: Some(Seconds(0.2)),
            tokens,
            end: Seconds(0.2 + gap * 11.0),
        };
        let info = Info {
            engine: "mock".into(),
            version: "1".into(),
            device: "none".into(),
            vocab: 10,
            context: 100,
            weight_bytes: 0,
            caps: Caps::default(),
            found_running: false,
        };
        let trial = Trial {
            info,
            load: Seconds(0.1),
            peak_memory: Some(Bytes(100 + round as u64)),
            requests: vec![request],
            batches: Vec::new(),
        };
        let (start, end) = (Seconds(0.0), Seconds(1.0));
        let outcome = Ok(trial);
        Round { round, candidate: candidate.into(), start, end, noise: None, outcome }
    }

    #[test]
    fn a_drift_of_the_machine_cancels_in_the_ratio() {
        let rounds: Vec<Round> = [0.010, 0.020, 0.015]
            .iter()
            .enumerate()
            .flat_map(|(i, gap)| [round(i, "base", *gap), round(i, "fast", gap / 2.0)])
            .collect();
        let ratio = ratio(&rounds, "fast", "base", 0.95).unwrap();
        assert!((ratio.low - 2.0).abs() < 1e-6 && (ratio.high - 2.0).abs() < 1e-6);
        let base = figures(&rounds, "base", 0.95);
        let decode = base.decode.unwrap();
        assert!(decode.low < 60.0 && decode.high > 80.0, "the drift widens a single figure");
        assert!((decode.point - 1.0 / 0.015).abs() < 1e-6);
        assert_eq!(base.peak_memory, Some(Bytes(102)));
        assert_eq!(base.rounds, 3);
    }

    #[test]
    fn above_one_is_better_for_rates_and_times_alike() {
        let rounds: Vec<Round> =
            (0..3).flat_map(|i| [round(i, "base", 0.02), round(i, "fast", 0.01)]).collect();
        for (measure, expected) in
            [(Measure::Decode, 2.0), (Measure::ItlP50, 2.0), (Measure::PeakMemory, 1.0)]
        {
            let found = measure.advantage(&rounds, "fast", "base", 0.95).unwrap();
            assert!((found.point - expected).abs() < 1e-6, "{measure:?}: {found:?}");
        }
        assert_eq!(Measure::Batch(8).advantage(&rounds, "fast", "base", 0.95), None);
    }

    #[test]
    fn what_nobody_saw_of_a_running_server_is_no_figure() {
        let mut found = round(0, "server", 0.01);
        if let Ok(trial) = &mut found.outcome {
            (trial.info.found_running, trial.peak_memory) = (true, None);
        }
        let rounds = [found, round(0, "base", 0.01)];
        let figures = figures(&rounds, "server", 0.95);
        assert!(figures.decode.is_some());
        assert_eq!((figures.load, figures.peak_memory), (None, None));
    }

    #[test]
    fn one_round_gives_a_point_that_decides_nothing() {
        let decode = figures(&[round(0, "base", 0.01)], "base", 0.95).decode.unwrap();
        assert!((decode.point - 100.0).abs() < 1e-6);
        assert_eq!((decode.low, decode.high), (0.0, f64::MAX));
    }

    #[test]
    fn failed_rounds_are_counted_and_left_out() {
        let mut broken = round(1, "base", 0.01);
        broken.outcome = Err("out of memory".into());
        let rounds = [round(0, "base", 0.01), broken, round(2, "base", 0.01)];
        let figures = figures(&rounds, "base", 0.95);
        assert_eq!((figures.rounds, figures.failed), (2, 1));
        assert!(figures.decode.is_some());
    }

    #[test]
    fn a_candidate_without_rounds_has_no_figures() {
        assert_eq!(figures(&[], "base", 0.95), Figures::default());
        assert_eq!(ratio(&[], "a", "b", 0.95), None);
    }
}
