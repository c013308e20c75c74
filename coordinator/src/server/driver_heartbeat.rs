//! Whether the driver's thread makes progress.
//!
//! The driver gets a tick every few milliseconds. If it has handled no input for seconds, it waits for something: a disk
//! that does not answer, or a computation that does not end. The health endpoints must say so, although the
//! threads that answer them are well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The driver has nothing more to do.
const FINISHED: u64 = u64::MAX;

/// The time of the driver's last progress.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    origin: Instant,
    /// Milliseconds after `origin`.
    last: Arc<AtomicU64>,
    slow_work: Arc<AtomicBool>,
}

impl Heartbeat {
    /// A driver that has made progress just now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now(), last: Arc::default(), slow_work: Arc::default() }
    }

    /// A driver that has made no progress for so long.
    #[cfg(test)]
    pub(crate) fn silent_for(time: Duration) -> Self {
        let origin = Instant::now();
        Self { origin: origin.checked_sub(time).unwrap_or(origin), ..Self::start() }
    }

    /// The driver has made progress.
    pub fn beat(&self) {
        let now = self.origin.elapsed().as_millis() as u64;
        self.last.store(now, Ordering::Relaxed);
    }

    /// The driver waits for no more inputs: it writes what is left, and ends.
    pub fn finished(&self) {
        self.last.store(FINISHED, Ordering::Relaxed);
    }

    /// Runs work that may take long, such as waiting until a large checkpoint is written.
    pub fn during_slow_work<T>(&self, work: impl FnOnce() -> T) -> T {
        self.slow_work.store(true, Ordering::Relaxed);
        let result = work();
        self.slow_work.store(false, Ordering::Relaxed);
        self.beat();
        result
    }

    /// Whether the driver does such work.
    #[must_use]
    pub fn is_slow_work(&self) -> bool {
        self.slow_work.load(Ordering::Relaxed)
    }

    /// The time since the driver's last progress; zero if it is finished.
    #[must_use]
    pub fn silence(&self) -> Duration {
        match self.last.load(Ordering::Relaxed) {
            FINISHED => Duration::ZERO,
            last => self.origin.elapsed().saturating_sub(Duration::from_millis(last)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_makes_no_progress_is_noticed_and_a_finished_one_is_not() {
        let heartbeat = Heartbeat::start();
        let moment = Duration::from_millis(30);
        std::thread::sleep(moment);
        assert!(heartbeat.silence() >= moment);
        heartbeat.beat();
        assert!(heartbeat.silence() < heartbeat.origin.elapsed());
        heartbeat.finished();
        std::thread::sleep(moment);
        assert_eq!(heartbeat.silence(), Duration::ZERO);
    }
}
