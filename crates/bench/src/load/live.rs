//! What a run under load is doing at this moment, for whoever watches.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use lathe_base::Seconds;

use super::LoadSample;

/// Requests whose latencies are shown.
const RECENT: usize = 50;
/// Seconds that are drawn, and those that a rate is the mean of.
const DRAWN: usize = 30;
const RATED: usize = 5;

/// What all threads of a run count.
#[derive(Debug, Default)]
pub(super) struct Live {
    in_flight: AtomicUsize,
    completed: AtomicUsize,
    failed: AtomicUsize,
    tokens: AtomicUsize,
    /// Of the last requests that completed: seconds to the first token, and a token after it.
    recent: Mutex<VecDeque<(f64, Option<f64>)>>,
}

impl Live {
    pub(super) fn sent(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// It could not be sent after all.
    pub(super) fn unsent(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn token(&self) {
        self.tokens.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn ended(&self, sample: &LoadSample) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !sample.completed() {
            self.failed();
            return;
        }
        self.completed.fetch_add(1, Ordering::Relaxed);
        let Some(first) = sample.ttft() else { return };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back((first, sample.tpot()));
    }

    /// Of the last requests, in order: times to first token, and between tokens.
    fn latencies(&self) -> [Vec<f64>; 2] {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut both =
            [recent.iter().map(|r| r.0).collect(), recent.iter().filter_map(|r| r.1).collect()];
        both.iter_mut().for_each(|list: &mut Vec<f64>| list.sort_by(f64::total_cmp));
        both
    }
}

impl fmt::Display for Live {
    /// `3 in flight, 40 done, 1 failed, 2560 tokens, TTFT 120 ms`: the median of the last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
        write!(f, "{} in flight, {} done", count(&self.in_flight), count(&self.completed))?;
        if count(&self.failed) > 0 {
            write!(f, ", {} failed", count(&self.failed))?;
        }
        write!(f, ", {} tokens", count(&self.tokens))?;
        match at(&self.latencies()[0], 0.5) {
            Some(ttft) => write!(f, ", TTFT {ttft}"),
            None => Ok(()),
        }
    }
}

/// The last seconds of a run, one by one.
#[derive(Debug, Default)]
pub(super) struct History {
    seconds: VecDeque<Second>,
    /// Counts when the last second ended.
    completed: usize,
    tokens: usize,
    /// When the next one ends.
    next: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    completed: usize,
    tokens: usize,
    in_flight: usize,
    /// Median of the last requests.
    ttft: f64,
}

impl History {
    /// Takes in what happened since it last looked; whether another second has passed.
    pub(super) fn look(&mut self, now: Seconds, live: &Live) -> bool {
        if self.next == 0.0 {
            self.next = 1.0;
        }
        if now.0 < self.next {
            return false;
        }
        // Looked at late, several seconds count as one of their mean.
        let passed = 1 + (now.0 - self.next) as usize;
        self.next += passed as f64;
        let (completed, tokens) =
            (live.completed.load(Ordering::Relaxed), live.tokens.load(Ordering::Relaxed));
        let second = Second {
            completed: (completed - self.completed) / passed,
            tokens: (tokens - self.tokens) / passed,
            in_flight: live.in_flight(),
            ttft: at(&live.latencies()[0], 0.5).map_or(0.0, |ttft| ttft.0),
        };
        (self.completed, self.tokens) = (completed, tokens);
        for _ in 0..passed.min(DRAWN) {
            if self.seconds.len() == DRAWN {
                self.seconds.pop_front();
            }
            self.seconds.push_back(second);
        }
        true
    }

    /// A line for each thing that one watches, with its last half minute drawn.
    pub(super) fn lines(&self, live: &Live) -> Vec<String> {
        let rate = |of: fn(&Second) -> usize| {
            let last = self.seconds.iter().rev().take(RATED);
            let (sum, count) = last.fold((0, 0), |(sum, n), second| (sum + of(second), n + 1));
            format!("{:.1}", sum as f64 / f64::from(count.max(1)))
        };
        let line = |name: &str, value: String, of: fn(&Second) -> f64| {
            let drawn = spark(&self.seconds.iter().map(of).collect::<Vec<f64>>());
            format!("  {name:15} {value:26} {drawn}")
        };
        let spread = |sorted: &[f64]| match (at(sorted, 0.5), at(sorted, 0.99)) {
            (Some(middle), Some(late)) => format!("{middle}, p99 {late}"),
            _ => "none yet".to_owned(),
        };
        let [first, between] = live.latencies();
        vec![
            line("requests/s", rate(|s| s.completed), |s| s.completed as f64),
            line("tokens/s", rate(|s| s.tokens), |s| s.tokens as f64),
            line("in flight", live.in_flight().to_string(), |s| s.in_flight as f64),
            line("TTFT", spread(&first), |s| s.ttft),
            format!("  {:15} {}", "per token", spread(&between)),
        ]
    }
}

/// A quantile of sorted values.
fn at(sorted: &[f64], share: f64) -> Option<Seconds> {
    let place = (sorted.len() as f64 * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).map(|value| Seconds(*value))
}

/// Values as bars, the largest at full height.
fn spark(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let bar = |value: &f64| BARS[((value / most * 7.0).round() as usize).min(7)];
    values.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(live: &Live, number: usize, ttft: f64) {
        live.sent();
        live.token();
        live.token();
        let tokens = vec![Seconds(ttft), Seconds(ttft + 0.02)];
        live.ended(&LoadSample {
            number,
            prompt_tokens: 4,
            asked: 2,
            due: Seconds(0.0),
            sent: Seconds(0.0),
            end: tokens[1],
            tokens,
            failure: None,
        });
    }

    #[test]
    fn the_last_seconds_are_counted_and_drawn() {
        let (live, mut history) = (Live::default(), History::default());
        ended(&live, 0, 0.1);
        assert!(!history.look(Seconds(0.9), &live), "the second is not over");
        assert!(history.look(Seconds(1.0), &live));
        for number in 1..4 {
            ended(&live, number, 0.3);
        }
        live.sent();
        assert!(history.look(Seconds(2.1), &live));
        assert!(!history.look(Seconds(2.9), &live));
        let lines = history.lines(&live);
        assert!(lines[0].contains("requests/s") && lines[0].contains(" 2.0 "), "{}", lines[0]);
        assert!(lines[0].ends_with("▃█"), "{}", lines[0]);
        assert!(lines[1].contains(" 4.0 ") && lines[2].ends_with("▁█"), "{lines:?}");
        assert!(lines[3].contains("300 ms, p99 300 ms"), "{}", lines[3]);
        assert!(lines[4].contains("20.0 ms"), "{}", lines[4]);
        assert_eq!(live.to_string(), "1 in flight, 4 done, 8 tokens, TTFT 300 ms");
    }

    #[test]
    fn a_look_after_a_pause_fills_the_seconds_between() {
        let (live, mut history) = (Live::default(), History::default());
        for number in 0..10 {
            ended(&live, number, 0.1);
        }
        assert!(history.look(Seconds(5.5), &live));
        assert_eq!(history.seconds.len(), 5);
        assert!(history.lines(&live)[0].contains(" 2.0 "));
        assert!(history.look(Seconds(1e6), &live));
        assert_eq!(history.seconds.len(), DRAWN, "no more than is drawn");
    }
}
