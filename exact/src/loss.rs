//! A batch's loss by part, summed along the same tree as the gradient.

use serde::{Deserialize, Serialize};

use crate::sum::along_tree;

/// The three parts of the loss, as sums over samples or as means over a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossParts {
    /// The digit's loss: cross-entropy, or the original's `nll(softmax)`.
    pub label: f64,
    /// Squared error of the sum.
    pub sum: f64,
    /// Squared error of the difference.
    pub difference: f64,
}

impl LossParts {
    /// All parts together.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.label + self.sum + self.difference
    }

    /// Every part multiplied by `factor`.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        Self { label: self.label * factor, sum: self.sum * factor, difference: self.difference * factor }
    }

    /// Whether no part is NaN or infinite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.label.is_finite() && self.sum.is_finite() && self.difference.is_finite()
    }

    /// The sum of `2^k` leaves' losses along their tree; zero if all are empty.
    pub fn along_tree(leaves: impl IntoIterator<Item = Option<Self>>) -> Self {
        along_tree(leaves, |l, r| Self {
            label: l.label + r.label,
            sum: l.sum + r.sum,
            difference: l.difference + r.difference,
        })
        .unwrap_or_default()
    }
}
