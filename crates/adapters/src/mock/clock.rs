use std::time::{Duration, Instant};

/// Waits against one start time, so that the cost of the mock's own work does not add up.
pub(super) struct Clock {
    start: Instant,
    /// What is spun through, not slept.
    slack: Duration,
}

impl Clock {
    pub(super) fn start(sleepy: bool) -> Self {
        let slack = if sleepy { Duration::ZERO } else { Duration::from_micros(200) };
        Self { start: Instant::now(), slack }
    }

    /// Returns once `seconds` have passed since the start.
    ///
    /// Sleeps for most of it and, unless sleepy, yields through the rest: a sleep alone overshoots by the timer's
    /// slack, about 50 µs on Linux.
    pub(super) fn wait_until(&self, seconds: f64) {
        let until = Duration::from_secs_f64(seconds.max(0.0));
        if let Some(long) = until.saturating_sub(self.start.elapsed()).checked_sub(self.slack) {
            std::thread::sleep(long);
        }
        while self.start.elapsed() < until {
            std::thread::yield_now();
        }
    }
}
