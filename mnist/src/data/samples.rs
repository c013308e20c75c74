//! The samples of a microbatch, and the bytes as which they travel.

use std::borrow::Cow;

use tally_proto::convert::Microbatch;
use thiserror::Error;

/// Rows and columns of an image.
pub const SIDE: usize = 28;
/// Pixels, and bytes, of an image.
pub const PIXELS: usize = SIDE * SIDE;
/// Bytes of a sample as it travels: its pixels, its number, its label.
pub const ITEM: usize = PIXELS + 2;

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
    /// A sample of the wrong length.
    #[error("sample {id} has {bytes} bytes; a sample has {ITEM}: {PIXELS} pixels, a number and a label")]
    Length {
        /// The sample's id.
        id: u32,
        /// How many bytes it has.
        bytes: usize,
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

    /// The samples of a microbatch.
    ///
    /// # Errors
    /// [`BadSamples`] says which sample is wrong.
    pub fn decode(microbatch: &Microbatch) -> Result<Self, BadSamples> {
        let n = microbatch.len();
        let mut pixels = Vec::with_capacity(n * PIXELS);
        let (mut numbers, mut labels) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for (&id, item) in microbatch.ids().iter().zip(microbatch.items()) {
            let Ok(item) = <&[u8; ITEM]>::try_from(item) else {
                return Err(BadSamples::Length { id, bytes: item.len() });
            };
            let [own @ .., number, label] = item;
            let own: &[u8; PIXELS] = own;
            pixels.extend_from_slice(own);
            numbers.push(*number);
            labels.push(*label);
        }
        Self::new(microbatch.ids().to_vec(), pixels, numbers, labels)
    }

    /// The samples as a microbatch, of which [`decode`](Self::decode) makes the same samples.
    #[must_use]
    pub fn encode(&self) -> Microbatch {
        let items = self.pixels.chunks_exact(PIXELS).zip(self.numbers.iter().zip(&self.labels));
        let items = items.map(|(pixels, (&number, &label))| [pixels, &[number, label]].concat());
        Microbatch::new(self.ids.iter().copied().zip(items.map(Cow::Owned)))
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

    /// Their positions in the data's files, from 0.
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

    /// The right sum: number plus digit.
    #[must_use]
    pub fn sum(&self, index: usize) -> u8 {
        self.numbers[index] + self.labels[index]
    }

    /// The right difference: the absolute difference of number and digit.
    #[must_use]
    pub fn difference(&self, index: usize) -> u8 {
        self.numbers[index].abs_diff(self.labels[index])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn item(number: u8, label: u8) -> Vec<u8> {
        let mut item: Vec<u8> = (0..PIXELS).map(|pixel| pixel as u8).collect();
        item.extend([number, label]);
        item
    }

    fn decoded(item: &[u8]) -> Result<Samples, BadSamples> {
        Samples::decode(&Microbatch::new([(4, Cow::Borrowed(item)), (7, Cow::Owned(self::item(1, 2)))]))
    }

    #[test]
    fn samples_survive_the_wire() {
        let samples = decoded(&item(9, 0)).unwrap();
        assert_eq!(
            (samples.ids(), samples.numbers(), samples.labels()),
            (&[4, 7][..], &[9, 1][..], &[0, 2][..])
        );
        assert_eq!(samples.pixels()[PIXELS..PIXELS + 3], [0, 1, 2]);
        assert_eq!(Samples::decode(&samples.encode()), Ok(samples));
        assert!(Samples::decode(&Microbatch::default()).unwrap().is_empty());
    }

    /// TRUST-1: what a broken coordinator may send.
    #[test]
    fn trust_1_an_item_of_another_length_or_that_is_no_digit_is_named() {
        for bytes in [0, ITEM - 1, ITEM + 1] {
            assert_eq!(decoded(&vec![1; bytes]), Err(BadSamples::Length { id: 4, bytes }));
        }
        assert_eq!(decoded(&item(10, 0)), Err(BadSamples::NoDigit { id: 4, what: "number", value: 10 }));
        assert_eq!(decoded(&item(0, 255)), Err(BadSamples::NoDigit { id: 4, what: "label", value: 255 }));
    }
}
