use lathe_base::Seconds;
use lathe_stats::{
    Bootstrap, Interval, Kind, SMALLEST_BOOTSTRAP, kendall, mean, mean_interval, quantile,
    quantile_interval, wilson,
};
use serde::{Deserialize, Serialize};

use super::{LoadSample, Objective, Pattern, Why};

/// What is left out at the ends of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// From the first request that was due: while queues and batches fill.
    pub settle: Seconds,
    /// Before the last request was due: while they empty. At 0 nothing is left out, and the run
    /// ends with its last answer, as for `vllm bench serve`.
    pub cool: Seconds,
}

/// What one run says. A figure that the samples do not hold is `None`.
///
/// Latencies are those of the requests that were due within the window and completed; rates count
/// what came within it. The units of all intervals are neighbouring requests, or slices of time: see
/// [`load_figures`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadFigures {
    /// The window, in seconds since the run began.
    pub from: Seconds,
    pub to: Seconds,
    /// Requests that were due in the window.
    pub requests: usize,
    pub completed: usize,
    /// Those of them that failed, by kind and words.
    pub failed: Vec<(Why, String, usize)>,
    /// Requests a second that were due, where there is a timetable.
    pub offered: Option<f64>,
    /// Requests a second that completed.
    pub rate: Option<Interval>,
    /// Output tokens a second.
    pub output: Option<Interval>,
    /// Prompt tokens of what completed, a second.
    pub input: Option<f64>,
    pub ttft: Option<Latency>,
    pub itl: Option<Latency>,
    pub tpot: Option<Latency>,
    pub e2e: Option<Latency>,
    /// Requests under way: their mean over the window, and the most.
    pub in_flight: f64,
    pub in_flight_most: usize,
    /// Whether more came than was served.
    pub growth: Option<Growth>,
    /// The share of requests that kept the objective, failed ones being such that did not; and
    /// those a second.
    pub attainment: Option<Interval>,
    pub goodput: Option<Interval>,
    pub client: Client,
}

/// Seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub mean: f64,
    pub p50: Interval,
    pub p90: Interval,
    pub p95: Interval,
    pub p99: Interval,
}

/// How requests under way changed while requests came.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// Requests more under way with every second.
    pub per_second: f64,
    /// The share of what came for which that stands.
    pub share: f64,
    /// Of the Mann-Kendall test of a trend.
    pub p_value: f64,
    /// The rate cannot be sustained: the queue grows as long as requests come.
    pub grows: bool,
}

/// What the client itself did to the figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// How long after they were due requests were sent, in seconds.
    pub lag_p50: f64,
    pub lag_p99: f64,
    pub lag_most: f64,
    /// The mean lag as a share of the mean end-to-end latency.
    pub share: f64,
    /// Requests that could not be sent at all.
    pub unsent: usize,
    /// The run says something of the engine: the share is at most [`MOST_SHARE`], the 99th
    /// percentile of lag is at most a tenth of that of time to first token, and all was sent.
    pub valid: bool,
}

/// The client may add so much to latencies.
const MOST_SHARE: f64 = 0.01;
/// And this share of the tail of time to first token.
const MOST_TAIL: f64 = 0.1;
/// Slices of time whose rates are the units of throughput's interval, and whose load is looked at
/// for a trend.
const SLICES: usize = 10;
/// The first slices of a run are those in which an empty engine fills.
const FILLING: usize = 2;
/// A queue that grows by less than this share of what comes is not said to grow.
const LEAST_GROWTH: f64 = 0.05;

/// Sums up a run at a two-sided `level`.
///
/// Requests that follow each other share queue and batch, so that they are not independent. Latencies
/// are therefore resampled in blocks of n^⅓ neighbours (Künsch 1989), rates are the means of ten
/// slices of time (batch means, with Student's t). Under eight requests the interval of a quantile
/// lies between order statistics, with the level that it has.
pub fn load_figures(
    samples: &[LoadSample],
    pattern: &Pattern,
    window: &Window,
    objective: &Objective,
    level: f64,
) -> LoadFigures {
    let due = |sample: &LoadSample| sample.due.0;
    let first = samples.iter().map(due).reduce(f64::min).unwrap_or(0.0);
    let last_due = samples.iter().map(due).reduce(f64::max).unwrap_or(0.0);
    let last_end = samples.iter().map(|sample| sample.end.0).reduce(f64::max).unwrap_or(0.0);
    let from = first + window.settle.0;
    let to = if window.cool.0 > 0.0 { last_due - window.cool.0 } else { last_end }.max(from);
    let is_within = |at: f64| at >= from && at <= to;
    let own: Vec<&LoadSample> = samples.iter().filter(|sample| is_within(due(sample))).collect();
    let done: Vec<&LoadSample> = own.iter().copied().filter(|sample| sample.completed()).collect();
    let slices = Slices { from, to };
    let ends = |sample: &&LoadSample| is_within(sample.end.0) && sample.completed();
    let ended: Vec<&LoadSample> = samples.iter().filter(ends).collect();
    let promised = !objective.promises.is_empty();
    let kept = ended.iter().filter(|sample| objective.kept(sample)).map(|sample| sample.end.0);
    let span = to - from;
    let per_second = |count: f64| (span > 0.0).then(|| count / span);
    let one = |of: fn(&LoadSample) -> Option<f64>| {
        let clusters: Vec<Vec<f64>> =
            done.iter().filter_map(|sample| Some(vec![of(sample)?])).collect();
        Latency::of(&clusters, level)
    };
    let gaps: Vec<Vec<f64>> = done.iter().map(|sample| sample.gaps().collect()).collect();
    let tokens = samples.iter().flat_map(|sample| &sample.tokens).map(|at| at.0);
    LoadFigures {
        from: Seconds(from),
        to: Seconds(to),
        requests: own.len(),
        completed: done.len(),
        failed: failed(&own),
        offered: match pattern {
            Pattern::Closed { .. } | Pattern::Offline => None,
            // As it came out: a Poisson rate is a mean.
            _ if last_due > first => {
                Some((samples.len().saturating_sub(1)) as f64 / (last_due - first))
            }
            _ => None,
        },
        rate: slices.rate(ended.iter().map(|sample| sample.end.0), level),
        output: slices.rate(tokens, level),
        input: per_second(ended.iter().map(|sample| sample.prompt_tokens as f64).sum()),
        ttft: one(LoadSample::ttft),
        tpot: one(LoadSample::tpot),
        e2e: one(LoadSample::end_to_end),
        itl: Latency::of(&gaps, level),
        in_flight: under_way(samples, from, to),
        in_flight_most: most_under_way(samples),
        growth: growth(samples, pattern, first, last_due),
        attainment: promised
            .then(|| {
                let kept = own.iter().filter(|sample| objective.kept(sample)).count();
                wilson(kept, own.len(), level).ok()
            })
            .flatten(),
        goodput: promised.then(|| slices.rate(kept, level)).flatten(),
        client: client(&own, &done),
    }
}

impl Latency {
    /// Quantiles of all values, whose units are blocks of neighbouring requests.
    fn of(requests: &[Vec<f64>], level: f64) -> Option<Self> {
        let requests: Vec<&Vec<f64>> = requests.iter().filter(|r| !r.is_empty()).collect();
        let all: Vec<f64> = requests.iter().flat_map(|r| r.iter().copied()).collect();
        let n = requests.len();
        let block = ((n as f64).cbrt().round() as usize).clamp(1, (n / SMALLEST_BOOTSTRAP).max(1));
        let blocks: Vec<Vec<f64>> = requests
            .chunks(block)
            .map(|chunk| chunk.iter().flat_map(|r| r.iter().copied()).collect())
            .collect();
        let at = |p: f64| {
            if blocks.len() < SMALLEST_BOOTSTRAP {
                let few = quantile_interval(&all, p, level).ok();
                // One value is known, its spread is not.
                return few.or_else(|| Some(unbounded(quantile(&all, p).ok()?, level)));
            }
            let bootstrap = Bootstrap {
                level,
                kind: Kind::Percentile,
                resamples: (20_000_000 / all.len().max(1)).clamp(200, 2000),
                ..Bootstrap::default()
            };
            let of = |values: &[f64]| selected(&mut values.to_vec(), p);
            bootstrap.of_clusters(&blocks, of).ok()
        };
        let [p50, p90, p95, p99] = [at(0.50)?, at(0.90)?, at(0.95)?, at(0.99)?];
        Some(Self { mean: mean(&all).ok()?, p50, p90, p95, p99 })
    }
}

/// An interval that decides nothing.
fn unbounded(point: f64, level: f64) -> Interval {
    Interval { low: 0.0, high: f64::MAX, level, ..Interval::exact(point) }
}

/// As [`quantile`], without sorting.
fn selected(values: &mut [f64], p: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let place = p * (values.len() - 1) as f64;
    let (_, below, above) = values.select_nth_unstable_by(place.floor() as usize, f64::total_cmp);
    let next = above.iter().copied().reduce(f64::min).unwrap_or(*below);
    *below + place.fract() * (next - *below)
}

/// A window in equal slices.
struct Slices {
    from: f64,
    to: f64,
}

impl Slices {
    /// Events per second, with the interval over the slices.
    fn rate(&self, times: impl Iterator<Item = f64>, level: f64) -> Option<Interval> {
        let wide = (self.to - self.from) / SLICES as f64;
        if wide <= 0.0 {
            return None;
        }
        let mut counts = [0.0; SLICES];
        for at in times.filter(|at| (self.from..=self.to).contains(at)) {
            let slice = ((at - self.from) / wide) as usize;
            counts[slice.min(SLICES - 1)] += 1.0 / wide;
        }
        let interval = mean_interval(&counts, level).ok()?;
        Some(Interval { low: interval.low.max(0.0), ..interval })
    }
}

fn failed(own: &[&LoadSample]) -> Vec<(Why, String, usize)> {
    let mut list: Vec<(Why, String, usize)> = Vec::new();
    for failure in own.iter().filter_map(|sample| sample.failure.as_ref()) {
        match list.iter_mut().find(|(w, words, _)| *w == failure.why && *words == failure.words) {
            Some((_, _, count)) => *count += 1,
            None => list.push((failure.why, failure.words.clone(), 1)),
        }
    }
    list.sort_by_key(|(why, _, count)| (*why, usize::MAX - count));
    list
}

/// The mean number of requests under way.
fn under_way(samples: &[LoadSample], from: f64, to: f64) -> f64 {
    let spent = |s: &LoadSample| (s.end.0.min(to) - s.due.0.max(from)).max(0.0);
    if to > from { samples.iter().map(spent).sum::<f64>() / (to - from) } else { 0.0 }
}

fn most_under_way(samples: &[LoadSample]) -> usize {
    let mut changes: Vec<(f64, i64)> =
        samples.iter().flat_map(|s| [(s.due.0, 1), (s.end.0, -1)]).collect();
    // One that ends makes room for one that begins at the same moment.
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut now, mut most) = (0i64, 0);
    for (_, change) in changes {
        now += change;
        most = most.max(now);
    }
    usize::try_from(most).unwrap_or(0)
}

/// Whether requests under way grow in number while requests come. `None` where users wait for
/// answers, and where too few came to tell.
fn growth(samples: &[LoadSample], pattern: &Pattern, from: f64, to: f64) -> Option<Growth> {
    const LEAST_REQUESTS: usize = 20;
    let has_rate = matches!(pattern, Pattern::Open { .. } | Pattern::Timed { .. });
    if !has_rate || samples.len() < LEAST_REQUESTS || to <= from {
        return None;
    }
    let wide = (to - from) / SLICES as f64;
    let edge = |slice: usize| from + slice as f64 * wide;
    let load: Vec<f64> =
        (FILLING..SLICES).map(|slice| under_way(samples, edge(slice), edge(slice + 1))).collect();
    let trend = kendall(&load).ok()?;
    // Least squares over the slices' middles.
    let middle = (load.len() - 1) as f64 / 2.0;
    let level = mean(&load).ok()?;
    let offsets = || (0..load.len()).map(|i| i as f64 - middle);
    let slope = offsets().zip(&load).map(|(x, y)| x * (y - level)).sum::<f64>()
        / offsets().map(|x| x * x).sum::<f64>()
        / wide;
    let share = slope * (to - from) / samples.len() as f64;
    let more = slope * wide * load.len() as f64;
    let grows = trend.tau > 0.0 && trend.p_value < 0.05 && share > LEAST_GROWTH && more >= 2.0;
    Some(Growth { per_second: slope, share, p_value: trend.p_value, grows })
}

fn client(own: &[&LoadSample], done: &[&LoadSample]) -> Client {
    let unsent = |sample: &&&LoadSample| {
        sample.failure.as_ref().is_some_and(|failure| failure.why == Why::Client)
    };
    let unsent = own.iter().filter(unsent).count();
    let lags: Vec<f64> = done.iter().map(|sample| sample.lag()).collect();
    let at = |p: f64| quantile(&lags, p).unwrap_or(0.0);
    let all = |of: fn(&LoadSample) -> Option<f64>| -> Vec<f64> {
        done.iter().filter_map(|sample| of(sample)).collect()
    };
    let took = mean(&all(LoadSample::end_to_end)).unwrap_or(0.0);
    let share = if took > 0.0 { mean(&lags).unwrap_or(0.0) / took } else { 0.0 };
    let tail = quantile(&all(LoadSample::ttft), 0.99).unwrap_or(0.0);
    let valid = share <= MOST_SHARE && at(0.99) <= MOST_TAIL * tail.max(0.0) && unsent == 0;
    Client { lag_p50: at(0.5), lag_p99: at(0.99), lag_most: at(1.0), share, unsent, valid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Failure;

    /// Ten tokens, `ttft` after it was due, then one each tenth of a second.
    fn sample(number: usize, due: f64, ttft: f64) -> LoadSample {
        let tokens: Vec<Seconds> =
            (0..10).map(|i| Seconds(due + ttft + 0.1 * f64::from(i))).collect();
        let end = Seconds(due + ttft + 0.9);
        let (due, sent) = (Seconds(due), Seconds(due + 0.0001));
        LoadSample { number, prompt_tokens: 5, asked: 10, due, sent, tokens, end, failure: None }
    }

    fn open(rate: f64) -> Pattern {
        Pattern::Open { rate, spacing: super::super::Spacing::Constant }
    }

    fn figures(samples: &[LoadSample], pattern: &Pattern, window: Window) -> LoadFigures {
        let objective = "ttft=450ms".parse().unwrap();
        load_figures(samples, pattern, &window, &objective, 0.95)
    }

    #[test]
    fn figures_follow_from_the_stamps() {
        let samples: Vec<LoadSample> = (0..100)
            .map(|i| sample(i, i as f64 * 0.5, 0.3 + 0.2 * f64::from(u8::from(i % 10 == 0))))
            .collect();
        let f = figures(&samples, &open(2.0), Window::default());
        assert_eq!((f.requests, f.completed, f.failed.len()), (100, 100, 0));
        assert!((f.offered.unwrap() - 2.0).abs() < 1e-9);
        // The last request is due at 49.5 s and ends 1.2 s later.
        assert!((f.rate.unwrap().point - 100.0 / 50.7).abs() < 1e-9);
        assert!((f.output.unwrap().point - 1000.0 / 50.7).abs() < 1e-9);
        let ttft = f.ttft.unwrap();
        assert!((ttft.p50.point - 0.3).abs() < 1e-9 && (ttft.p99.point - 0.5).abs() < 1e-9);
        assert!(ttft.p90.low <= ttft.p90.point && ttft.p90.point <= ttft.p90.high);
        assert!((f.tpot.unwrap().mean - 0.1).abs() < 1e-9);
        assert!((f.itl.unwrap().p95.point - 0.1).abs() < 1e-9);
        let attained = f.attainment.unwrap();
        assert!((attained.point - 0.9).abs() < 1e-9 && attained.n == 100);
        assert!((f.goodput.unwrap().point - 90.0 / 50.7).abs() < 1e-9);
        assert!(f.client.valid && !f.growth.unwrap().grows);
        assert_eq!(f.in_flight_most, 3);
    }

    #[test]
    fn ends_of_a_run_are_left_out_as_asked() {
        let samples: Vec<LoadSample> = (0..40).map(|i| sample(i, i as f64, 0.3)).collect();
        let window = Window { settle: Seconds(4.5), cool: Seconds(4.5) };
        let f = figures(&samples, &open(1.0), window);
        assert_eq!((f.from, f.to, f.requests), (Seconds(4.5), Seconds(34.5), 30));
        assert!((f.rate.unwrap().point - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_queue_that_grows_is_told_from_one_that_is_full() {
        let grows: Vec<LoadSample> =
            (0..80).map(|i| sample(i, i as f64 * 0.5, 0.3 + 0.2 * i as f64)).collect();
        let growth = figures(&grows, &open(2.0), Window::default()).growth.unwrap();
        assert!(growth.grows && growth.share > 0.2, "{growth:?}");
        let full: Vec<LoadSample> = (0..80).map(|i| sample(i, i as f64 * 0.5, 5.0)).collect();
        let growth = figures(&full, &open(2.0), Window::default()).growth.unwrap();
        assert!(!growth.grows, "{growth:?}");
        let closed = Pattern::Closed { users: 3 };
        assert_eq!(figures(&grows, &closed, Window::default()).growth, None);
    }

    #[test]
    fn a_client_that_falls_behind_makes_a_run_invalid_and_hides_nothing() {
        let mut samples: Vec<LoadSample> = (0..40).map(|i| sample(i, i as f64, 0.3)).collect();
        for sample in &mut samples {
            sample.sent.0 += 0.05;
        }
        let f = figures(&samples, &open(1.0), Window::default());
        assert!(!f.client.valid && f.client.share > 0.01, "{:?}", f.client);
        assert!((f.ttft.unwrap().p50.point - 0.3).abs() < 1e-9, "from when it was due");
        let failure = Some(Failure { why: Why::Client, words: "no thread".into() });
        samples.iter_mut().for_each(|sample| sample.sent = sample.due);
        samples[3].failure = failure;
        let f = figures(&samples, &open(1.0), Window::default());
        assert!(!f.client.valid && f.client.unsent == 1);
    }

    #[test]
    fn failures_are_counted_by_reason_and_have_no_latency() {
        let mut samples: Vec<LoadSample> = (0..12).map(|i| sample(i, i as f64, 0.3)).collect();
        let failure = |why, words: &str| Some(Failure { why, words: words.to_owned() });
        samples[1].failure = failure(Why::Short, "asked for 10 tokens, 3 came");
        samples[2].failure = failure(Why::Broken, "it answered 503: busy");
        samples[3].failure = failure(Why::Broken, "it answered 503: busy");
        let f = figures(&samples, &open(1.0), Window::default());
        assert_eq!((f.requests, f.completed), (12, 9));
        let counts: Vec<(Why, usize)> = f.failed.iter().map(|(why, _, n)| (*why, *n)).collect();
        assert_eq!(counts, [(Why::Broken, 2), (Why::Short, 1)]);
        assert_eq!(f.attainment.unwrap().point, 0.75);
    }

    #[test]
    fn too_few_requests_give_points_and_no_false_precision() {
        let none = figures(&[], &open(1.0), Window::default());
        assert!(none.ttft.is_none() && none.rate.is_none() && none.offered.is_none());
        let one = figures(&[sample(0, 0.0, 0.2)], &open(1.0), Window::default());
        let p50 = one.ttft.unwrap().p50;
        assert!((p50.point - 0.2).abs() < 1e-9 && p50.n == 1 && p50.high > 1e300);
        let few: Vec<LoadSample> = (0..5).map(|i| sample(i, i as f64, 0.2)).collect();
        let p99 = figures(&few, &open(1.0), Window::default()).ttft.unwrap().p99;
        assert!(p99.level < 0.95, "five values do not bound a 99th percentile: {p99:?}");
    }

    #[test]
    fn quantiles_without_sorting_are_those_with() {
        let values: Vec<f64> = (0..31).map(|i| f64::from((i * 17) % 31)).collect();
        for p in [0.0, 0.5, 0.9, 0.95, 0.99, 1.0] {
            let sorted = quantile(&values, p).unwrap();
            assert!((selected(&mut values.clone(), p) - sorted).abs() < 1e-12, "{p}");
        }
    }
}
