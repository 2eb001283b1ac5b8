use std::time::{Duration, Instant};

/// Waits against one start time, so that the cost of the mock's own work does not add up.
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns once `seconds` have passed since the start.
    ///
    /// Sleeps for most of it and yields through the rest: a sleep alone overshoots by the timer's
    /// slack, about 50 µs on Linux.
    pub(super) fn wait_until(&self, seconds: f64) {
        const SLACK: Duration = Duration::from_micros(200);
        let until = Duration::from_secs_f64(seconds.max(0.0));
        if let Some(long) = until.saturating_sub(self.0.elapsed()).checked_sub(SLACK) {
            std::thread::sleep(long);
        }
        while self.0.elapsed() < until {
            std::thread::yield_now();
        }
    }
}
