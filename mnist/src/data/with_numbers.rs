//! A split with the random number 0-9 that each image is paired with (**DATA-2**).
//!
//! The numbers are drawn once for a run, in file order, from the run's seed and nothing else. So a sample keeps its
//! number in every epoch and on every worker, and the samples of a limited split have the same numbers as in the
//! whole split.

use std::borrow::Cow;
use std::sync::Arc;

use tally_numerics::random::{Purpose, Stream};
use tally_proto::convert::Microbatch;

use super::mnist::Split;
use super::samples::PIXELS;

/// A split and its random numbers. Cheap to clone: clones share the bytes.
#[derive(Clone, Debug)]
pub struct MnistWithNumbers {
    split: Split,
    numbers: Arc<[u8]>,
}

impl MnistWithNumbers {
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

    /// Sample `id` as it is sent to workers: its pixels, number and label ([`Samples::decode`](super::Samples::decode)).
    ///
    /// # Panics
    /// If there is no sample `id`.
    #[must_use]
    pub fn item(&self, id: u32) -> Cow<'_, [u8]> {
        let index = id as usize;
        let pixels = &self.split.pixels()[index * PIXELS..(index + 1) * PIXELS];
        Cow::Owned([pixels, &[self.numbers[index], self.split.labels()[index]]].concat())
    }

    /// The samples of `ids` as a microbatch, in the order given; an id may come more than once.
    ///
    /// # Panics
    /// If there is no sample of an id.
    #[must_use]
    pub fn microbatch(&self, ids: impl IntoIterator<Item = u32>) -> Microbatch {
        Microbatch::new(ids.into_iter().map(|id| (id, self.item(id))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::Samples;

    fn split(n: usize) -> Split {
        let pixels = (0..n).flat_map(|i| [i as u8; PIXELS]).collect();
        Split::new("training", pixels, (0..n).map(|i| (i % 10) as u8).collect()).unwrap()
    }

    /// DATA-2: the numbers are pinned. They were computed by a second implementation.
    #[test]
    fn data_2_the_numbers_are_pinned() {
        assert_eq!(MnistWithNumbers::train(split(12), 1).numbers(), [2, 7, 4, 3, 0, 0, 1, 0, 0, 7, 6, 5]);
        assert_eq!(MnistWithNumbers::test(split(12), 1).numbers(), [3, 3, 8, 3, 8, 3, 7, 9, 8, 0, 7, 5]);
    }

    #[test]
    fn data_2_a_limited_split_keeps_its_samples_numbers() {
        let (whole, limited) =
            (MnistWithNumbers::train(split(100), 7), MnistWithNumbers::train(split(30), 7));
        assert_eq!(whole.numbers()[..30], *limited.numbers());
        assert_ne!(whole.numbers(), MnistWithNumbers::train(split(100), 8).numbers());
    }

    #[test]
    fn a_microbatch_has_its_samples_in_the_order_asked_for_with_all_their_parts() {
        let data = MnistWithNumbers::train(split(20), 1);
        let samples = Samples::decode(&data.microbatch([13, 0, 13])).unwrap();
        assert_eq!(samples.ids(), [13, 0, 13]);
        assert_eq!(samples.labels(), [3, 0, 3]);
        let n = data.numbers();
        assert_eq!(samples.numbers(), [n[13], n[0], n[13]]);
        assert_eq!(samples.pixels(), [[13u8; PIXELS], [0; PIXELS], [13; PIXELS]].concat());
        assert!(data.microbatch([]).is_empty());
    }
}
