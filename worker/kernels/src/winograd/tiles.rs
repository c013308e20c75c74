//! Transforms of activations to tiles and back.
//!
//! Transformed tiles are stored as `[position][block][row][BLOCK]`, with [`SPACE`] between positions. A row is a tile of an
//! image: line by line of tiles, tile by tile, image by image. Several batches of images may share such a buffer, each
//! from a row of its own on.

use std::ops::Range;

use super::transform::{self, both_ways, tile_of};
use super::{M, N};
use crate::BLOCK;
use crate::epilogue::Epilogue;
use crate::planes::Planes;
use crate::simd::Kernel;
use crate::simd_vec::{LANES, SimdVec};

/// Half a row: the floats of a vector.
type Half = [f32; LANES];

/// Tiles of `M`×`M` outputs along a side; the last may extend beyond it.
pub(super) fn along(to: Planes) -> usize {
    to.side.div_ceil(M)
}

/// Rows of a batch: all tiles of all images.
pub(super) fn rows(to: Planes) -> usize {
    along(to) * along(to) * to.images
}

/// Floats left free between positions. Otherwise the distances between a tile's positions would often be multiples of
/// 4096 bytes, so that they evict each other from the first-level cache, and a load seems to depend on a preceding store.
/// (Two cache lines, because with one the next tile's load would seem to.)
pub(super) const SPACE: usize = 2 * LANES;

/// The rows of a transformed buffer that a batch has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// The batch's first.
    pub first: usize,
    /// All of the buffer's.
    pub all: usize,
}

impl Rows {
    /// Floats from a position to the next, in a buffer of `blocks` blocks.
    pub fn stride(self, blocks: usize) -> usize {
        blocks * self.all * BLOCK + SPACE
    }

    /// Floats of a buffer of `blocks` blocks, for tiles of `N`×`N`.
    pub fn floats(self, blocks: usize) -> usize {
        N * N * self.stride(blocks)
    }
}

/// The images of a pixel, if it lies inside.
#[inline(always)]
fn pixel(x: &[f32], of: Planes, block: usize, y: usize, column: usize) -> Option<&[Half]> {
    let inside = y < of.side && column < of.side;
    inside.then(|| x[of.at(block, y, column, 0)..][..of.pixel()].as_chunks().0)
}

/// `Bᵀ x B` of some lines of tiles.
pub(super) struct Inputs<'a> {
    pub x: &'a [f32],
    pub from: Planes,
    pub padding: usize,
    /// Tiles along a side.
    pub across: usize,
    /// Lines of tiles.
    pub lines: Range<usize>,
    pub rows: Rows,
    pub out: &'a mut [f32],
}

impl Kernel for Inputs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let Self { x, from, padding, across, lines, rows, out } = self;
        let (halves, stride) = (2 * from.images, rows.stride(from.blocks) / LANES);
        let (out, _) = out.as_chunks_mut::<LANES>();
        for block in 0..from.blocks {
            for (line, ty) in lines.clone().enumerate() {
                for tx in 0..across {
                    let mut pixels = [[None; N]; N];
                    for (y, row) in pixels.iter_mut().enumerate() {
                        for (column, slot) in row.iter_mut().enumerate() {
                            // A coordinate outside wraps to a number far beyond any side.
                            let (y, column) =
                                ((M * ty + y).wrapping_sub(padding), (M * tx + column).wrapping_sub(padding));
                            *slot = pixel(x, from, block, y, column);
                        }
                    }
                    let first = 2 * rows.first + (line * across + tx) * halves;
                    for half in 0..halves {
                        let tile = tile_of::<L, N>(l, |y, x| match pixels[y][x] {
                            Some(pixel) => l.load(&pixel[half]),
                            None => l.splat(0.0),
                        });
                        let tile: [[L::V; N]; N] = both_ways!(tile, N to N, |v| transform::from_input(l, v));
                        let at = block * 2 * rows.all + first + half;
                        for (y, row) in tile.into_iter().enumerate() {
                            for (x, value) in row.into_iter().enumerate() {
                                l.store(value, &mut out[(N * y + x) * stride + at]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `A dy Aᵀ` of all tiles of some blocks of the output gradient.
pub(super) struct FromOutputs<'a> {
    pub dy: &'a [f32],
    pub to: Planes,
    pub blocks: Range<usize>,
    pub rows: Rows,
    pub out: &'a mut [f32],
}

impl Kernel for FromOutputs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let Self { dy, to, blocks, rows, out } = self;
        let (across, halves) = (along(to), 2 * to.images);
        let stride = rows.stride(blocks.len()) / LANES;
        let (out, _) = out.as_chunks_mut::<LANES>();
        for (place, block) in blocks.clone().enumerate() {
            for ty in 0..across {
                for tx in 0..across {
                    let mut pixels = [[None; M]; M];
                    for (y, row) in pixels.iter_mut().enumerate() {
                        for (column, slot) in row.iter_mut().enumerate() {
                            *slot = pixel(dy, to, block, M * ty + y, M * tx + column);
                        }
                    }
                    let first = 2 * rows.first + (ty * across + tx) * halves;
                    for half in 0..halves {
                        let tile = tile_of::<L, M>(l, |y, x| match pixels[y][x] {
                            Some(pixel) => l.load(&pixel[half]),
                            None => l.splat(0.0),
                        });
                        let tile: [[L::V; N]; N] = both_ways!(tile, M to N, |v| transform::from_output(l, v));
                        let at = place * 2 * rows.all + first + half;
                        for (y, row) in tile.into_iter().enumerate() {
                            for (x, value) in row.into_iter().enumerate() {
                                l.store(value, &mut out[(N * y + x) * stride + at]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `Aᵀ [products] A` into some lines of one block of outputs; `products` are of that block alone.
pub(super) struct Outputs<'a> {
    pub products: &'a [f32],
    pub rows: Rows,
    pub epilogue: Epilogue<'a>,
    pub to: Planes,
    pub block: usize,
    pub lines: Range<usize>,
    /// The lines' pixels.
    pub out: &'a mut [f32],
}

impl Kernel for Outputs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let Self { products, rows, epilogue, to, block, lines, out } = self;
        let (across, halves, stride) = (along(to), 2 * to.images, rows.stride(1) / LANES);
        let (products, _) = products.as_chunks::<LANES>();
        let (out, _) = out.as_chunks_mut::<LANES>();
        let first_line = to.at(block, M * lines.start, 0, 0);
        let mut biases = [l.splat(0.0); 2];
        if let Epilogue::Bias(bias) | Epilogue::BiasRelu(bias) = epilogue {
            for (vector, bias) in biases.iter_mut().zip(bias[block * BLOCK..][..BLOCK].as_chunks().0) {
                *vector = l.load(bias);
            }
        }
        for (line, ty) in lines.enumerate() {
            for tx in 0..across {
                let first = 2 * rows.first + (line * across + tx) * halves;
                for half in 0..halves {
                    let tile =
                        tile_of::<L, N>(l, |y, x| l.load(&products[(N * y + x) * stride + first + half]));
                    let tile: [[L::V; M]; M] = both_ways!(tile, N to M, |v| transform::to_output(l, v));
                    for (y, row) in tile.into_iter().enumerate() {
                        for (x, value) in row.into_iter().enumerate() {
                            if M * ty + y >= to.side || M * tx + x >= to.side {
                                continue;
                            }
                            let at = ((M * line + y) * to.side + M * tx + x) * halves + half;
                            let value = match epilogue {
                                Epilogue::Nothing => value,
                                Epilogue::Bias(_) => l.add(value, biases[half % 2]),
                                Epilogue::BiasRelu(_) => l.relu(l.add(value, biases[half % 2])),
                                Epilogue::ReluGradient(of) => {
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

/// `B [products] Bᵀ`, the transpose of [`Inputs`], added up in one block of the input gradient. Tiles share pixels there:
/// the values of a pixel are added in the order of the tiles.
pub(super) struct ToInputs<'a> {
    pub products: &'a [f32],
    pub rows: Rows,
    pub padding: usize,
    /// Tiles along a side.
    pub across: usize,
    /// The input's activations, where a ReLU made them.
    pub relu: Option<&'a [f32]>,
    pub from: Planes,
    pub block: usize,
    /// The block's pixels.
    pub out: &'a mut [f32],
}

impl Kernel for ToInputs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let Self { products, rows, padding, across, relu, from, block, out } = self;
        let (halves, stride) = (2 * from.images, rows.stride(1) / LANES);
        let (products, _) = products.as_chunks::<LANES>();
        out.fill(0.0);
        let (out, _) = out.as_chunks_mut::<LANES>();
        for ty in 0..across {
            for tx in 0..across {
                let first = 2 * rows.first + (ty * across + tx) * halves;
                for half in 0..halves {
                    let tile =
                        tile_of::<L, N>(l, |y, x| l.load(&products[(N * y + x) * stride + first + half]));
                    let tile: [[L::V; N]; N] = both_ways!(tile, N to N, |v| transform::to_input(l, v));
                    for (y, row) in tile.into_iter().enumerate() {
                        for (x, value) in row.into_iter().enumerate() {
                            let (y, x) =
                                ((M * ty + y).wrapping_sub(padding), (M * tx + x).wrapping_sub(padding));
                            if y >= from.side || x >= from.side {
                                continue;
                            }
                            let at = (y * from.side + x) * halves + half;
                            l.store(l.add(l.load(&out[at]), value), &mut out[at]);
                        }
                    }
                }
            }
        }
        if let Some(of) = relu {
            let (of, _) = of[block * from.block()..][..from.block()].as_chunks();
            for (value, of) in out.iter_mut().zip(of) {
                l.store(l.unless_zero(l.load(value), l.load(of)), value);
            }
        }
    }
}
