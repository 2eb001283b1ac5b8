use std::{
    any::Any,
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, Thread},
};

/// How many times a waiting thread looks before it sleeps: some 50 µs, longer than the gaps
/// between the operations of one token and shorter than the pause before the next request.
const SPINS: u32 = 4_000;

/// Threads that share the tasks of one operation at a time.
///
/// The caller works too. Which thread runs a task is left to chance, so tasks must not depend on
/// it. Nothing is allocated per call; workers spin briefly for the next call and then sleep, and so
/// does the caller where it waits for the last of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a call; a call that finds it taken runs on its own thread alone.
    busy: Mutex<()>,
}

/// `gate` is `generation << 32 | OPEN | AWAITED | active workers`.
const OPEN: u64 = 1 << 31;
/// The caller sleeps until the last worker has left.
const AWAITED: u64 = 1 << 30;
const ACTIVE: u64 = AWAITED - 1;

struct Shared {
    gate: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// The next task to take.
    next: AtomicUsize,
    sleeping: Vec<AtomicBool>,
    /// Who slept last in [`Pool::close`].
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while the gate is closed and no worker is active, and read only
// by workers that entered while it was open; the gate's orderings make the write visible.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is used only between the opening and the closing of the gate, while
// the borrow that it was made from is alive, and it points to something `Sync`.
unsafe impl Send for Shared {}

#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; at least one.
    pub fn new(threads: usize) -> Self {
        let helpers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            sleeping: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let start = |index| {
            let shared = Arc::clone(&shared);
            let name = format!("lathe-{}", index + 1);
            thread::Builder::new().name(name).spawn(move || shared.work(index)).ok()
        };
        // Where the system grants fewer threads the pool is smaller: slower, with the same results.
        let workers = (0..helpers).map_while(start).collect();
        Self { shared, workers, busy: Mutex::new(()) }
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(0) … f(tasks − 1)`, each once, in no particular order, and waits for all.
    ///
    /// A panic in a task reaches the caller after the other tasks have ended. From inside a task,
    /// or while another thread uses the pool, the tasks run on the calling thread alone.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(f);
        }
        let Ok(guard) = self.busy.try_lock() else {
            return (0..tasks).for_each(f);
        };
        self.open(tasks, f);
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.take_tasks(f, tasks)));
        self.close();
        drop(guard);
        let theirs = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = theirs {
            resume_unwind(panic);
        }
    }

    fn open(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        let run: *const (dyn Fn(usize) + Sync) = f;
        // SAFETY: only the lifetime is changed; `run` is not used after `close` returns, which is
        // before `f` ends.
        let run = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(run)
        };
        // SAFETY: the gate is closed and no worker is active (`close` waited), and `busy` is held.
        unsafe { *shared.job.get() = Some(Job { run, tasks }) };
        shared.next.store(0, Ordering::Relaxed);
        let generation = (shared.gate.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        // SeqCst here and in `rest`: either the worker sees the open gate or we see it sleeping.
        shared.gate.store(generation << 32 | OPEN, Ordering::SeqCst);
        for (worker, sleeping) in self.workers.iter().zip(&shared.sleeping) {
            if sleeping.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    /// Lets no more workers in and waits for those inside. Workers that have not woken up yet are
    /// not waited for: their share has been done by the others.
    fn close(&self) {
        let gate = &self.shared.gate;
        gate.fetch_and(!OPEN, Ordering::AcqRel);
        for _ in 0..SPINS {
            if gate.load(Ordering::Acquire) & ACTIVE == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let own = thread::current();
        *self.shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
        gate.fetch_or(AWAITED, Ordering::AcqRel);
        while gate.load(Ordering::Acquire) & ACTIVE != 0 {
            thread::park();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks; there is nothing to learn from its end.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, index: usize) {
        let mut last = 0;
        let mut spins = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let gate = self.gate.load(Ordering::Acquire);
            if gate & OPEN == 0 || gate >> 32 == last {
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                } else {
                    self.rest(index, last);
                    spins = 0;
                }
                continue;
            }
            let entered = self.gate.compare_exchange_weak(
                gate,
                gate + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if entered.is_ok() {
                last = gate >> 32;
                spins = 0;
                self.help();
                self.leave();
            }
        }
    }

    /// The last to leave wakes a caller that sleeps.
    fn leave(&self) {
        let before = self.gate.fetch_sub(1, Ordering::AcqRel);
        if before & ACTIVE == 1 && before & AWAITED != 0 {
            // It stays there: should a later call's caller be in its place by now, it looks again
            // and goes on sleeping.
            let caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
            caller.iter().for_each(Thread::unpark);
        }
    }

    fn help(&self) {
        // SAFETY: this worker is active, so the job is not being written.
        let Some(Job { run, tasks }) = (unsafe { *self.job.get() }) else { return };
        // SAFETY: the caller stays in `Pool::run`, which borrows the function, until no worker is
        // active.
        let f = unsafe { &*run };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_tasks(f, tasks))) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }

    fn take_tasks(&self, f: &(dyn Fn(usize) + Sync), tasks: usize) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            f(task);
        }
    }

    /// Sleeps until the next call or the end.
    fn rest(&self, index: usize, last: u64) {
        self.sleeping[index].store(true, Ordering::SeqCst);
        loop {
            let gate = self.gate.load(Ordering::SeqCst);
            let called = gate & OPEN != 0 && gate >> 32 != last;
            if called || self.stop.load(Ordering::SeqCst) {
                break;
            }
            if !self.sleeping[index].load(Ordering::SeqCst) {
                // Woken for a call that is over already.
                break;
            }
            thread::park();
        }
        self.sleeping[index].store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pool: &Pool, tasks: usize) -> Vec<usize> {
        let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, &|i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn runs_every_task_once_over_many_calls() {
        for threads in [0, 1, 2, 3, 8] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads.max(1));
            for round in 0..2_000 {
                let tasks = round % 17;
                assert_eq!(counts(&pool, tasks), vec![1; tasks], "{threads} threads");
            }
        }
    }

    #[test]
    fn wakes_workers_that_have_gone_to_sleep() {
        let pool = Pool::new(2);
        let meet = std::sync::Barrier::new(2);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            // Ends only if both threads run a task at the same time.
            pool.run(2, &|_| {
                meet.wait();
            });
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_caller_that_waits_for_the_others_sleeps() {
        let spent = || {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: it writes to the struct, and fails at most.
            let read = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
            assert_eq!(read, 0);
            time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
        };
        let pool = Pool::new(2);
        let meet = std::sync::Barrier::new(2);
        let own = thread::current().id();
        let before = spent();
        for _ in 0..4 {
            pool.run(2, &|_| {
                meet.wait();
                if thread::current().id() != own {
                    thread::sleep(std::time::Duration::from_millis(100));
                }
            });
        }
        let seconds = spent() - before;
        assert!(seconds < 0.1, "{seconds} of 0.4 s");
    }

    #[test]
    fn passes_on_a_panic_and_stays_usable() {
        let pool = Pool::new(3);
        for culprit in [0, 7, 63] {
            let run = || pool.run(64, &|i| assert_ne!(i, culprit, "task {i} fails"));
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            let message = panic.downcast_ref::<String>().unwrap();
            assert!(message.contains(&format!("task {culprit} fails")), "{message}");
            assert_eq!(counts(&pool, 64), vec![1; 64]);
        }
    }

    #[test]
    fn runs_a_call_inside_a_task_on_that_thread() {
        let pool = Pool::new(2);
        let total = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(5, &|i| {
                total.fetch_add(i, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 40);
    }

    #[test]
    fn serves_several_callers_at_once() {
        let pool = Pool::new(3);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| assert_eq!(counts(&pool, 9), vec![1; 9])));
            }
        });
    }
}
