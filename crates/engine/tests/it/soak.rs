//! Many clients at once for as long as is asked for: three seconds, or `LATHE_SOAK_SECONDS`, which is
//! for a run of this test alone: it then prints what clients waited for, and holds memory to what it
//! was early on.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lathe_api::Engine;
use lathe_engine::{
    Error, KvType, Native, Options,
    serving::{Limits, Response, Service, Submission, Update},
};
use lathe_kernels::PAGE_TOKENS;

use crate::serving::{
    alone, demo, nothing_is_lost, options, prompt, request, settled, start, tiny,
};

const CLIENTS: usize = 64;

/// What became of requests.
#[derive(Default)]
struct Seen {
    done: AtomicUsize,
    gone: AtomicUsize,
    /// Turned away because the queue was full, and because it could never run.
    full: AtomicUsize,
    impossible: AtomicUsize,
    /// By priority.
    waits: Mutex<BTreeMap<i32, Waits>>,
}

/// Seconds until the first token, and between two tokens of a text.
#[derive(Default)]
struct Waits {
    first: Vec<f64>,
    between: Vec<f64>,
}

/// A client: what it asks for next is left to chance.
struct Client {
    number: usize,
    context: u64,
    state: u64,
}

impl Client {
    fn random(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        (self.state >> 33) % below
    }

    /// A prompt that others may begin with too, and how many tokens are wanted: now and then all
    /// that the context holds, or more.
    fn submission(&mut self) -> Submission {
        let context = self.context;
        let (length, new) = match self.random(20) {
            0 => (context + self.random(50), 1 + self.random(9)),
            1 => {
                let length = 1 + self.random(context);
                (length, context - length)
            }
            _ => (1 + self.random(context * 3 / 5), self.random(context / 3)),
        };
        let common = self.random(length.min(context * 2 / 5)) as usize;
        let own = prompt(length as usize - common, self.random(1000) as usize);
        let prompt = [prompt(common, self.random(2) as usize), own].concat();
        let mut one = request(&prompt, new as usize);
        one.sampling.seed = self.random(1000);
        Submission {
            n: 1 + self.random(3) as usize,
            client: Arc::from(["a", "b", "c"][self.number % 3]),
            priority: self.random(2) as i32,
            prompt_log_probs: (self.random(10) == 0).then_some(1),
            ..one.into()
        }
    }

    fn run(mut self, service: &Service, until: Instant, seen: &Seen) {
        while Instant::now() < until {
            let submission = self.submission();
            let (priority, request) = (submission.priority, &submission.request);
            let fits = request.prompt.len() + request.max_tokens <= self.context as usize;
            let start = Instant::now();
            match service.submit(submission) {
                Ok(response) if fits => {
                    let most = (self.random(3) == 0).then(|| self.random(60) as usize);
                    read(response, start, most, priority, seen);
                }
                Err(Error::Context { .. }) if !fits => {
                    seen.impossible.fetch_add(1, Ordering::Relaxed);
                }
                Err(Error::QueueFull { .. }) => {
                    seen.full.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
                other => panic!("fits: {fits}, {other:?}"),
            }
        }
    }
}

/// Reads a response to its end, or `most` updates of it.
fn read(response: Response, start: Instant, most: Option<usize>, priority: i32, seen: &Seen) {
    let mut waits = Waits::default();
    let mut last = None;
    let mut done = false;
    for update in response.take(most.unwrap_or(usize::MAX)) {
        match update {
            Update::Token { text: 0, .. } => {
                let now = start.elapsed().as_secs_f64();
                match last.replace(now) {
                    None => waits.first.push(now),
                    Some(before) => waits.between.push(now - before),
                }
            }
            Update::Done(served) => {
                served.unwrap();
                done = true;
            }
            _ => {}
        }
    }
    assert!(done || most.is_some(), "a response ends with Done");
    let count = if most.is_none() { &seen.done } else { &seen.gone };
    count.fetch_add(1, Ordering::Relaxed);
    let mut all = seen.waits.lock().unwrap();
    let all = all.entry(priority).or_default();
    all.first.append(&mut waits.first);
    all.between.append(&mut waits.between);
}

/// Median, 99th percentile and most, in milliseconds.
fn spread(mut seconds: Vec<f64>) -> String {
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds.get(((seconds.len() as f64 - 1.0) * share) as usize);
    let [median, high, most] =
        [0.5, 0.99, 1.0].map(|share| at(share).map_or(0.0, |seconds| seconds * 1e3));
    format!("median {median:.1} ms, 99 % {high:.1} ms, most {most:.1} ms of {}", seconds.len())
}

/// Bytes of this process in memory, where the system tells.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// Waits for the end of the time. Gives what was resident after a third of it, and, as `still`, for how
/// long the machine let the whole process wait at most: nobody is to blame for that.
fn watch(begun: Instant, time: Duration, still: &mut Duration) -> Option<u64> {
    let mut early = None;
    while begun.elapsed() < time {
        let before = Instant::now();
        thread::sleep(Duration::from_millis(5));
        *still = before.elapsed().max(*still);
        if early.is_none() && begun.elapsed() > time / 3 {
            early = resident();
        }
    }
    early
}

/// A tiny model half of whose weights find no room in memory.
fn capped(options: &Options) -> Arc<Native> {
    let name = "llama/model.gguf";
    let weights = tiny(name, options).unwrap().info().weight_bytes;
    let load = |most| tiny(name, &Options { max_memory: Some(most), ..options.clone() });
    let Err(Error::NothingLeft { needed, .. }) = load(1) else { panic!("it fits into a byte") };
    let native = load(needed + weights / 2).unwrap();
    assert!(native.streamed() > 0);
    native
}

#[test]
fn many_clients_that_come_and_go_lose_no_page_and_get_their_texts() {
    let asked = std::env::var("LATHE_SOAK_SECONDS").ok().and_then(|s| s.parse().ok());
    let time = Duration::from_secs(asked.unwrap_or(3));
    for (kv, pages, context, load) in [
        (KvType::F16, 24, 256, demo as fn(&Options) -> Arc<Native>),
        (KvType::Int4, 20, 256, demo),
        (KvType::F16, 9, 64, capped),
    ] {
        let cache = Some(pages * PAGE_TOKENS);
        let native = load(&Options { kv, cache, context: Some(context), ..options(8) });
        let service = start(&native, Limits { waiting: 40, ..Limits::default() });
        let (seen, begun) = (Seen::default(), Instant::now());
        let (mut early, mut still) = (None, Duration::ZERO);
        thread::scope(|scope| {
            for number in 0..CLIENTS {
                let (context, state) = (context as u64, number as u64 + 1);
                let client = Client { number, context, state };
                let (service, seen) = (&service, &seen);
                scope.spawn(move || client.run(service, begun + time, seen));
            }
            early = watch(begun, time, &mut still);
        });
        let now = settled(&service);
        nothing_is_lost(&service);
        let [done, gone, full, impossible] = [&seen.done, &seen.gone, &seen.full, &seen.impossible]
            .map(|c| c.load(Ordering::Relaxed));
        assert_eq!(now.failed, 0, "{now:?}");
        assert!(now.finished as usize >= done, "{now:?}");
        assert!(now.preemptions > 0 && now.prefix_hit_tokens > 0, "{now:?}");
        assert_eq!((now.finished + now.cancelled) as usize, done + gone, "{now:?}");
        assert_eq!(now.refused as usize, full + impossible, "{now:?}");
        assert!(impossible > 0);
        if asked.is_some() {
            println!("{kv:?}: {done} done, {gone} left, {full} and {impossible} refused: {now:?}");
            println!("the process itself stood still for at most {still:?}");
            for (priority, waits) in seen.waits.into_inner().unwrap() {
                println!("priority {priority}: first token {}", spread(waits.first));
                println!("priority {priority}: between tokens {}", spread(waits.between));
            }
            if let (Some(early), Some(late)) = (early, resident()) {
                println!("resident: {early} bytes early on, {late} at the end");
                // Samples of the test itself grow: 8 bytes a token.
                let own = 64 * now.generated_tokens;
                assert!(late < early + own + (16 << 20), "{early} bytes early on, then {late}");
            }
        }
        // After all that, what is left in the cache is still right.
        let last = request(&[prompt(context * 2 / 5, 1), prompt(20, 7)].concat(), context / 8);
        let mut ids = Vec::new();
        for update in service.submit(last.clone().into()).unwrap() {
            if let Update::Token { id, .. } = update {
                ids.push(id);
            }
        }
        assert_eq!(ids, alone(&native, &last).0);
    }
}
