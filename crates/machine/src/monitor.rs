use std::{
    sync::{
        Arc, Mutex, PoisonError, atomic::AtomicBool, atomic::AtomicU32, atomic::AtomicU64,
        atomic::Ordering,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lathe_base::{Bytes, Seconds};
use nvml_wrapper::Nvml;
use serde::{Deserialize, Serialize};

use crate::{Memory, gpu, process};

/// How often the machine is looked at.
const PERIOD: Duration = Duration::from_millis(200);

/// More than this share of all cores taken by others makes a measurement doubtful.
const BUSY_WITH_OTHERS: f32 = 0.10;

/// More than this share of all cores taken away by the hypervisor does, too.
const STOLEN: f32 = 0.02;

/// The machine over one period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Since the monitor's start.
    pub at: Seconds,
    /// Share of all cores that was busy (0..1).
    pub cpu: f32,
    /// Share of all cores busy with work that is neither ours nor our children's.
    pub others: Option<f32>,
    /// Share of all cores that the hypervisor gave to somebody else.
    pub stolen: Option<f32>,
    /// Memory in use on the machine.
    pub memory: Bytes,
    /// Resident memory of this process and of everything that it started.
    pub ours: Option<Bytes>,
    /// Mean frequency of the cores, where the system tells.
    pub mhz: Option<f32>,
    pub gpu: Option<f32>,
    pub gpu_memory: Option<Bytes>,
}

/// How quiet the machine was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Mean share of all cores that others took, and that the hypervisor took.
    pub others: f32,
    pub stolen: f32,
    /// Lowest over highest frequency seen, 1 where unknown.
    pub frequency: f32,
}

impl Noise {
    /// Sums up samples; `None` where there are none.
    pub fn of(samples: &[Sample]) -> Option<Self> {
        let mean = |values: Vec<f32>| {
            if values.is_empty() { 0.0 } else { values.iter().sum::<f32>() / values.len() as f32 }
        };
        let mhz: Vec<f32> = samples.iter().filter_map(|s| s.mhz).filter(|m| *m > 0.0).collect();
        let low = mhz.iter().copied().fold(f32::INFINITY, f32::min);
        let high = mhz.iter().copied().fold(0.0, f32::max);
        (!samples.is_empty()).then(|| Self {
            others: mean(samples.iter().filter_map(|s| s.others).collect()),
            stolen: mean(samples.iter().filter_map(|s| s.stolen).collect()),
            frequency: if high > 0.0 { low / high } else { 1.0 },
        })
    }

    /// What a reader of the figures should be told, if anything.
    pub fn warning(&self) -> Option<String> {
        if self.others > BUSY_WITH_OTHERS {
            return Some(format!(
                "other programs took {:.0} % of the CPU while this was measured; close them and measure again for figures to rely on",
                self.others * 100.0
            ));
        }
        (self.stolen > STOLEN).then(|| {
            format!(
                "the hypervisor gave {:.0} % of the CPU to other machines while this was measured; expect wider intervals",
                self.stolen * 100.0
            )
        })
    }
}

/// A thread that records what the machine does until it is stopped or dropped.
#[derive(Debug)]
pub struct Monitor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    start: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Process id of the child at work; 0 where there is none.
    child: AtomicU32,
    /// What it and everything that it started last had in memory of their own; 0 where unknown.
    private: AtomicU64,
    samples: Mutex<Vec<Sample>>,
}

impl Monitor {
    /// Starts recording.
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let start = Instant::now();
        let thread = {
            let shared = shared.clone();
            thread::Builder::new()
                .name("lathe-monitor".to_owned())
                .spawn(move || record(&shared, start))
                .ok()
        };
        Self { shared, thread, start }
    }

    /// Counts the process `pid` and what it starts as ours from now on; `None` ends it.
    pub fn watch(&self, pid: Option<u32>) {
        self.shared.private.store(0, Ordering::Relaxed);
        self.shared.child.store(pid.unwrap_or(0), Ordering::Relaxed);
    }

    /// Resident memory of the process that is watched and of everything that it started, without
    /// the pages of files, which the system takes back where it needs them: as last looked at;
    /// `None` where there is none, or the system does not tell.
    pub fn private(&self) -> Option<Bytes> {
        let bytes = self.shared.private.load(Ordering::Relaxed);
        (bytes > 0).then_some(Bytes(bytes))
    }

    /// The time since the start: the clock of [`Sample::at`].
    pub fn now(&self) -> Seconds {
        self.start.elapsed().into()
    }

    /// What was recorded so far.
    pub fn samples(&self) -> Vec<Sample> {
        self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops and returns what was recorded.
    pub fn stop(mut self) -> Vec<Sample> {
        self.end();
        self.samples()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A monitor that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.end();
    }
}

/// CPU time counters at one moment.
#[derive(Clone, Copy)]
struct Ticks {
    busy: u64,
    idle: u64,
    stolen: u64,
    ours: u64,
    child: Option<(u32, u64)>,
}

impl Ticks {
    fn now(child: u32) -> Option<Self> {
        let (busy, idle, stolen) = process::machine_ticks()?;
        let ours = process::cpu_ticks(std::process::id())?;
        let child = (child != 0).then(|| process::tree_ticks(child).map(|t| (child, t))).flatten();
        Some(Self { busy, idle, stolen, ours, child })
    }

    /// Shares (busy, others, stolen) between two moments.
    fn since(&self, before: &Self) -> Option<(f32, f32, f32)> {
        let busy = self.busy.saturating_sub(before.busy) as f32;
        let idle = self.idle.saturating_sub(before.idle) as f32;
        let stolen = self.stolen.saturating_sub(before.stolen) as f32;
        let total = busy + idle + stolen;
        // A child's time moves to our own account (as a finished child) when it is reaped: count
        // what it had before, so that it is not counted twice.
        let child = |ticks: &Self| ticks.child.map_or(0, |(_, t)| t);
        let ours = (self.ours + child(self)).saturating_sub(before.ours + child(before)) as f32;
        (total > 0.0).then(|| (busy / total, ((busy - ours) / total).max(0.0), stolen / total))
    }
}

fn record(shared: &Shared, start: Instant) {
    let nvml = Nvml::init().ok();
    let mut system = sysinfo::System::new();
    let mut before = Ticks::now(0);
    system.refresh_cpu_usage();
    while !shared.stop.load(Ordering::Relaxed) {
        thread::park_timeout(PERIOD);
        let child = shared.child.load(Ordering::Relaxed);
        let now = Ticks::now(child);
        let shares = now.zip(before).and_then(|(now, before)| now.since(&before));
        if now.is_none() {
            system.refresh_cpu_usage();
        }
        let private = (child != 0).then(|| process::private(child)).flatten();
        shared.private.store(private.map_or(0, |bytes| bytes.0), Ordering::Relaxed);
        let memory = Memory::read();
        let gpu = nvml.as_ref().and_then(gpu::now);
        let sample = Sample {
            at: start.elapsed().into(),
            cpu: shares.map_or_else(|| system.global_cpu_usage() / 100.0, |s| s.0),
            others: shares.map(|s| s.1),
            stolen: shares.map(|s| s.2),
            memory: Bytes(memory.total.0.saturating_sub(memory.available.0)),
            ours: process::resident(std::process::id()),
            mhz: frequency(&mut system),
            gpu: gpu.map(|g| g.0),
            gpu_memory: gpu.map(|g| g.1),
        };
        before = now;
        shared.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
    }
}

fn frequency(system: &mut sysinfo::System) -> Option<f32> {
    system.refresh_cpu_frequency();
    let cpus = system.cpus();
    let sum: u64 = cpus.iter().map(sysinfo::Cpu::frequency).sum();
    (sum > 0).then(|| sum as f32 / cpus.len() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(busy: u64, idle: u64, ours: u64, child: Option<(u32, u64)>) -> Ticks {
        Ticks { busy, idle, stolen: 0, ours, child }
    }

    #[test]
    fn a_child_that_ends_is_not_counted_twice() {
        let start = ticks(0, 0, 0, Some((9, 0)));
        let running = ticks(80, 20, 0, Some((9, 80)));
        let reaped = ticks(100, 100, 90, None);
        let (busy, others, _) = running.since(&start).unwrap();
        assert!((busy - 0.8).abs() < 1e-6 && others.abs() < 1e-6);
        // Ten more ticks by the child before it ended, ten by somebody else.
        let (busy, others, _) = reaped.since(&running).unwrap();
        assert!((busy - 0.2).abs() < 1e-6 && (others - 0.1).abs() < 1e-6);
    }

    #[test]
    fn a_busy_machine_is_warned_about_and_a_quiet_one_is_not() {
        let sample = |others| Sample { others: Some(others), ..Sample::default() };
        assert!(Noise::of(&[sample(0.4), sample(0.2)]).unwrap().warning().is_some());
        assert!(Noise::of(&[sample(0.01), sample(0.02)]).unwrap().warning().is_none());
        assert!(Noise::of(&[]).is_none());
    }

    #[test]
    fn samples_arrive_while_the_monitor_runs() {
        let monitor = Monitor::start();
        thread::sleep(PERIOD * 3);
        let samples = monitor.stop();
        assert!(!samples.is_empty());
        assert!(samples.iter().all(|s| (0.0..=1.0).contains(&s.cpu) && s.memory.0 > 0));
        assert!(samples.windows(2).all(|pair| pair[0].at < pair[1].at));
    }
}
