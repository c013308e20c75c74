//! The forward and the backward pass over a node's microbatches.
//!
//! A microbatch's images are computed in batches of at most [`IMAGES`], whose activations the caches hold; batches share
//! the threads. Only the weight gradients are computed over all batches at once: they are added up along the tree of the
//! microbatches before they are stored. In the backward pass, a layer's weight gradient is computed before its input
//! gradient, and is ready at once: conv6 alone is 74 % of the parameters.

use std::ops::Range;

use rayon::ThreadPool;
use rayon::prelude::*;
use tally_kernels::first::{self, Bordered, FirstPart};
use tally_kernels::reduce::{self, IMAGES};
use tally_kernels::winograd::batched::{self, Direction, Job};
use tally_kernels::{BLOCK, Epilogue, NodeParts, Part, Planes, Simd, direct, pool, winograd};
use tally_numerics::wire::WireDtype;

use super::heads::{Heads, LOGITS};
use super::layers::{CONVOLUTIONS, Convolution, FIRST, Method, SIDE};
use super::weights::Weights;
use crate::data::{PIXELS, Samples};
use crate::network::burn::inputs::NORMALISED;
use crate::network::outputs::OUTPUTS;

/// The passes over some microbatches. Memory is kept from one to the next.
pub(super) struct Pass {
    simd: Simd,
    batches: Vec<Batch>,
    /// The batches of each microbatch; further ones in `batches` are spare.
    microbatches: Vec<Range<usize>>,
    /// What the gradients of the microbatches, and their sums, are rounded to.
    rounding: WireDtype,
}

/// A few images of a microbatch, and everything that is computed of them.
#[derive(Default)]
struct Batch {
    images: usize,
    numbers: Vec<f32>,
    pixels: Vec<f32>,
    /// Each convolution's results, after its ReLU, from the first convolution on.
    results: [Vec<f32>; CONVOLUTIONS.len() + 1],
    /// The pooled inputs of the convolutions that pool.
    pooled: [Vec<f32>; CONVOLUTIONS.len()],
    heads: Heads,
    /// A convolution's output gradient, input gradient, and the gradient of its pooled input.
    result_grad: Vec<f32>,
    input_grad: Vec<f32>,
    pooled_grad: Vec<f32>,
}

/// A buffer's first `len` floats, of any content; the buffer never shrinks.
fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Pass {
    pub fn new(simd: Simd) -> Self {
        Self { simd, batches: Vec::new(), microbatches: Vec::new(), rounding: WireDtype::F32 }
    }

    /// Takes the images of several microbatches in, whose gradients are to be rounded.
    pub fn load(&mut self, microbatches: &[&Samples], rounding: WireDtype) {
        self.rounding = rounding;
        self.take(microbatches.iter().map(|microbatch| (*microbatch, 0..microbatch.len())));
    }

    /// Takes a stretch of samples in.
    pub fn load_stretch(&mut self, samples: &Samples, stretch: Range<usize>) {
        self.take([(samples, stretch)]);
    }

    fn take<'a>(&mut self, microbatches: impl IntoIterator<Item = (&'a Samples, Range<usize>)>) {
        self.microbatches.clear();
        let mut stretches = Vec::new();
        for (samples, images) in microbatches {
            let first = stretches.len();
            let starts = images.clone().step_by(IMAGES);
            stretches.extend(starts.map(|start| (samples, start..images.end.min(start + IMAGES))));
            self.microbatches.push(first..stretches.len());
        }
        if self.batches.len() < stretches.len() {
            self.batches.resize_with(stretches.len(), Batch::default);
        }
        self.batches
            .par_iter_mut()
            .zip(stretches)
            .for_each(|(batch, (samples, images))| batch.take(samples, images));
    }

    fn batches(&mut self) -> (&mut [Batch], Tree<'_>) {
        let count = self.microbatches.last().map_or(0, |last| last.end);
        (&mut self.batches[..count], Tree { microbatches: &self.microbatches, rounding: self.rounding })
    }

    /// The network's outputs, [`OUTPUTS`] a sample, for the images taken in. `weights` are
    /// those of `parameters`.
    pub fn forward(&mut self, weights: &Weights, parameters: &[f32]) -> Vec<f32> {
        let simd = self.simd;
        let (batches, _) = self.batches();
        batches.par_iter_mut().for_each(|batch| batch.first_convolution(simd, weights));
        for (index, layer) in CONVOLUTIONS.iter().enumerate() {
            let weights = &weights.convolutions[index];
            match layer.methods[0] {
                Method::Batched => {
                    batches.par_iter_mut().for_each(|batch| batch.pool(simd, index, layer));
                    let jobs = batches.iter_mut().map(|batch| batch.forward(index, layer, &weights.bias));
                    let oihw = weights.oihw(layer, parameters);
                    batched::convolve(simd, Direction::Forward, jobs.collect(), oihw, layer.padding);
                }
                method => batches.par_iter_mut().for_each(|batch| {
                    batch.pool(simd, index, layer);
                    let job = batch.forward(index, layer, &weights.bias);
                    alone(simd, method, job, &weights.forward, layer.padding);
                }),
            }
        }
        let outputs: Vec<Vec<f32>> =
            batches.par_iter_mut().map(|batch| batch.answers(simd, weights)).collect();
        outputs.concat()
    }

    /// Computes the gradient of all parameters into `out`, from the output gradient of the last forward pass, the gradient
    /// of every node rounded; `ready` is called with each prefix that is final.
    pub fn backward(
        &mut self,
        weights: &Weights,
        parameters: &[f32],
        output_grad: &[f32],
        threads: &ThreadPool,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) {
        let simd = self.simd;
        let (batches, tree) = self.batches();
        let [.., last] = &weights.convolutions;
        let end = last.spot.weight.start;
        threads.install(|| {
            let mut rest = output_grad;
            for batch in &mut *batches {
                let (mine, others) = rest.split_at(batch.images * OUTPUTS);
                batch.backward_heads(simd, weights, mine);
                rest = others;
            }
            let microbatch = |batches: &[&Batch], into: &mut [f32]| {
                into.fill(0.0);
                batches.iter().for_each(|batch| batch.heads.add_gradients(simd, weights, into));
            };
            reduce::sum(simd, &tree.by_microbatch(batches, |batch| batch), end, microbatch, |sum| {
                out[..end].copy_from_slice(sum);
            });
        });
        ready(&out[..end]);

        for (index, (layer, weights)) in CONVOLUTIONS.iter().zip(&weights.convolutions).enumerate().rev() {
            let spot = &weights.spot;
            threads.install(|| {
                let parts = tree.by_microbatch(batches, |batch| batch.part(index, layer));
                let weight_grad = match layer.methods[2] {
                    Method::Direct => direct::weight_grad,
                    Method::Winograd | Method::Batched => winograd::weight_grad,
                };
                weight_grad(simd, &parts, layer.padding, layer.inputs, &mut out[spot.weight.clone()]);
                direct::bias_grad(simd, &parts, &mut out[spot.bias.clone()]);
            });
            ready(&out[..spot.bias.end]);
            threads.install(|| match layer.methods[1] {
                Method::Batched => {
                    let jobs = batches.iter_mut().map(|batch| batch.input_grad(index, layer)).collect();
                    let oihw = weights.oihw(layer, parameters);
                    batched::convolve(simd, Direction::InputGrad, jobs, oihw, layer.padding);
                    batches.par_iter_mut().for_each(|batch| batch.unpool(simd, index, layer));
                }
                method => batches.par_iter_mut().for_each(|batch| {
                    let job = batch.input_grad(index, layer);
                    alone(simd, method, job, &weights.backward, 2 - layer.padding);
                    batch.unpool(simd, index, layer);
                }),
            });
        }
        threads.install(|| {
            let parts = tree.by_microbatch(batches, Batch::first_part);
            first::weight_grad(simd, &parts, &mut out[weights.first.weight.clone()]);
            let parts = tree.by_microbatch(batches, Batch::part_of_first_bias);
            direct::bias_grad(simd, &parts, &mut out[weights.first.bias.clone()]);
        });
        ready(out);
    }
}

/// How batches are summed.
struct Tree<'a> {
    /// The batches of each microbatch.
    microbatches: &'a [Range<usize>],
    rounding: WireDtype,
}

impl Tree<'_> {
    /// `part` of each microbatch's batches.
    fn by_microbatch<'a, T>(&self, batches: &'a [Batch], part: impl Fn(&'a Batch) -> T) -> NodeParts<T> {
        let of = |microbatch: &Range<usize>| batches[microbatch.clone()].iter().map(&part).collect();
        NodeParts { parts: self.microbatches.iter().map(of).collect(), rounding: self.rounding }
    }
}

impl Batch {
    fn take(&mut self, samples: &Samples, images: Range<usize>) {
        self.images = images.len();
        self.numbers.clear();
        self.numbers.extend(samples.numbers()[images.clone()].iter().map(|&number| f32::from(number)));
        let (table, shape) = (&*NORMALISED, self.bordered());
        let pixels = &samples.pixels()[images.start * PIXELS..];
        shape.fill(room(&mut self.pixels, shape.len()), |image, pixel| {
            table[usize::from(pixels[image * PIXELS + pixel])]
        });
    }

    fn bordered(&self) -> Bordered {
        Bordered { side: SIDE, images: self.images }
    }

    /// The shape of the first convolution's results.
    fn first(&self) -> Planes {
        Planes::of(FIRST, SIDE, self.images)
    }

    /// The shape of the results before a convolution, before they are pooled.
    fn whole(&self, layer: &Convolution) -> Planes {
        let from = layer.from(self.images);
        if layer.pooled { Planes { side: 2 * from.side, ..from } } else { from }
    }

    fn first_convolution(&mut self, simd: Simd, weights: &Weights) {
        let (shape, to) = (self.bordered(), self.first());
        let (pixels, out) = (&self.pixels[..shape.len()], room(&mut self.results[0], to.len()));
        first::convolve(simd, pixels, shape, &weights.first_weight, &weights.first_bias, out);
    }

    /// Pools the results before convolution `index`, if its input is pooled.
    fn pool(&mut self, simd: Simd, index: usize, layer: &Convolution) {
        let (from, whole) = (layer.from(self.images), self.whole(layer));
        if layer.pooled {
            let pooled = room(&mut self.pooled[index], from.len());
            pool::max(simd, &self.results[index][..whole.len()], whole, pooled);
        }
    }

    /// From the inputs of convolution `index` to its results.
    fn forward<'a>(&'a mut self, index: usize, layer: &Convolution, bias: &'a [f32]) -> Job<'a> {
        let (from, to) = (layer.from(self.images), layer.to(self.images));
        let (before, results) = self.results.split_at_mut(index + 1);
        let x = if layer.pooled { &self.pooled[index] } else { &before[index] };
        let last = index + 1 == CONVOLUTIONS.len();
        let epilogue = if last { Epilogue::Bias(bias) } else { Epilogue::BiasRelu(bias) };
        Job { x: &x[..from.len()], from, epilogue, out: room(&mut results[0], to.len()), to }
    }

    /// Through the linear layers, to the network's outputs.
    fn answers(&mut self, simd: Simd, weights: &Weights) -> Vec<f32> {
        let images = self.images;
        let [.., logits] = &self.results;
        let logits: Vec<f32> =
            logits.chunks_exact(BLOCK).take(images).flat_map(|row| &row[..LOGITS]).copied().collect();
        let [sums, differences] = self.heads.forward(simd, weights, &logits, &self.numbers);
        let mut outputs = Vec::with_capacity(images * OUTPUTS);
        for (image, logits) in logits.chunks_exact(LOGITS).enumerate() {
            outputs.extend_from_slice(logits);
            outputs.extend([sums[image], differences[image]]);
        }
        outputs
    }

    /// Through the linear layers, to the last convolution's output gradient.
    fn backward_heads(&mut self, simd: Simd, weights: &Weights, output_grad: &[f32]) {
        let column = |at: usize| output_grad.iter().skip(at).step_by(OUTPUTS).copied().collect();
        let mut logits_grad: Vec<f32> =
            output_grad.chunks_exact(OUTPUTS).flat_map(|row| &row[..LOGITS]).copied().collect();
        self.heads.backward(simd, weights, [column(LOGITS), column(LOGITS + 1)], &mut logits_grad);
        let result_grad = room(&mut self.result_grad, self.images * BLOCK);
        for (row, logits_grad) in result_grad.chunks_exact_mut(BLOCK).zip(logits_grad.chunks_exact(LOGITS)) {
            row.fill(0.0);
            row[..LOGITS].copy_from_slice(logits_grad);
        }
    }

    /// The operands of the weight gradient of convolution `index`.
    fn part(&self, index: usize, layer: &Convolution) -> Part<'_> {
        let (from, to) = (layer.from(self.images), layer.to(self.images));
        let x = if layer.pooled { &self.pooled[index] } else { &self.results[index] };
        Part { dy: &self.result_grad[..to.len()], to, x: &x[..from.len()], from }
    }

    fn first_part(&self) -> FirstPart<'_> {
        let shape = self.bordered();
        (&self.result_grad[..self.first().len()], &self.pixels[..shape.len()], shape)
    }

    /// The same for the first bias, which needs no input.
    fn part_of_first_bias(&self) -> Part<'_> {
        let to = self.first();
        let dy = &self.result_grad[..to.len()];
        Part { dy, to, x: dy, from: to }
    }

    /// From the output gradient of convolution `index` to its input gradient.
    fn input_grad<'a>(&'a mut self, index: usize, layer: &Convolution) -> Job<'a> {
        let (from, to) = (layer.from(self.images), layer.to(self.images));
        let (epilogue, out) = if layer.pooled {
            (Epilogue::Nothing, &mut self.pooled_grad)
        } else {
            (Epilogue::ReluGradient(&self.results[index][..from.len()]), &mut self.input_grad)
        };
        Job { x: &self.result_grad[..to.len()], from: to, epilogue, out: room(out, from.len()), to: from }
    }

    /// From the input gradient of convolution `index` to the output gradient of the convolution before it.
    fn unpool(&mut self, simd: Simd, index: usize, layer: &Convolution) {
        let (from, whole) = (layer.from(self.images), self.whole(layer));
        if layer.pooled {
            let (pooled_grad, before) =
                (&self.pooled_grad[..from.len()], &self.results[index][..whole.len()]);
            pool::gradient(simd, pooled_grad, before, whole, room(&mut self.input_grad, whole.len()));
        }
        std::mem::swap(&mut self.input_grad, &mut self.result_grad);
    }
}

/// Convolves one batch by itself.
fn alone(simd: Simd, method: Method, job: Job<'_>, weights: &[f32], padding: usize) {
    let convolve = match method {
        Method::Direct => direct::convolve,
        Method::Winograd | Method::Batched => winograd::convolve,
    };
    let Job { x, from, epilogue, out, to } = job;
    convolve(simd, x, from, weights, padding, epilogue, out, to);
}
