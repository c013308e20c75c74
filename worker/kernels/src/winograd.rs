//! Winograd's minimal filtering F(2×2, 3×3): a 3×3 convolution with 16 products where the
//! definition takes 36, for the same shapes as [`direct`](crate::direct).
//!
//! (A. Lavin, S. Gray, *Fast Algorithms for Convolutional Neural Networks*, 2015.) With `d` a
//! 4×4 tile of the input, `g` a kernel, `y` the 2×2 tile of the output, `⊙` by element, and
//!
//! ```text
//!      ⎡1  0 −1  0⎤       ⎡ 1   0   0⎤        ⎡1 1  1  0⎤
//! Bᵀ = ⎢0  1  1  0⎥   G = ⎢½   ½   ½⎥   Aᵀ = ⎣0 1 −1 −1⎦
//!      ⎢0 −1  1  0⎥       ⎢½  −½   ½⎥
//!      ⎣0  1  0 −1⎦       ⎣ 0   0   1⎦
//!
//! y  = Aᵀ [ Σ_c (G g Gᵀ) ⊙ (Bᵀ d B) ] A           forward, and the gradient by the input
//! dg = Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G            the gradient by the weights
//! ```
//!
//! The sums in brackets are sixteen matrix products by the register tile. All constants
//! but ½ are ±1, and ½ is exact, so a transform only adds; the error against double is
//! within some two times the direct kernel's (`tests/definitions.rs` measures it).
//!
//! A task takes a few lines of tiles through all three stages, so that what is between the
//! stages stays in the second cache.

use std::array::from_fn;
use std::ops::Range;

use rayon::prelude::*;

use crate::direct::{After, WEIGHT_BLOCK, unpack};
use crate::lanes::{LANES, Lanes};
use crate::leaves::{self, Part};
use crate::planes::Planes;
use crate::scratch;
use crate::simd::{Kernel, Simd};
use crate::tile::{Finish, Segment, Start, Tile};
use crate::{BLOCK, TAPS};

/// Elements of a transformed tile.
pub const POSITIONS: usize = 16;
/// A task has at least so many rows (tiles times images), so that its weights pay.
const ROWS_OF_A_TASK: usize = 96;
/// Rows whose products are summed at a time: two operands of them fit the first cache, for all
/// parts of a tile.
const STRETCH: usize = 128;
/// Floats of a block of weights at one position.
const SQUARE: usize = BLOCK * BLOCK;

/// Tiles along a side of the output; the last may hang over.
fn tiles(to: Planes) -> usize {
    to.side.div_ceil(2)
}

/// `Bᵀ v` of four numbers.
#[inline(always)]
fn by_input<L: Lanes>(l: L, [a, b, c, d]: [L::V; 4]) -> [L::V; 4] {
    [l.sub(a, c), l.add(b, c), l.sub(c, b), l.sub(b, d)]
}

/// `Aᵀ v`.
#[inline(always)]
fn to_output<L: Lanes>(l: L, [a, b, c, d]: [L::V; 4]) -> [L::V; 2] {
    [l.add(l.add(a, b), c), l.sub(l.sub(b, c), d)]
}

/// `A v`.
#[inline(always)]
fn from_output<L: Lanes>(l: L, [a, b]: [L::V; 2]) -> [L::V; 4] {
    [a, l.add(a, b), l.sub(a, b), l.sub(l.splat(0.0), b)]
}

/// `G v`.
#[inline(always)]
fn by_kernel<L: Lanes>(l: L, [a, b, c]: [L::V; 3]) -> [L::V; 4] {
    let (ends, half) = (l.add(a, c), l.splat(0.5));
    [a, l.mul(l.add(ends, b), half), l.mul(l.sub(ends, b), half), c]
}

/// `Gᵀ v`.
#[inline(always)]
fn to_kernel<L: Lanes>(l: L, [a, b, c, d]: [L::V; 4]) -> [L::V; 3] {
    let half = l.splat(0.5);
    let sum = l.mul(l.add(b, c), half);
    [l.add(a, sum), l.mul(l.sub(b, c), half), l.add(sum, d)]
}

/// `M x Mᵀ` for a transform `M` from `N` to `K` numbers; `x[row][column]`.
///
/// Loops, here and wherever vectors are collected, and no `array::from_fn`: that is not inlined
/// into code compiled for the instructions.
#[inline(always)]
fn both_ways<V: Copy, const N: usize, const K: usize>(
    x: [[V; N]; N],
    transform: impl Fn([V; N]) -> [V; K],
) -> [[V; K]; K] {
    let mut columns = [[x[0][0]; K]; N];
    for (index, column) in columns.iter_mut().enumerate() {
        let mut rows = [x[0][0]; N];
        for (value, row) in rows.iter_mut().zip(&x) {
            *value = row[index];
        }
        *column = transform(rows);
    }
    let mut result = [[x[0][0]; K]; K];
    for (index, row) in result.iter_mut().enumerate() {
        let mut values = [x[0][0]; N];
        for (value, column) in values.iter_mut().zip(&columns) {
            *value = column[index];
        }
        *row = transform(values);
    }
    result
}

/// A tile of `N` times `N` vectors, `load(row, column)` each.
#[inline(always)]
fn tile_of<L: Lanes, const N: usize>(l: L, load: impl Fn(usize, usize) -> L::V) -> [[L::V; N]; N] {
    let mut tile = [[l.splat(0.0); N]; N];
    for (y, row) in tile.iter_mut().enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            *value = load(y, x);
        }
    }
    tile
}

/// Transforms weights packed for [`direct`](crate::direct), of either direction, from
/// `[blocks][tap][32][32]` into `[position][blocks][32][32]`.
///
/// # Panics
/// If the slices don't hold the same number of blocks.
pub fn transform_weights(simd: Simd, packed: &[f32], transformed: &mut [f32]) {
    let blocks = packed.len() / WEIGHT_BLOCK;
    assert_eq!(packed.len(), blocks * WEIGHT_BLOCK, "whole blocks");
    assert_eq!(transformed.len(), blocks * POSITIONS * SQUARE, "room for them transformed");
    let mut of_block: Vec<Vec<&mut [f32]>> = (0..blocks).map(|_| Vec::with_capacity(POSITIONS)).collect();
    for position in transformed.chunks_exact_mut(blocks * SQUARE) {
        for (block, square) in position.chunks_exact_mut(SQUARE).enumerate() {
            of_block[block].push(square);
        }
    }
    of_block
        .par_iter_mut()
        .zip(packed.par_chunks_exact(WEIGHT_BLOCK))
        .for_each(|(to, packed)| simd.run(Weights { packed, to }));
}

struct Weights<'a, 'b> {
    packed: &'a [f32],
    to: &'a mut [&'b mut [f32]],
}

impl Kernel for Weights<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let taps: &[[f32; LANES]] = self.packed.as_chunks().0;
        for at in 0..SQUARE / LANES {
            let kernel = tile_of(l, |y, x| l.load(&taps[(3 * y + x) * (SQUARE / LANES) + at]));
            let transformed: [[L::V; 4]; 4] = both_ways::<_, 3, 4>(kernel, |v| by_kernel(l, v));
            for (position, to) in self.to.iter_mut().enumerate() {
                l.store(transformed[position / 4][position % 4], &mut to.as_chunks_mut().0[at]);
            }
        }
    }
}

/// The convolution as [`direct::convolve`](crate::direct::convolve), with weights from
/// [`transform_weights`].
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
    after.check(x, from, padding, out, to);
    assert_eq!(weights.len(), to.blocks * from.blocks * POSITIONS * SQUARE, "weights for these blocks");
    let lines = ROWS_OF_A_TASK.div_ceil(tiles(to) * to.images).min(tiles(to));
    // For each task, its lines of every block.
    let tasks = tiles(to).div_ceil(lines);
    let mut lines_of: Vec<Vec<&mut [f32]>> = (0..tasks).map(|_| Vec::with_capacity(to.blocks)).collect();
    for block in out.chunks_exact_mut(to.block()) {
        for (task, lines) in block.chunks_mut(2 * lines * to.row()).enumerate() {
            lines_of[task].push(lines);
        }
    }
    lines_of.into_par_iter().enumerate().for_each(|(task, out)| {
        let lines = task * lines..tiles(to).min((task + 1) * lines);
        let rows = lines.len() * tiles(to) * to.images;
        let mut inputs = scratch::take(POSITIONS * from.blocks * rows * BLOCK);
        simd.run(Inputs { x, from, padding, across: tiles(to), lines: lines.clone(), out: &mut inputs });
        let mut products = scratch::take(POSITIONS * rows * BLOCK);
        for (block, out) in out.into_iter().enumerate() {
            let weights = Square { weights, blocks: to.blocks, block };
            simd.run(Multiply { inputs: &inputs, weights, from, products: &mut products });
            simd.run(Outputs { products: &products, after, to, block, lines: lines.clone(), out });
        }
    });
}

/// Tiles of the input, transformed, into `[position][block][row][BLOCK]`; a row is a tile and
/// an image.
struct Inputs<'a> {
    x: &'a [f32],
    from: Planes,
    padding: usize,
    across: usize,
    lines: Range<usize>,
    out: &'a mut [f32],
}

impl Kernel for Inputs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { x, from, padding, across, lines, out } = self;
        let halves = 2 * from.images;
        let rows = lines.len() * across * halves;
        let (out, _) = out.as_chunks_mut::<LANES>();
        for block in 0..from.blocks {
            for (line, ty) in lines.clone().enumerate() {
                for tx in 0..across {
                    let pixels: [Option<&[[f32; LANES]]>; 16] = from_fn(|at| {
                        let (y, x_) = (2 * ty + at / 4, 2 * tx + at % 4);
                        let inside = |p: usize| p >= padding && p - padding < from.side;
                        (inside(y) && inside(x_)).then(|| {
                            &x[from.at(block, y - padding, x_ - padding, 0)..][..from.pixel()].as_chunks().0
                                [..halves]
                        })
                    });
                    let first = (line * across + tx) * halves;
                    for half in 0..halves {
                        let tile = tile_of(l, |row, column| match pixels[4 * row + column] {
                            Some(pixel) => l.load(&pixel[half]),
                            None => l.splat(0.0),
                        });
                        let tile: [[L::V; 4]; 4] = both_ways::<_, 4, 4>(tile, |v| by_input(l, v));
                        for position in 0..POSITIONS {
                            let at = (position * from.blocks + block) * rows + first + half;
                            l.store(tile[position / 4][position % 4], &mut out[at]);
                        }
                    }
                }
            }
        }
    }
}

/// The weights to one block of outputs.
#[derive(Clone, Copy)]
struct Square<'a> {
    weights: &'a [f32],
    blocks: usize,
    block: usize,
}

/// Sixteen products of transformed inputs with transformed weights, `[position][row][BLOCK]`.
struct Multiply<'a> {
    inputs: &'a [f32],
    weights: Square<'a>,
    from: Planes,
    products: &'a mut [f32],
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { inputs, weights: Square { weights, blocks, block }, from, products } = self;
        let rows = products.len() / POSITIONS;
        let segments: Vec<Segment> =
            (0..from.blocks).map(|input| Segment { a: input * rows, b: input * SQUARE }).collect();
        for (position, out) in products.chunks_exact_mut(rows).enumerate() {
            l.tile(Tile::<BLOCK, 1> {
                a: &inputs[position * from.blocks * rows..][..from.blocks * rows],
                b: &weights[(position * blocks + block) * from.blocks * SQUARE..][..from.blocks * SQUARE],
                segments: &segments,
                steps: BLOCK,
                out,
                start: Start::Zero,
                finish: Finish::Keep,
            });
        }
    }
}

/// The products transformed into lines of one block of outputs.
struct Outputs<'a> {
    products: &'a [f32],
    after: After<'a>,
    to: Planes,
    block: usize,
    lines: Range<usize>,
    out: &'a mut [f32],
}

impl Kernel for Outputs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { products, after, to, block, lines, out } = self;
        let (across, halves) = (tiles(to), 2 * to.images);
        let (products, _) = products.as_chunks::<LANES>();
        let rows = products.len() / POSITIONS;
        let (out, _) = out.as_chunks_mut::<LANES>();
        let first_line = to.at(block, 2 * lines.start, 0, 0);
        let biases: [L::V; 2] = match after {
            After::Bias(bias) | After::BiasRelu(bias) => {
                let (bias, _) = bias[block * BLOCK..][..BLOCK].as_chunks::<LANES>();
                from_fn(|half| l.load(&bias[half]))
            }
            _ => [l.splat(0.0); 2],
        };
        for (line, ty) in lines.enumerate() {
            for tx in 0..across {
                let first = (line * across + tx) * halves;
                for half in 0..halves {
                    let tile = tile_of(l, |y, x| l.load(&products[(4 * y + x) * rows + first + half]));
                    let tile: [[L::V; 2]; 2] = both_ways::<_, 4, 2>(tile, |v| to_output(l, v));
                    for (y, row) in tile.into_iter().enumerate() {
                        for (x, value) in row.into_iter().enumerate() {
                            if 2 * ty + y >= to.side || 2 * tx + x >= to.side {
                                continue;
                            }
                            let at = ((2 * line + y) * to.side + 2 * tx + x) * halves + half;
                            let value = match after {
                                After::Nothing => value,
                                After::Bias(_) => l.add(value, biases[half % 2]),
                                After::BiasRelu(_) => l.relu(l.add(value, biases[half % 2])),
                                After::ReluGradient(of) => {
                                    let of = &of[first_line + at * LANES..][..LANES];
                                    l.unless_zero(value, l.load(&of.as_chunks().0[0]))
                                }
                            };
                            l.store(value, &mut out[at]);
                        }
                    }
                }
            }
        }
    }
}

/// The gradient by the weights as
/// [`direct::weight_gradient`](crate::direct::weight_gradient). A sum goes part by part, line
/// by line of tiles, tile by tile, image by image.
///
/// # Panics
/// If a slice has not its shape's length, or the shapes don't follow from each other.
pub fn weight_gradient(simd: Simd, leaves: &[Vec<Part<'_>>], padding: usize, inputs: usize, out: &mut [f32]) {
    assert!(inputs.is_multiple_of(BLOCK) && out.len().is_multiple_of(inputs * TAPS), "whole outputs");
    // The inputs' tiles serve all outputs.
    let leaves: Vec<Vec<(Part<'_>, scratch::Scratch)>> = leaves
        .par_iter()
        .map(|parts| {
            let transformed = parts.iter().map(|part| {
                part.check();
                assert_eq!(part.to.side + 2, part.from.side + 2 * padding, "the sides of a 3×3 convolution");
                assert_eq!(part.from.blocks * BLOCK, inputs, "as many inputs as weights");
                let across = tiles(part.to);
                let rows = across * across * part.to.images;
                let mut tiles = scratch::take(POSITIONS * part.from.blocks * rows * BLOCK);
                let lines = 0..across;
                simd.run(Inputs { x: part.x, from: part.from, padding, across, lines, out: &mut tiles });
                (*part, tiles)
            });
            transformed.collect()
        })
        .collect();
    out.par_chunks_mut(BLOCK * inputs * TAPS).enumerate().for_each(|(block, out)| {
        let outputs = out.len() / (inputs * TAPS);
        let leaf = |parts: &[(Part<'_>, scratch::Scratch)], into: &mut [f32]| {
            let mut sums = scratch::take(inputs / BLOCK * POSITIONS * SQUARE);
            for (index, (part, inputs)) in parts.iter().enumerate() {
                let rows = tiles(part.to) * tiles(part.to) * part.to.images;
                let mut by_outputs = scratch::take(POSITIONS * rows * BLOCK);
                simd.run(FromOutputs { dy: part.dy, to: part.to, block, out: &mut by_outputs });
                let fresh = index == 0;
                simd.run(Products { inputs, by_outputs: &by_outputs, outputs, fresh, sums: &mut sums });
            }
            simd.run(ToWeights { sums: &sums, out: into });
        };
        leaves::sum(simd, &leaves, inputs / BLOCK * WEIGHT_BLOCK, leaf, |sums| {
            for (input, sums) in sums.chunks_exact(WEIGHT_BLOCK).enumerate() {
                unpack(sums, input, inputs, out);
            }
        });
    });
}

/// Tiles of one block of the output's gradient, `A dy Aᵀ`, into `[position][row][BLOCK]`.
struct FromOutputs<'a> {
    dy: &'a [f32],
    to: Planes,
    block: usize,
    out: &'a mut [f32],
}

impl Kernel for FromOutputs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { dy, to, block, out } = self;
        let (across, halves) = (tiles(to), 2 * to.images);
        let rows = across * across * halves;
        let (out, _) = out.as_chunks_mut::<LANES>();
        for ty in 0..across {
            for tx in 0..across {
                let pixels: [Option<&[[f32; LANES]]>; 4] = from_fn(|at| {
                    let (y, x) = (2 * ty + at / 2, 2 * tx + at % 2);
                    (y < to.side && x < to.side)
                        .then(|| &dy[to.at(block, y, x, 0)..][..to.pixel()].as_chunks().0[..halves])
                });
                let first = (ty * across + tx) * halves;
                for half in 0..halves {
                    let tile = tile_of(l, |row, column| match pixels[2 * row + column] {
                        Some(pixel) => l.load(&pixel[half]),
                        None => l.splat(0.0),
                    });
                    let tile: [[L::V; 4]; 4] = both_ways::<_, 2, 4>(tile, |v| from_output(l, v));
                    for position in 0..POSITIONS {
                        let at = position * rows + first + half;
                        l.store(tile[position / 4][position % 4], &mut out[at]);
                    }
                }
            }
        }
    }
}

/// Sixteen sums of products over all rows, `[input block][position][o][c]`.
struct Products<'a> {
    inputs: &'a [f32],
    by_outputs: &'a [f32],
    outputs: usize,
    fresh: bool,
    sums: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { inputs, by_outputs, outputs, fresh, sums } = self;
        let blocks = sums.len() / (POSITIONS * SQUARE);
        let plane = by_outputs.len() / POSITIONS;
        for position in 0..POSITIONS {
            for block in 0..blocks {
                let sums = &mut sums[(block * POSITIONS + position) * SQUARE..][..outputs * BLOCK];
                let (a, b) = (position * plane, (position * blocks + block) * plane);
                for first in (0..plane).step_by(STRETCH * BLOCK) {
                    let end = plane.min(first + STRETCH * BLOCK);
                    l.tile(Tile::<1, BLOCK> {
                        a: &by_outputs[a + first..a + end],
                        b: &inputs[b + first..b + end],
                        segments: &[Segment { a: 0, b: 0 }],
                        steps: (end - first) / BLOCK,
                        out: &mut *sums,
                        start: if fresh && first == 0 { Start::Zero } else { Start::Out },
                        finish: Finish::Keep,
                    });
                }
            }
        }
    }
}

/// The sums as gradients, `[input block][tap][o][c]`.
struct ToWeights<'a> {
    sums: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for ToWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        const VECTORS: usize = SQUARE / LANES;
        let blocks = self.sums.chunks_exact(POSITIONS * SQUARE).zip(self.out.chunks_exact_mut(WEIGHT_BLOCK));
        for (sums, out) in blocks {
            let (sums, out) = (sums.as_chunks::<LANES>().0, out.as_chunks_mut::<LANES>().0);
            for at in 0..VECTORS {
                let tile = tile_of(l, |y, x| l.load(&sums[(4 * y + x) * VECTORS + at]));
                let taps: [[L::V; 3]; 3] = both_ways::<_, 4, 3>(tile, |v| to_kernel(l, v));
                for tap in 0..TAPS {
                    l.store(taps[tap / 3][tap % 3], &mut out[tap * VECTORS + at]);
                }
            }
        }
    }
}
