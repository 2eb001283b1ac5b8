use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use lathe_api::{Engine, Error, Event, Flow, Request};
use lathe_base::{Progress, Seconds};
use serde::{Deserialize, Serialize};

use super::{
    Failure, LoadSample, Pattern, Source, Why,
    live::{History, Live},
    timetable,
};

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Most requests.
    pub requests: Option<usize>,
    /// No request is sent after this.
    pub duration: Option<Seconds>,
    /// How long is waited for answers after the last request was sent.
    pub drain: Seconds,
    /// Requests under way at once: each has a thread and, with most engines, a connection. What
    /// would go beyond fails as [`Why::Client`].
    pub in_flight: usize,
    /// Of the timetable.
    pub seed: u64,
}

/// How often the caller's progress is told, and hears whether to stop.
const TICK: Duration = Duration::from_millis(100);
/// What requests that were told to stop are given to do so. Some hear it with their next token only.
const GRACE: Duration = Duration::from_secs(2);
/// A thread that waits for tokens needs little.
const STACK: usize = 512 << 10;

/// Sends requests to an engine by a pattern and stamps everything that comes back, in the order in
/// which requests were due. The second value says that it was interrupted: the samples are then
/// those of the requests that had ended, and what was under way is [`Why::Unfinished`].
pub fn drive(
    engine: &Arc<dyn Engine>,
    pattern: &Pattern,
    source: &Arc<Source>,
    limits: &Limits,
    name: &str,
    progress: &dyn Progress,
) -> (Vec<LoadSample>, bool) {
    let (sender, ended) = mpsc::channel();
    let requests = match (limits.requests, source.count()) {
        (Some(most), Some(count)) => Some(most.min(count)),
        (most, count) => most.or(count),
    };
    let crew = Arc::new(Crew {
        engine: Arc::clone(engine),
        source: Arc::clone(source),
        start: Instant::now(),
        stop: AtomicBool::new(false),
        live: Live::default(),
        next: AtomicUsize::new(0),
        open: Mutex::default(),
        requests: requests.unwrap_or(usize::MAX),
        duration: limits.duration.map_or(f64::INFINITY, |d| d.0),
    });
    let history = History::default();
    let mut run = Run { crew, ended, samples: Vec::new(), history, name, progress, total: 0 };
    let interrupted = match timetable(pattern, requests, limits.duration, limits.seed) {
        Some(times) => run.open(&times, limits, sender),
        None => run.closed(pattern, sender),
    };
    let last_sent = run.crew.now();
    let mut stopped = interrupted;
    while !stopped {
        match run.wait(TICK) {
            Waited::Over => break,
            Waited::Cancelled => stopped = true,
            // Users of a closed loop send until the end of the time that they have.
            Waited::Longer => {
                let end = last_sent.0.max(run.crew.duration_or(last_sent.0)) + limits.drain.0;
                if run.crew.now().0 > end {
                    break;
                }
            }
        }
    }
    progress.live(&[]);
    run.stop();
    let crew = Arc::clone(&run.crew);
    let mut samples = run.samples;
    // What did not end even now is told as far as it is known.
    let now = crew.now();
    samples.extend(lock(&crew.open).values().map(|sample| LoadSample {
        end: now,
        failure: Some(Failure { why: Why::Unfinished, words: "it did not end".to_owned() }),
        ..sample.clone()
    }));
    samples.sort_by(|a, b| a.due.0.total_cmp(&b.due.0).then(a.number.cmp(&b.number)));
    samples.dedup_by_key(|sample| sample.number);
    (samples, stopped)
}

/// What all requests of a run share.
struct Crew {
    engine: Arc<dyn Engine>,
    source: Arc<Source>,
    start: Instant,
    stop: AtomicBool,
    live: Live,
    /// The next request of a closed loop.
    next: AtomicUsize,
    /// Requests under way.
    open: Mutex<BTreeMap<usize, LoadSample>>,
    requests: usize,
    /// Seconds.
    duration: f64,
}

impl Crew {
    /// In tenths of a microsecond, as all stamps.
    fn now(&self) -> Seconds {
        Seconds((self.start.elapsed().as_nanos() / 100) as f64 / 1e7)
    }

    fn duration_or(&self, other: f64) -> f64 {
        if self.duration.is_finite() { self.duration } else { other }
    }

    /// One request from start to end. Without a time at which it is due, it is due now.
    fn send(&self, number: usize, request: &Request, due: Option<Seconds>) -> LoadSample {
        let sent = self.now();
        let mut sample = LoadSample {
            number,
            prompt_tokens: request.prompt.len(),
            asked: request.max_tokens,
            due: due.unwrap_or(sent),
            sent,
            tokens: Vec::new(),
            end: sent,
            failure: None,
        };
        lock(&self.open).insert(number, sample.clone());
        let mut tokens = Vec::with_capacity(request.max_tokens.min(1 << 16));
        let outcome = self.engine.generate(request, &mut |event| {
            if let Event::Token { .. } = event {
                tokens.push(self.now());
                self.live.token();
            }
            if self.stop.load(Ordering::Relaxed) { Flow::Stop } else { Flow::Continue }
        });
        sample.end = self.now();
        let (asked, came) = (request.max_tokens, tokens.len());
        sample.tokens = tokens;
        let failed = |why, words| Some(Failure { why, words });
        sample.failure = match outcome {
            Ok(_) if asked == came => None,
            _ if self.stop.load(Ordering::Relaxed) => {
                failed(Why::Unfinished, "the run ended before it".to_owned())
            }
            Ok(_) => failed(Why::Short, format!("asked for {asked} tokens, {came} came")),
            Err(error) => failed(kind(&error), error.to_string()),
        };
        lock(&self.open).remove(&number);
        sample
    }
}

fn kind(error: &Error) -> Why {
    match error {
        Error::BadRequest { .. } | Error::ContextExceeded { .. } | Error::Unsupported { .. } => {
            Why::Refused
        }
        _ => Why::Broken,
    }
}

/// A run from the side of the caller's thread.
struct Run<'a> {
    crew: Arc<Crew>,
    ended: Receiver<LoadSample>,
    samples: Vec<LoadSample>,
    history: History,
    name: &'a str,
    progress: &'a dyn Progress,
    /// Requests, or tenths of seconds.
    total: u64,
}

enum Waited {
    /// Nothing is under way, and nothing comes.
    Over,
    Cancelled,
    Longer,
}

impl Run<'_> {
    /// Starts the users of a closed loop. Whether it was interrupted: not yet.
    fn closed(&mut self, pattern: &Pattern, sender: Sender<LoadSample>) -> bool {
        let Pattern::Closed { users } = pattern else { return false };
        for _ in 0..*users {
            let (crew, sender) = (Arc::clone(&self.crew), sender.clone());
            let user = move || {
                while !crew.stop.load(Ordering::Relaxed) {
                    let number = crew.next.fetch_add(1, Ordering::Relaxed);
                    if number >= crew.requests || crew.now().0 >= crew.duration {
                        break;
                    }
                    let request = crew.source.request(number);
                    crew.live.sent();
                    let sample = crew.send(number, &request, None);
                    crew.live.ended(&sample);
                    if sender.send(sample).is_err() {
                        break;
                    }
                }
            };
            if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(user) {
                let unsent = self.unsent(usize::MAX, Seconds(0.0), error.to_string());
                self.samples.push(unsent);
            }
        }
        self.total = if self.crew.requests < usize::MAX {
            self.crew.requests as u64
        } else {
            (self.crew.duration_or(0.0) * 10.0) as u64
        };
        false
    }

    /// Sends every request when it is due; whether it was interrupted meanwhile.
    fn open(&mut self, times: &[Seconds], limits: &Limits, sender: Sender<LoadSample>) -> bool {
        self.total = times.len() as u64;
        let mut told = Instant::now();
        for (number, &due) in times.iter().enumerate() {
            // Made before it is due, so that it can leave at once.
            let request = self.crew.source.request(number);
            loop {
                let left = due.0 - self.crew.now().0;
                if left <= 0.0 {
                    break;
                }
                let step = Duration::from_secs_f64(left);
                if step <= TICK {
                    thread::sleep(step);
                    break;
                }
                if matches!(self.wait(step.min(TICK)), Waited::Cancelled) {
                    return true;
                }
            }
            if told.elapsed() >= TICK {
                told = Instant::now();
                if matches!(self.wait(Duration::ZERO), Waited::Cancelled) {
                    return true;
                }
            }
            let flying = self.crew.live.in_flight();
            if flying >= limits.in_flight {
                let words = format!("more than {flying} requests would have been under way");
                let unsent = self.unsent(number, due, words);
                self.samples.push(unsent);
                continue;
            }
            self.crew.live.sent();
            let (crew, sender) = (Arc::clone(&self.crew), sender.clone());
            let user = move || {
                let sample = crew.send(number, &request, Some(due));
                crew.live.ended(&sample);
                // Nobody listens any more where the run was given up.
                let _ = sender.send(sample);
            };
            if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(user) {
                self.crew.live.unsent();
                let unsent = self.unsent(number, due, error.to_string());
                self.samples.push(unsent);
            }
        }
        false
    }

    fn unsent(&self, number: usize, due: Seconds, words: String) -> LoadSample {
        self.crew.live.failed();
        LoadSample {
            number,
            prompt_tokens: 0,
            asked: 0,
            due,
            sent: due,
            tokens: Vec::new(),
            end: due,
            failure: Some(Failure { why: Why::Client, words }),
        }
    }

    /// Takes what ended within `time`, and tells how far it is.
    fn wait(&mut self, time: Duration) -> Waited {
        let until = Instant::now() + time;
        loop {
            match self.ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(sample) => self.samples.push(sample),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Waited::Over,
            }
        }
        let done = if self.crew.requests < usize::MAX || self.crew.duration.is_infinite() {
            self.samples.len() as u64
        } else {
            (self.crew.now().0 * 10.0) as u64
        };
        let total = self.total.max(1);
        let line = format!("{}: {}", self.name, self.crew.live);
        self.progress.at(&line, done.min(total), total);
        if self.history.look(self.crew.now(), &self.crew.live) {
            self.progress.live(&self.history.lines(&self.crew.live));
        }
        if self.progress.cancelled() { Waited::Cancelled } else { Waited::Longer }
    }

    /// Ends what is under way, and takes what ended.
    fn stop(&mut self) {
        self.crew.stop.store(true, Ordering::Relaxed);
        let until = Instant::now() + GRACE;
        while let Ok(sample) =
            self.ended.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            self.samples.push(sample);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
