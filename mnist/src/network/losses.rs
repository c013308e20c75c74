//! The losses, and their gradient by a network's outputs.
//!
//! Both are computed here, on the host, in double precision, sample after sample, with the exponential and logarithm
//! of the `libm` crate. So their bits depend neither on a device, nor on the width of SIMD vectors, nor on the
//! system's mathematics library. The training step and the test pass both use them. A NaN output gives a NaN loss.

use tally_numerics::schema::Sums;

use super::outputs::{OUTPUTS, Outputs, greatest, softmax};
use super::spec::LabelLoss;
use crate::data::Samples;

/// The three losses, as sums over samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// The digit's loss: cross-entropy, or `nll(softmax)` as in the PyTorch program from which the task comes.
    pub label: f64,
    /// Squared error of the sum.
    pub sum: f64,
    /// Squared error of the difference.
    pub difference: f64,
}

impl Losses {
    /// All three together.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.label + self.sum + self.difference
    }
}

/// In the order of the [schema](super::metrics::schema).
impl From<Losses> for Sums {
    fn from(Losses { label, sum, difference }: Losses) -> Self {
        Self(vec![label, sum, difference])
    }
}

impl Outputs {
    /// The losses' sums over the samples.
    ///
    /// # Panics
    /// If there are fewer outputs than samples.
    #[must_use]
    pub fn losses(&self, samples: &Samples, kind: LabelLoss) -> Losses {
        let mut losses = Losses::default();
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

/// The gradient of `scale` times the sum of the samples' losses by each output, laid out
/// as the outputs are.
///
/// With `p = softmax(z)` and `y` the label, by logit `z_j` it is `p_j − [j = y]` for
/// cross-entropy and `p_y·(p_j − [j = y])` for `−p_y`; by an output `s` with target `t`
/// it is `2(s − t)`.
#[must_use]
pub fn output_gradient(outputs: &Outputs, samples: &Samples, kind: LabelLoss, scale: f32) -> Vec<f32> {
    let scale = f64::from(scale);
    let mut gradient = Vec::with_capacity(samples.len() * OUTPUTS);
    for index in 0..samples.len() {
        let label = usize::from(samples.labels()[index]);
        let p = softmax(&outputs.logits[index]);
        let factor = match kind {
            LabelLoss::CrossEntropy => scale,
            LabelLoss::SoftmaxNll => scale * p[label],
        };
        gradient.extend((0..10).map(|j| (factor * (p[j] - f64::from(u8::from(j == label)))) as f32));
        for (output, target) in [
            (outputs.sums[index], samples.sum(index)),
            (outputs.differences[index], samples.difference(index)),
        ] {
            gradient.push((scale * 2.0 * (f64::from(output) - f64::from(target))) as f32);
        }
    }
    gradient
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::PIXELS;

    fn outputs(logits: [f32; 10]) -> Outputs {
        Outputs { logits: vec![logits], sums: vec![1.5], differences: vec![2.0] }
    }

    fn sample(label: u8, number: u8) -> Samples {
        Samples::new(vec![0], vec![0; PIXELS], vec![number], vec![label]).unwrap()
    }

    #[test]
    fn losses_are_those_of_the_formulas() {
        let losses = outputs([1.0; 10]).losses(&sample(4, 3), LabelLoss::CrossEntropy);
        assert!((losses.label - 10f64.ln()).abs() < 1e-15, "{losses:?}");
        assert_eq!((losses.sum, losses.difference), (5.5 * 5.5, 1.0));
        let losses = outputs([1.0; 10]).losses(&sample(4, 3), LabelLoss::SoftmaxNll);
        assert!((losses.label + 0.1).abs() < 1e-15, "{losses:?}");
    }

    #[test]
    fn great_logits_do_not_overflow() {
        let mut logits = [0.0; 10];
        logits[2] = 3.0e38;
        let right = outputs(logits).losses(&sample(2, 0), LabelLoss::CrossEntropy).label;
        let wrong = outputs(logits).losses(&sample(1, 0), LabelLoss::CrossEntropy).label;
        assert_eq!((right, wrong), (0.0, f64::from(3.0e38f32)));
    }

    #[test]
    fn a_nan_or_an_infinity_shows_in_the_loss() {
        for kind in [LabelLoss::CrossEntropy, LabelLoss::SoftmaxNll] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut logits = [0.0; 10];
                logits[8] = bad;
                assert!(outputs(logits).losses(&sample(1, 1), kind).label.is_nan(), "{bad} {kind}");
            }
        }
        let nan = Outputs { sums: vec![f32::NAN], ..outputs([0.0; 10]) };
        assert!(nan.losses(&sample(1, 1), LabelLoss::CrossEntropy).sum.is_nan());
    }

    #[test]
    fn it_is_the_slope_of_the_losses() {
        let samples = Samples::new(vec![0, 1], vec![0; 2 * PIXELS], vec![3, 9], vec![8, 2]).unwrap();
        let outputs: Vec<f32> = (0..24).map(|i| ((i * 7) % 11) as f32 * 0.25 - 1.0).collect();
        for kind in [LabelLoss::CrossEntropy, LabelLoss::SoftmaxNll] {
            let gradient = output_gradient(&Outputs::from_rows(&outputs), &samples, kind, 0.5);
            for i in 0..outputs.len() {
                // A power of two, so that the outputs' shifts are exact.
                let step = 1.0 / 256.0;
                let at = |shift: f32| {
                    let mut shifted = outputs.clone();
                    shifted[i] += shift;
                    Outputs::from_rows(&shifted).losses(&samples, kind).total()
                };
                let slope = 0.5 * (at(step) - at(-step)) / (2.0 * f64::from(step));
                assert!(
                    (slope - f64::from(gradient[i])).abs() < 1e-5,
                    "{kind}, output {i}: {slope}, {}",
                    gradient[i]
                );
            }
        }
    }

    #[test]
    fn a_nan_output_gives_a_nan_gradient() {
        let samples = Samples::new(vec![0], vec![0; PIXELS], vec![3], vec![8]).unwrap();
        let mut outputs = [0.5f32; OUTPUTS];
        outputs[4] = f32::NAN;
        outputs[11] = f32::NAN;
        for kind in [LabelLoss::CrossEntropy, LabelLoss::SoftmaxNll] {
            let gradient = output_gradient(&Outputs::from_rows(&outputs), &samples, kind, 1.0);
            assert!(gradient[..10].iter().all(|g| g.is_nan()) && gradient[11].is_nan(), "{gradient:?}");
            assert!(gradient[10].is_finite());
        }
    }
}
