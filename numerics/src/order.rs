//! Which samples belong to which step (**DATA-1**, **DATA-2**).
//!
//! An epoch is a permutation of all samples, cut into batches. A short last batch is kept, so every sample is used
//! exactly once. The permutation depends only on the run's seed and the epoch, and the cuts depend only on the batch
//! size. This module has no state and does no I/O.
//!
//! Steps and epochs are counted from 1 through the whole run, batches of an epoch from 0.

use std::ops::Range;

use crate::random::{Purpose, Stream};
use thiserror::Error;

/// Why a schedule is not valid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadSchedule {
    /// A batch of no samples.
    #[error("a batch has at least one sample; use a batch size over 0")]
    BatchSize,
    /// No samples, or more than there are ids.
    #[error("an epoch has 1 to {most} samples, not {0}; use another limit or other data", most = u32::MAX)]
    Samples(usize),
}

/// The order of a run's training samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    seed: u64,
    samples: u32,
    batch_size: usize,
}

impl Schedule {
    /// The schedule of a run over `samples` samples. A batch size over that gives epochs
    /// of one short batch.
    ///
    /// # Errors
    /// [`BadSchedule`] if there are no samples, more than ids, or none in a batch.
    pub fn new(seed: u64, samples: usize, batch_size: usize) -> Result<Self, BadSchedule> {
        if batch_size == 0 {
            return Err(BadSchedule::BatchSize);
        }
        let count = u32::try_from(samples).ok().filter(|&n| n > 0).ok_or(BadSchedule::Samples(samples))?;
        Ok(Self { seed, samples: count, batch_size })
    }

    /// The seed from which the orders are drawn.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How many samples an epoch has.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.samples as usize
    }

    /// How many samples a batch has; the last of an epoch may have fewer.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// How many steps an epoch has, with the short last one.
    #[must_use]
    pub fn steps_per_epoch(&self) -> usize {
        self.samples().div_ceil(self.batch_size)
    }

    /// The ids of all samples in the order of an epoch, counted from 1. Each call computes it again, so keep the
    /// result for the epoch.
    #[must_use]
    pub fn order(&self, epoch: u32) -> Vec<u32> {
        Stream::new(self.seed, Purpose::Permutation { epoch }).permutation(self.samples)
    }

    /// The places in [`order`](Self::order) of the samples of an epoch's batch `index`,
    /// counted from 0; empty behind the last.
    #[must_use]
    pub fn batch_range(&self, index: usize) -> Range<usize> {
        let cut = |index: usize| index.saturating_mul(self.batch_size).min(self.samples());
        cut(index)..cut(index.saturating_add(1))
    }

    /// The epoch of a step, counted from 1, and the step's place in the epoch, from 0. Epochs above `u32::MAX` are
    /// returned as `u32::MAX`.
    ///
    /// # Panics
    /// If `step` is 0: steps are counted from 1.
    #[must_use]
    pub fn position(&self, step: u64) -> (u32, usize) {
        assert!(step > 0, "steps are counted from 1");
        let per_epoch = self.steps_per_epoch() as u64;
        let (before, index) = ((step - 1) / per_epoch, (step - 1) % per_epoch);
        (u32::try_from(before.saturating_add(1)).unwrap_or(u32::MAX), index as usize)
    }

    /// The step, counted from 1, that takes batch `index` of an epoch; the inverse of
    /// [`position`](Self::position).
    ///
    /// # Panics
    /// If `epoch` is 0: epochs are counted from 1.
    #[must_use]
    pub fn step_of(&self, epoch: u32, index: usize) -> u64 {
        assert!(epoch > 0, "epochs are counted from 1");
        // Both factors are below 2³², so the product fits.
        (u64::from(epoch) - 1) * self.steps_per_epoch() as u64 + index as u64 + 1
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_schedule_needs_samples_and_a_batch_size() {
        assert_eq!(Schedule::new(1, 10, 0), Err(BadSchedule::BatchSize));
        assert_eq!(Schedule::new(1, 0, 4), Err(BadSchedule::Samples(0)));
        let many = u32::MAX as usize + 1;
        assert_eq!(Schedule::new(1, many, 4), Err(BadSchedule::Samples(many)));
        assert!(BadSchedule::Samples(0).to_string().contains("1 to 4294967295 samples, not 0"));
    }

    #[test]
    fn ten_samples_in_batches_of_four() {
        let schedule = Schedule::new(1, 10, 4).unwrap();
        assert_eq!(schedule.steps_per_epoch(), 3);
        assert_eq!([0, 1, 2, 3].map(|i| schedule.batch_range(i)), [0..4, 4..8, 8..10, 10..10]);
        assert_eq!([1, 2, 3, 4, 7].map(|s| schedule.position(s)), [(1, 0), (1, 1), (1, 2), (2, 0), (3, 0)]);
        assert_eq!(schedule.order(1), [9, 5, 2, 3, 6, 0, 4, 8, 1, 7]);
    }

    /// DATA-2: the order of the official training set is pinned. The ids were computed by
    /// a second implementation.
    #[test]
    fn data_2_the_order_of_an_epoch_is_pinned() {
        let schedule = Schedule::new(1, 60_000, 64).unwrap();
        assert_eq!(schedule.steps_per_epoch(), 938);
        assert_eq!(schedule.order(1)[..8], [43413, 10652, 4115, 47454, 1962, 2336, 54464, 23526]);
    }

    #[test]
    fn extremes_stay_in_bounds() {
        let schedule = Schedule::new(1, 10, usize::MAX).unwrap();
        assert_eq!((schedule.steps_per_epoch(), schedule.batch_range(0)), (1, 0..10));
        assert_eq!(schedule.batch_range(usize::MAX), 10..10);
        assert_eq!(schedule.position(u64::MAX), (u32::MAX, 0));
        let longest = Schedule::new(1, u32::MAX as usize, 1).unwrap();
        assert!(longest.step_of(u32::MAX, u32::MAX as usize - 1) < u64::MAX);
    }

    proptest! {
        /// DATA-1: whatever the number of samples and the batch size, an epoch's steps
        /// have every sample exactly once, and none of them is empty.
        #[test]
        fn data_1_an_epoch_has_every_sample_exactly_once(
            seed: u64, samples in 1usize..2000, batch_size in 1usize..300, epoch in 1u32..50,
        ) {
            let schedule = Schedule::new(seed, samples, batch_size).unwrap();
            let order = schedule.order(epoch);
            let mut used = vec![0u32; samples];
            for index in 0..schedule.steps_per_epoch() {
                let batch = &order[schedule.batch_range(index)];
                let short = index + 1 == schedule.steps_per_epoch();
                prop_assert!(batch.len() == batch_size || short && (1..batch_size).contains(&batch.len()));
                batch.iter().for_each(|&id| used[id as usize] += 1);
            }
            prop_assert!(used.iter().all(|&times| times == 1));
        }

        /// DATA-2: the order follows seed and epoch; the batch size only cuts it.
        #[test]
        fn data_2_the_order_does_not_depend_on_the_batch_size(
            seed: u64, samples in 1usize..500, a in 1usize..100, b in 1usize..100, epoch: u32,
        ) {
            let order = |batch_size| Schedule::new(seed, samples, batch_size).unwrap().order(epoch);
            prop_assert_eq!(order(a), order(b));
        }

        /// DATA-2: another seed or another epoch gives another order.
        #[test]
        fn data_2_seed_and_epoch_each_change_the_order(seed: u64, other: u64, epoch in 1u32..1000) {
            // Two random orders of 50 samples agree with a probability of 1/50!.
            let order = |seed, epoch| Schedule::new(seed, 50, 8).unwrap().order(epoch);
            prop_assert_ne!(order(seed, epoch), order(seed, epoch + 1));
            prop_assume!(seed != other);
            prop_assert_ne!(order(seed, epoch), order(other, epoch));
        }

        #[test]
        fn steps_and_positions_are_each_others_inverse(
            samples in 1usize..100_000, batch_size in 1usize..1000, step in 1u64..1_000_000_000,
        ) {
            let schedule = Schedule::new(0, samples, batch_size).unwrap();
            let (epoch, index) = schedule.position(step);
            prop_assert!(index < schedule.steps_per_epoch());
            prop_assert_eq!(schedule.step_of(epoch, index), step);
        }
    }
}
