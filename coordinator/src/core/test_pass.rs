//! The test pass: fixed leaves of the test set, dealt to whoever is free.

use std::collections::BTreeSet;

use tally_worker::scores::TEST_LEAF;

/// Leaves a worker may have at once: one to compute and one on its way.
pub const OUTSTANDING: usize = 2;

/// A test pass in progress.
#[derive(Debug)]
pub struct TestPass {
    waiting: BTreeSet<u32>,
    unanswered: BTreeSet<u32>,
}

impl TestPass {
    /// A pass over leaves `0..leaves`, none answered.
    #[must_use]
    pub fn new(leaves: u32) -> Self {
        Self { waiting: (0..leaves).collect(), unanswered: (0..leaves).collect() }
    }

    /// The next leaf that nobody has.
    pub fn take(&mut self) -> Option<u32> {
        self.waiting.pop_first()
    }

    /// A worker was lost with these leaves.
    pub fn give_back(&mut self, leaves: impl IntoIterator<Item = u32>) {
        self.waiting.extend(leaves.into_iter().filter(|leaf| self.unanswered.contains(leaf)));
    }

    /// An answer has come; true if it is the leaf's first.
    pub fn answer(&mut self, leaf: u32) -> bool {
        self.waiting.remove(&leaf);
        self.unanswered.remove(&leaf)
    }

    /// Whether every leaf is answered.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unanswered.is_empty()
    }
}

/// How many leaves a test set of `samples` samples has.
#[must_use]
pub fn leaves(samples: usize) -> u32 {
    samples.div_ceil(TEST_LEAF) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_workers_leaves_are_dealt_again() {
        let mut pass = TestPass::new(3);
        assert_eq!((pass.take(), pass.take(), pass.take(), pass.take()), (Some(0), Some(1), Some(2), None));
        assert!(pass.answer(1));
        pass.give_back([0, 1]);
        assert_eq!((pass.take(), pass.take()), (Some(0), None));
        assert!(pass.answer(2) && !pass.answer(2) && pass.answer(0));
        assert!(pass.is_complete());
    }

    #[test]
    fn the_last_leaf_may_be_short() {
        assert_eq!((leaves(10_000), leaves(101), leaves(100), leaves(1)), (100, 2, 1, 1));
    }
}
