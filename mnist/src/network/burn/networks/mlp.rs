//! A small multi-layer perceptron for the same task, some fifty thousand parameters: to try a cluster with, in less
//! time than the reference network takes.

use burn::tensor::Tensor;
use tally_numerics::manifest::TensorSpec;
use tally_worker::burn::layers::{linear, linear_tensors};
use tally_worker::burn::relu::relu;
use tally_worker::burn::{ConvolutionBackend, Parameters};

use crate::data::PIXELS;
use crate::network::burn::network::{Network, OutputTensors};

/// One hidden layer of 64 for the digit, one of 16 for the number, and two heads that
/// see both, with one hidden layer of 32 each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mlp;

impl Network for Mlp {
    fn tensors(&self) -> Vec<TensorSpec> {
        [
            linear_tensors("sum2", 32, 1),
            linear_tensors("diff2", 32, 1),
            linear_tensors("sum1", 10 + 16, 32),
            linear_tensors("diff1", 10 + 16, 32),
            linear_tensors("dense1", 1, 16),
            linear_tensors("digit2", 64, 10),
            linear_tensors("digit1", PIXELS as u32, 64),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn forward<B: ConvolutionBackend>(
        &self,
        p: &Parameters<B>,
        images: Tensor<B, 4>,
        numbers: Tensor<B, 2>,
    ) -> OutputTensors<B> {
        let n = images.dims()[0];
        let x = relu(linear(p, "digit1", images.reshape([n, PIXELS])));
        let logits = linear(p, "digit2", x);

        let number = relu(linear(p, "dense1", numbers));
        let both = Tensor::cat(vec![logits.clone(), number], 1);
        let head = |name: &str| {
            let x = relu(linear(p, &format!("{name}1"), both.clone()));
            linear(p, &format!("{name}2"), x)
        };
        OutputTensors { sum: head("sum"), difference: head("diff"), logits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small() {
        assert_eq!(Mlp.manifest().len(), 52_716);
    }
}
