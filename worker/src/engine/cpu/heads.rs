//! The linear layers: the number's two, and the two heads' three each. They hold a
//! thousandth of a step's work.

use std::ops::Range;

use super::weights::{DenseWeights, Weights};
use tally_kernels::{Leaves, Simd, dense};

/// Logits of a sample.
pub(super) const LOGITS: usize = 10;
/// Logits and what the number becomes, side by side.
const BOTH: usize = LOGITS + 32;

/// Results of the layers for a batch, a row an image.
#[derive(Default)]
pub(super) struct Heads {
    number: Vec<f32>,
    hidden: [Vec<f32>; 2],
    both: Vec<f32>,
    heads: [[Vec<f32>; 3]; 2],
    free: Vec<Vec<f32>>,
}

fn forward(simd: Simd, x: &[f32], layer: &DenseWeights, relu: bool, y: &mut Vec<f32>) {
    let inputs = layer.by_input.len() / layer.bias.len();
    y.resize(x.len() / inputs * layer.bias.len(), 0.0);
    dense::forward(simd, x, &layer.by_input, &layer.bias, relu, y);
}

/// The gradient by a layer's input, a ReLU's whose results were `of`.
fn backward(simd: Simd, dy: &[f32], layer: &DenseWeights, of: &[f32]) -> Vec<f32> {
    let mut dx = vec![0.0; of.len()];
    dense::input_gradient(simd, dy, &layer.by_output, layer.bias.len(), &mut dx);
    dense::relu_gradient(&mut dx, of);
    dx
}

impl Heads {
    /// Answers, sum and difference, from logits (ten an image) and numbers.
    pub fn forward(
        &mut self,
        simd: Simd,
        weights: &Weights,
        logits: &[f32],
        numbers: &[f32],
    ) -> [&[f32]; 2] {
        self.number.clear();
        self.number.extend_from_slice(numbers);
        let [first, second] = &mut self.hidden;
        forward(simd, numbers, &weights.number[0], true, first);
        forward(simd, first, &weights.number[1], true, second);
        self.both.clear();
        for (logits, number) in logits.chunks_exact(LOGITS).zip(second.chunks_exact(BOTH - LOGITS)) {
            self.both.extend_from_slice(logits);
            self.both.extend_from_slice(number);
        }
        for (layers, results) in weights.heads.iter().zip(&mut self.heads) {
            let [first, second, third] = results;
            forward(simd, &self.both, &layers[0], true, first);
            forward(simd, first, &layers[1], true, second);
            forward(simd, second, &layers[2], false, third);
        }
        self.heads.each_ref().map(|results| results[2].as_slice())
    }

    /// From the gradients by sum and difference: the layers' own, into the front of `out`
    /// (the manifest begins with them), and what they add to the logits' gradient.
    pub fn backward(
        &mut self,
        simd: Simd,
        weights: &Weights,
        by_answers: [&[f32]; 2],
        leaves: &Leaves,
        out: &mut [f32],
        by_logits: &mut [f32],
    ) {
        let mut by_both: Vec<f32> = Vec::new();
        let mut gradients: Vec<(&DenseWeights, Vec<f32>, &[f32])> = Vec::new();
        for ((layers, results), by_answer) in weights.heads.iter().zip(&self.heads).zip(by_answers) {
            let by_second = backward(simd, by_answer, &layers[2], &results[1]);
            let by_first = backward(simd, &by_second, &layers[1], &results[0]);
            let mut by_input = vec![0.0; self.both.len()];
            dense::input_gradient(
                simd,
                &by_first,
                &layers[0].by_output,
                layers[0].bias.len(),
                &mut by_input,
            );
            if by_both.is_empty() {
                by_both = by_input;
            } else {
                tally_exact::sum::add(&mut by_both, &by_input);
            }
            gradients.push((&layers[2], by_answer.to_vec(), &results[1]));
            gradients.push((&layers[1], by_second, &results[0]));
            gradients.push((&layers[0], by_first, &self.both));
        }
        for (row, by_logits) in by_both.chunks_exact(BOTH).zip(by_logits.chunks_exact_mut(LOGITS)) {
            tally_exact::sum::add(by_logits, &row[..LOGITS]);
        }
        let mut by_number: Vec<f32> =
            by_both.chunks_exact(BOTH).flat_map(|row| row[LOGITS..].iter().copied()).collect();
        dense::relu_gradient(&mut by_number, &self.hidden[1]);
        let by_hidden = backward(simd, &by_number, &weights.number[1], &self.hidden[0]);
        gradients.push((&weights.number[1], by_number, &self.hidden[0]));
        gradients.push((&weights.number[0], by_hidden, &self.number));

        let leaf = |_: usize, images: Range<usize>, into: &mut [f32]| {
            for (layer, dy, x) in &gradients {
                let spot = layer.spot.whole();
                let (dw, db) = into[spot].split_at_mut(layer.by_output.len());
                dense::weight_gradient(simd, dy, x, images.clone(), dw, db);
            }
        };
        leaves.sum(&mut self.free, out.len(), leaf, |sum| out.copy_from_slice(sum));
    }
}
