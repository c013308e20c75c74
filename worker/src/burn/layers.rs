//! The layers of networks. All of them propagate NaNs, so that a diverged run is noticed: Burn's own ReLU and max-pool lose
//! NaNs on some backends.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::module;
use tally_numerics::manifest::TensorSpec;

use super::convolution::{Activation, ConvolutionBackend};
use super::parameters::Parameters;

/// The tensors of a linear layer: `NAME.weight` `(outputs, inputs)` and `NAME.bias`.
#[must_use]
pub fn linear_tensors(name: &str, inputs: u32, outputs: u32) -> [TensorSpec; 2] {
    tensors(name, &[outputs, inputs])
}

/// The tensors of a convolution with a square kernel: `NAME.weight`
/// `(outputs, inputs, side, side)` and `NAME.bias`.
#[must_use]
pub fn convolution_tensors(name: &str, inputs: u32, outputs: u32, side: u32) -> [TensorSpec; 2] {
    tensors(name, &[outputs, inputs, side, side])
}

/// A layer's weight and bias; both have the bound of the weight's inputs.
fn tensors(name: &str, shape: &[u32]) -> [TensorSpec; 2] {
    let fan_in = shape[1..].iter().product();
    [
        TensorSpec::with_fan_in(format!("{name}.weight"), shape, fan_in),
        TensorSpec::with_fan_in(format!("{name}.bias"), &shape[..1], fan_in),
    ]
}

/// The linear layer `name`: `x·Wᵀ + b`.
pub fn linear<B: Backend>(parameters: &Parameters<B>, name: &str, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let weight = parameters.get::<2>(&format!("{name}.weight"));
    let bias = parameters.get::<1>(&format!("{name}.bias"));
    module::linear(x, weight.transpose(), Some(bias))
}

/// The convolution `name`, stride 1, with `padding` zeros on each side.
pub fn convolution<B: ConvolutionBackend>(
    parameters: &Parameters<B>,
    name: &str,
    padding: usize,
    x: Tensor<B, 4>,
) -> Tensor<B, 4> {
    convolve(parameters, name, padding, Activation::Linear, x)
}

/// The convolution `name` and a ReLU, in one operation where the backend has it.
pub fn convolution_relu<B: ConvolutionBackend>(
    parameters: &Parameters<B>,
    name: &str,
    padding: usize,
    x: Tensor<B, 4>,
) -> Tensor<B, 4> {
    convolve(parameters, name, padding, Activation::Relu, x)
}

fn convolve<B: ConvolutionBackend>(
    parameters: &Parameters<B>,
    name: &str,
    padding: usize,
    activation: Activation,
    x: Tensor<B, 4>,
) -> Tensor<B, 4> {
    let weights = parameters.get::<4>(&format!("{name}.weight"));
    let bias = parameters.get::<1>(&format!("{name}.bias"));
    B::convolution(x, weights, bias, padding, activation)
}

/// The greatest of each 2×2 window; the first of equals in row-major order takes the
/// gradient.
///
/// A window whose NaN is not its first value would lose the NaN. So 0 times the sum of all inputs is added. That is NaN if
/// any input is NaN or infinite. Otherwise it is `+0`, because inputs are results of a ReLU, and changes nothing.
pub fn max_pool<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    let alarm = x.clone().detach().sum().mul_scalar(0.0).reshape([1, 1, 1, 1]);
    module::max_pool2d(x, [2, 2], [2, 2], [0, 0], [1, 1], false) + alarm
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    fn values<const D: usize>(x: Tensor<Flex, D>) -> Vec<f32> {
        x.into_data().to_vec().unwrap()
    }

    #[test]
    fn max_pool_keeps_a_nan_wherever_it_stands() {
        for place in 0..4 {
            let mut window = [1.0, 2.0, 3.0, 4.0];
            let pool = |window: [f32; 4]| {
                values(max_pool(
                    Tensor::<Flex, 1>::from_floats(window, &Default::default()).reshape([1, 1, 2, 2]),
                ))
            };
            assert_eq!(pool(window), [4.0]);
            window[place] = f32::NAN;
            assert!(pool(window)[0].is_nan(), "place {place}");
        }
    }
}
