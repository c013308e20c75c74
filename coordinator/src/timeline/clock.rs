//! The offset of a worker's clock from the coordinator's, by question and answer as in NTP.
//!
//! The coordinator asks at `t0`, by its clock; the question comes at `t1` and the answer leaves at `t2`, by the
//! worker's; it is here at `t3`. If both ways took equally long, the worker's clock is `((t1 - t0) + (t2 - t3)) / 2`
//! ahead. The ways may differ, but neither takes less than no time, so the error is at most half of the round trip
//! `(t3 - t0) - (t2 - t1)`. The bound of an answer grows with its age, because clocks drift apart. Of the last few
//! answers the one with the smallest bound is used.

use std::collections::VecDeque;

/// How fast two clocks may drift apart: 50 millionths each, the specification of common quartz.
const DRIFT: f64 = 100e-6;
/// Answers that are remembered.
const REMEMBERED: usize = 16;
/// Questions right after a worker has come …
const FIRST: u64 = 8;
/// … and the seconds between them, …
const FIRST_EVERY: f64 = 0.05;
/// … and between later ones.
const EVERY: f64 = 2.0;
/// A question without an answer is dropped after so many seconds.
const PATIENCE: f64 = 10.0;

/// What is known of a worker's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offset {
    /// How far it is ahead of the coordinator's.
    pub seconds: f64,
    /// The bound on its error.
    pub error: f64,
    /// The newest round trip, in seconds.
    pub round_trip: f64,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    at: f64,
    ahead: f64,
    round_trip: f64,
}

impl Answer {
    /// The bound on its error.
    fn bound(&self, now: f64) -> f64 {
        self.round_trip / 2.0 + DRIFT * (now - self.at).max(0.0)
    }
}

/// A worker's clock, as it is seen from here. All times are seconds by the coordinator's clock,
/// except the two that the worker answers.
#[derive(Debug)]
pub struct WorkerClock {
    answers: VecDeque<Answer>,
    /// The question that is open, and when it was asked.
    open: Option<(u64, f64)>,
    asked: u64,
    next: f64,
}

impl WorkerClock {
    /// Of a worker that has just come.
    #[must_use]
    pub fn new(now: f64) -> Self {
        Self { answers: VecDeque::with_capacity(REMEMBERED), open: None, asked: 0, next: now }
    }

    /// Whether it is time to ask.
    #[must_use]
    pub fn is_due(&self, now: f64) -> bool {
        now >= self.next && self.open.is_none_or(|(_, asked)| now - asked > PATIENCE)
    }

    /// Asks; returns the question's number.
    pub fn ask(&mut self, now: f64) -> u64 {
        self.asked += 1;
        self.open = Some((self.asked, now));
        self.next = now + if self.asked < FIRST { FIRST_EVERY } else { EVERY };
        self.asked
    }

    /// The answer to a question came at `now`. One to a question that is not open, or that claims a longer time at
    /// the worker than the whole round trip, is ignored.
    pub fn answered(&mut self, number: u64, received: f64, sent: f64, now: f64) {
        let Some((_, asked)) = self.open.take_if(|(open, _)| *open == number) else { return };
        let round_trip = (now - asked) - (sent - received);
        if !(round_trip >= 0.0 && sent >= received) {
            return;
        }
        if self.answers.len() == REMEMBERED {
            self.answers.pop_front();
        }
        let ahead = ((received - asked) + (sent - now)) / 2.0;
        self.answers.push_back(Answer { at: now, ahead, round_trip });
    }

    /// What is known of it; `None` before the first answer.
    #[must_use]
    pub fn offset(&self, now: f64) -> Option<Offset> {
        let best = self.answers.iter().min_by(|a, b| a.bound(now).total_cmp(&b.bound(now)))?;
        let round_trip = self.answers.back()?.round_trip;
        Some(Offset { seconds: best.ahead, error: best.bound(now), round_trip })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asks at `now`; the ways there and back take so long, and the worker's clock is `ahead`.
    fn exchange(clock: &mut WorkerClock, now: f64, there: f64, back: f64, ahead: f64) -> f64 {
        let number = clock.ask(now);
        let (received, sent) = (now + there + ahead, now + there + 0.001 + ahead);
        clock.answered(number, received, sent, now + there + 0.001 + back);
        now + there + 0.001 + back
    }

    #[test]
    fn the_quickest_answer_is_believed_until_it_is_old() {
        let mut clock = WorkerClock::new(0.0);
        assert!(clock.offset(0.0).is_none() && clock.is_due(0.0));
        exchange(&mut clock, 0.0, 0.0001, 0.0001, 5.0);
        exchange(&mut clock, 2.0, 0.5, 0.001, 5.0);
        let offset = clock.offset(2.6).unwrap();
        assert!((offset.seconds - 5.0).abs() < 1e-9 && offset.error < 0.001, "{offset:?}");
        assert!((offset.round_trip - 0.501).abs() < 1e-9, "{offset:?}");
        // An hour later the old answer is worth less than a slow one.
        exchange(&mut clock, 3600.0, 0.01, 0.01, 5.1);
        assert!((clock.offset(3600.1).unwrap().seconds - 5.1).abs() < 1e-9);
    }

    #[test]
    fn what_was_not_asked_or_cannot_be_says_nothing() {
        let mut clock = WorkerClock::new(0.0);
        clock.answered(1, 0.0, 0.0, 0.0);
        let number = clock.ask(1.0);
        assert!(!clock.is_due(2.0), "one question at a time");
        clock.answered(number + 1, 1.0, 1.0, 1.0);
        // It says that it kept the question for longer than the answer took.
        clock.answered(number, 1.0, 9.0, 2.0);
        let number = clock.ask(3.0);
        clock.answered(number, 4.0, 3.0, 5.0);
        assert!(clock.offset(5.0).is_none());
        clock.ask(6.0);
        assert!(clock.is_due(6.1 + PATIENCE), "an answer that does not come is not waited for");
    }

    proptest! {
        /// However the ways there and back differ, the truth lies within the bound.
        #[test]
        fn the_bound_holds(
            ways in proptest::collection::vec((0.0..0.2f64, 0.0..0.2f64), 1..40), ahead in -1e6..1e6f64,
        ) {
            let mut clock = WorkerClock::new(0.0);
            let mut now = 0.0;
            for (there, back) in ways {
                now = exchange(&mut clock, now + 2.0, there, back, ahead);
                let offset = clock.offset(now).unwrap();
                prop_assert!((offset.seconds - ahead).abs() <= offset.error + 1e-9);
            }
            prop_assert!(clock.answers.len() <= REMEMBERED);
        }
    }
}
