use std::{
    any::Any,
    cell::UnsafeCell,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr::null_mut,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, Thread},
};

use lathe_simd::{Isa, Op};

/// How many times a waiting thread looks before it sleeps: some 50 µs, longer than the gaps
/// between the operations of one token and shorter than the pause before the next request.
const SPINS: u32 = 4_000;

/// Bytes of what is read next that a waiting thread asks for: a part of its second-level cache.
const FORESEEN: usize = 512 << 10;

/// Threads that share the tasks of one operation at a time.
///
/// The caller works too. Each thread has a run of neighbouring tasks before it, so that memory is
/// read on and on, and takes from the ends of others' when it is through. Which thread runs a task
/// is left to chance, so tasks must not depend on it. Nothing is allocated per call; workers spin
/// briefly for the next call, asking for the memory that it will read where that is known
/// ([`Pool::foresee`]), and then sleep, and so does the caller where it waits for the last of them.
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
    /// Of each thread, the caller first.
    lanes: Vec<Lane>,
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
}

/// What one thread has before it, on cache lines of its own: others rarely touch it.
#[derive(Default)]
#[repr(align(128))]
struct Lane {
    /// Tasks that nobody has taken: `first << 32 | end`.
    tasks: AtomicU64,
    /// Where its part of what is read next begins; null where that is not known.
    next: AtomicPtr<u8>,
    /// What `next` is to become with the next call.
    after: AtomicPtr<u8>,
}

impl Lane {
    fn deal(&self, tasks: Range<u64>) {
        self.tasks.store(tasks.start << 32 | tasks.end, Ordering::Relaxed);
    }

    fn left(&self) -> u64 {
        let tasks = self.tasks.load(Ordering::Relaxed);
        (tasks & TASKS).saturating_sub(tasks >> 32)
    }

    /// The first task, or for another thread the last one.
    fn take(&self, own: bool) -> Option<usize> {
        let rest = |tasks: u64| {
            let some = tasks >> 32 < tasks & TASKS;
            some.then(|| if own { tasks + (1 << 32) } else { tasks - 1 })
        };
        let before = self.tasks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).ok()?;
        Some(if own { before >> 32 } else { (before & TASKS) - 1 } as usize)
    }
}

/// The end of a lane's tasks.
const TASKS: u64 = u32::MAX as u64;

impl Pool {
    /// A pool of `threads` threads, the caller's included; at least one.
    pub fn new(threads: usize) -> Self {
        let helpers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            lanes: (0..=helpers).map(|_| Lane::default()).collect(),
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
        assert!(tasks as u64 <= TASKS, "{tasks} tasks");
        self.open(tasks, f);
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.take_tasks(f, 0)));
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

    /// Says what memory the call after the next reads: each thread from a place of its own on.
    /// Threads that wait for that call ask for it, which changes nothing but the time it takes.
    pub(crate) fn foresee(&self, place: impl Fn(usize) -> *const u8) {
        for (thread, lane) in self.shared.lanes.iter().enumerate() {
            lane.after.store(place(thread).cast_mut(), Ordering::Relaxed);
        }
    }

    /// The first task of a thread's own, of so many; the end of all for a thread that there is not.
    pub(crate) fn first_of(&self, thread: usize, tasks: usize) -> usize {
        let threads = self.threads();
        (thread.min(threads) as u64 * tasks as u64 / threads as u64) as usize
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
        unsafe { *shared.job.get() = Some(Job { run }) };
        for (thread, lane) in shared.lanes.iter().enumerate() {
            lane.deal(self.first_of(thread, tasks) as u64..self.first_of(thread + 1, tasks) as u64);
            let after = lane.after.swap(null_mut(), Ordering::Relaxed);
            if !after.is_null() {
                lane.next.store(after, Ordering::Relaxed);
            }
        }
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
        let mut ahead = Foresight::default();
        for _ in 0..SPINS {
            if gate.load(Ordering::Acquire) & ACTIVE == 0 {
                return;
            }
            ahead.wait(&self.shared.lanes[0]);
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
        let mut ahead = Foresight::default();
        let lane = &self.lanes[index + 1];
        while !self.stop.load(Ordering::Relaxed) {
            let gate = self.gate.load(Ordering::Acquire);
            if gate & OPEN == 0 || gate >> 32 == last {
                spins += 1;
                if spins < SPINS {
                    ahead.wait(lane);
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
                self.help(index + 1);
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

    fn help(&self, thread: usize) {
        // SAFETY: this worker is active, so the job is not being written.
        let Some(Job { run }) = (unsafe { *self.job.get() }) else { return };
        // SAFETY: the caller stays in `Pool::run`, which borrows the function, until no worker is
        // active.
        let f = unsafe { &*run };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_tasks(f, thread))) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }

    /// A thread's own tasks, and then the last of whoever has most left.
    fn take_tasks(&self, f: &(dyn Fn(usize) + Sync), thread: usize) {
        while let Some(task) = self.lanes[thread].take(true) {
            f(task);
        }
        while let Some(most) = self.lanes.iter().max_by_key(|lane| lane.left())
            && most.left() > 0
        {
            if let Some(task) = most.take(false) {
                f(task);
            }
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

/// Asks for what is read next, a little at a time.
#[derive(Default)]
struct Foresight {
    from: *const u8,
    asked: usize,
}

impl Foresight {
    /// A moment of waiting.
    fn wait(&mut self, lane: &Lane) {
        let from: *const u8 = lane.next.load(Ordering::Relaxed);
        if from != self.from {
            *self = Self { from, asked: 0 };
        }
        if from.is_null() || self.asked >= FORESEEN {
            return std::hint::spin_loop();
        }
        lathe_simd::run(Ask(from.wrapping_add(self.asked)));
        self.asked += ASKED;
    }
}

/// Bytes that a waiting thread asks for before it looks again.
const ASKED: usize = 512;

struct Ask(*const u8);

impl Op for Ask {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        const LINE: usize = 64;
        for line in (0..ASKED).step_by(LINE) {
            isa.prefetch(self.0.wrapping_add(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

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
    fn a_thread_that_is_held_up_leaves_its_tasks_to_the_others() {
        let pool = Pool::new(2);
        for held in [0, 9] {
            let done = AtomicUsize::new(0);
            // Ends only if somebody else runs what lies behind the task that waits.
            pool.run(10, &|task| {
                while task == held && done.load(Ordering::Relaxed) < 9 {
                    thread::yield_now();
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 10);
        }
    }

    #[test]
    fn what_is_foreseen_is_read_by_nobody_but_asked_for() {
        let pool = Pool::new(2);
        let memory = vec![0u8; 1 << 16];
        // Places that there are, that there are not, and none.
        for place in [memory.as_ptr(), 64 as *const u8, std::ptr::null()] {
            pool.foresee(|_| place);
            for tasks in [7, 1, 3] {
                assert_eq!(counts(&pool, tasks), vec![1; tasks]);
                thread::sleep(std::time::Duration::from_micros(200));
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
