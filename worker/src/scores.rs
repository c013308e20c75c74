//! What the test pass found: accuracies, confusion matrix, error histograms.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tally_data::Paired;
use tally_numerics::loss::LossParts;
use tally_proto::convert::LeafAnswers;

/// Samples of a leaf of the test pass; fixed, so that its sums are.
pub const TEST_LEAF: usize = 100;

/// Errors of −`REACH`..=`REACH` have a bin each in a histogram; those beyond share the
/// outermost ones.
pub const REACH: i64 = 10;

/// A test pass's result. Fractions are from 0 to 1; a sum or difference is right when the
/// nearest integer is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Mean loss over the test set, all parts together.
    pub loss: f64,
    /// The same by part.
    pub loss_parts: LossParts,
    /// Share of digits that are right.
    pub digit_accuracy: f64,
    /// Share of sums that are right.
    pub sum_accuracy: f64,
    /// Share of differences that are right.
    pub difference_accuracy: f64,
    /// Share of samples with all three right.
    pub all_correct: f64,
    /// Samples of the test set.
    pub samples: usize,
    /// Digits that are right.
    pub digits_correct: usize,
    /// `confusion[true digit][answered digit]`.
    pub confusion: Vec<Vec<u32>>,
    /// How often the rounded sum was off by −10 (or less) … 10 (or more).
    pub sum_errors: Vec<u32>,
    /// How often the rounded difference was off by −10 (or less) … 10 (or more).
    pub difference_errors: Vec<u32>,
}

fn bin(error: f32) -> usize {
    let error = if error.is_nan() { REACH } else { (error.round() as i64).clamp(-REACH, REACH) };
    (error + REACH) as usize
}

/// Scores the answers of all leaves; losses are added along their own fixed tree, so that
/// who answered which leaf changes no bit.
///
/// # Panics
/// If an answered leaf lies outside `data`; the core deals only leaves that are inside.
#[must_use]
pub fn score(data: &Paired, answers: &BTreeMap<u32, LeafAnswers>) -> Scores {
    let bins = 2 * REACH as usize + 1;
    let (mut confusion, mut sum_errors, mut difference_errors) =
        (vec![vec![0u32; 10]; 10], vec![0u32; bins], vec![0u32; bins]);
    let (mut samples, mut digit, mut sum, mut difference, mut all) = (0usize, 0usize, 0usize, 0usize, 0usize);
    for (&leaf, answer) in answers {
        for (i, &answered) in answer.digits.iter().enumerate() {
            let id = leaf as usize * TEST_LEAF + i;
            let (label, number) = (data.split().labels()[id], data.numbers()[id]);
            let sum_bin = bin(answer.sums[i] - f32::from(number + label));
            let difference_bin = bin(answer.differences[i] - f32::from(number.abs_diff(label)));
            let right = [answered == label, sum_bin == REACH as usize, difference_bin == REACH as usize];
            samples += 1;
            digit += usize::from(right[0]);
            sum += usize::from(right[1]);
            difference += usize::from(right[2]);
            all += usize::from(right == [true; 3]);
            confusion[usize::from(label)][usize::from(answered)] += 1;
            sum_errors[sum_bin] += 1;
            difference_errors[difference_bin] += 1;
        }
    }
    let leaves = answers.len().next_power_of_two() as u32;
    let losses = (0..leaves).map(|leaf| answers.get(&leaf).map(|a| a.losses));
    // JSON has no NaN; a diverged network's loss is written as the largest number.
    let number = |x: f64| if x.is_finite() { x } else { f64::MAX };
    let share = |count: usize| count as f64 / samples.max(1) as f64;
    let loss_parts = LossParts::along_tree(losses).scaled(1.0 / samples.max(1) as f64);
    Scores {
        loss: number(loss_parts.total()),
        loss_parts: LossParts {
            label: number(loss_parts.label),
            sum: number(loss_parts.sum),
            difference: number(loss_parts.difference),
        },
        digit_accuracy: share(digit),
        sum_accuracy: share(sum),
        difference_accuracy: share(difference),
        all_correct: share(all),
        samples,
        digits_correct: digit,
        confusion,
        sum_errors,
        difference_errors,
    }
}

/// The test line, its first half as the original prints it.
#[must_use]
pub fn test_line(scores: &Scores) -> String {
    format!(
        "Test set: Average loss: {:.4}, Accuracy: {}/{} ({:.2}%), sum {:.2}%, difference {:.2}%, all three {:.2}%",
        scores.loss,
        scores.digits_correct,
        scores.samples,
        100.0 * scores.digit_accuracy,
        100.0 * scores.sum_accuracy,
        100.0 * scores.difference_accuracy,
        100.0 * scores.all_correct
    )
}
