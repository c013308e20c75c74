//! The forward and backward pass of a microbatch, by Burn's automatic differentiation.
//!
//! Where tensors lie in the host's memory, the backward pass starts from the gradient that the host computes of the
//! outputs ([`losses`]): the same bits on every device. With a bus between them, the device would wait for the host
//! twice in every microbatch. So there the device itself computes that gradient, in float32 by the same formulas, and
//! the outputs are read together with the parameters' gradient. The losses that are reported are the host's in both
//! cases.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use burn_autodiff::Autodiff;
use tally_worker::burn::{BurnBackend, ConvolutionBackend, Parameters};
use tally_worker::device::Precision;

use super::inputs::Inputs;
use super::network::Network;
use crate::data::Samples;
use crate::network::outputs::OUTPUTS;
use crate::network::{LabelLoss, Losses, Outputs, losses};

/// A pass over a microbatch, but for its samples.
pub(super) struct Pass<'a, B: BurnBackend, N> {
    pub network: &'a N,
    pub parameters: &'a Parameters<B>,
    pub loss: LabelLoss,
    pub scale: f32,
    pub precision: Precision,
}

/// The gradient by each tensor, in the manifest's order; `None` for a tensor that the forward pass does not use.
pub(super) type Gradients<B> = Vec<Option<Tensor<B, 1>>>;

impl<B: BurnBackend, N: Network> Pass<'_, B, N> {
    /// A microbatch's losses and gradient; the host computes the gradient by the outputs.
    pub fn on_host(&self, inputs: Inputs<B>, samples: &Samples) -> Result<(Losses, Gradients<B>), String> {
        let device = inputs.images.device();
        let forward = self.forward(inputs);
        let mut outputs = Outputs::default();
        read(forward.outputs.clone().inner(), |rows| outputs = Outputs::from_rows(rows))?;
        let output_grad = losses::output_gradient(&outputs, samples, self.loss, self.scale);
        let output_grad = TensorData::new(output_grad, [samples.len(), OUTPUTS]);
        let gradients = forward.backward(Tensor::from_data(output_grad, &device));
        Ok((outputs.losses(samples, self.loss), gradients))
    }

    /// A microbatch's outputs and gradient, each as one flat tensor, without waiting for the device.
    pub fn on_device(&self, inputs: Inputs<B>, targets: Tensor<B, 2>) -> (Tensor<B, 1>, Tensor<B, 1>) {
        let device = inputs.images.device();
        let forward = self.forward(inputs);
        let outputs = forward.outputs.clone().inner();
        let output_grad = output_gradient(outputs.clone(), targets, self.loss, self.scale);
        let gradients = forward.backward(output_grad).into_iter().zip(self.parameters.flat());
        let whole = gradients.map(|(gradient, of)| {
            gradient.unwrap_or_else(|| Tensor::zeros(of.dims(), (&device, DType::F32)))
        });
        (outputs.flatten(0, 1), Tensor::cat(whole.collect(), 0))
    }

    fn forward(&self, inputs: Inputs<B>) -> Forward<B> {
        let tracked = self.parameters.map(|flat| Tensor::<Autodiff<B>, 1>::from_inner(flat).require_grad());
        let inputs =
            Inputs { images: Tensor::from_inner(inputs.images), numbers: Tensor::from_inner(inputs.numbers) };
        let outputs = outputs(self.network, &tracked, inputs, self.precision);
        Forward { tracked, outputs }
    }
}

/// A forward pass that can be differentiated.
struct Forward<B: BurnBackend> {
    tracked: Parameters<Autodiff<B>>,
    outputs: Tensor<Autodiff<B>, 2>,
}

impl<B: BurnBackend> Forward<B> {
    fn backward(self, output_grad: Tensor<B, 2>) -> Gradients<B> {
        // The backward pass of Σ outputs·constants starts with the constants themselves.
        let mut gradients = (self.outputs * Tensor::from_inner(output_grad)).sum().backward();
        self.tracked.flat().iter().map(|flat| flat.grad_remove(&mut gradients)).collect()
    }
}

/// The network's outputs in float32, computed in the precision that is asked for.
pub(super) fn outputs<B: ConvolutionBackend, N: Network>(
    network: &N,
    parameters: &Parameters<B>,
    inputs: Inputs<B>,
    precision: Precision,
) -> Tensor<B, 2> {
    let Inputs { images, numbers } = inputs;
    match precision {
        Precision::F32 | Precision::Tf32 => network.forward(parameters, images, numbers).joined(),
        Precision::Bf16 => {
            let half = FloatDType::BF16;
            let parameters = parameters.map(|flat| flat.cast(half));
            network.forward(&parameters, images.cast(half), numbers.cast(half)).joined().cast(FloatDType::F32)
        }
    }
}

/// [`losses::output_gradient`] on the device.
pub(super) fn output_gradient<B: Backend>(
    outputs: Tensor<B, 2>,
    targets: Tensor<B, 2>,
    loss: LabelLoss,
    scale: f32,
) -> Tensor<B, 2> {
    const DIGITS: usize = OUTPUTS - 2;
    let n = outputs.dims()[0];
    let split = |x: Tensor<B, 2>| (x.clone().slice([0..n, 0..DIGITS]), x.slice([0..n, DIGITS..OUTPUTS]));
    let ((logits, outputs), (label, targets)) = (split(outputs), split(targets));
    let p = softmax(logits, 1);
    let logits_grad = (p.clone() - label.clone()).mul_scalar(scale);
    let logits_grad = match loss {
        LabelLoss::CrossEntropy => logits_grad,
        LabelLoss::SoftmaxNll => logits_grad * (p * label).sum_dim(1),
    };
    Tensor::cat(vec![logits_grad, (outputs - targets).mul_scalar(2.0 * scale)], 1)
}

/// Calls `take` with a tensor's values, without a copy where the backend can.
pub(super) fn read<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    take: impl FnOnce(&[f32]),
) -> Result<(), String> {
    let data = tensor.try_into_data().map_err(|error| error.to_string())?;
    take(data.as_slice().map_err(|error| format!("{error:?}"))?);
    Ok(())
}
