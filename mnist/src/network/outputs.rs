//! The outputs of a network in the host's memory.

/// Numbers that a network puts out for a sample: ten logits, the sum, the difference.
pub const OUTPUTS: usize = 12;

/// A network's outputs for a few samples, in the samples' order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    /// A score for each digit; the greatest is the prediction.
    pub logits: Vec<[f32; 10]>,
    /// Number plus digit.
    pub sums: Vec<f32>,
    /// The absolute difference of number and digit.
    pub differences: Vec<f32>,
}

impl Outputs {
    /// The outputs in `rows`, [`OUTPUTS`] numbers a sample.
    #[must_use]
    pub fn from_rows(rows: &[f32]) -> Self {
        let mut outputs = Self::default();
        for row in rows.as_chunks::<OUTPUTS>().0 {
            let [logits @ .., sum, difference] = *row;
            outputs.logits.push(logits);
            outputs.sums.push(sum);
            outputs.differences.push(difference);
        }
        outputs
    }

    /// How many samples they are of.
    #[must_use]
    pub fn len(&self) -> usize {
        self.logits.len()
    }

    /// Whether they are of no sample.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logits.is_empty()
    }

    /// The digit with the greatest score, the first of equals. A NaN is never the greatest; if all scores are NaN,
    /// the digit is 0.
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
}

/// The logits as probabilities.
pub(crate) fn softmax(logits: &[f32; 10]) -> [f64; 10] {
    let most = greatest(logits);
    let powers = logits.map(|z| libm::exp(f64::from(z) - most));
    let sum: f64 = powers.iter().sum();
    powers.map(|power| power / sum)
}

/// The greatest logit. A NaN may be passed over here; it shows in the sum.
pub(crate) fn greatest(logits: &[f32; 10]) -> f64 {
    f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(logits: [f32; 10]) -> Outputs {
        Outputs { logits: vec![logits], sums: vec![1.5], differences: vec![2.0] }
    }

    #[test]
    fn the_digit_is_the_first_of_the_greatest_scores() {
        let mut logits = [0.0; 10];
        logits[3] = 2.0;
        logits[7] = 2.0;
        assert_eq!(outputs(logits).digit(0), 3);
    }

    #[test]
    fn a_nan_never_wins_wherever_it_stands() {
        let mut logits = [-5.0; 10];
        (logits[0], logits[4], logits[9]) = (f32::NAN, -1.0, f32::NAN);
        assert_eq!(outputs(logits).digit(0), 4);
        assert_eq!(outputs([f32::NAN; 10]).digit(0), 0);
        assert_eq!(outputs([f32::NEG_INFINITY; 10]).digit(0), 0);
    }
}
