//! Winograd's minimal filtering F(3×3, 3×3): a 3×3 convolution with 25 products where the
//! definition takes 81, for the same shapes as [`direct`](crate::direct).
//!
//! (A. Lavin, S. Gray, *Fast Algorithms for Convolutional Neural Networks*, 2015.) With `d` a
//! 5×5 tile of the input, `g` a kernel, `y` the 3×3 tile of the output, `⊙` by element, and the
//! matrices of `transform`,
//!
//! ```text
//! y  = Aᵀ [ Σ_c (G g Gᵀ) ⊙ (Bᵀ d B) ] A           forward
//! dd = B  [ Σ_o (G g Gᵀ) ⊙ (A dy Aᵀ) ] Bᵀ         the input gradient
//! dg = Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G            the weight gradient
//! ```
//!
//! The sums in brackets are 25 matrix products by the register tile. Where an input is padded, its gradient is also the
//! first line with flipped, transposed weights.
//!
//! Large layers of few pixels, whose weights are most of the data, take several batches of images at once ([`batched`]);
//! the others take a batch at a time ([`convolve`]).

pub mod batched;
mod tiles;
mod transform;
mod weight_grad;
pub mod weights;

use rayon::prelude::*;

use crate::BLOCK;
use crate::epilogue::Epilogue;
use crate::planes::Planes;
use crate::scratch;
use crate::simd::{Kernel, Simd};
use crate::simd_vec::SimdVec;
use crate::tile::{Init, Segment, Tile, TileEpilogue};

use tiles::{Inputs, Outputs, Rows, SPACE, along};
pub use weight_grad::weight_grad;

/// Outputs along a tile's side.
const M: usize = 3;
/// Inputs along a tile's side.
const N: usize = 5;

/// The least rows (tiles times images) of a task, so that loading the weights takes little of its time.
const ROWS_OF_A_TASK: usize = 96;
/// Floats of a block of weights at one position.
const SQUARE: usize = BLOCK * BLOCK;
/// From such a block to that of the next position.
const SPACED: usize = SQUARE + SPACE;

/// Floats of `blocks` transformed blocks of weights, from 32 channels to 32 channels.
#[must_use]
pub const fn transformed_len(blocks: usize) -> usize {
    blocks * N * N * SPACED
}

/// The convolution as [`direct::convolve`](crate::direct::convolve), with weights from
/// [`weights`].
///
/// A task takes a few lines of tiles through all three stages, so that intermediate results stay in the second-level
/// cache.
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
    assert_eq!(weights.len(), transformed_len(to.blocks * from.blocks), "weights for these blocks");
    let across = along(to);
    let lines = ROWS_OF_A_TASK.div_ceil(across * to.images).min(across);
    // For each task, its lines of every block.
    let tasks = across.div_ceil(lines);
    let mut lines_of: Vec<Vec<&mut [f32]>> = (0..tasks).map(|_| Vec::with_capacity(to.blocks)).collect();
    for block in out.chunks_exact_mut(to.block()) {
        for (task, lines) in block.chunks_mut(M * lines * to.row()).enumerate() {
            lines_of[task].push(lines);
        }
    }
    lines_of.into_par_iter().enumerate().for_each(|(task, out)| {
        let lines = task * lines..across.min((task + 1) * lines);
        let rows = Rows { first: 0, all: lines.len() * across * to.images };
        let mut inputs = scratch::take(rows.floats(from.blocks));
        simd.run(Inputs { x, from, padding, across, lines: lines.clone(), rows, out: &mut inputs });
        let mut products = scratch::take(rows.floats(1));
        for (block, out) in out.into_iter().enumerate() {
            let weights = &weights[transformed_len(block * from.blocks)..];
            let weights = &weights[..transformed_len(from.blocks)];
            simd.run(Multiply { inputs: &inputs, weights, from, rows, products: &mut products });
            let (products, lines) = (&*products, lines.clone());
            simd.run(Outputs { products, rows, epilogue, to, block, lines, out });
        }
    });
}

/// The products of transformed inputs with the transformed weights to one block of outputs.
struct Multiply<'a> {
    inputs: &'a [f32],
    weights: &'a [f32],
    from: Planes,
    rows: Rows,
    products: &'a mut [f32],
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let Self { inputs, weights, from, rows, products } = self;
        let plane = rows.all * BLOCK;
        let mut segments: Vec<Segment> =
            (0..from.blocks).map(|input| Segment { a: input * plane, b: input * N * N * SPACED }).collect();
        for position in 0..N * N {
            l.tile(Tile::<BLOCK, 1> {
                a: &inputs[position * rows.stride(from.blocks)..],
                b: weights,
                segments: &segments,
                steps: BLOCK,
                out: &mut products[position * rows.stride(1)..][..plane],
                init: Init::Zero,
                epilogue: TileEpilogue::Keep,
            });
            for segment in &mut segments {
                segment.b += SPACED;
            }
        }
    }
}
