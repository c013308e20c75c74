//! `G g Gᵀ`: the transform of weights, from their usual layout to blocks.
//!
//! A block goes from 32 channels to 32 channels. Transformed, it is stored as `[position][32][32]`, with some space between
//! positions.

use rayon::prelude::*;

use super::transform::{self, both_ways, tile_of};
use super::{N, SPACED, transformed_len};
use crate::pack::{self, LONG_ROW, OihwWeights};
use crate::simd::{Kernel, Simd};
use crate::simd_vec::{LANES, SimdVec};
use crate::{BLOCK, TAPS};

/// Transforms weights as [`pack::forward`] orders them: `[o/32][c/32]` blocks.
///
/// # Panics
/// If there is not room for exactly [`transformed_len`] floats.
pub fn forward(simd: Simd, weights: OihwWeights<'_>, transformed: &mut [f32]) {
    let (outputs, inputs) = weights.blocks();
    assert_eq!(transformed.len(), transformed_len(outputs * inputs), "room for them transformed");
    transformed.par_chunks_exact_mut(transformed_len(1)).enumerate().for_each(|(index, to)| {
        let (output, input) = (index / inputs, index % inputs);
        simd.run(Block { weights, output, input, lanes: Over::Outputs, to });
    });
}

/// Transforms weights as [`pack::backward`] orders them, for the input gradient as a
/// convolution: `[c/32][o/32]` blocks, with taps flipped.
///
/// # Panics
/// As [`forward`].
pub fn backward(simd: Simd, weights: OihwWeights<'_>, transformed: &mut [f32]) {
    let (outputs, inputs) = weights.blocks();
    assert_eq!(transformed.len(), transformed_len(outputs * inputs), "room for them transformed");
    transformed.par_chunks_exact_mut(transformed_len(1)).enumerate().for_each(|(index, to)| {
        let (input, output) = (index / outputs, index % outputs);
        simd.run(Block { weights, output, input, lanes: Over::Inputs { flipped: true }, to });
    });
}

/// Which channels the lanes run over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Over {
    /// `[position][c][o]`.
    Outputs,
    /// `[position][o][c]`, of kernels turned by half a turn if they are `flipped`.
    Inputs { flipped: bool },
}

/// One block.
pub(super) struct Block<'a> {
    pub weights: OihwWeights<'a>,
    pub output: usize,
    pub input: usize,
    pub lanes: Over,
    pub to: &'a mut [f32],
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let Self { weights, output, input, lanes, to } = self;
        let (to, _) = to.as_chunks_mut::<LANES>();
        match lanes {
            Over::Outputs => {
                // Sixteen channels' taps are whole vectors.
                let mut taps = [[0.0; LANES]; LANES * TAPS];
                for half in 0..BLOCK / LANES {
                    let rows = weights.rows(output * BLOCK + half * LANES, input);
                    for first in 0..BLOCK / LANES {
                        for (place, taps) in taps.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                            let columns = pack::output_lanes(l, &rows, first * TAPS + place);
                            for (column, taps) in columns.into_iter().zip(taps) {
                                l.store(column, taps);
                            }
                        }
                        for (c, taps) in taps.as_chunks::<TAPS>().0.iter().enumerate() {
                            let kernel = tile_of::<L, 3>(l, |y, x| l.load(&taps[3 * y + x]));
                            transform_into(l, kernel, to, (first * LANES + c) * (BLOCK / LANES) + half);
                        }
                    }
                }
            }
            Over::Inputs { flipped } => {
                let mut padded = [0.0; LONG_ROW];
                for o in 0..BLOCK {
                    let row = weights.long_row(output * BLOCK + o, input, &mut padded);
                    for half in 0..BLOCK / LANES {
                        let [a, b, c, d, e, f, g, h, i, ..] = pack::input_lanes(l, row, half * LANES);
                        let kernel = if flipped {
                            [[i, h, g], [f, e, d], [c, b, a]]
                        } else {
                            [[a, b, c], [d, e, f], [g, h, i]]
                        };
                        transform_into(l, kernel, to, o * (BLOCK / LANES) + half);
                    }
                }
            }
        }
    }
}

/// Transforms sixteen kernels into vector `at` of each position.
#[inline(always)]
fn transform_into<L: SimdVec>(l: L, kernel: [[L::V; 3]; 3], to: &mut [[f32; LANES]], at: usize) {
    let transformed: [[L::V; N]; N] = both_ways!(kernel, 3 to N, |v| transform::from_kernel(l, v));
    for (y, row) in transformed.into_iter().enumerate() {
        for (x, value) in row.into_iter().enumerate() {
            l.store(value, &mut to[(N * y + x) * (SPACED / LANES) + at]);
        }
    }
}
