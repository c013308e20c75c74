//! Exactly the network of the PyTorch program from which the task comes: seven 3×3 convolutions for the digit, two
//! dense layers for the number, and two heads that see both. 6 402 764 parameters, and the names of that program's
//! state dictionary.

use burn::tensor::Tensor;
use tally_numerics::manifest::TensorSpec;
use tally_worker::burn::layers::{
    convolution, convolution_relu, convolution_tensors, linear, linear_tensors, max_pool,
};
use tally_worker::burn::relu::relu;
use tally_worker::burn::{ConvolutionBackend, Parameters};

use crate::network::burn::network::{Network, OutputTensors};

/// The PyTorch program's `Net`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Network for Reference {
    fn tensors(&self) -> Vec<TensorSpec> {
        [
            linear_tensors("sum3", 128, 1),
            linear_tensors("diff3", 128, 1),
            linear_tensors("sum2", 64, 128),
            linear_tensors("diff2", 64, 128),
            linear_tensors("sum1", 10 + 32, 64),
            linear_tensors("diff1", 10 + 32, 64),
            linear_tensors("dense2", 16, 32),
            linear_tensors("dense1", 1, 16),
            convolution_tensors("conv7", 1024, 10, 3),
            convolution_tensors("conv6", 512, 1024, 3),
            convolution_tensors("conv5", 256, 512, 3),
            convolution_tensors("conv4", 128, 256, 3),
            convolution_tensors("conv3", 64, 128, 3),
            convolution_tensors("conv2", 32, 64, 3),
            convolution_tensors("conv1", 1, 32, 3),
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
        // 28×28.
        let x = convolution_relu(p, "conv1", 1, images);
        let x = max_pool(convolution_relu(p, "conv2", 1, x));
        // 14×14.
        let x = convolution_relu(p, "conv3", 1, x);
        let x = max_pool(convolution_relu(p, "conv4", 1, x));
        // 7×7, then 5×5, 3×3 and 1×1, because nothing is padded.
        let x = convolution_relu(p, "conv5", 0, x);
        let x = convolution_relu(p, "conv6", 0, x);
        let x = convolution(p, "conv7", 0, x);
        let n = x.dims()[0];
        let logits = x.reshape([n, 10]);

        let number = relu(linear(p, "dense1", numbers));
        let number = relu(linear(p, "dense2", number));
        let both = Tensor::cat(vec![logits.clone(), number], 1);

        let head = |name: &str| {
            let x = relu(linear(p, &format!("{name}1"), both.clone()));
            let x = relu(linear(p, &format!("{name}2"), x));
            linear(p, &format!("{name}3"), x)
        };
        OutputTensors { sum: head("sum"), difference: head("diff"), logits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_originals_parameters() {
        let manifest = Reference.manifest();
        assert_eq!(manifest.len(), 6_402_764);
        let mut names: Vec<&str> = manifest.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!((names[0], names[29]), ("sum3.weight", "conv1.bias"));
        names.sort_unstable();
        let layers = [
            "conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "conv7", "dense1", "dense2", "diff1",
            "diff2", "diff3", "sum1", "sum2", "sum3",
        ];
        assert_eq!(names, layers.map(|l| [format!("{l}.bias"), format!("{l}.weight")]).concat());
        let conv6 = &manifest.tensors()[manifest.find("conv6.weight").unwrap_or_default()];
        assert_eq!(conv6.shape, [1024, 512, 3, 3]);
        assert_eq!(conv6.bound, 1.0 / (512.0f64 * 9.0).sqrt());
    }
}
