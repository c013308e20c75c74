//! Several batches of images at once, for layers of large weights and few pixels. The weights are read once, in their usual
//! layout, and transformed in the cache. Stored transformed, they would be nearly three times as large.
//!
//! A batch's results do not depend on the other batches: each output is a sum of its own.

use std::ops::Range;

use rayon::prelude::*;

use super::tiles::{FromOutputs, Inputs, Outputs, Rows, ToInputs, along, rows};
use super::weights::{self, Over};
use super::{N, SPACED, transformed_len};
use crate::BLOCK;
use crate::epilogue::Epilogue;
use crate::pack::OihwWeights;
use crate::planes::Planes;
use crate::scratch::{self, Scratch};
use crate::simd::{Kernel, Simd};
use crate::simd_vec::SimdVec;
use crate::tile::{Init, Segment, Tile, TileEpilogue};

/// The most rows (tiles times images) that are multiplied with weights just transformed; a single
/// batch may have more.
const ROWS: usize = 128;
/// The most blocks of a result that a task computes, and the most blocks that are added at a time: the data of so many fit
/// the second-level cache.
const BLOCKS: usize = 2;

/// The product that is computed from `x`, of shape `from`, into `out`, of shape `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The convolution.
    Forward,
    /// The convolution's input gradient, from its output gradient.
    InputGrad,
}

impl Direction {
    /// As [`BLOCKS`]. For the input gradient, the weights of two blocks of a result are adjacent; forward, none are.
    fn blocks(self) -> usize {
        match self {
            Self::Forward => 1,
            Self::InputGrad => BLOCKS,
        }
    }
}

/// A batch of images, and its result.
#[derive(Debug)]
pub struct Job<'a> {
    /// Activations, or the output gradient.
    pub x: &'a [f32],
    /// Their shape.
    pub from: Planes,
    /// What is done to the sums. (A gradient has no bias.)
    pub epilogue: Epilogue<'a>,
    /// The result.
    pub out: &'a mut [f32],
    /// Its shape.
    pub to: Planes,
}

/// Convolves every batch, with `padding` zeros around the convolution's
/// input, or takes the input gradient.
///
/// # Panics
/// If a slice has not its shape's length, the shapes don't follow from each other, or a gradient
/// is to get a bias.
pub fn convolve(
    simd: Simd,
    direction: Direction,
    jobs: Vec<Job<'_>>,
    weights: OihwWeights<'_>,
    padding: usize,
) {
    let (outputs, inputs) = weights.blocks();
    let blocks = if direction == Direction::Forward { (inputs, outputs) } else { (outputs, inputs) };
    let layer = Layer { simd, direction, weights, padding };
    let mut groups: Vec<Group<'_>> = Vec::new();
    // For each task, its blocks of every batch.
    let mut outs: Vec<Vec<&mut [f32]>> =
        (0..blocks.1.div_ceil(direction.blocks())).map(|_| Vec::new()).collect();
    for Job { x, from, epilogue, out, to } in jobs {
        let input_grad = direction == Direction::InputGrad;
        assert!(
            !input_grad || !matches!(epilogue, Epilogue::Bias(_) | Epilogue::BiasRelu(_)),
            "a gradient has no bias"
        );
        epilogue.check(x, from, if input_grad { 2 - padding } else { padding }, out, to);
        assert_eq!((from.blocks, to.blocks), blocks, "as many channels as weights");
        for (task, out) in out.chunks_mut(direction.blocks() * to.block()).enumerate() {
            outs[task].push(out);
        }
        let source = Source { x, from, epilogue, to, rows: rows(if input_grad { from } else { to }) };
        match groups.last_mut() {
            Some(group) if group.rows() + source.rows <= ROWS => group.sources.push(source),
            _ => groups.push(Group { sources: vec![source] }),
        }
    }
    let room = |group: &Group<'_>| scratch::take(group.whole().floats(blocks.0));
    let mut tiles: Vec<Scratch> = groups.iter().map(room).collect();
    groups.par_iter().zip(&mut tiles).for_each(|(group, tiles)| layer.transform(group, tiles));
    outs.into_par_iter().enumerate().for_each(|(task, outs)| {
        let first = task * direction.blocks();
        layer.results(&groups, &tiles, blocks.0, first..blocks.1.min(first + direction.blocks()), outs);
    });
}

/// A batch without its result.
struct Source<'a> {
    x: &'a [f32],
    from: Planes,
    epilogue: Epilogue<'a>,
    to: Planes,
    rows: usize,
}

/// Batches whose rows are multiplied together.
struct Group<'a> {
    sources: Vec<Source<'a>>,
}

impl<'a> Group<'a> {
    fn rows(&self) -> usize {
        self.sources.iter().map(|source| source.rows).sum()
    }

    fn whole(&self) -> Rows {
        Rows { first: 0, all: self.rows() }
    }

    /// The batches with their rows.
    fn batches(&self) -> impl Iterator<Item = (&Source<'a>, Rows)> {
        let mut first = 0;
        let all = self.rows();
        self.sources.iter().map(move |source| {
            let rows = Rows { first, all };
            first += source.rows;
            (source, rows)
        })
    }
}

/// The layer, which is the same for all batches.
struct Layer<'a> {
    simd: Simd,
    direction: Direction,
    weights: OihwWeights<'a>,
    padding: usize,
}

impl Layer<'_> {
    /// Transforms the operands of a group's batches.
    fn transform(&self, group: &Group<'_>, tiles: &mut [f32]) {
        let &Self { simd, direction, padding, .. } = self;
        for (source, rows) in group.batches() {
            let &Source { x, from, to, .. } = source;
            let out = &mut *tiles;
            match direction {
                Direction::Forward => {
                    let across = along(to);
                    simd.run(Inputs { x, from, padding, across, lines: 0..across, rows, out });
                }
                Direction::InputGrad => {
                    simd.run(FromOutputs { dy: x, to: from, blocks: 0..from.blocks, rows, out });
                }
            }
        }
    }

    /// Some blocks of every batch's result, from `depth` blocks.
    fn results(
        &self,
        groups: &[Group<'_>],
        tiles: &[Scratch],
        depth: usize,
        blocks: Range<usize>,
        outs: Vec<&mut [f32]>,
    ) {
        let &Self { simd, direction, padding, .. } = self;
        let mut outs = outs.into_iter();
        let mut weights = scratch::take(transformed_len(direction.blocks() * direction.blocks()));
        for (group, tiles) in groups.iter().zip(tiles) {
            let rows = group.whole();
            let mut products = scratch::take(blocks.len() * rows.floats(1));
            for first in (0..depth).step_by(direction.blocks()) {
                let added = direction.blocks().min(depth - first);
                let squares = weights.chunks_exact_mut(transformed_len(1));
                for (place, to) in squares.enumerate().take(blocks.len() * added) {
                    let (to_block, from_block) = (blocks.start + place / added, first + place % added);
                    self.prefetch(to_block, from_block + direction.blocks(), depth);
                    self.transform_weights(to_block, from_block, to);
                }
                simd.run(Multiply {
                    tiles,
                    depth,
                    first,
                    added,
                    weights: &weights,
                    rows,
                    products: &mut products,
                });
            }
            for (source, rows) in group.batches() {
                let &Source { epilogue, from, to, .. } = source;
                let out = outs.next().into_iter().flat_map(|out| out.chunks_exact_mut(to.block()));
                for ((out, block), products) in
                    out.zip(blocks.clone()).zip(products.chunks_exact(rows.floats(1)))
                {
                    match direction {
                        Direction::Forward => {
                            let lines = 0..along(to);
                            simd.run(Outputs { products, rows, epilogue, to, block, lines, out });
                        }
                        Direction::InputGrad => {
                            let across = along(from);
                            let relu =
                                if let Epilogue::ReluGradient(of) = epilogue { Some(of) } else { None };
                            simd.run(ToInputs {
                                products,
                                rows,
                                padding,
                                across,
                                relu,
                                from: to,
                                block,
                                out,
                            });
                        }
                    }
                }
            }
        }
    }

    /// Prefetches the weights from block `from` to block `to`, if `from` is one of `depth` blocks.
    fn prefetch(&self, to: usize, from: usize, depth: usize) {
        if from < depth {
            match self.direction {
                Direction::Forward => self.weights.prefetch(to, from),
                Direction::InputGrad => self.weights.prefetch(from, to),
            }
        }
    }

    /// The weights from block `from` to block `to`, transformed.
    fn transform_weights(&self, to: usize, from: usize, transformed: &mut [f32]) {
        let (output, input, lanes) = match self.direction {
            Direction::Forward => (to, from, Over::Outputs),
            Direction::InputGrad => (from, to, Over::Inputs { flipped: false }),
        };
        let weights = self.weights;
        self.simd.run(weights::Block { weights, output, input, lanes, to: transformed });
    }
}

/// Adds the products of `added` blocks of tiles, from block `first` of `depth` on, with their weights
/// to `[block][position][row][BLOCK]`.
struct Multiply<'a> {
    tiles: &'a [f32],
    depth: usize,
    first: usize,
    added: usize,
    /// `[block][added block][position][32][32]`.
    weights: &'a [f32],
    rows: Rows,
    products: &'a mut [f32],
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let Self { tiles, depth, first, added, weights, rows, products } = self;
        let plane = rows.all * BLOCK;
        for position in 0..N * N {
            for (block, products) in products.chunks_exact_mut(rows.floats(1)).enumerate() {
                let mut segments = [Segment::default(); BLOCKS];
                for (place, segment) in segments.iter_mut().enumerate() {
                    segment.a = (first + place) * plane;
                    segment.b = ((block * added + place) * N * N + position) * SPACED;
                }
                l.tile(Tile::<BLOCK, 1> {
                    a: &tiles[position * rows.stride(depth)..],
                    b: weights,
                    segments: &segments[..added],
                    steps: BLOCK,
                    out: &mut products[position * rows.stride(1)..][..plane],
                    init: if first > 0 { Init::Out } else { Init::Zero },
                    epilogue: TileEpilogue::Keep,
                });
            }
        }
    }
}
