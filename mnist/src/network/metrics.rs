//! The losses and metrics of the program: their [schema](tally_numerics::schema), and their sums over a microbatch of
//! the test pass.

use tally_numerics::schema::{LossSpec, MetricKind, MetricSpec, Schema, Sums};

use super::outputs::Outputs;
use super::spec::LabelLoss;
use crate::data::Samples;

/// The metric that picks the best checkpoint: the share of samples whose three predictions are all right.
pub const ALL_CORRECT: &str = "all_correct";

/// Errors from −`MAX_ERROR` to `MAX_ERROR` have a bin each in a histogram; larger ones are counted in the outermost
/// bins.
const MAX_ERROR: i64 = 10;
const BINS: usize = 2 * MAX_ERROR as usize + 1;

/// The program's losses and metrics. A sum or a difference is right if the nearest integer is.
///
/// # Panics
/// Never: a test reads the schema.
#[must_use]
#[allow(clippy::expect_used)] // The names are part of the program.
pub fn schema() -> Schema {
    let loss = |name: &str, label: &str| LossSpec { name: name.into(), label: label.into() };
    let metric = |name: &str, label: &str, kind| MetricSpec { name: name.into(), label: label.into(), kind };
    let share = || MetricKind::Ratio { higher_is_better: true };
    let errors = || MetricKind::Histogram { first: -MAX_ERROR, bins: BINS };
    let losses = vec![loss("label", "digit"), loss("sum", "sum"), loss("difference", "difference")];
    let metrics = vec![
        metric("digit_accuracy", "digit", share()),
        metric("sum_accuracy", "sum", share()),
        metric("difference_accuracy", "difference", share()),
        metric(ALL_CORRECT, "all three", share()),
        metric("confusion", "digits", MetricKind::Confusion { classes: 10 }),
        metric("sum_errors", "errors of the sum", errors()),
        metric("difference_errors", "errors of the difference", errors()),
    ];
    Schema::new(losses, metrics, Some(ALL_CORRECT.into())).expect("the program's schema is one")
}

/// The bin of an error in its histogram. A NaN is a large error.
fn bin(error: f32) -> usize {
    let error = if error.is_nan() { MAX_ERROR } else { (error.round() as i64).clamp(-MAX_ERROR, MAX_ERROR) };
    (error + MAX_ERROR) as usize
}

/// The bin of a right prediction.
const RIGHT: usize = MAX_ERROR as usize;

impl Outputs {
    /// The sums of losses and metrics over the samples, in the order of the [`schema`].
    ///
    /// # Panics
    /// If there are fewer outputs than samples.
    #[must_use]
    pub fn sums(&self, samples: &Samples, label_loss: LabelLoss) -> Sums {
        let mut correct = [0u32; 4];
        let mut confusion = [[0u32; 10]; 10];
        let mut errors = [[0u32; BINS]; 2];
        for index in 0..samples.len() {
            let (label, digit) = (samples.labels()[index], self.digit(index));
            let bins = [
                bin(self.sums[index] - f32::from(samples.sum(index))),
                bin(self.differences[index] - f32::from(samples.difference(index))),
            ];
            let right = [digit == label, bins[0] == RIGHT, bins[1] == RIGHT];
            for (count, right) in correct.iter_mut().zip([right[0], right[1], right[2], right == [true; 3]]) {
                *count += u32::from(right);
            }
            confusion[usize::from(label)][usize::from(digit)] += 1;
            for (counts, bin) in errors.iter_mut().zip(bins) {
                counts[bin] += 1;
            }
        }
        let Sums(mut sums) = self.losses(samples, label_loss).into();
        sums.extend(correct.iter().flat_map(|&count| [f64::from(count), samples.len() as f64]));
        sums.extend(
            confusion.as_flattened().iter().chain(errors.as_flattened()).map(|&count| f64::from(count)),
        );
        Sums(sums)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_numerics::schema::MetricValue;

    use super::*;
    use crate::data::PIXELS;

    /// Three samples: all right; a wrong digit and a sum that is off by 2; a NaN and a difference that is far off.
    fn sums() -> Sums {
        let samples = Samples::new(vec![0, 1, 2], vec![0; 3 * PIXELS], vec![3, 9, 0], vec![8, 2, 5]).unwrap();
        let logits = [8, 7, 5].map(|digit| std::array::from_fn(|d| f32::from(u8::from(d == digit))));
        let outputs = Outputs {
            logits: logits.into(),
            sums: vec![11.4, 12.6, f32::NAN],
            differences: vec![4.6, 7.4, -1e9],
        };
        outputs.sums(&samples, LabelLoss::CrossEntropy)
    }

    #[test]
    fn a_test_pass_counts_what_is_right_and_how_far_the_rest_is_off() {
        assert_eq!(sums().0.len(), schema().width());
        let evaluation = schema().evaluation(3, [Some(sums())]);
        let ratios = ["digit_accuracy", "sum_accuracy", "difference_accuracy", ALL_CORRECT];
        let third = 1.0 / 3.0;
        assert_eq!(ratios.map(|name| evaluation.ratio(name)), [2.0 / 3.0, third, 2.0 / 3.0, third]);
        assert_eq!(schema().score(&evaluation), third);
        let histogram = |bins: [usize; 3]| {
            let mut counts = vec![0; BINS];
            bins.into_iter().for_each(|bin| counts[bin] += 1);
            MetricValue::Histogram(counts)
        };
        assert_eq!(evaluation.metrics["sum_errors"], histogram([RIGHT, RIGHT + 2, BINS - 1]));
        assert_eq!(evaluation.metrics["difference_errors"], histogram([RIGHT, RIGHT, 0]));
        let mut confusion = vec![vec![0; 10]; 10];
        (confusion[8][8], confusion[2][7], confusion[5][5]) = (1, 1, 1);
        assert_eq!(evaluation.metrics["confusion"], MetricValue::Confusion(confusion));
    }

    #[test]
    fn the_first_sums_are_the_losses() {
        let Sums(sums) = sums();
        assert!((sums[0] - (2.0 * ((9.0 + 1f64.exp()).ln() - 1.0) + (9.0 + 1f64.exp()).ln())).abs() < 1e-12);
        assert!(sums[1].is_nan());
        assert!((sums[2] - (0.4f64.powi(2) + 0.4f64.powi(2) + (1e9f64 + 5.0).powi(2))).abs() < 1e6);
    }
}
