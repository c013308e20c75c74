//! The 3×3 convolution, stride 1, as it is defined: nine taps, no transforms.
//!
//! Nothing is padded. An output pixel at the border has fewer taps, and each stretch of
//! pixels with the same taps is computed at once; so zeros cost nothing.

use std::ops::Range;

use rayon::prelude::*;

use crate::lanes::Lanes;
use crate::leaves::Leaves;
use crate::planes::Planes;
use crate::simd::{Kernel, Simd};
use crate::tile::{Finish, Segment, Start, Tile};
use crate::{BLOCK, TAPS};

/// Floats of a packed block of weights: all taps from 32 channels to 32 channels.
pub const WEIGHT_BLOCK: usize = TAPS * BLOCK * BLOCK;
/// A task has at least so many rows, so that what it loads of the weights pays.
const ROWS_OF_A_TASK: usize = 96;

/// What a convolution does to its sums.
#[derive(Clone, Copy, Debug)]
pub enum After<'a> {
    /// Adds a bias, [`BLOCK`] numbers a block.
    Bias(&'a [f32]),
    /// Adds a bias and takes the ReLU.
    BiasRelu(&'a [f32]),
    /// Nothing.
    Nothing,
    /// Multiplies with the slope of the ReLU that gave these activations.
    ReluGradient(&'a [f32]),
}

/// The taps, `0..3`, that reach into `side` pixels from pixel `at`.
fn taps(at: usize, padding: usize, side: usize) -> Range<usize> {
    padding.saturating_sub(at)..(side + padding - at).min(3)
}

/// The pixels of `0..count` that tap `tap` moves into `side` pixels.
fn reach(tap: usize, padding: usize, side: usize, count: usize) -> Range<usize> {
    padding.saturating_sub(tap)..count.min(side + padding - tap)
}

/// Convolves `x`, of shape `from`, with weights packed by
/// [`pack::forward`](crate::pack::forward) into `out`, of shape `to`, with `padding` zeros
/// around. Given [`pack::backward`](crate::pack::backward)'s weights and `2 − padding` it is
/// the gradient by the input.
///
/// # Panics
/// If a slice has not its shape's length, or the shapes don't follow from each other.
#[allow(clippy::too_many_arguments)] // Two operands, a result, their shapes.
pub fn convolve(
    simd: Simd,
    x: &[f32],
    from: Planes,
    weights: &[f32],
    padding: usize,
    after: After<'_>,
    out: &mut [f32],
    to: Planes,
) {
    assert_eq!(to.side + 2, from.side + 2 * padding, "the sides of a 3×3 convolution");
    assert_eq!(to.images, from.images, "as many images out as in");
    assert_eq!((x.len(), out.len()), (from.len(), to.len()), "activations have their shape's length");
    assert_eq!(weights.len(), to.blocks * from.blocks * WEIGHT_BLOCK, "weights for these blocks");
    match after {
        After::Bias(bias) | After::BiasRelu(bias) => assert_eq!(bias.len(), to.blocks * BLOCK, "a bias each"),
        After::ReluGradient(of) => assert_eq!(of.len(), out.len(), "an activation each"),
        After::Nothing => {}
    }
    let lines = ROWS_OF_A_TASK.div_ceil(to.side * to.images).min(to.side);
    out.par_chunks_mut(to.block()).enumerate().for_each(|(block, out)| {
        out.par_chunks_mut(lines * to.row()).enumerate().for_each(|(index, out)| {
            let weights = &weights[block * from.blocks * WEIGHT_BLOCK..][..from.blocks * WEIGHT_BLOCK];
            simd.run(Lines { x, from, weights, padding, after, out, to, block, first: index * lines });
        });
    });
}

/// A few lines of one block of outputs.
struct Lines<'a> {
    x: &'a [f32],
    from: Planes,
    weights: &'a [f32],
    padding: usize,
    after: After<'a>,
    out: &'a mut [f32],
    to: Planes,
    block: usize,
    first: usize,
}

impl Kernel for Lines<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { x, from, weights, padding, after, out, to, block, first } = self;
        // Blocks of inputs outermost: their weights stay in the first cache for all rows.
        for (input, weights) in weights.as_chunks::<WEIGHT_BLOCK>().0.iter().enumerate() {
            let last = input + 1 == from.blocks;
            for (line, out) in out.chunks_exact_mut(to.row()).enumerate() {
                let y = first + line;
                let mut left = 0;
                while left < to.side {
                    let across = taps(left, padding, from.side);
                    let right = (left + 1..to.side)
                        .find(|&x| taps(x, padding, from.side) != across)
                        .unwrap_or(to.side);
                    let mut segments = [Segment::default(); TAPS];
                    let mut count = 0;
                    for down in taps(y, padding, from.side) {
                        for across in across.clone() {
                            segments[count] = Segment {
                                a: from.at(input, y + down - padding, left + across - padding, 0),
                                b: (3 * down + across) * BLOCK * BLOCK,
                            };
                            count += 1;
                        }
                    }
                    let here = left * to.pixel()..right * to.pixel();
                    let start = match after {
                        _ if input > 0 => Start::Out,
                        After::Bias(bias) | After::BiasRelu(bias) => {
                            bias.as_chunks().0.get(block).map_or(Start::Zero, Start::Bias)
                        }
                        _ => Start::Zero,
                    };
                    let finish = match after {
                        After::BiasRelu(_) if last => Finish::Relu,
                        After::ReluGradient(of) if last => {
                            let line = &of[to.at(block, y, 0, 0)..][..to.row()];
                            Finish::ReluGradient(&line[here.clone()])
                        }
                        _ => Finish::Keep,
                    };
                    lanes.tile(Tile::<BLOCK, 1> {
                        a: x,
                        b: weights,
                        segments: &segments[..count],
                        steps: BLOCK,
                        out: &mut out[here],
                        start,
                        finish,
                    });
                    left = right;
                }
            }
        }
    }
}

/// Adds up the gradient by the weights, `out[o][c][tap]` with `inputs` channels `c`, from the
/// gradient `dy` by the outputs and the inputs `x`: image by image inside a leaf (all its
/// images of a pixel, then the next pixel), then along the tree.
///
/// # Panics
/// If a slice has not its shape's length, or the shapes don't follow from each other.
#[allow(clippy::too_many_arguments)] // Two operands, a result, their shapes.
pub fn weight_gradient(
    simd: Simd,
    dy: &[f32],
    to: Planes,
    x: &[f32],
    from: Planes,
    padding: usize,
    leaves: &Leaves,
    out: &mut [f32],
) {
    let inputs = from.blocks * BLOCK;
    assert_eq!(to.side + 2, from.side + 2 * padding, "the sides of a 3×3 convolution");
    assert_eq!((x.len(), dy.len()), (from.len(), to.len()), "activations have their shape's length");
    assert!(to.images == leaves.images() && from.images == leaves.images(), "the leaves' images");
    assert!(out.len() <= to.blocks * BLOCK * inputs * TAPS, "no more outputs than there are");
    assert_eq!(out.len() % (inputs * TAPS), 0, "whole outputs");
    let runs: Vec<[Run; TAPS]> = leaves
        .ranges()
        .iter()
        .map(|images| std::array::from_fn(|tap| Run::new(tap, images, to, from, padding)))
        .collect();
    out.par_chunks_mut(BLOCK * inputs * TAPS).enumerate().for_each(|(block, out)| {
        let mut free = Vec::new();
        let outputs = out.len() / (inputs * TAPS);
        for input in 0..from.blocks {
            leaves.sum(
                &mut free,
                WEIGHT_BLOCK,
                |leaf, _, sums| {
                    let dy = &dy[block * to.block()..][..to.block()];
                    let x = &x[input * from.block()..][..from.block()];
                    simd.run(Products { dy, x, runs: &runs[leaf], outputs, sums });
                },
                |sums| unpack(sums, input, inputs, out),
            );
        }
    });
}

/// The pixels over which one tap's products are summed for one leaf.
struct Run {
    segments: Vec<Segment>,
    steps: usize,
}

impl Run {
    fn new(tap: usize, images: &Range<usize>, to: Planes, from: Planes, padding: usize) -> Self {
        let (down, across) = (tap / 3, tap % 3);
        let xs = reach(across, padding, from.side, to.side);
        // All images: the pixels of a line follow on each other.
        let whole = images.len() == to.images;
        let steps = if whole { xs.len() * to.images } else { images.len() };
        let mut segments = Vec::new();
        for y in reach(down, padding, from.side, to.side) {
            let mut add = |x: usize| {
                segments.push(Segment {
                    a: to.at(0, y, x, images.start),
                    b: from.at(0, y + down - padding, x + across - padding, images.start),
                });
            };
            if whole { add(xs.start) } else { xs.clone().for_each(add) }
        }
        Self { segments, steps }
    }
}

/// A leaf's products of one block of outputs with one of inputs: `sums[tap][o][c]`.
struct Products<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    runs: &'a [Run; TAPS],
    outputs: usize,
    sums: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for (run, sums) in self.runs.iter().zip(self.sums.chunks_exact_mut(BLOCK * BLOCK)) {
            lanes.tile(Tile::<1, BLOCK> {
                a: self.dy,
                b: self.x,
                segments: &run.segments,
                steps: run.steps,
                out: &mut sums[..self.outputs * BLOCK],
                start: Start::Zero,
                finish: Finish::Keep,
            });
        }
    }
}

/// From `[tap][o][c]` of a block into `[o][c][tap]` of the whole.
fn unpack(sums: &[f32], input: usize, inputs: usize, out: &mut [f32]) {
    let taps: [&[f32]; TAPS] = std::array::from_fn(|tap| &sums[tap * BLOCK * BLOCK..][..BLOCK * BLOCK]);
    for (o, out) in out.chunks_exact_mut(inputs * TAPS).enumerate() {
        let taps = taps.map(|tap| &tap[o * BLOCK..][..BLOCK]);
        let out = &mut out[input * BLOCK * TAPS..][..BLOCK * TAPS];
        for (c, out) in out.as_chunks_mut::<TAPS>().0.iter_mut().enumerate() {
            for (tap, out) in out.iter_mut().enumerate() {
                *out = taps[tap][c];
            }
        }
    }
}

/// Adds up the gradient by the biases, `out[o]`: pixel by pixel and image by image inside a
/// leaf, then along the tree.
///
/// # Panics
/// If `dy` has not its shape's length, or `out` has more outputs than that.
pub fn bias_gradient(simd: Simd, dy: &[f32], to: Planes, leaves: &Leaves, out: &mut [f32]) {
    assert_eq!((dy.len(), to.images), (to.len(), leaves.images()), "activations have their shape's length");
    assert!(out.len() <= to.blocks * BLOCK, "no more outputs than there are");
    out.par_chunks_mut(BLOCK).zip(dy.par_chunks(to.block())).for_each(|(out, dy)| {
        leaves.sum(
            &mut Vec::new(),
            BLOCK,
            |_, images, sums| simd.run(Total { dy, pixel: to.pixel(), images, sums }),
            |sums| out.copy_from_slice(&sums[..out.len()]),
        );
    });
}

/// The sums of a leaf's rows.
struct Total<'a> {
    dy: &'a [f32],
    pixel: usize,
    images: Range<usize>,
    sums: &'a mut [f32],
}

impl Kernel for Total<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let mut sums = [lanes.splat(0.0); 2];
        for pixel in self.dy.chunks_exact(self.pixel) {
            let rows = &pixel[self.images.start * BLOCK..self.images.end * BLOCK];
            for row in rows.as_chunks::<BLOCK>().0 {
                for (sum, half) in sums.iter_mut().zip(row.as_chunks().0) {
                    *sum = lanes.add(*sum, lanes.load(half));
                }
            }
        }
        for (sum, into) in sums.into_iter().zip(self.sums.as_chunks_mut().0) {
            lanes.store(sum, into);
        }
    }
}
