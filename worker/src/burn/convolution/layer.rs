//! A convolution on Tally's kernels: images in, images out, and the gradients back.
//!
//! Images are computed in batches of at most [`IMAGES`], each converted to the kernels'
//! layout and back. The bits of a result do not depend on the number of threads; those of the forward pass and the input
//! gradient do not depend on the other images either (**SUM-1**, as [`tally_kernels`] promises it).

use std::borrow::Cow;

use rayon::prelude::*;
use tally_kernels::pack::{self, OihwWeights, WEIGHT_BLOCK};
use tally_kernels::reduce::IMAGES;
use tally_kernels::winograd::batched::{self, Direction, Job};
use tally_kernels::{BLOCK, Epilogue, NodeParts, Part, Planes, Simd, TAPS, direct, nchw, winograd};
use tally_numerics::wire::WireDtype;

use super::Activation;

/// The fewest channels in, and the fewest pairs of one in and one out, of a convolution that these kernels compute.
const FEWEST_INPUTS: usize = 8;
const FEWEST_PAIRS: usize = 256;
/// The least size (inputs times outputs) of a layer without padding whose weights are transformed as they are read.
const DEEP: usize = 1 << 16;

/// How a product of the convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// By its definition.
    Direct,
    /// By Winograd's algorithm, weights transformed once.
    Winograd,
    /// By Winograd's algorithm, all batches at once, weights transformed as they are read.
    Batched,
}

/// A function that packs weights, and one that convolves with them.
type Pack = fn(Simd, OihwWeights<'_>, &mut [f32]);
type Convolve = fn(Simd, &[f32], Planes, &[f32], usize, Epilogue<'_>, &mut [f32], Planes);

/// The shape of a 3×3 convolution, stride 1, over square images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Height and width of the images that come in.
    pub side: usize,
    /// Zeros around them: 0 or 1.
    pub padding: usize,
    /// Images.
    pub images: usize,
    /// What is done to the sums.
    pub activation: Activation,
}

/// What the backward pass needs of the forward pass, in the kernels' layout.
pub(super) struct Saved {
    /// Each batch's inputs.
    inputs: Vec<Vec<f32>>,
    /// Each batch's results, where a ReLU gave them.
    results: Option<Vec<Vec<f32>>>,
}

impl std::fmt::Debug for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved").field("batches", &self.inputs.len()).finish_non_exhaustive()
    }
}

impl Layer {
    /// The convolution of images `(n, inputs, side, side)` with weights
    /// `(outputs, inputs, 3, 3)`, if these kernels can compute it, and
    /// compute it quicker than burn-flex, as was measured (`docs/kernels.md`).
    ///
    /// The kernels take channels in blocks of [`BLOCK`], so that a layer of few channels is mostly padding.
    pub fn of(x: [usize; 4], weight: [usize; 4], padding: usize, activation: Activation) -> Option<Self> {
        let ([images, inputs, side, width], [outputs, per_group, height, across]) = (x, weight);
        let ours = side == width
            && (height, across) == (3, 3)
            && padding <= 1
            && side + 2 * padding >= 3
            && per_group == inputs
            && images > 0
            && outputs > 0
            && inputs >= FEWEST_INPUTS
            && inputs * outputs >= FEWEST_PAIRS;
        ours.then_some(Self { inputs, outputs, side, padding, images, activation })
    }

    /// Height and width of the results.
    pub fn side_out(&self) -> usize {
        self.side + 2 * self.padding - 2
    }

    /// Channels in, filled up to whole blocks.
    fn whole_inputs(&self) -> usize {
        self.inputs.next_multiple_of(BLOCK)
    }

    /// The number of images in each batch.
    fn batches(&self) -> impl ExactSizeIterator<Item = usize> {
        let images = self.images;
        (0..images).step_by(IMAGES).map(move |first| IMAGES.min(images - first))
    }

    fn from(&self, images: usize) -> Planes {
        Planes::of(self.inputs, self.side, images)
    }

    fn to(&self, images: usize) -> Planes {
        Planes::of(self.outputs, self.side_out(), images)
    }

    /// The methods for the results, the input gradient and the weight gradient: the quickest that were measured on layers
    /// of such a shape.
    fn methods(&self) -> [Method; 3] {
        let deep = self.inputs * self.outputs >= DEEP;
        match (self.padding, self.side_out()) {
            // A tile of 3×3 results would be mostly empty.
            (_, ..3) => [Method::Direct; 3],
            (0, _) if deep => [Method::Batched, Method::Batched, Method::Winograd],
            (0, _) => [Method::Direct; 3],
            _ if self.inputs > BLOCK => [Method::Winograd; 3],
            _ => [Method::Direct, Method::Winograd, Method::Direct],
        }
    }

    /// The results `(n, outputs, side, side)` of images `x`, and the activations that a backward pass needs.
    pub fn forward(&self, simd: Simd, x: &[f32], weights: &[f32], bias: &[f32]) -> (Vec<f32>, Saved) {
        let weights = self.whole(weights);
        let oihw = OihwWeights::new(&weights, self.outputs, self.whole_inputs());
        let mut padded = bias.to_vec();
        padded.resize(self.outputs.next_multiple_of(BLOCK), 0.0);
        let epilogue = match self.activation {
            Activation::Linear => Epilogue::Bias(&padded),
            Activation::Relu => Epilogue::BiasRelu(&padded),
        };
        let inputs = self.gather(simd, x, self.inputs, |images| self.from(images), None);
        let method = self.methods()[0];
        let results = self.convolve(simd, method, Direction::Forward, &inputs, oihw, epilogue);
        let out = self.scatter(simd, &results, self.outputs, |images| self.to(images));
        let keep = self.activation == Activation::Relu;
        (out, Saved { inputs, results: keep.then_some(results) })
    }

    /// The gradient of the sums before the activation, in the kernels' layout, from the output gradient `dy`.
    pub fn sums_grad(&self, simd: Simd, dy: &[f32], saved: &Saved) -> Vec<Vec<f32>> {
        self.gather(simd, dy, self.outputs, |images| self.to(images), saved.results.as_deref())
    }

    /// The input gradient, from [`sums_grad`](Self::sums_grad).
    pub fn input_grad(&self, simd: Simd, sums_grad: &[Vec<f32>], weights: &[f32]) -> Vec<f32> {
        let weights = self.whole(weights);
        let oihw = OihwWeights::new(&weights, self.outputs, self.whole_inputs());
        let method = self.methods()[1];
        let dx = self.convolve(simd, method, Direction::InputGrad, sums_grad, oihw, Epilogue::Nothing);
        self.scatter(simd, &dx, self.inputs, |images| self.from(images))
    }

    /// The weight gradient.
    pub fn weight_grad(&self, simd: Simd, sums_grad: &[Vec<f32>], saved: &Saved) -> Vec<f32> {
        let microbatch = self.microbatch(sums_grad, saved);
        let inputs = self.whole_inputs();
        let weight_grad = match self.methods()[2] {
            Method::Direct => direct::weight_grad,
            Method::Winograd | Method::Batched => winograd::weight_grad,
        };
        let mut out = vec![0.0; self.outputs * inputs * TAPS];
        weight_grad(simd, &microbatch, self.padding, inputs, &mut out);
        if inputs > self.inputs {
            let rows = out.chunks_exact(inputs * TAPS);
            out = rows.flat_map(|row| &row[..self.inputs * TAPS]).copied().collect();
        }
        out
    }

    /// The bias gradient.
    pub fn bias_grad(&self, simd: Simd, sums_grad: &[Vec<f32>], saved: &Saved) -> Vec<f32> {
        let mut out = vec![0.0; self.outputs];
        direct::bias_grad(simd, &self.microbatch(sums_grad, saved), &mut out);
        out
    }

    /// The operands of the weight and bias gradients, of one microbatch.
    fn microbatch<'a>(&self, sums_grad: &'a [Vec<f32>], saved: &'a Saved) -> NodeParts<Part<'a>> {
        let operands = sums_grad.iter().zip(&saved.inputs).zip(self.batches());
        let part = |((dy, x), images): ((&'a Vec<f32>, &'a Vec<f32>), usize)| Part {
            dy,
            to: self.to(images),
            x,
            from: self.from(images),
        };
        NodeParts { parts: vec![operands.map(part).collect()], rounding: WireDtype::F32 }
    }

    /// The weights with zeros for the channels that fill the last block up.
    fn whole<'a>(&self, weights: &'a [f32]) -> Cow<'a, [f32]> {
        let inputs = self.whole_inputs();
        if inputs == self.inputs {
            return Cow::Borrowed(weights);
        }
        let mut whole = vec![0.0; self.outputs * inputs * TAPS];
        let rows = whole.chunks_exact_mut(inputs * TAPS).zip(weights.chunks_exact(self.inputs * TAPS));
        rows.for_each(|(whole, row)| whole[..row.len()].copy_from_slice(row));
        Cow::Owned(whole)
    }

    /// Images in the kernels' layout, a buffer for each batch.
    fn gather(
        &self,
        simd: Simd,
        x: &[f32],
        channels: usize,
        shape: impl Fn(usize) -> Planes + Sync,
        relu_gradient: Option<&[Vec<f32>]>,
    ) -> Vec<Vec<f32>> {
        let batch = x.len() / self.images * IMAGES;
        x.par_chunks(batch)
            .enumerate()
            .zip(self.batches().collect::<Vec<_>>())
            .map(|((index, x), images)| {
                let shape = shape(images);
                let mut out = vec![0.0; shape.len()];
                let of = relu_gradient.map(|results| results[index].as_slice());
                nchw::gather(simd, x, channels, of, &mut out, shape);
                out
            })
            .collect()
    }

    /// The opposite of `gather`.
    fn scatter(
        &self,
        simd: Simd,
        batches: &[Vec<f32>],
        channels: usize,
        shape: impl Fn(usize) -> Planes + Sync,
    ) -> Vec<f32> {
        let image = channels * shape(1).side * shape(1).side;
        let mut out = vec![0.0; self.images * image];
        out.par_chunks_mut(image * IMAGES)
            .zip(batches)
            .zip(self.batches().collect::<Vec<_>>())
            .for_each(|((out, x), images)| nchw::scatter(simd, x, shape(images), channels, out));
        out
    }

    /// The convolution of every batch, or its input gradient.
    fn convolve(
        &self,
        simd: Simd,
        method: Method,
        direction: Direction,
        batches: &[Vec<f32>],
        weights: OihwWeights<'_>,
        epilogue: Epilogue<'_>,
    ) -> Vec<Vec<f32>> {
        let shapes = |images| match direction {
            Direction::Forward => (self.from(images), self.to(images)),
            Direction::InputGrad => (self.to(images), self.from(images)),
        };
        let mut outs: Vec<Vec<f32>> =
            self.batches().map(|images| vec![0.0; shapes(images).1.len()]).collect();
        let jobs = batches.iter().zip(&mut outs).zip(self.batches());
        let jobs: Vec<Job<'_>> = jobs
            .map(|((x, out), images)| {
                let (from, to) = shapes(images);
                Job { x, from, epilogue, out, to }
            })
            .collect();
        if method == Method::Batched {
            batched::convolve(simd, direction, jobs, weights, self.padding);
            return outs;
        }
        let blocks = self.outputs.div_ceil(BLOCK) * self.whole_inputs() / BLOCK;
        let forward = direction == Direction::Forward;
        let (block, pack, convolve): (_, Pack, Convolve) = match method {
            Method::Direct => {
                (WEIGHT_BLOCK, if forward { pack::forward } else { pack::backward }, direct::convolve)
            }
            Method::Winograd | Method::Batched => (
                winograd::transformed_len(1),
                if forward { winograd::weights::forward } else { winograd::weights::backward },
                winograd::convolve,
            ),
        };
        let mut packed = vec![0.0; blocks * block];
        pack(simd, weights, &mut packed);
        let padding = if forward { self.padding } else { 2 - self.padding };
        jobs.into_par_iter().for_each(|Job { x, from, epilogue, out, to }| {
            convolve(simd, x, from, &packed, padding, epilogue, out, to);
        });
        outs
    }
}
