//! A split with the random number 0-9 that each image is paired with (**DATA-2**).
//!
//! The numbers are drawn once for a run, in file order, from the run's seed and nothing
//! else. So a sample keeps its number in every epoch, whoever computes with it, and a
//! limited split has the numbers that its samples have in the whole one.

use std::sync::Arc;

use tally_numerics::random::{Purpose, Stream};
use thiserror::Error;

use crate::mnist::Split;
use crate::samples::{BadSamples, PIXELS, Samples};

/// Samples that a split cannot give.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PairedError {
    /// An id of no sample.
    #[error("there is no sample {id}: the data has {len} samples, numbered from 0")]
    Id {
        /// The id asked for.
        id: u32,
        /// How many samples there are.
        len: usize,
    },
    /// Samples that do not fit together; not possible with a [`Split`].
    #[error(transparent)]
    Samples(#[from] BadSamples),
}

/// A split and its random numbers. Cheap to clone: clones share the bytes.
#[derive(Clone, Debug)]
pub struct Paired {
    split: Split,
    numbers: Arc<[u8]>,
}

impl Paired {
    /// The training samples with their numbers.
    #[must_use]
    pub fn train(split: Split, seed: u64) -> Self {
        Self::draw(split, seed, Purpose::TrainNumbers)
    }

    /// The test samples with their numbers.
    #[must_use]
    pub fn test(split: Split, seed: u64) -> Self {
        Self::draw(split, seed, Purpose::TestNumbers)
    }

    fn draw(split: Split, seed: u64, purpose: Purpose) -> Self {
        let mut stream = Stream::new(seed, purpose);
        let numbers = (0..split.len()).map(|_| stream.below(10) as u8).collect();
        Self { split, numbers }
    }

    /// How many samples.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // A split is never empty.
    pub fn len(&self) -> usize {
        self.split.len()
    }

    /// The numbers, all from 0 to 9, in file order.
    #[must_use]
    pub fn numbers(&self) -> &[u8] {
        &self.numbers
    }

    /// The images and labels.
    #[must_use]
    pub fn split(&self) -> &Split {
        &self.split
    }

    /// The samples `ids` in the order given; an id may come more than once.
    ///
    /// # Errors
    /// [`PairedError::Id`] for the first id of no sample.
    pub fn samples(&self, ids: &[u32]) -> Result<Samples, PairedError> {
        let len = self.len();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= len) {
            return Err(PairedError::Id { id, len });
        }
        let at = || ids.iter().map(|&id| id as usize);
        let mut pixels = Vec::with_capacity(ids.len() * PIXELS);
        for index in at() {
            pixels.extend_from_slice(&self.split.pixels()[index * PIXELS..(index + 1) * PIXELS]);
        }
        let numbers = at().map(|index| self.numbers[index]).collect();
        let labels = at().map(|index| self.split.labels()[index]).collect();
        Ok(Samples::new(ids.to_vec(), pixels, numbers, labels)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn split(n: usize) -> Split {
        let pixels = (0..n).flat_map(|i| [i as u8; PIXELS]).collect();
        Split::new("training", pixels, (0..n).map(|i| (i % 10) as u8).collect()).unwrap()
    }

    /// DATA-2: the numbers are pinned. They were computed by a second implementation.
    #[test]
    fn data_2_the_numbers_are_pinned() {
        assert_eq!(Paired::train(split(12), 1).numbers(), [2, 7, 4, 3, 0, 0, 1, 0, 0, 7, 6, 5]);
        assert_eq!(Paired::test(split(12), 1).numbers(), [3, 3, 8, 3, 8, 3, 7, 9, 8, 0, 7, 5]);
    }

    #[test]
    fn data_2_a_limited_split_keeps_its_samples_numbers() {
        let (whole, limited) = (Paired::train(split(100), 7), Paired::train(split(30), 7));
        assert_eq!(whole.numbers()[..30], *limited.numbers());
        assert_ne!(whole.numbers(), Paired::train(split(100), 8).numbers());
    }

    #[test]
    fn samples_come_in_the_order_asked_for_with_all_their_parts() {
        let paired = Paired::train(split(20), 1);
        let samples = paired.samples(&[13, 0, 13]).unwrap();
        assert_eq!(samples.ids(), [13, 0, 13]);
        assert_eq!(samples.labels(), [3, 0, 3]);
        let n = paired.numbers();
        assert_eq!(samples.numbers(), [n[13], n[0], n[13]]);
        assert_eq!(samples.pixels(), [[13u8; PIXELS], [0; PIXELS], [13; PIXELS]].concat());
        assert!(paired.samples(&[]).unwrap().is_empty());
    }

    #[test]
    fn an_id_of_no_sample_is_an_error() {
        let paired = Paired::test(split(20), 1);
        assert_eq!(paired.samples(&[0, 20]), Err(PairedError::Id { id: 20, len: 20 }));
        assert_eq!(paired.samples(&[u32::MAX]), Err(PairedError::Id { id: u32::MAX, len: 20 }));
    }
}
