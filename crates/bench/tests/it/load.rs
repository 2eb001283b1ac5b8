//! Load on engines with set latencies.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use lathe_adapters::mock::{Mock, Options};
use lathe_api::{Engine, Error, Event, Flow, Info, Request, Usage};
use lathe_base::{Progress, Seconds, Silent};
use lathe_bench::load::{
    Asked, Lengths, Limits, LoadSample, Objective, Pattern, Source, Spacing, Tokens, Why, Window,
    drive, load_figures,
};

fn mock(start: f64, decode: f64) -> Arc<dyn Engine> {
    let options = Options { start: Seconds(start), decode: Seconds(decode), ..Options::default() };
    Arc::new(Mock::new(options).unwrap())
}

fn source(new: usize) -> Arc<Source> {
    let tokens = Tokens { vocab: 256, text: None };
    let asked = Asked::Drawn { prompt: Lengths::Fixed(4), new: Lengths::Fixed(new) };
    Arc::new(Source { tokens, asked, shared_prefix: 0, seed: 1 })
}

fn limits(requests: usize) -> Limits {
    Limits {
        requests: Some(requests),
        duration: None,
        drain: Seconds(30.0),
        in_flight: 1000,
        seed: 1,
    }
}

fn constant(rate: f64) -> Pattern {
    Pattern::Open { rate, spacing: Spacing::Constant }
}

fn run(engine: &Arc<dyn Engine>, pattern: &Pattern, limits: &Limits) -> Vec<LoadSample> {
    drive(engine, pattern, &source(3), limits, "test", &Silent).0
}

/// An engine that serves one request after the other.
struct OneByOne(Arc<dyn Engine>, Mutex<()>);

impl Engine for OneByOne {
    fn info(&self) -> &Info {
        self.0.info()
    }

    fn generate(
        &self,
        request: &Request,
        on: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Usage, Error> {
        let _alone = self.1.lock().unwrap();
        self.0.generate(request, on)
    }
}

#[test]
fn a_closed_loop_keeps_as_many_requests_under_way_as_it_has_users() {
    let samples = run(&mock(0.01, 0.005), &Pattern::Closed { users: 3 }, &limits(12));
    assert_eq!(samples.len(), 12);
    assert!(samples.iter().all(|sample| sample.completed() && sample.tokens.len() == 3));
    let under_way = |at: f64| samples.iter().filter(|s| s.due.0 <= at && at < s.end.0).count();
    assert!(samples.iter().all(|sample| under_way(sample.due.0) <= 3));
    assert!(samples.iter().any(|sample| under_way(sample.end.0 - 1e-6) == 3));
    let mut numbers: Vec<usize> = samples.iter().map(|sample| sample.number).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..12));
}

#[test]
fn requests_that_wait_for_their_turn_are_late_by_their_timetable() {
    // A request takes 20 ms and one is due every 10 ms: the last waits for 20 others' excess.
    let engine: Arc<dyn Engine> = Arc::new(OneByOne(mock(0.02, 0.0), Mutex::new(())));
    let pattern = constant(100.0);
    let samples = run(&engine, &pattern, &limits(40));
    assert!(samples.windows(2).all(|pair| (pair[1].due.0 - pair[0].due.0 - 0.01).abs() < 1e-9));
    let last = samples.last().unwrap().ttft().unwrap();
    assert!(last > 0.35, "the 40th is due at 0.39 s and has its turn after 0.78 s: {last}");
    let objective = Objective::default();
    let figures = load_figures(&samples, &pattern, &Window::default(), &objective, 0.95);
    assert!(figures.growth.unwrap().grows, "{:?}", figures.growth);
    let ttft = figures.ttft.unwrap();
    assert!(ttft.p99.point > 0.3 && ttft.p50.point > 0.15, "{ttft:?}");
}

#[test]
fn an_offline_run_sends_all_at_once() {
    let samples = run(&mock(0.2, 0.0), &Pattern::Offline, &limits(20));
    let first_end = samples.iter().map(|sample| sample.end.0).reduce(f64::min).unwrap();
    assert!(samples.len() == 20 && samples.iter().all(|sample| sample.sent.0 < first_end));
}

#[test]
fn what_an_engine_refuses_or_breaks_is_a_failure_of_its_kind() {
    let broken = Options { fails_after: Some(2), ..Options::default() };
    let broken: Arc<dyn Engine> = Arc::new(Mock::new(broken).unwrap());
    let small = Options { context: 5, ..Options::default() };
    let small: Arc<dyn Engine> = Arc::new(Mock::new(small).unwrap());
    for (engine, why) in [(broken, Why::Broken), (small, Why::Refused)] {
        let samples = run(&engine, &Pattern::Closed { users: 2 }, &limits(4));
        assert_eq!(samples.len(), 4);
        assert!(samples.iter().all(|s| s.failure.as_ref().unwrap().why == why), "{samples:?}");
    }
}

#[test]
fn what_does_not_end_in_time_is_unfinished_and_not_forgotten() {
    let limits = Limits { drain: Seconds(0.2), ..limits(3) };
    let start = Instant::now();
    let samples = run(&mock(60.0, 0.0), &constant(100.0), &limits);
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(samples.len(), 3);
    assert!(samples.iter().all(|s| s.failure.as_ref().unwrap().why == Why::Unfinished));
}

#[test]
fn requests_beyond_what_the_client_can_hold_are_not_sent() {
    let limits = Limits { in_flight: 2, ..limits(6) };
    let samples = run(&mock(0.3, 0.0), &constant(1000.0), &limits);
    let unsent = |s: &&LoadSample| s.failure.as_ref().is_some_and(|f| f.why == Why::Client);
    assert_eq!((samples.len(), samples.iter().filter(unsent).count()), (6, 4));
}

/// Somebody who stops the run when so many requests were done.
struct Impatient(AtomicUsize);

impl Progress for Impatient {
    fn at(&self, _: &str, done: u64, _: u64) {
        self.0.store(done as usize, Ordering::Relaxed);
    }

    fn note(&self, _: &str) {}

    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= 5
    }
}

#[test]
fn an_interrupted_run_gives_what_it_has() {
    for pattern in [Pattern::Closed { users: 2 }, constant(50.0)] {
        let progress = Impatient(AtomicUsize::new(0));
        let (samples, interrupted) =
            drive(&mock(0.01, 0.005), &pattern, &source(3), &limits(10_000), "test", &progress);
        assert!(interrupted, "{pattern:?}");
        let done = samples.iter().filter(|sample| sample.completed()).count();
        assert!((5..500).contains(&done), "{done}");
    }
}

#[test]
fn a_duration_ends_the_sending_and_not_the_answers() {
    const SPAN: f64 = 0.6;
    let limits = Limits { requests: None, duration: Some(Seconds(SPAN)), ..limits(0) };
    for pattern in [Pattern::Closed { users: 2 }, constant(40.0)] {
        let samples = run(&mock(0.1, 0.01), &pattern, &limits);
        assert!(samples.iter().all(|s| s.completed() && s.due.0 < SPAN), "{pattern:?}");
        // A machine that stands still meanwhile lets each user send once.
        assert!(samples.len() >= 2, "{pattern:?}");
    }
}
