//! The weight gradient.

use rayon::prelude::*;

use super::tiles::{FromOutputs, Inputs, Rows, along, rows};
use super::transform::{self, both_ways, tile_of};
use super::{N, SPACED, SQUARE, transformed_len};
use crate::pack::{SUMS, TAP, Unpack};
use crate::reduce::{self, NodeParts, Part};
use crate::scratch::{self, Scratch};
use crate::simd::{Kernel, Simd};
use crate::simd_vec::{self, LANES, SimdVec};
use crate::tile::{Init, Segment, Tile, TileEpilogue};
use crate::{BLOCK, TAPS};

/// Rows whose products are summed at a time: both operands of so many fit the first-level cache, for all parts of a tile.
const STRETCH: usize = 128;
/// A layer is deep if the transformed gradients of 32 outputs, of all microbatches, have at most so many floats: the
/// second-level cache then holds them.
const DEEP: usize = 1 << 18;

/// All rows of a part.
fn whole(part: &Part<'_>) -> Rows {
    Rows { first: 0, all: rows(part.to) }
}

/// A part, its transformed inputs, and in a deep layer its transformed output gradient.
struct Job<'a> {
    part: Part<'a>,
    inputs: &'a [f32],
    of_outputs: Option<Scratch>,
}

/// The weight gradient as
/// [`direct::weight_grad`](crate::direct::weight_grad). A sum goes part by part, line
/// by line of tiles, tile by tile, image by image.
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
    // The transformed inputs are used for all outputs.
    let room = |part: &Part<'_>| scratch::take(whole(part).floats(part.from.blocks));
    let mut tiles: Vec<(Part<'_>, Scratch)> =
        microbatches.parts.iter().flatten().map(|part| (*part, room(part))).collect();
    tiles.par_iter_mut().for_each(|(part, out)| {
        let (across, rows) = (along(part.to), whole(part));
        simd.run(Inputs { x: part.x, from: part.from, padding, across, lines: 0..across, rows, out });
    });
    let of_a_block: usize = tiles.iter().map(|(part, _)| whole(part).floats(1)).sum();
    let deep = of_a_block <= DEEP;
    // Deep layers are computed block by block of inputs, and in each microbatch by microbatch, so that the sums stay in
    // the cache; others microbatch by microbatch, so that the activations do.
    let input_blocks = if deep { 1 } else { inputs / BLOCK };

    out.par_chunks_mut(BLOCK * inputs * TAPS).enumerate().for_each(|(block, out)| {
        let of_outputs = |part: &Part<'_>| {
            let rows = whole(part);
            let mut tiles = scratch::take(rows.floats(1));
            simd.run(FromOutputs {
                dy: part.dy,
                to: part.to,
                blocks: block..block + 1,
                rows,
                out: &mut tiles,
            });
            tiles
        };
        let mut rest = tiles.iter();
        let jobs: Vec<Vec<Job<'_>>> = microbatches
            .parts
            .iter()
            .map(|parts| {
                let mine = rest.by_ref().take(parts.len());
                mine.map(|(part, inputs)| Job {
                    part: *part,
                    inputs,
                    of_outputs: deep.then(|| of_outputs(part)),
                })
                .collect()
            })
            .collect();
        let jobs = NodeParts { parts: jobs, rounding: microbatches.rounding };
        let mut sums = scratch::take(transformed_len(input_blocks));
        for first in (0..inputs / BLOCK).step_by(input_blocks) {
            // The rows into which the sums are stored are far from each other and from what was last written.
            for row in out.chunks_exact(inputs * TAPS) {
                simd_vec::prefetch(&row[first * BLOCK * TAPS..][..BLOCK * TAPS]);
            }
            let microbatch = |jobs: &[Job<'_>], into: &mut [f32]| {
                for (index, job) in jobs.iter().enumerate() {
                    let (just_now, inputs, fresh) =
                        (job.of_outputs.is_none().then(|| of_outputs(&job.part)), job.inputs, index == 0);
                    let Some(of_outputs) = job.of_outputs.as_ref().or(just_now.as_ref()) else { continue };
                    let (blocks, rows) = ((first, job.part.from.blocks), whole(&job.part));
                    simd.run(Products { rows, inputs, blocks, of_outputs, fresh, sums: &mut sums });
                }
                simd.run(ToWeights { sums: &sums, out: into });
            };
            reduce::sum(simd, &jobs, input_blocks * SUMS, microbatch, |sums| {
                for (input, sums) in sums.chunks_exact(SUMS).enumerate() {
                    simd.run(Unpack { sums, input: first + input, inputs, out });
                }
            });
        }
    });
}

/// Sums of products over all rows, `[input block][position][c][o]`.
struct Products<'a> {
    inputs: &'a [f32],
    /// The first block of inputs to be taken, and how many there are in all.
    blocks: (usize, usize),
    of_outputs: &'a [f32],
    rows: Rows,
    fresh: bool,
    sums: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let Self { inputs, blocks, of_outputs, rows, fresh, sums } = self;
        let plane = rows.all * BLOCK;
        for position in 0..N * N {
            for (place, sums) in sums.chunks_exact_mut(N * N * SPACED).enumerate() {
                let sums = &mut sums[position * SPACED..][..SQUARE];
                let a = position * rows.stride(blocks.1) + (blocks.0 + place) * plane;
                let b = position * rows.stride(1);
                for first in (0..plane).step_by(STRETCH * BLOCK) {
                    let end = plane.min(first + STRETCH * BLOCK);
                    l.tile(Tile::<1, BLOCK> {
                        a: &inputs[a + first..a + end],
                        b: &of_outputs[b + first..b + end],
                        segments: &[Segment { a: 0, b: 0 }],
                        steps: (end - first) / BLOCK,
                        out: &mut *sums,
                        init: if fresh && first == 0 { Init::Zero } else { Init::Out },
                        epilogue: TileEpilogue::Keep,
                    });
                }
            }
        }
    }
}

/// `Gᵀ [sums] G`: the sums as gradients, each block of inputs as [`Unpack`] takes them.
struct ToWeights<'a> {
    sums: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for ToWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let blocks = self.sums.chunks_exact(N * N * SPACED).zip(self.out.chunks_exact_mut(SUMS));
        for (sums, out) in blocks {
            let (sums, out) = (sums.as_chunks::<LANES>().0, out.as_chunks_mut::<LANES>().0);
            for at in 0..SQUARE / LANES {
                let tile: [[L::V; N]; N] =
                    tile_of::<L, N>(l, |y, x| l.load(&sums[(N * y + x) * (SPACED / LANES) + at]));
                let taps: [[L::V; 3]; 3] = both_ways!(tile, N to 3, |v| transform::to_kernel(l, v));
                for (y, row) in taps.into_iter().enumerate() {
                    for (x, value) in row.into_iter().enumerate() {
                        l.store(value, &mut out[(3 * y + x) * (TAP / LANES) + at]);
                    }
                }
            }
        }
    }
}
