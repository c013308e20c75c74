//! A leaf through the network and back, by Burn's automatic differentiation.
//!
//! Where tensors lie in the host's memory, the backward pass starts from what the host works out of
//! the answers ([`losses`]): the same bits on every device. Across a bus that would have the
//! device wait twice in the middle of every leaf. So there the start is worked out where the
//! answers are, in float32 by the same formulas, and the answers come along when the
//! gradient is read; the losses that are reported are the host's in both cases.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use burn_autodiff::Autodiff;
use tally_data::Samples;
use tally_numerics::loss::LossParts;

use super::inputs::Inputs;
use super::network::{Network, Parameters};
use super::{BurnBackend, ConvolutionBackend, Precision};
use crate::engine::{Answers, LabelLoss, losses};

/// What a pass over a leaf needs beside its samples.
pub(super) struct Pass<'a, B: BurnBackend, N> {
    pub network: &'a N,
    pub parameters: &'a Parameters<B>,
    pub loss: LabelLoss,
    pub scale: f32,
    pub precision: Precision,
}

/// The gradient by each parameter, in the manifest's order; none by one that is not used.
pub(super) type Gradients<B> = Vec<Option<Tensor<B, 1>>>;

impl<B: BurnBackend, N: Network> Pass<'_, B, N> {
    /// A leaf's losses and gradient; the answers are read and judged on the way.
    pub fn by_host(&self, inputs: Inputs<B>, samples: &Samples) -> Result<(LossParts, Gradients<B>), String> {
        let device = inputs.images.device();
        let forward = self.forward(inputs);
        let mut answers = Answers::default();
        read(forward.outputs.clone().inner(), |outputs| answers = losses::answers(outputs))?;
        let by_outputs = losses::output_gradient(&answers, samples, self.loss, self.scale);
        let by_outputs = TensorData::new(by_outputs, [samples.len(), losses::OUTPUTS]);
        let gradients = forward.backward(Tensor::from_data(by_outputs, &device));
        Ok((answers.losses(samples, self.loss), gradients))
    }

    /// A leaf's answers and gradient, each as one flat tensor, without waiting for the device.
    pub fn by_device(&self, inputs: Inputs<B>, targets: Tensor<B, 2>) -> (Tensor<B, 1>, Tensor<B, 1>) {
        let device = inputs.images.device();
        let forward = self.forward(inputs);
        let outputs = forward.outputs.clone().inner();
        let by_outputs = output_gradient(outputs.clone(), targets, self.loss, self.scale);
        let gradients = forward.backward(by_outputs).into_iter().zip(self.parameters.flat());
        let whole = gradients.map(|(gradient, of)| {
            gradient.unwrap_or_else(|| Tensor::zeros(of.dims(), (&device, DType::F32)))
        });
        let answers = outputs.flatten(0, 1);
        (answers, Tensor::cat(whole.collect(), 0))
    }

    fn forward(&self, inputs: Inputs<B>) -> Forward<B> {
        let tracked = self.parameters.map(|flat| Tensor::<Autodiff<B>, 1>::from_inner(flat).require_grad());
        let inputs =
            Inputs { images: Tensor::from_inner(inputs.images), numbers: Tensor::from_inner(inputs.numbers) };
        let outputs = outputs(self.network, &tracked, inputs, self.precision);
        Forward { tracked, outputs }
    }
}

/// A forward pass whose way back is open.
struct Forward<B: BurnBackend> {
    tracked: Parameters<Autodiff<B>>,
    outputs: Tensor<Autodiff<B>, 2>,
}

impl<B: BurnBackend> Forward<B> {
    fn backward(self, by_outputs: Tensor<B, 2>) -> Gradients<B> {
        // The backward pass of Σ outputs·constants starts with the constants themselves.
        let mut gradients = (self.outputs * Tensor::from_inner(by_outputs)).sum().backward();
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
    const DIGITS: usize = losses::OUTPUTS - 2;
    let n = outputs.dims()[0];
    let split =
        |x: Tensor<B, 2>| (x.clone().slice([0..n, 0..DIGITS]), x.slice([0..n, DIGITS..losses::OUTPUTS]));
    let ((logits, answers), (label, wanted)) = (split(outputs), split(targets));
    let p = softmax(logits, 1);
    let by_logits = (p.clone() - label.clone()).mul_scalar(scale);
    let by_logits = match loss {
        LabelLoss::CrossEntropy => by_logits,
        LabelLoss::SoftmaxNll => by_logits * (p * label).sum_dim(1),
    };
    Tensor::cat(vec![by_logits, (answers - wanted).mul_scalar(2.0 * scale)], 1)
}

/// Hands a tensor's values to `take`, without a copy where the backend can.
pub(super) fn read<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    take: impl FnOnce(&[f32]),
) -> Result<(), String> {
    let data = tensor.try_into_data().map_err(|error| error.to_string())?;
    take(data.as_slice().map_err(|error| format!("{error:?}"))?);
    Ok(())
}
