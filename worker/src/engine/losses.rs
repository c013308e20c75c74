//! The gradient of the losses by a network's outputs, with which its backward pass starts.
//!
//! Worked out on the host in double, as the losses themselves are
//! ([`Answers::losses`](crate::engine::Answers::losses)), so that no device's
//! exponential and no vector lane has a say in it. Only twelve numbers a sample travel.

use tally_data::Samples;

use super::answers::{Answers, softmax};
use super::spec::LabelLoss;

/// Outputs of a sample: ten logits, the sum, the difference.
pub const OUTPUTS: usize = 12;

/// A network's outputs, [`OUTPUTS`] a sample, as answers.
#[must_use]
pub fn answers(outputs: &[f32]) -> Answers {
    let mut answers = Answers::default();
    for row in outputs.as_chunks::<OUTPUTS>().0 {
        let [logits @ .., sum, difference] = *row;
        answers.logits.push(logits);
        answers.sums.push(sum);
        answers.differences.push(difference);
    }
    answers
}

/// The gradient of `scale` times the sum of the samples' losses by each output, laid out
/// as the outputs are.
///
/// With `p = softmax(z)` and `y` the label, by logit `z_j` it is `p_j − [j = y]` for
/// cross-entropy and `p_y·(p_j − [j = y])` for `−p_y`; by an answer `s` with target `t`
/// it is `2(s − t)`.
#[must_use]
pub fn output_gradient(answers: &Answers, samples: &Samples, kind: LabelLoss, scale: f32) -> Vec<f32> {
    let scale = f64::from(scale);
    let mut gradient = Vec::with_capacity(samples.len() * OUTPUTS);
    for index in 0..samples.len() {
        let label = usize::from(samples.labels()[index]);
        let p = softmax(&answers.logits[index]);
        let factor = match kind {
            LabelLoss::CrossEntropy => scale,
            LabelLoss::SoftmaxNll => scale * p[label],
        };
        gradient.extend((0..10).map(|j| (factor * (p[j] - f64::from(u8::from(j == label)))) as f32));
        for (answer, target) in [
            (answers.sums[index], samples.sum(index)),
            (answers.differences[index], samples.difference(index)),
        ] {
            gradient.push((scale * 2.0 * (f64::from(answer) - f64::from(target))) as f32);
        }
    }
    gradient
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_data::samples::PIXELS;

    use super::*;

    #[test]
    fn it_is_the_slope_of_the_losses() {
        let samples = Samples::new(vec![0, 1], vec![0; 2 * PIXELS], vec![3, 9], vec![8, 2]).unwrap();
        let outputs: Vec<f32> = (0..24).map(|i| ((i * 7) % 11) as f32 * 0.25 - 1.0).collect();
        for kind in [LabelLoss::CrossEntropy, LabelLoss::SoftmaxNll] {
            let gradient = output_gradient(&answers(&outputs), &samples, kind, 0.5);
            for i in 0..outputs.len() {
                // A power of two, so that the outputs' shifts are exact.
                let step = 1.0 / 256.0;
                let at = |shift: f32| {
                    let mut shifted = outputs.clone();
                    shifted[i] += shift;
                    answers(&shifted).losses(&samples, kind).total()
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
            let gradient = output_gradient(&answers(&outputs), &samples, kind, 1.0);
            assert!(gradient[..10].iter().all(|g| g.is_nan()) && gradient[11].is_nan(), "{gradient:?}");
            assert!(gradient[10].is_finite());
        }
    }
}
