//! The committed parameters in the layouts that the kernels read. They are packed once a step, not once a microbatch:
//! with small microbatches, packing would take most of a step.

use std::ops::Range;

use tally_numerics::manifest::Manifest;

use super::layers::{CONVOLUTIONS, Convolution, Method};
use tally_kernels::pack::{self, OihwWeights, WEIGHT_BLOCK};
use tally_kernels::{BLOCK, Simd, dense, winograd};

/// The positions of a layer in the flat vectors.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
}

impl Spot {
    /// # Panics
    /// If the manifest has no such layer: both are the reference network's.
    #[allow(clippy::expect_used)]
    fn find(manifest: &Manifest, layer: &str) -> Self {
        let range = |part| {
            let index = manifest.find(&format!("{layer}.{part}"));
            manifest.range(index.expect("the engine's layers are the manifest's"))
        };
        Self { weight: range("weight"), bias: range("bias") }
    }

    /// Both: the bias follows the weight.
    pub fn whole(&self) -> Range<usize> {
        self.weight.start..self.bias.end
    }
}

/// A convolution's weights for both passes; empty for a pass that reads the parameters themselves.
pub(super) struct ConvolutionWeights {
    pub spot: Spot,
    pub forward: Vec<f32>,
    pub backward: Vec<f32>,
    /// Filled up to whole blocks.
    pub bias: Vec<f32>,
}

impl ConvolutionWeights {
    /// In their usual layout.
    pub fn oihw<'a>(&self, layer: &Convolution, parameters: &'a [f32]) -> OihwWeights<'a> {
        OihwWeights::new(&parameters[self.spot.weight.clone()], layer.outputs, layer.inputs)
    }
}

/// A linear layer's weights for both passes.
pub(super) struct DenseWeights {
    pub spot: Spot,
    pub transposed: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

/// A way to pack a convolution's weights.
type Pack = fn(Simd, OihwWeights<'_>, &mut [f32]);

/// All of them.
pub(super) struct Weights {
    pub first: Spot,
    pub first_weight: Vec<f32>,
    pub first_bias: Vec<f32>,
    pub convolutions: [ConvolutionWeights; CONVOLUTIONS.len()],
    /// `dense1` and `dense2`.
    pub number: [DenseWeights; 2],
    /// `sum1` to `sum3`, and `diff1` to `diff3`.
    pub heads: [[DenseWeights; 3]; 2],
    simd: Simd,
}

impl Weights {
    pub fn new(manifest: &Manifest, simd: Simd) -> Self {
        let dense = |name: &str| {
            let spot = Spot::find(manifest, name);
            DenseWeights { spot, transposed: Vec::new(), weight: Vec::new(), bias: Vec::new() }
        };
        Self {
            first: Spot::find(manifest, "conv1"),
            first_weight: Vec::new(),
            first_bias: Vec::new(),
            convolutions: CONVOLUTIONS.each_ref().map(|layer| ConvolutionWeights {
                spot: Spot::find(manifest, layer.name),
                forward: Vec::new(),
                backward: Vec::new(),
                bias: Vec::new(),
            }),
            number: ["dense1", "dense2"].map(dense),
            heads: [["sum1", "sum2", "sum3"].map(dense), ["diff1", "diff2", "diff3"].map(dense)],
            simd,
        }
    }

    /// Packs flat parameters in the manifest's order.
    pub fn pack(&mut self, parameters: &[f32]) {
        copy(&parameters[self.first.weight.clone()], &mut self.first_weight);
        copy(&parameters[self.first.bias.clone()], &mut self.first_bias);
        for (layer, to) in CONVOLUTIONS.iter().zip(&mut self.convolutions) {
            let oihw = to.oihw(layer, parameters);
            let blocks = layer.outputs.div_ceil(BLOCK) * layer.inputs / BLOCK;
            let packs = [
                (
                    &mut to.forward,
                    layer.methods[0],
                    pack::forward as Pack,
                    winograd::weights::forward as Pack,
                ),
                (&mut to.backward, layer.methods[1], pack::backward, winograd::weights::backward),
            ];
            for (to, method, pack, transform) in packs {
                let (len, pack) = match method {
                    // These kernels read the parameters themselves.
                    Method::Batched => continue,
                    Method::Direct => (WEIGHT_BLOCK, pack),
                    Method::Winograd => (winograd::transformed_len(1), transform),
                };
                to.resize(blocks * len, 0.0);
                pack(self.simd, oihw, to);
            }
            copy(&parameters[to.spot.bias.clone()], &mut to.bias);
            to.bias.resize(layer.outputs.next_multiple_of(BLOCK), 0.0);
        }
        for to in self.number.iter_mut().chain(self.heads.iter_mut().flatten()) {
            let weight = &parameters[to.spot.weight.clone()];
            copy(weight, &mut to.weight);
            copy(&parameters[to.spot.bias.clone()], &mut to.bias);
            to.transposed.resize(weight.len(), 0.0);
            dense::transpose(weight, to.bias.len(), &mut to.transposed);
        }
    }
}

fn copy(from: &[f32], to: &mut Vec<f32>) {
    to.clear();
    to.extend_from_slice(from);
}
