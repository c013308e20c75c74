//! The exactly-once accounting of samples (**DATA-1**).
//!
//! It counts the samples of committed microbatches, by their receipts, and never planned ones.

/// Which samples of the epoch in progress have been used, and the run's totals.
#[derive(Clone, Debug)]
pub struct Ledger {
    used: Vec<bool>,
    this_epoch: usize,
    committed: u64,
    lost: u64,
    duplicated: u64,
}

impl Ledger {
    /// Nothing used yet of `samples` samples.
    #[must_use]
    pub fn new(samples: usize) -> Self {
        Self { used: vec![false; samples], this_epoch: 0, committed: 0, lost: 0, duplicated: 0 }
    }

    /// A leaf with these samples was committed.
    pub fn commit(&mut self, ids: &[u32]) {
        for &id in ids {
            match self.used.get_mut(id as usize) {
                Some(used) if !*used => {
                    *used = true;
                    self.this_epoch += 1;
                }
                _ => self.duplicated += 1,
            }
            self.committed += 1;
        }
    }

    /// The epoch is over: samples that were not used in it are lost.
    pub fn end_epoch(&mut self) {
        self.lost += (self.used.len() - self.this_epoch) as u64;
        self.used.fill(false);
        self.this_epoch = 0;
    }

    /// Samples committed in the run.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Samples that an epoch ended without. Always 0.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Samples committed twice in an epoch. Always 0.
    #[must_use]
    pub fn duplicated(&self) -> u64 {
        self.duplicated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_1_loss_and_duplication_are_seen() {
        let mut ledger = Ledger::new(4);
        ledger.commit(&[0, 1, 2, 3]);
        ledger.end_epoch();
        assert_eq!((ledger.committed(), ledger.lost(), ledger.duplicated()), (4, 0, 0));
        ledger.commit(&[3, 1]);
        ledger.commit(&[1, 9]);
        ledger.end_epoch();
        assert_eq!((ledger.committed(), ledger.lost(), ledger.duplicated()), (8, 2, 2));
    }
}
