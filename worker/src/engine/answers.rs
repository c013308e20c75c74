//! What a network answers, and how wrong it is.
//!
//! The losses are worked out here, on the host, in double, sample after sample, with the
//! `libm` crate's exponential and logarithm: their bits depend neither on a device, nor on
//! vector lanes, nor on the system's own mathematics library. The training step and the
//! test pass both use them. A NaN answer gives a NaN loss.

use tally_data::Samples;
use tally_numerics::loss::LossParts;

use super::spec::LabelLoss;

/// A network's answers for a few samples, in the samples' order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// For each digit a score; the greatest is the answer.
    pub logits: Vec<[f32; 10]>,
    /// Number plus digit.
    pub sums: Vec<f32>,
    /// Their absolute difference.
    pub differences: Vec<f32>,
}

impl Answers {
    /// How many samples were answered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.logits.len()
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logits.is_empty()
    }

    /// The digit with the greatest score, the first of equals. A NaN is no answer: it
    /// never wins, and 0 stands if all scores are NaN.
    ///
    /// # Panics
    /// If there is no sample `index`.
    #[must_use]
    pub fn digit(&self, index: usize) -> u8 {
        let mut best: Option<(u8, f32)> = None;
        for (digit, &score) in (0u8..).zip(&self.logits[index]) {
            if !score.is_nan() && best.is_none_or(|(_, most)| score > most) {
                best = Some((digit, score));
            }
        }
        best.map_or(0, |(digit, _)| digit)
    }

    /// The losses' sums over the samples.
    ///
    /// # Panics
    /// If there are fewer answers than samples.
    #[must_use]
    pub fn losses(&self, samples: &Samples, kind: LabelLoss) -> LossParts {
        let mut losses = LossParts::default();
        for index in 0..samples.len() {
            let logits = &self.logits[index];
            let label = usize::from(samples.labels()[index]);
            losses.label += match kind {
                LabelLoss::CrossEntropy => cross_entropy(logits, label),
                LabelLoss::SoftmaxNll => -softmax(logits)[label],
            };
            losses.sum += square(f64::from(self.sums[index]) - f64::from(samples.sum(index)));
            losses.difference +=
                square(f64::from(self.differences[index]) - f64::from(samples.difference(index)));
        }
        losses
    }
}

fn square(x: f64) -> f64 {
    x * x
}

/// `−log softmax(logits)[label]`, as `log Σ exp(z − max) − (z[label] − max)`: nothing
/// overflows, and a label that is nearly certain keeps its small loss.
fn cross_entropy(logits: &[f32; 10], label: usize) -> f64 {
    let most = greatest(logits);
    let sum: f64 = logits.iter().map(|&z| libm::exp(f64::from(z) - most)).sum();
    libm::log(sum) - (f64::from(logits[label]) - most)
}

/// The logits as probabilities.
pub(crate) fn softmax(logits: &[f32; 10]) -> [f64; 10] {
    let most = greatest(logits);
    let powers = logits.map(|z| libm::exp(f64::from(z) - most));
    let sum: f64 = powers.iter().sum();
    powers.map(|power| power / sum)
}

/// The greatest logit. A NaN among them may be passed over: it shows in the sum.
fn greatest(logits: &[f32; 10]) -> f64 {
    f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_data::samples::PIXELS;

    use super::*;

    fn answers(logits: [f32; 10]) -> Answers {
        Answers { logits: vec![logits], sums: vec![1.5], differences: vec![2.0] }
    }

    fn sample(label: u8, number: u8) -> Samples {
        Samples::new(vec![0], vec![0; PIXELS], vec![number], vec![label]).unwrap()
    }

    #[test]
    fn the_digit_is_the_first_of_the_greatest_scores() {
        let mut logits = [0.0; 10];
        logits[3] = 2.0;
        logits[7] = 2.0;
        assert_eq!(answers(logits).digit(0), 3);
    }

    #[test]
    fn a_nan_never_wins_wherever_it_stands() {
        let mut logits = [-5.0; 10];
        (logits[0], logits[4], logits[9]) = (f32::NAN, -1.0, f32::NAN);
        assert_eq!(answers(logits).digit(0), 4);
        assert_eq!(answers([f32::NAN; 10]).digit(0), 0);
        assert_eq!(answers([f32::NEG_INFINITY; 10]).digit(0), 0);
    }

    #[test]
    fn losses_are_those_of_the_formulas() {
        let losses = answers([1.0; 10]).losses(&sample(4, 3), LabelLoss::CrossEntropy);
        assert!((losses.label - 10f64.ln()).abs() < 1e-15, "{losses:?}");
        assert_eq!((losses.sum, losses.difference), (5.5 * 5.5, 1.0));
        let losses = answers([1.0; 10]).losses(&sample(4, 3), LabelLoss::SoftmaxNll);
        assert!((losses.label + 0.1).abs() < 1e-15, "{losses:?}");
    }

    #[test]
    fn great_logits_do_not_overflow() {
        let mut logits = [0.0; 10];
        logits[2] = 3.0e38;
        let right = answers(logits).losses(&sample(2, 0), LabelLoss::CrossEntropy).label;
        let wrong = answers(logits).losses(&sample(1, 0), LabelLoss::CrossEntropy).label;
        assert_eq!((right, wrong), (0.0, f64::from(3.0e38f32)));
    }

    #[test]
    fn a_nan_or_an_infinity_shows_in_the_loss() {
        for kind in [LabelLoss::CrossEntropy, LabelLoss::SoftmaxNll] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut logits = [0.0; 10];
                logits[8] = bad;
                assert!(answers(logits).losses(&sample(1, 1), kind).label.is_nan(), "{bad} {kind}");
            }
        }
        let nan = Answers { sums: vec![f32::NAN], ..answers([0.0; 10]) };
        assert!(nan.losses(&sample(1, 1), LabelLoss::CrossEntropy).sum.is_nan());
    }
}
