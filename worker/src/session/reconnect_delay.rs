//! How long a worker waits before it connects again.
//!
//! If no coordinator answers, the worker tries every two seconds, so that a restarted coordinator soon finds its
//! workers. An unproductive session is different: each costs the coordinator a state of the whole model, and the next
//! session will most likely end like the last. So the delay doubles with each of them, and from the second one on the
//! worker reports the likely cause.

use std::time::Duration;

/// Delays between two tries grow from this …
const FIRST: Duration = Duration::from_millis(100);
/// … to this, if no coordinator answers.
const LONGEST: Duration = Duration::from_secs(2);
/// The delay after the second unproductive session in a row …
const SECOND_UNPRODUCTIVE: Duration = Duration::from_secs(1);
/// … and the longest after more of them.
const LONGEST_UNPRODUCTIVE: Duration = Duration::from_secs(30);
/// A session as long as this counts as productive, however it ended.
const LONG_SESSION: Duration = Duration::from_secs(60);

/// A session that is over.
#[derive(Clone, Copy, Debug)]
pub struct SessionRecord {
    /// The number of steps that the worker confirmed.
    pub steps: u64,
    /// Its length.
    pub duration: Duration,
    /// The coordinator sent the worker away.
    pub evicted: bool,
}

impl SessionRecord {
    fn is_unproductive(self) -> bool {
        (self.steps == 0 || self.evicted) && self.duration < LONG_SESSION
    }
}

/// The delays of one worker.
#[derive(Debug)]
pub struct ReconnectDelay {
    next: Duration,
    unproductive: u32,
}

impl Default for ReconnectDelay {
    fn default() -> Self {
        Self { next: FIRST, unproductive: 0 }
    }
}

impl ReconnectDelay {
    /// Returns the delay before the next try, and doubles the one after it, in case nobody answers.
    pub fn advance(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(LONGEST.max(delay));
        delay
    }

    /// Counts a session. Returns the number of unproductive sessions in a row.
    pub fn ended(&mut self, session: SessionRecord) -> u32 {
        self.unproductive = if session.is_unproductive() { self.unproductive + 1 } else { 0 };
        self.next = match self.unproductive {
            0 | 1 => FIRST,
            n => (SECOND_UNPRODUCTIVE * 2u32.saturating_pow(n - 2)).min(LONGEST_UNPRODUCTIVE),
        };
        self.unproductive
    }

    /// The next delay.
    #[must_use]
    pub fn next(&self) -> Duration {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(steps: u64, seconds: u64, evicted: bool) -> SessionRecord {
        SessionRecord { steps, duration: Duration::from_secs(seconds), evicted }
    }

    fn delays(delay: &mut ReconnectDelay, sessions: &[SessionRecord]) -> Vec<u128> {
        let mut after = |&session| {
            delay.ended(session);
            delay.advance().as_millis()
        };
        sessions.iter().map(&mut after).collect()
    }

    #[test]
    fn delays_grow_with_unproductive_sessions_and_start_again_after_a_productive_one() {
        let mut delay = ReconnectDelay::default();
        let unproductive = [session(0, 12, false); 8];
        assert_eq!(delays(&mut delay, &unproductive), [100, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        let others = [session(3, 1, false), unproductive[0], unproductive[0]];
        assert_eq!(delays(&mut delay, &others), [100, 100, 1000]);
    }

    /// Each session of such a worker may be long enough for a step or two.
    #[test]
    fn delays_grow_too_for_a_worker_that_is_evicted_again_and_again() {
        let mut delay = ReconnectDelay::default();
        assert_eq!(delays(&mut delay, &[session(2, 2, true); 4]), [100, 1000, 2000, 4000]);
        assert_eq!(delays(&mut delay, &[session(1000, 600, true)]), [100], "one eviction after ten minutes");
    }

    /// RESUME-1: workers are back within the time that a restarted coordinator gives them.
    #[test]
    fn delays_stay_short_if_no_coordinator_answers() {
        let mut delay = ReconnectDelay::default();
        delay.ended(session(5, 1, false));
        let waits: Vec<u128> = (0..7).map(|_| delay.advance().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
    }
}
