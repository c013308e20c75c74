//! The convolution in Burn's automatic differentiation: one node with a backward pass of its own.

use std::sync::{Arc, LazyLock};

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Shape, TensorData};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::NoCheckpointing;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_flex::{Flex, FlexTensor};
use tally_kernels::Simd;

use super::layer::{Layer, Saved};

/// The path that `TALLY_SIMD` names. An engine is not built with an unknown name, so the widest path is used here then.
static SIMD: LazyLock<Simd> = LazyLock::new(|| Simd::chosen().unwrap_or_else(|_| Simd::widest()));

/// Operands in order: images, weights, biases, all in float32.
pub(super) type Operands<B> = [FloatTensor<B>; 3];

/// The convolution without a backward pass.
pub(super) fn forward(layer: &Layer, operands: Operands<Flex>) -> FloatTensor<Flex> {
    compute(layer, &operands).0
}

/// The convolution as a node of the graph.
pub(super) fn tracked(layer: &Layer, operands: Operands<Autodiff<Flex>>) -> FloatTensor<Autodiff<Flex>> {
    let primitives = operands.each_ref().map(|operand| operand.primitive.clone());
    let nodes = operands.map(|operand| operand.node);
    let (out, saved) = compute(layer, &primitives);
    match Convolution.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let [_, weights, _] = primitives;
            prep.finish(State { layer: *layer, weights, saved: Arc::new(saved) }, out)
        }
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}

fn compute(layer: &Layer, operands: &[FlexTensor; 3]) -> (FlexTensor, Saved) {
    let [x, weights, bias] = operands.each_ref().map(FlexTensor::to_contiguous);
    let (out, saved) = layer.forward(*SIMD, x.storage(), weights.storage(), bias.storage());
    let side = layer.side_out();
    (tensor(out, [layer.images, layer.outputs, side, side]), saved)
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, Shape::from(shape)))
}

/// The node's backward pass.
#[derive(Debug)]
struct Convolution;

/// What the node keeps for its backward pass.
#[derive(Clone, Debug)]
struct State {
    layer: Layer,
    weights: FlexTensor,
    saved: Arc<Saved>,
}

impl Backward<Flex, 3> for Convolution {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let State { layer, weights, saved } = ops.state;
        let dy = gradients.consume::<Flex>(&ops.node).to_contiguous();
        let sums_grad = layer.sums_grad(*SIMD, dy.storage(), &saved);
        drop(dy);
        let Layer { inputs, outputs, side, images, .. } = layer;
        let [input_node, weight_node, bias_node] = ops.parents;
        if let Some(node) = weight_node {
            let gradient = layer.weight_grad(*SIMD, &sums_grad, &saved);
            gradients.register::<Flex>(node.id, tensor(gradient, [outputs, inputs, 3, 3]));
        }
        if let Some(node) = bias_node {
            let gradient = layer.bias_grad(*SIMD, &sums_grad, &saved);
            gradients.register::<Flex>(node.id, tensor(gradient, [outputs]));
        }
        if let Some(node) = input_node {
            let gradient = layer.input_grad(*SIMD, &sums_grad, weights.to_contiguous().storage());
            gradients.register::<Flex>(node.id, tensor(gradient, [images, inputs, side, side]));
        }
    }
}
