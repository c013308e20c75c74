//! The 3×3 convolution, stride 1, as it is defined: nine taps, no transforms.
//!
//! Nothing is padded. An output pixel at the border has fewer taps, and pixels with the same taps are computed together;
//! so the zeros of the padding cost nothing.

use std::array::from_fn;
use std::ops::Range;

use rayon::prelude::*;

use crate::epilogue::Epilogue;
use crate::pack::{SUMS, TAP, Unpack, WEIGHT_BLOCK};
use crate::planes::Planes;
use crate::reduce::{self, NodeParts, Part};
use crate::simd::{Kernel, Simd};
use crate::simd_vec::SimdVec;
use crate::tile::{Init, Segment, Tile, TileEpilogue};
use crate::{BLOCK, TAPS};

/// The least rows of a task, so that loading the weights takes little of its time.
const ROWS_OF_A_TASK: usize = 96;

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
/// around. With the weights of [`pack::backward`](crate::pack::backward) and `2 − padding` the result is
/// the input gradient.
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
    epilogue: Epilogue<'_>,
    out: &mut [f32],
    to: Planes,
) {
    epilogue.check(x, from, padding, out, to);
    assert_eq!(weights.len(), to.blocks * from.blocks * WEIGHT_BLOCK, "weights for these blocks");
    if padding == 2 {
        out.par_chunks_mut(to.block()).enumerate().for_each(|(block, out)| {
            let weights = &weights[block * from.blocks * WEIGHT_BLOCK..][..from.blocks * WEIGHT_BLOCK];
            simd.run(Scatter { x, from, weights, epilogue, out, to, block });
        });
        return;
    }
    let lines = ROWS_OF_A_TASK.div_ceil(to.side * to.images).min(to.side);
    out.par_chunks_mut(to.block()).enumerate().for_each(|(block, out)| {
        out.par_chunks_mut(lines * to.row()).enumerate().for_each(|(index, out)| {
            let weights = &weights[block * from.blocks * WEIGHT_BLOCK..][..from.blocks * WEIGHT_BLOCK];
            simd.run(Lines { x, from, weights, padding, epilogue, out, to, block, first: index * lines });
        });
    });
}

/// A few lines of one block of outputs.
struct Lines<'a> {
    x: &'a [f32],
    from: Planes,
    weights: &'a [f32],
    padding: usize,
    epilogue: Epilogue<'a>,
    out: &'a mut [f32],
    to: Planes,
    block: usize,
    first: usize,
}

impl Kernel for Lines<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, lanes: L) {
        let Self { x, from, weights, padding, epilogue, out, to, block, first } = self;
        // Blocks of inputs outermost: their weights stay in the first-level cache for all rows.
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
                    let init = if input > 0 { Init::Out } else { Init::Zero };
                    let epilogue = match epilogue {
                        Epilogue::Bias(bias) if last => TileEpilogue::Bias(&bias.as_chunks().0[block]),
                        Epilogue::BiasRelu(bias) if last => {
                            TileEpilogue::BiasRelu(&bias.as_chunks().0[block])
                        }
                        Epilogue::ReluGradient(of) if last => {
                            let line = &of[to.at(block, y, 0, 0)..][..to.row()];
                            TileEpilogue::ReluGradient(&line[here.clone()])
                        }
                        _ => TileEpilogue::Keep,
                    };
                    lanes.tile(Tile::<BLOCK, 1> {
                        a: x,
                        b: weights,
                        segments: &segments[..count],
                        steps: BLOCK,
                        out: &mut out[here],
                        init,
                        epilogue,
                    });
                    left = right;
                }
            }
        }
    }
}

/// One block of outputs where the input has a padding of 2: the outputs of a line rarely share
/// their taps then, but each line of inputs adds to a whole stretch of outputs for each tap.
struct Scatter<'a> {
    x: &'a [f32],
    from: Planes,
    weights: &'a [f32],
    epilogue: Epilogue<'a>,
    out: &'a mut [f32],
    to: Planes,
    block: usize,
}

/// Blocks of inputs that are added at a time.
const INPUT_BLOCKS: usize = 4;

impl Kernel for Scatter<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, lanes: L) {
        let Self { x, from, weights, epilogue, out, to, block } = self;
        out.fill(0.0);
        for first in (0..from.blocks).step_by(INPUT_BLOCKS) {
            let inputs = first..from.blocks.min(first + INPUT_BLOCKS);
            for tap in 0..TAPS {
                for y in 0..from.side {
                    let segments: [Segment; INPUT_BLOCKS] = from_fn(|index| Segment {
                        a: from.at(first + index, y, 0, 0),
                        b: (first + index) * WEIGHT_BLOCK + tap * BLOCK * BLOCK,
                    });
                    lanes.tile(Tile::<BLOCK, 1> {
                        a: x,
                        b: weights,
                        segments: &segments[..inputs.len()],
                        steps: BLOCK,
                        out: &mut out[to.at(0, y + 2 - tap / 3, 2 - tap % 3, 0)..][..from.row()],
                        init: Init::Out,
                        epilogue: TileEpilogue::Keep,
                    });
                }
            }
        }
        let (rows, _) = out.as_chunks_mut();
        match epilogue {
            Epilogue::Nothing => {}
            Epilogue::Bias(bias) | Epilogue::BiasRelu(bias) => {
                let (bias, _) = bias[block * BLOCK..][..BLOCK].as_chunks();
                let relu = matches!(epilogue, Epilogue::BiasRelu(_));
                for (row, bias) in rows.iter_mut().zip(bias.iter().cycle()) {
                    let sum = lanes.add(lanes.load(row), lanes.load(bias));
                    lanes.store(if relu { lanes.relu(sum) } else { sum }, row);
                }
            }
            Epilogue::ReluGradient(of) => {
                let (of, _) = of[block * to.block()..][..to.block()].as_chunks();
                for (row, of) in rows.iter_mut().zip(of) {
                    lanes.store(lanes.unless_zero(lanes.load(row), lanes.load(of)), row);
                }
            }
        }
    }
}

/// The weight gradient, `out[o][c][tap]` with `inputs` channels `c`, summed over microbatches
/// as [`reduce`] says.
///
/// # Panics
/// If a slice has not its shape's length, or the shapes don't follow from each other.
pub fn weight_grad(
    simd: Simd,
    microbatches: &NodeParts<Part<'_>>,
    padding: usize,
    inputs: usize,
    out: &mut [f32],
) {
    microbatches.check(padding, inputs, out);
    let runs = |part: &Part<'_>| from_fn(|tap| Run::new(tap, part, padding));
    let parts: Vec<Vec<(Part<'_>, [Run; TAPS])>> = microbatches
        .parts
        .iter()
        .map(|parts| parts.iter().map(|part| (*part, runs(part))).collect())
        .collect();
    let microbatches = NodeParts { parts, rounding: microbatches.rounding };
    out.par_chunks_mut(BLOCK * inputs * TAPS).enumerate().for_each(|(block, out)| {
        for input in 0..inputs / BLOCK {
            let microbatch = |parts: &[(Part<'_>, [Run; TAPS])], sums: &mut [f32]| {
                for (index, (part, runs)) in parts.iter().enumerate() {
                    let dy = &part.dy[block * part.to.block()..][..part.to.block()];
                    let x = &part.x[input * part.from.block()..][..part.from.block()];
                    simd.run(Products { dy, x, runs, fresh: index == 0, sums });
                }
            };
            reduce::sum(simd, &microbatches, SUMS, microbatch, |sums| {
                simd.run(Unpack { sums, input, inputs, out })
            });
        }
    });
}

/// The pixels over which one tap's products are summed in a part: a run for each line.
struct Run {
    segments: Vec<Segment>,
    steps: usize,
}

impl Run {
    fn new(tap: usize, part: &Part<'_>, padding: usize) -> Self {
        let (down, across) = (tap / 3, tap % 3);
        let (to, from) = (part.to, part.from);
        let xs = reach(across, padding, from.side, to.side);
        let line = |y: usize| Segment {
            a: from.at(0, y + down - padding, xs.start + across - padding, 0),
            b: to.at(0, y, xs.start, 0),
        };
        let segments = reach(down, padding, from.side, to.side).map(line).collect();
        Self { segments, steps: xs.len() * to.images }
    }
}

/// A part's products of one block of outputs with one of inputs, as [`Unpack`] takes them.
struct Products<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    runs: &'a [Run; TAPS],
    fresh: bool,
    sums: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, lanes: L) {
        for (run, sums) in self.runs.iter().zip(self.sums.chunks_exact_mut(TAP)) {
            lanes.tile(Tile::<1, BLOCK> {
                a: self.x,
                b: self.dy,
                segments: &run.segments,
                steps: run.steps,
                out: &mut sums[..BLOCK * BLOCK],
                init: if self.fresh { Init::Zero } else { Init::Out },
                epilogue: TileEpilogue::Keep,
            });
        }
    }
}

/// The bias gradient, `out[o]`, summed over microbatches as [`reduce`] says.
///
/// # Panics
/// If a slice has not its shape's length, or `out` has more outputs than that.
pub fn bias_grad(simd: Simd, microbatches: &NodeParts<Part<'_>>, out: &mut [f32]) {
    for part in microbatches.parts.iter().flatten() {
        assert_eq!(part.dy.len(), part.to.len(), "activations have their shape's length");
        assert!(out.len() <= part.to.blocks * BLOCK, "no more outputs than there are");
    }
    out.par_chunks_mut(BLOCK).enumerate().for_each(|(block, out)| {
        let microbatch = |parts: &[Part<'_>], sums: &mut [f32]| {
            sums.fill(0.0);
            for part in parts {
                let dy = &part.dy[block * part.to.block()..][..part.to.block()];
                simd.run(Total { dy, sums });
            }
        };
        reduce::sum(simd, microbatches, BLOCK, microbatch, |sums| out.copy_from_slice(&sums[..out.len()]));
    });
}

/// Adds all rows to the sums.
struct Total<'a> {
    dy: &'a [f32],
    sums: &'a mut [f32],
}

impl Kernel for Total<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, lanes: L) {
        let (sums, _) = self.sums.as_chunks_mut();
        let mut totals: [L::V; 2] = from_fn(|half| lanes.load(&sums[half]));
        for row in self.dy.as_chunks::<BLOCK>().0 {
            for (total, half) in totals.iter_mut().zip(row.as_chunks().0) {
                *total = lanes.add(*total, lanes.load(half));
            }
        }
        for (total, into) in totals.into_iter().zip(sums) {
            lanes.store(total, into);
        }
    }
}
