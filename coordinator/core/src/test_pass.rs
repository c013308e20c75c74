//! The test pass: fixed microbatches of the test set, each assigned to a free worker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tally_numerics::TEST_MICROBATCH;

use super::Core;
use super::cluster::{Session, State};
use super::events::Action;

/// Leaves a worker may have at once: one to compute and one on its way.
const OUTSTANDING: usize = 2;

/// A test pass in progress.
#[derive(Clone, Debug)]
pub struct TestPass {
    waiting: BTreeSet<u32>,
    unanswered: BTreeSet<u32>,
    /// When each leaf was dealt last.
    dealt: BTreeMap<u32, Duration>,
    /// The longest time that an answer has taken, or is expected to take.
    longest: Option<Duration>,
}

impl TestPass {
    /// A pass over leaves `0..leaves`, none answered; an answer is expected to take no longer than
    /// this.
    #[must_use]
    pub fn new(leaves: u32, expected: Option<Duration>) -> Self {
        Self {
            waiting: (0..leaves).collect(),
            unanswered: (0..leaves).collect(),
            dealt: BTreeMap::new(),
            longest: expected,
        }
    }

    /// The next leaf that nobody has.
    pub fn take(&mut self, now: Duration) -> Option<u32> {
        let leaf = self.waiting.pop_first()?;
        self.dealt.insert(leaf, now);
        Some(leaf)
    }

    /// Leaves without an answer after twice the longest time of an answer are assigned once more.
    pub fn overdue(&mut self, now: Duration) {
        let Some(longest) = self.longest else { return };
        let patience = 2 * longest + Duration::from_millis(50);
        let late = |leaf: &&u32| self.dealt.get(leaf).is_some_and(|dealt| now >= *dealt + patience);
        let late: Vec<u32> = self.unanswered.iter().filter(late).copied().collect();
        self.waiting.extend(late);
    }

    /// A worker was lost with these leaves.
    pub fn give_back(&mut self, leaves: impl IntoIterator<Item = u32>) {
        self.waiting.extend(leaves.into_iter().filter(|leaf| self.unanswered.contains(leaf)));
    }

    /// An answer has come; true if it is the leaf's first.
    pub fn answer(&mut self, now: Duration, leaf: u32) -> bool {
        self.waiting.remove(&leaf);
        if let Some(dealt) = self.dealt.remove(&leaf) {
            self.longest = self.longest.max(Some(now.saturating_sub(dealt)));
        }
        self.unanswered.remove(&leaf)
    }

    /// Whether every leaf is answered.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unanswered.is_empty()
    }
}

/// How many microbatches a test set of `samples` samples has.
#[must_use]
pub fn microbatches(samples: usize) -> u32 {
    samples.div_ceil(TEST_MICROBATCH) as u32
}

impl Core {
    /// What an answer may take: a gradient of as many samples takes the slowest worker longer.
    pub(super) fn expected_answer(&self) -> Option<Duration> {
        let measured = self.members.0.values().filter_map(|m| m.per_sample);
        let slowest = measured.max_by(f64::total_cmp)?;
        // A day is longer than any leaf takes, and no overflow.
        Some(Duration::from_secs_f64((slowest * TEST_MICROBATCH as f64).min(86_400.0)))
    }

    pub(super) fn deal_test_leaves(&mut self, now: Duration) {
        let Some(test) = &mut self.test else { return };
        loop {
            let free = self.members.0.iter_mut().filter(|(_, m)| m.state == State::Ready);
            let Some((&session, member)) = free.min_by_key(|(_, m)| m.testing.len()) else { return };
            if member.testing.len() >= OUTSTANDING {
                return;
            }
            let Some(leaf) = test.take(now) else { return };
            if member.testing.insert(leaf) {
                self.actions.push(Action::SendTestLeaf { session, step: self.committed, leaf });
            }
        }
    }

    pub(super) fn test_overdue(&mut self, now: Duration) {
        if let Some(test) = &mut self.test {
            test.overdue(now);
            self.deal_test_leaves(now);
        }
    }

    pub(super) fn answered(&mut self, now: Duration, session: Session, step: u64, leaf: u32) {
        let Some(member) = self.members.0.get_mut(&session) else { return };
        let given = member.testing.remove(&leaf);
        // A late answer is not a fault: another worker has given it.
        let Some(test) = self.test.as_mut().filter(|_| step == self.committed) else { return };
        if !given || member.confirmed != Some(step) {
            let reason = format!("it answered leaf {leaf} of the test pass, which it was not given");
            return self.evict(now, session, reason, false);
        }
        test.answer(now, leaf);
        if !test.is_complete() {
            return self.deal_test_leaves(now);
        }
        self.test = None;
        for member in self.members.0.values_mut() {
            member.testing.clear();
        }
        self.tested = (self.committed / self.spec.schedule.steps_per_epoch() as u64) as u32;
        self.actions.push(Action::TestDone { step: self.committed, epoch: self.tested });
        self.boundary(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_workers_leaves_are_dealt_again() {
        let mut pass = TestPass::new(3, None);
        let now = Duration::ZERO;
        let taken: Vec<u32> = std::iter::from_fn(|| pass.take(now)).collect();
        assert_eq!(taken, [0, 1, 2]);
        assert!(pass.answer(now, 1));
        pass.give_back([0, 1]);
        assert_eq!((pass.take(now), pass.take(now)), (Some(0), None));
        assert!(pass.answer(now, 2) && !pass.answer(now, 2) && pass.answer(now, 0));
        assert!(pass.is_complete());
    }

    #[test]
    fn live_1_a_leaf_whose_answer_is_late_is_dealt_once_more() {
        let mut pass = TestPass::new(2, None);
        let at = Duration::from_secs;
        assert_eq!((pass.take(at(0)), pass.take(at(0))), (Some(0), Some(1)));
        pass.overdue(at(1000));
        assert_eq!(pass.take(at(1000)), None, "nothing is known yet of how long it takes");
        assert!(pass.answer(at(1000), 0));
        pass.overdue(at(1001));
        assert_eq!(pass.take(at(1001)), None);
        pass.overdue(at(2001));
        assert_eq!((pass.take(at(2001)), pass.take(at(2001))), (Some(1), None));
    }

    /// A pass of one leaf, whose worker froze when it was given it.
    #[test]
    fn live_1_the_first_leaf_is_dealt_once_more_too() {
        let mut pass = TestPass::new(1, Some(Duration::from_secs(1)));
        let at = Duration::from_secs;
        assert_eq!(pass.take(at(0)), Some(0));
        pass.overdue(at(2));
        assert_eq!(pass.take(at(2)), None);
        pass.overdue(at(3));
        assert_eq!(pass.take(at(3)), Some(0));
    }

    #[test]
    fn the_last_leaf_may_be_short() {
        assert_eq!(
            (microbatches(10_000), microbatches(101), microbatches(100), microbatches(1)),
            (100, 2, 1, 1)
        );
    }
}
