//! The 3×3 convolution as an additional operation of a backend.
//!
//! It follows Burn's extension pattern: [`ConvolutionBackend`] is a backend with one more operation, which by default is
//! Burn's own. burn-flex, plain and differentiated, uses [Tally's kernels](tally_kernels) for the shapes for which they are
//! quicker, with a backward pass of their own. Every other backend, kernel size and shape uses Burn's operation. So a
//! network made of [`layers`](super::layers) gets the speed of the kernels without a change.

mod autodiff;
mod layer;
#[cfg(test)]
mod tests;

use burn::tensor::backend::Backend;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Tensor, TensorPrimitive, module};
use burn_autodiff::Autodiff;
use burn_flex::Flex;

use self::layer::Layer;
use super::relu::relu;

/// The activation after a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Linear,
    /// `if x <= 0 { +0 } else { x }`.
    Relu,
}

/// A backend that networks can be computed on.
pub trait ConvolutionBackend: Backend {
    /// The convolution of images `(n, inputs, height, width)` with `weights`
    /// `(outputs, inputs, side, side)` and a `bias` for each output: stride 1, `padding` zeros
    /// on each side. It passes a NaN on.
    fn convolution(
        x: Tensor<Self, 4>,
        weights: Tensor<Self, 4>,
        bias: Tensor<Self, 1>,
        padding: usize,
        activation: Activation,
    ) -> Tensor<Self, 4> {
        stock(x, weights, bias, padding, activation)
    }

    /// The same operation in automatic differentiation.
    fn tracked(
        x: Tensor<Autodiff<Self>, 4>,
        weights: Tensor<Autodiff<Self>, 4>,
        bias: Tensor<Autodiff<Self>, 1>,
        padding: usize,
        activation: Activation,
    ) -> Tensor<Autodiff<Self>, 4> {
        stock(x, weights, bias, padding, activation)
    }
}

impl<B: ConvolutionBackend> ConvolutionBackend for Autodiff<B> {
    fn convolution(
        x: Tensor<Self, 4>,
        weights: Tensor<Self, 4>,
        bias: Tensor<Self, 1>,
        padding: usize,
        activation: Activation,
    ) -> Tensor<Self, 4> {
        B::tracked(x, weights, bias, padding, activation)
    }
}

/// The convolution of Burn's own operations.
pub fn stock<B: Backend>(
    x: Tensor<B, 4>,
    weights: Tensor<B, 4>,
    bias: Tensor<B, 1>,
    padding: usize,
    activation: Activation,
) -> Tensor<B, 4> {
    let options = ConvOptions::new([1, 1], [padding, padding], [1, 1], 1);
    let sums = module::conv2d(x, weights, Some(bias), options);
    match activation {
        Activation::Linear => sums,
        Activation::Relu => relu(sums),
    }
}

/// `own` if the kernels compute such a layer, else Burn's operation.
fn choose<B: Backend>(
    x: Tensor<B, 4>,
    weights: Tensor<B, 4>,
    bias: Tensor<B, 1>,
    padding: usize,
    activation: Activation,
    own: impl FnOnce(&Layer, autodiff::Operands<B>) -> B::FloatTensorPrimitive,
) -> Tensor<B, 4> {
    let in_float32 = [x.dtype(), weights.dtype(), bias.dtype()] == [DType::F32; 3];
    match Layer::of(x.dims(), weights.dims(), padding, activation).filter(|_| in_float32) {
        Some(layer) => {
            let operands = [
                x.into_primitive().tensor(),
                weights.into_primitive().tensor(),
                bias.into_primitive().tensor(),
            ];
            Tensor::from_primitive(TensorPrimitive::Float(own(&layer, operands)))
        }
        None => stock(x, weights, bias, padding, activation),
    }
}

impl ConvolutionBackend for Flex {
    fn convolution(
        x: Tensor<Self, 4>,
        weights: Tensor<Self, 4>,
        bias: Tensor<Self, 1>,
        padding: usize,
        activation: Activation,
    ) -> Tensor<Self, 4> {
        choose(x, weights, bias, padding, activation, autodiff::forward)
    }

    fn tracked(
        x: Tensor<Autodiff<Self>, 4>,
        weights: Tensor<Autodiff<Self>, 4>,
        bias: Tensor<Autodiff<Self>, 1>,
        padding: usize,
        activation: Activation,
    ) -> Tensor<Autodiff<Self>, 4> {
        choose(x, weights, bias, padding, activation, autodiff::tracked)
    }
}

/// Any GPU that cubecl has a runtime for, with the stock operations.
#[cfg(feature = "cuda")]
impl<R, I, BT> ConvolutionBackend for burn_fusion::Fusion<burn_cubecl::CubeBackend<R, f32, I, BT>>
where
    R: burn_cubecl::CubeRuntime,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
}
