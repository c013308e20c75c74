//! The streams of random words from which a run is drawn (**DATA-2**).
//!
//! These rules never change: a change of one of them would change every run.
//!
//! * A stream is the output of ChaCha8 (Bernstein 2008; 8 rounds, 64-bit counter from 0,
//!   stream 0) read as 32-bit little-endian words from the first.
//! * Its 32-byte key is four little-endian 64-bit numbers: the run's seed, the purpose's
//!   code, an index (the epoch of a permutation, the name's hash of a tensor, `step·2³²` plus the number of a sample
//!   or microbatch, else 0), and
//!   `0x594C4C4154` (the letters `TALLY`).
//! * A draw below `n` is Lemire's: for a word `x`, `m = x·n` in 64 bits; if the low half of
//!   `m` is below `2³² mod n`, the next word is taken; the answer is the high half.
//! * A permutation starts from `0, 1, …, n−1` and for `i = n−1 … 1` swaps place `i` with
//!   place `draw(i+1)` (Fisher and Yates, in Durstenfeld's form).
//! * A fraction in `[0, 1)` is `word >> 8` over `2²⁴`.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The purpose of a stream. Each purpose has its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The numbers 0-9 paired with the training samples, in file order.
    TrainNumbers,
    /// The numbers 0-9 paired with the test samples, in file order.
    TestNumbers,
    /// The order of the training samples in an epoch.
    Permutation {
        /// The epoch, from 1.
        epoch: u32,
    },
    /// A tensor's initial values, row-major.
    Initial {
        /// [`fnv1a`](crate::digest::fnv1a) of the tensor's name.
        name: u64,
    },
    /// The augmentation of a sample in a step.
    Augmentation {
        /// The step, from 1.
        step: u64,
        /// The sample's id.
        sample: u32,
    },
    /// What a model draws while it computes with a microbatch, such as dropout's masks.
    Layers {
        /// The step, from 1.
        step: u64,
        /// The microbatch's place among the leaves of the tree, from 0.
        leaf: u32,
    },
}

impl Purpose {
    fn code_and_index(self) -> (u64, u64) {
        match self {
            Self::TrainNumbers => (1, 0),
            Self::TestNumbers => (2, 0),
            Self::Permutation { epoch } => (3, u64::from(epoch)),
            Self::Initial { name } => (4, name),
            Self::Augmentation { step, sample } => (5, step << 32 | u64::from(sample)),
            Self::Layers { step, leaf } => (6, step << 32 | u64::from(leaf)),
        }
    }
}

/// A stream of random words, fixed by seed and purpose.
#[derive(Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of a run's seed for a purpose.
    #[must_use]
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        let (code, index) = purpose.code_and_index();
        let mut key = [0u8; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip([seed, code, index, 0x0059_4C4C_4154]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// The next word.
    pub fn word(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// A number below `n`, uniformly distributed; 0 if `n` is 0.
    pub fn below(&mut self, n: u32) -> u32 {
        if n == 0 {
            return 0;
        }
        let reject = n.wrapping_neg() % n;
        loop {
            let product = u64::from(self.word()) * u64::from(n);
            if product as u32 >= reject {
                return (product >> 32) as u32;
            }
        }
    }

    /// A number in `[0, 1)` with 24 bits.
    pub fn fraction(&mut self) -> f64 {
        f64::from(self.word() >> 8) / f64::from(1u32 << 24)
    }

    /// A permutation of `0..n`.
    #[must_use]
    pub fn permutation(mut self, n: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).collect();
        for i in (1..n).rev() {
            let j = self.below(i + 1);
            order.swap(i as usize, j as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// DATA-2: the streams are pinned. A change here changes every run.
    #[test]
    fn data_2_streams_are_pinned() {
        let mut stream = Stream::new(1, Purpose::TrainNumbers);
        assert_eq!([0; 4].map(|_| stream.word()), PINNED_WORDS);
        let mut stream = Stream::new(1, Purpose::TestNumbers);
        assert_eq!([0; 12].map(|_| stream.below(10)), PINNED_NUMBERS);
        assert_eq!(Stream::new(1, Purpose::Permutation { epoch: 1 }).permutation(10), PINNED_ORDER);
    }
    const PINNED_WORDS: [u32; 4] = [1_063_698_471, 3_118_473_707, 2_146_053_628, 1_444_280_143];
    const PINNED_NUMBERS: [u32; 12] = [3, 3, 8, 3, 8, 3, 7, 9, 8, 0, 7, 5];
    const PINNED_ORDER: [u32; 10] = [9, 5, 2, 3, 6, 0, 4, 8, 1, 7];

    #[test]
    fn seed_purpose_and_epoch_each_give_another_stream() {
        let first = |seed, purpose| Stream::new(seed, purpose).word();
        let mut words = vec![
            first(1, Purpose::TrainNumbers),
            first(2, Purpose::TrainNumbers),
            first(1, Purpose::TestNumbers),
            first(1, Purpose::Permutation { epoch: 1 }),
            first(1, Purpose::Permutation { epoch: 2 }),
            first(1, Purpose::Initial { name: 1 }),
            first(1, Purpose::Augmentation { step: 1, sample: 1 }),
            first(1, Purpose::Augmentation { step: 2, sample: 1 }),
            first(1, Purpose::Augmentation { step: 1, sample: 2 }),
            first(1, Purpose::Layers { step: 1, leaf: 1 }),
        ];
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 10);
    }

    #[test]
    fn draws_are_even() {
        let mut stream = Stream::new(7, Purpose::TrainNumbers);
        let mut counts = [0u32; 10];
        for _ in 0..100_000 {
            counts[stream.below(10) as usize] += 1;
        }
        // Six standard deviations of a binomial(100 000, 1/10) are 570.
        assert!(counts.iter().all(|c| c.abs_diff(10_000) < 570), "{counts:?}");
    }

    proptest! {
        #[test]
        fn a_permutation_has_every_number_once(seed: u64, epoch: u32, n in 0u32..500) {
            let mut order = Stream::new(seed, Purpose::Permutation { epoch }).permutation(n);
            order.sort_unstable();
            prop_assert!(order.into_iter().eq(0..n));
        }
    }
}
