//! The linear layers: two of the number, and three of each of the two heads. They are a thousandth of a step's work.

use tally_kernels::{Simd, dense};
use tally_numerics::sum;

use super::weights::{DenseWeights, Weights};

/// Logits of a sample.
pub(super) const LOGITS: usize = 10;
/// Logits and the number's features, side by side.
const BOTH: usize = LOGITS + 32;

/// The layers' results for some images, a row an image, and their gradients.
#[derive(Default)]
pub(super) struct Heads {
    numbers: Vec<f32>,
    hidden: [Vec<f32>; 2],
    both: Vec<f32>,
    heads: [[Vec<f32>; 3]; 2],
    hidden_grad: [Vec<f32>; 2],
    heads_grad: [[Vec<f32>; 3]; 2],
}

fn forward(simd: Simd, x: &[f32], layer: &DenseWeights, relu: bool, y: &mut Vec<f32>) {
    let inputs = layer.transposed.len() / layer.bias.len();
    y.resize(x.len() / inputs * layer.bias.len(), 0.0);
    dense::forward(simd, x, &layer.transposed, &layer.bias, relu, y);
}

/// A layer's input gradient.
fn backward(simd: Simd, dy: &[f32], layer: &DenseWeights, dx: &mut Vec<f32>) {
    let inputs = layer.weight.len() / layer.bias.len();
    dx.resize(dy.len() / layer.bias.len() * inputs, 0.0);
    dense::input_grad(simd, dy, &layer.weight, layer.bias.len(), dx);
}

impl Heads {
    /// Sums and differences, from logits (ten an image) and numbers.
    pub fn forward(&mut self, simd: Simd, weights: &Weights, logits: &[f32], numbers: &[f32]) -> [&[f32]; 2] {
        self.numbers.clear();
        self.numbers.extend_from_slice(numbers);
        let [first, second] = &mut self.hidden;
        forward(simd, numbers, &weights.number[0], true, first);
        forward(simd, first, &weights.number[1], true, second);
        self.both.clear();
        for (logits, number) in logits.chunks_exact(LOGITS).zip(second.chunks_exact(BOTH - LOGITS)) {
            self.both.extend_from_slice(logits);
            self.both.extend_from_slice(number);
        }
        for (layers, [first, second, third]) in weights.heads.iter().zip(&mut self.heads) {
            forward(simd, &self.both, &layers[0], true, first);
            forward(simd, first, &layers[1], true, second);
            forward(simd, second, &layers[2], false, third);
        }
        self.heads.each_ref().map(|results| results[2].as_slice())
    }

    /// Computes the output gradient of every layer from those of sums and differences, keeps them for
    /// [`add_gradients`](Self::add_gradients), and adds the heads' input gradients to the gradient of the logits.
    pub fn backward(
        &mut self,
        simd: Simd,
        weights: &Weights,
        output_grads: [Vec<f32>; 2],
        logits_grad: &mut [f32],
    ) {
        let mut both_grad = [Vec::new(), Vec::new()];
        let heads = self.heads_grad.iter_mut().zip(&self.heads).zip(&mut both_grad);
        for ((layers, output_grad), ((by, results), both_grad)) in
            weights.heads.iter().zip(output_grads).zip(heads)
        {
            let [first, second, third] = by;
            *third = output_grad;
            backward(simd, third, &layers[2], second);
            dense::relu_gradient(second, &results[1]);
            backward(simd, second, &layers[1], first);
            dense::relu_gradient(first, &results[0]);
            backward(simd, first, &layers[0], both_grad);
        }
        let [mut both_grad, of_differences] = both_grad;
        sum::add(&mut both_grad, &of_differences);
        for (row, logits_grad) in both_grad.chunks_exact(BOTH).zip(logits_grad.chunks_exact_mut(LOGITS)) {
            sum::add(logits_grad, &row[..LOGITS]);
        }
        let [first, second] = &mut self.hidden_grad;
        second.clear();
        second.extend(both_grad.chunks_exact(BOTH).flat_map(|row| &row[LOGITS..]));
        dense::relu_gradient(second, &self.hidden[1]);
        backward(simd, second, &weights.number[1], first);
        dense::relu_gradient(first, &self.hidden[0]);
    }

    /// Adds the gradients of the layers' parameters to `into`, the beginning of a flat vector: the manifest begins with
    /// these layers.
    pub fn add_gradients(&self, simd: Simd, weights: &Weights, into: &mut [f32]) {
        let mut add = |layer: &DenseWeights, dy: &[f32], x: &[f32]| {
            let (dw, db) = into[layer.spot.whole()].split_at_mut(layer.weight.len());
            dense::add_weight_grad(simd, dy, x, dw, db);
        };
        for ((layers, by), results) in weights.heads.iter().zip(&self.heads_grad).zip(&self.heads) {
            add(&layers[0], &by[0], &self.both);
            add(&layers[1], &by[1], &results[0]);
            add(&layers[2], &by[2], &results[1]);
        }
        add(&weights.number[0], &self.hidden_grad[0], &self.numbers);
        add(&weights.number[1], &self.hidden_grad[1], &self.hidden[0]);
    }
}
