//! How long a worker waits before it comes back.
//!
//! Where nobody answers, it asks every two seconds, so that a restarted coordinator finds its workers soon. A stay
//! of which nothing came is something else: each costs the coordinator a state of the whole model, and the next
//! will most likely end as the last. So the pause doubles with each of them, and from the second on
//! the worker says what may be the cause.

use std::time::Duration;

/// Waits between two tries grow from this …
const FIRST: Duration = Duration::from_millis(100);
/// … to this, where nobody answers.
const LONGEST: Duration = Duration::from_secs(2);
/// After the second stay in vain …
const SECOND: Duration = Duration::from_secs(1);
/// … and at most.
const LONGEST_IN_VAIN: Duration = Duration::from_secs(30);
/// A stay as long as this was none in vain, however it ended.
const LONG: Duration = Duration::from_secs(60);

/// Why a coordinator sends a worker away that takes what it is sent more slowly than it is made.
pub const LAGS: &str = "it lags too far behind";

/// How a stay ended.
#[derive(Clone, Copy, Debug)]
pub struct Stay {
    /// Steps that the worker confirmed.
    pub steps: u64,
    /// How long it was.
    pub lasted: Duration,
    /// The coordinator sent it away.
    pub sent_away: bool,
}

impl Stay {
    fn was_in_vain(self) -> bool {
        (self.steps == 0 || self.sent_away) && self.lasted < LONG
    }
}

/// The pauses of one worker.
#[derive(Debug)]
pub struct Pause {
    next: Duration,
    in_vain: u32,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: FIRST, in_vain: 0 }
    }
}

impl Pause {
    /// The pause after a try to which nobody answered.
    pub fn unanswered(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST.max(pause));
        pause
    }

    /// Counts a stay. The number of those in vain since the last that was not.
    pub fn stayed(&mut self, stay: Stay) -> u32 {
        self.in_vain = if stay.was_in_vain() { self.in_vain + 1 } else { 0 };
        self.next = match self.in_vain {
            0 | 1 => FIRST,
            again => (SECOND * 2u32.saturating_pow(again - 2)).min(LONGEST_IN_VAIN),
        };
        self.in_vain
    }

    /// How long the next pause is.
    #[must_use]
    pub fn next(&self) -> Duration {
        self.next
    }
}

/// What may be the cause when a worker comes and goes in vain, for a model with a state of so many bytes. From one
/// end the two cannot be told apart: where nothing large gets through, what is to be sent piles up as well.
#[must_use]
pub fn cause(state: usize) -> String {
    format!(
        "either large packets do not get through (an MTU that is too large for a VPN, a tunnel or an overlay network \
         between: compare `ping -M do -s 1400 HOST` with `ping HOST`, and lower the MTU), or the link is too slow for \
         this model, whose state of {:.1} MB goes to every newcomer and half as much to each worker in every step (train \
         with --wire-dtype bf16, a larger --batch-size, or workers nearer by)",
        state as f64 / 1e6
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stay(steps: u64, seconds: u64, sent_away: bool) -> Stay {
        Stay { steps, lasted: Duration::from_secs(seconds), sent_away }
    }

    fn pauses(pause: &mut Pause, stays: &[Stay]) -> Vec<u128> {
        let mut after = |&stay| {
            pause.stayed(stay);
            pause.unanswered().as_millis()
        };
        stays.iter().map(&mut after).collect()
    }

    #[test]
    fn pauses_grow_with_stays_in_vain_and_one_that_was_not_ends_that() {
        let mut pause = Pause::default();
        let vain = [stay(0, 12, false); 8];
        assert_eq!(pauses(&mut pause, &vain), [100, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(pauses(&mut pause, &[stay(3, 1, false), vain[0], vain[0]]), [100, 100, 1000]);
    }

    /// Each of its stays may be good for a step or two.
    #[test]
    fn who_is_sent_away_again_and_again_waits_longer_too() {
        let mut pause = Pause::default();
        assert_eq!(pauses(&mut pause, &[stay(2, 2, true); 4]), [100, 1000, 2000, 4000]);
        assert_eq!(pauses(&mut pause, &[stay(1000, 600, true)]), [100], "once in a while is no pattern");
    }

    /// RESUME-1: workers are back within the time that a restarted coordinator gives them.
    #[test]
    fn where_nobody_answers_pauses_stay_short() {
        let mut pause = Pause::default();
        pause.stayed(stay(5, 1, false));
        let waits: Vec<u128> = (0..7).map(|_| pause.unanswered().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[test]
    fn the_cause_names_what_to_try() {
        let cause = cause(51_222_112);
        assert!(cause.contains("51.2 MB") && cause.contains("bf16") && cause.contains("lower the MTU"));
    }
}
