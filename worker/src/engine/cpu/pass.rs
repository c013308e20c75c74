//! The forward and the backward pass.
//!
//! Backward, a layer's gradient by its weights comes before the one by its input, and is
//! handed out at once: conv6 alone is 74 % of the parameters.

use std::ops::Range;

use rayon::ThreadPool;
use tally_data::Samples;
use tally_data::samples::PIXELS;

use super::heads::{Heads, LOGITS};
use super::layers::{CONVOLUTIONS, FIRST, SIDE};
use super::weights::Weights;
use crate::engine::burn::inputs::NORMALISED;
use crate::engine::losses::OUTPUTS;
use tally_kernels::direct::{self, After};
use tally_kernels::first::{self, Bordered};
use tally_kernels::{BLOCK, Leaves, Planes, Simd, pool};

/// What the passes hold between them: kept from batch to batch, so that nothing is
/// allocated once the largest batch has been seen.
pub(super) struct Pass {
    simd: Simd,
    images: usize,
    numbers: Vec<f32>,
    pixels: Vec<f32>,
    /// Each convolution's results, after its ReLU; the first's first.
    results: [Vec<f32>; CONVOLUTIONS.len() + 1],
    /// The pooled inputs of those that pool.
    pooled: [Vec<f32>; CONVOLUTIONS.len()],
    heads: Heads,
    /// Gradients by a convolution's result and by its input.
    by_result: Vec<f32>,
    by_input: Vec<f32>,
    by_pooled: Vec<f32>,
}

/// A buffer's first `len` floats; the buffer never shrinks. What they hold is to be
/// overwritten.
fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Pass {
    pub fn new(simd: Simd) -> Self {
        Self {
            simd,
            images: 0,
            numbers: Vec::new(),
            pixels: Vec::new(),
            results: Default::default(),
            pooled: Default::default(),
            heads: Heads::default(),
            by_result: Vec::new(),
            by_input: Vec::new(),
            by_pooled: Vec::new(),
        }
    }

    fn bordered(&self) -> Bordered {
        Bordered { side: SIDE, images: self.images }
    }

    /// Takes the images of several leaves in.
    pub fn load(&mut self, leaves: &[&Samples]) {
        let images: Vec<(&Samples, usize)> =
            leaves.iter().flat_map(|leaf| (0..leaf.len()).map(move |index| (*leaf, index))).collect();
        self.take(&images);
    }

    /// Takes a stretch of samples in.
    pub fn load_stretch(&mut self, samples: &Samples, stretch: Range<usize>) {
        let images: Vec<(&Samples, usize)> = stretch.map(|index| (samples, index)).collect();
        self.take(&images);
    }

    fn take(&mut self, images: &[(&Samples, usize)]) {
        self.images = images.len();
        self.numbers.clear();
        self.numbers.extend(images.iter().map(|(samples, index)| f32::from(samples.numbers()[*index])));
        let (table, shape) = (&*NORMALISED, self.bordered());
        let pixels: Vec<&[u8]> =
            images.iter().map(|(samples, index)| &samples.pixels()[index * PIXELS..][..PIXELS]).collect();
        shape.fill(room(&mut self.pixels, shape.len()), |image, pixel| {
            table[usize::from(pixels[image][pixel])]
        });
    }

    /// The network's outputs, [`OUTPUTS`] a sample, for the images taken in.
    pub fn forward(&mut self, weights: &Weights) -> Vec<f32> {
        let (simd, images, shape) = (self.simd, self.images, self.bordered());
        let first = Planes::of(FIRST, SIDE, images);
        first::convolve(
            simd,
            &self.pixels[..shape.len()],
            shape,
            &weights.first_weight,
            &weights.first_bias,
            room(&mut self.results[0], first.len()),
        );
        for (index, (layer, weights)) in CONVOLUTIONS.iter().zip(&weights.convolutions).enumerate() {
            let (from, to) = (layer.from(images), layer.to(images));
            let [before, after] = &mut self.results[index..index + 2] else { continue };
            let x = if layer.pooled {
                let whole = Planes { side: 2 * from.side, ..from };
                let pooled = room(&mut self.pooled[index], from.len());
                pool::max(simd, &before[..whole.len()], whole, pooled);
                pooled
            } else {
                &before[..from.len()]
            };
            let last = index + 1 == CONVOLUTIONS.len();
            let then = if last { After::Bias(&weights.bias) } else { After::BiasRelu(&weights.bias) };
            let out = room(after, to.len());
            direct::convolve(simd, x, from, &weights.forward, layer.padding, then, out, to);
        }
        let [.., logits] = &self.results;
        let logits: Vec<f32> =
            logits.chunks_exact(BLOCK).take(images).flat_map(|row| row[..LOGITS].iter().copied()).collect();
        let [sums, differences] = self.heads.forward(simd, &weights, &logits, &self.numbers);
        let mut outputs = Vec::with_capacity(images * OUTPUTS);
        for (image, logits) in logits.chunks_exact(LOGITS).enumerate() {
            outputs.extend_from_slice(logits);
            outputs.extend([sums[image], differences[image]]);
        }
        outputs
    }

    /// The gradient by all parameters into `out`, from that by the outputs of the forward
    /// pass just made; `ready` is shown each prefix that is final.
    pub fn backward(
        &mut self,
        weights: &Weights,
        by_outputs: &[f32],
        leaves: &Leaves,
        threads: &ThreadPool,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) {
        let (simd, images, shape) = (self.simd, self.images, self.bordered());
        let column = |at: usize| by_outputs.iter().skip(at).step_by(OUTPUTS).copied().collect::<Vec<f32>>();
        let mut by_logits: Vec<f32> =
            by_outputs.chunks_exact(OUTPUTS).flat_map(|row| row[..LOGITS].iter().copied()).collect();
        let [.., last] = &weights.convolutions;
        let end = last.spot.weight.start;
        let (by_sums, by_differences) = (column(LOGITS), column(LOGITS + 1));
        self.heads.backward(
            simd,
            weights,
            [&by_sums, &by_differences],
            leaves,
            &mut out[..end],
            &mut by_logits,
        );
        ready(&out[..end]);

        let by_result = room(&mut self.by_result, images * BLOCK);
        for (row, by_logits) in by_result.chunks_exact_mut(BLOCK).zip(by_logits.chunks_exact(LOGITS)) {
            row.fill(0.0);
            row[..LOGITS].copy_from_slice(by_logits);
        }
        for (index, (layer, weights)) in CONVOLUTIONS.iter().zip(&weights.convolutions).enumerate().rev() {
            let (from, to) = (layer.from(images), layer.to(images));
            let spot = &weights.spot;
            let whole = Planes { side: 2 * from.side, ..from };
            let before = &self.results[index][..if layer.pooled { whole.len() } else { from.len() }];
            let x = if layer.pooled { &self.pooled[index][..from.len()] } else { before };
            let dy = &self.by_result[..to.len()];
            threads.install(|| {
                let dw = &mut out[spot.weight.clone()];
                direct::weight_gradient(simd, dy, to, x, from, layer.padding, leaves, dw);
                direct::bias_gradient(simd, dy, to, leaves, &mut out[spot.bias.clone()]);
            });
            ready(&out[..spot.bias.end]);
            let padding = 2 - layer.padding;
            threads.install(|| {
                if layer.pooled {
                    let pooled = room(&mut self.by_pooled, from.len());
                    direct::convolve(simd, dy, to, &weights.backward, padding, After::Nothing, pooled, from);
                    pool::gradient(simd, pooled, before, whole, room(&mut self.by_input, whole.len()));
                } else {
                    let then = After::ReluGradient(before);
                    let dx = room(&mut self.by_input, from.len());
                    direct::convolve(simd, dy, to, &weights.backward, padding, then, dx, from);
                }
            });
            std::mem::swap(&mut self.by_result, &mut self.by_input);
        }
        let first = Planes::of(FIRST, SIDE, images);
        threads.install(|| {
            let dy = &self.by_result[..first.len()];
            let x = &self.pixels[..shape.len()];
            first::weight_gradient(simd, dy, x, shape, leaves, &mut out[weights.first.weight.clone()]);
            direct::bias_gradient(simd, dy, first, leaves, &mut out[weights.first.bias.clone()]);
        });
        ready(out);
    }
}
