//! Checked conversions between messages and the types of the other crates.

use tally_data::samples::{BadSamples, Samples};
use tally_exact::loss::LossParts;
use tally_exact::manifest::{BadManifest, Manifest, TensorSpec};
use thiserror::Error;

use crate::floats::{self, BadLength};
use crate::{MAX_LEAF_SAMPLES, v1};

/// A message that does not say what it must.
#[derive(Debug, Error, PartialEq)]
pub enum BadMessage {
    /// A part that every message of its kind has is missing.
    #[error("a {0} is missing from the message")]
    Missing(&'static str),
    /// A leaf with more samples than one may have.
    #[error("a leaf of {0} samples; the most is {MAX_LEAF_SAMPLES}")]
    LeafTooLarge(usize),
    /// Losses that are NaN, infinite or absurdly large.
    #[error("a leaf's losses are no sound numbers")]
    Losses,
    /// Answers whose parts have different counts.
    #[error("answers for {got} samples where {wanted} were asked for")]
    Answers {
        /// How many came.
        got: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// An answered digit that is none.
    #[error("an answered digit is {0}")]
    Digit(u8),
    /// Spans that cannot be of one worker's time.
    #[error("its spans are out of order, too many, or of no time")]
    Spans,
    /// What no clock shows.
    #[error("its clock shows no time")]
    Clock,
    /// Samples that do not fit together.
    #[error(transparent)]
    Samples(#[from] BadSamples),
    /// A manifest that cannot be one.
    #[error(transparent)]
    Manifest(#[from] BadManifest),
    /// Floats of the wrong length.
    #[error(transparent)]
    Floats(#[from] BadLength),
}

impl From<LossParts> for v1::Losses {
    fn from(l: LossParts) -> Self {
        Self { label: l.label, sum: l.sum, difference: l.difference }
    }
}

impl From<v1::Losses> for LossParts {
    fn from(l: v1::Losses) -> Self {
        Self { label: l.label, sum: l.sum, difference: l.difference }
    }
}

/// A manifest as an offer.
#[must_use]
pub fn offer(manifest: &Manifest, device: String, kind: String) -> v1::Offer {
    let tensors = manifest.tensors().iter().map(|t| v1::Tensor {
        name: t.name.clone(),
        shape: t.shape.clone(),
        bound: t.bound,
    });
    v1::Offer { tensors: tensors.collect(), device, kind }
}

/// The manifest of an offer.
///
/// # Errors
/// [`BadMessage::Manifest`] if it cannot be one.
pub fn manifest(offer: v1::Offer) -> Result<Manifest, BadMessage> {
    let tensors = offer.tensors.into_iter();
    let tensors = tensors.map(|t| TensorSpec { name: t.name, shape: t.shape, bound: t.bound });
    Ok(Manifest::new(tensors.collect())?)
}

/// Samples as the leaf of a step or of the test pass.
#[must_use]
pub fn leaf(leaf: u32, test: bool, samples: &Samples) -> v1::Leaf {
    v1::Leaf {
        leaf,
        test,
        ids: samples.ids().to_vec(),
        pixels: samples.pixels().to_vec().into(),
        numbers: samples.numbers().to_vec().into(),
        labels: samples.labels().to_vec().into(),
    }
}

/// The samples of a leaf.
///
/// # Errors
/// [`BadMessage`] if they do not fit together or are too many.
pub fn samples(leaf: v1::Leaf) -> Result<Samples, BadMessage> {
    if leaf.ids.len() > MAX_LEAF_SAMPLES {
        return Err(BadMessage::LeafTooLarge(leaf.ids.len()));
    }
    Ok(Samples::new(leaf.ids, leaf.pixels.into(), leaf.numbers.into(), leaf.labels.into())?)
}

/// What the network answered for a leaf of the test pass.
#[derive(Clone, Debug, PartialEq)]
pub struct LeafAnswers {
    /// Sums of the losses over the leaf's samples.
    pub losses: LossParts,
    /// The most likely digit of each sample.
    pub digits: Vec<u8>,
    /// The answered sum of each sample.
    pub sums: Vec<f32>,
    /// The answered difference of each sample.
    pub differences: Vec<f32>,
}

impl LeafAnswers {
    /// As a message.
    #[must_use]
    pub fn to_message(&self, leaf: u32) -> v1::Answers {
        v1::Answers {
            leaf,
            losses: Some(self.losses.into()),
            digits: self.digits.clone().into(),
            sums: floats::copy(&self.sums),
            differences: floats::copy(&self.differences),
            spans: Vec::new(),
        }
    }

    /// From a message that answers `wanted` samples. Losses may be NaN: a diverged network
    /// answers too.
    ///
    /// # Errors
    /// [`BadMessage`] if a part is missing, has another count, or is no digit.
    pub fn from_message(message: &v1::Answers, wanted: usize) -> Result<Self, BadMessage> {
        let got = message.digits.len();
        if got != wanted {
            return Err(BadMessage::Answers { got, wanted });
        }
        if let Some(&digit) = message.digits.iter().find(|&&d| d > 9) {
            return Err(BadMessage::Digit(digit));
        }
        Ok(Self {
            losses: message.losses.ok_or(BadMessage::Missing("loss"))?.into(),
            digits: message.digits.to_vec(),
            sums: floats::to_vec(&message.sums, wanted)?,
            differences: floats::to_vec(&message.differences, wanted)?,
        })
    }
}

/// A receipt's leaf, samples and losses.
///
/// # Errors
/// [`BadMessage`] if the losses are missing or no sound numbers.
pub fn receipt(receipt: &v1::Receipt) -> Result<(u32, u32, LossParts), BadMessage> {
    let losses: LossParts = receipt.losses.ok_or(BadMessage::Missing("loss"))?.into();
    // Far above any loss in single precision, and far below where a sum could overflow.
    let sound = |part: f64| part.is_finite() && part.abs() < 1e200;
    if !(sound(losses.label) && sound(losses.sum) && sound(losses.difference)) {
        return Err(BadMessage::Losses);
    }
    Ok((receipt.leaf, receipt.samples, losses))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn two_samples() -> Samples {
        Samples::new(vec![3, 9], vec![7; 2 * 784], vec![1, 2], vec![5, 0]).unwrap()
    }

    #[test]
    fn samples_and_manifests_survive_the_wire() {
        assert_eq!(samples(leaf(4, false, &two_samples())).unwrap(), two_samples());
        let there = Manifest::new(vec![TensorSpec::with_fan_in("a", &[2, 3], 7)]).unwrap();
        assert_eq!(manifest(offer(&there, String::new(), String::new())).unwrap(), there);
    }

    #[test]
    fn trust_1_what_does_not_fit_is_refused() {
        let broken = |spoil: fn(&mut v1::Leaf)| {
            let mut message = leaf(0, false, &two_samples());
            spoil(&mut message);
            samples(message).unwrap_err()
        };
        assert!(matches!(broken(|l| l.pixels = vec![0; 9].into()), BadMessage::Samples(_)));
        assert!(matches!(broken(|l| l.numbers = vec![1, 10].into()), BadMessage::Samples(_)));
        assert!(matches!(broken(|l| l.ids = vec![0; 1 << 16]), BadMessage::LeafTooLarge(_)));

        let good = LeafAnswers {
            losses: LossParts::default(),
            digits: vec![1, 9],
            sums: vec![0.5, 1.0],
            differences: vec![0.0, 2.0],
        };
        let message = good.to_message(3);
        assert_eq!(LeafAnswers::from_message(&message, 2).unwrap(), good);
        assert!(LeafAnswers::from_message(&message, 3).is_err());
        let short = v1::Answers { sums: vec![0; 4].into(), ..message.clone() };
        assert!(LeafAnswers::from_message(&short, 2).is_err());
        let no_digit = v1::Answers { digits: vec![1, 10].into(), ..message };
        assert_eq!(LeafAnswers::from_message(&no_digit, 2), Err(BadMessage::Digit(10)));
    }
}
