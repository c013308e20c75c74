//! A few samples on their way to whoever computes with them.

use thiserror::Error;

/// Rows and columns of an image.
pub const SIDE: usize = 28;
/// Pixels, and bytes, of an image.
pub const PIXELS: usize = SIDE * SIDE;

/// Samples that do not fit together.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadSamples {
    /// The parts have different counts.
    #[error(
        "{ids} ids, {pixels} bytes of pixels, {numbers} numbers and {labels} labels do not make samples of {PIXELS} pixels"
    )]
    Counts {
        /// How many ids.
        ids: usize,
        /// How many bytes of pixels.
        pixels: usize,
        /// How many numbers.
        numbers: usize,
        /// How many labels.
        labels: usize,
    },
    /// A number or label that is no digit.
    #[error("sample {id}: its {what} is {value}, not a digit from 0 to 9")]
    NoDigit {
        /// The sample's id.
        id: u32,
        /// "number" or "label".
        what: &'static str,
        /// What it is instead.
        value: u8,
    },
}

/// Images with their numbers and labels. Only consistent ones exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    ids: Vec<u32>,
    pixels: Vec<u8>,
    numbers: Vec<u8>,
    labels: Vec<u8>,
}

impl Samples {
    /// Checks that every sample has all its parts: `n` ids, `n · 784` pixels (row-major,
    /// 0 is background), `n` numbers and `n` labels, all digits.
    ///
    /// # Errors
    /// [`BadSamples`] says which part is wrong.
    pub fn new(
        ids: Vec<u32>,
        pixels: Vec<u8>,
        numbers: Vec<u8>,
        labels: Vec<u8>,
    ) -> Result<Self, BadSamples> {
        let n = ids.len();
        if pixels.len() != n * PIXELS || numbers.len() != n || labels.len() != n {
            let (pixels, numbers, labels) = (pixels.len(), numbers.len(), labels.len());
            return Err(BadSamples::Counts { ids: n, pixels, numbers, labels });
        }
        for (what, values) in [("number", &numbers), ("label", &labels)] {
            if let Some(at) = values.iter().position(|&v| v > 9) {
                return Err(BadSamples::NoDigit { id: ids[at], what, value: values[at] });
            }
        }
        Ok(Self { ids, pixels, numbers, labels })
    }

    /// How many samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Their places in the data's files, from 0.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Their pixels, image after image.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The random numbers they are paired with.
    #[must_use]
    pub fn numbers(&self) -> &[u8] {
        &self.numbers
    }

    /// The digits they show.
    #[must_use]
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// What is to be answered: the sum of number and digit.
    #[must_use]
    pub fn sum(&self, index: usize) -> u8 {
        self.numbers[index] + self.labels[index]
    }

    /// What is to be answered: the absolute difference of number and digit.
    #[must_use]
    pub fn difference(&self, index: usize) -> u8 {
        self.numbers[index].abs_diff(self.labels[index])
    }
}
