//! Whether the driver moves.
//!
//! It is told the time every few milliseconds, so one that has handled no input for seconds waits for
//! something: a disk that does not answer, or a computation that does not end. Whoever asks how the coordinator is has to
//! be told so, though the threads that answer him are well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The driver has nothing more to do.
const OVER: u64 = u64::MAX;

/// When the driver last moved.
#[derive(Clone, Debug)]
pub struct Pulse {
    origin: Instant,
    moved: Arc<AtomicU64>,
    /// It waits for something that may take long.
    waits: Arc<AtomicBool>,
}

impl Pulse {
    /// One that has moved just now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now(), moved: Arc::default(), waits: Arc::default() }
    }

    /// One that has not moved for so long.
    #[cfg(test)]
    pub(crate) fn still_for(time: Duration) -> Self {
        let origin = Instant::now();
        Self { origin: origin.checked_sub(time).unwrap_or(origin), ..Self::start() }
    }

    /// The driver has moved.
    pub fn beat(&self) {
        let now = self.origin.elapsed().as_millis() as u64;
        self.moved.store(now, Ordering::Relaxed);
    }

    /// The driver has no more inputs to wait for: it writes what is left, and ends.
    pub fn rest(&self) {
        self.moved.store(OVER, Ordering::Relaxed);
    }

    /// Has the driver do something that may take long, such as to wait until a large checkpoint is written.
    pub fn patiently<T>(&self, work: impl FnOnce() -> T) -> T {
        self.waits.store(true, Ordering::Relaxed);
        let done = work();
        self.waits.store(false, Ordering::Relaxed);
        self.beat();
        done
    }

    /// Whether it does such a thing.
    #[must_use]
    pub fn is_patient(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// For how long the driver has not moved, though it should have.
    #[must_use]
    pub fn still(&self) -> Duration {
        match self.moved.load(Ordering::Relaxed) {
            OVER => Duration::ZERO,
            moved => self.origin.elapsed().saturating_sub(Duration::from_millis(moved)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_stands_still_is_seen_and_one_that_is_done_is_not() {
        let pulse = Pulse::start();
        let moment = Duration::from_millis(30);
        std::thread::sleep(moment);
        assert!(pulse.still() >= moment);
        pulse.beat();
        assert!(pulse.still() < pulse.origin.elapsed());
        pulse.rest();
        std::thread::sleep(moment);
        assert_eq!(pulse.still(), Duration::ZERO);
    }
}
