//! Packing: weights into the order in which the register tile reads them, and weight gradients out of the order in which
//! it writes them.

use rayon::prelude::*;

use crate::simd::{Kernel, Simd};
use crate::simd_vec::{self, LANES, SimdVec};
use crate::{BLOCK, TAPS};

/// Floats of a packed block of weights: all taps from 32 channels to 32 channels.
pub const WEIGHT_BLOCK: usize = TAPS * BLOCK * BLOCK;

/// A convolution's weights in the usual layout, `weights[output][input][tap]`.
#[derive(Clone, Copy, Debug)]
pub struct OihwWeights<'a> {
    weights: &'a [f32],
    outputs: usize,
    inputs: usize,
}

impl<'a> OihwWeights<'a> {
    /// # Panics
    /// If there is not a weight for each output, input and tap, or inputs are no whole blocks.
    #[must_use]
    pub fn new(weights: &'a [f32], outputs: usize, inputs: usize) -> Self {
        assert!(inputs.is_multiple_of(BLOCK), "inputs in whole blocks");
        assert_eq!(weights.len(), outputs * inputs * TAPS, "a weight for each tap");
        Self { weights, outputs, inputs }
    }

    /// Blocks of outputs, and of inputs.
    pub(crate) fn blocks(self) -> (usize, usize) {
        (self.outputs.div_ceil(BLOCK), self.inputs / BLOCK)
    }

    /// The weights from a block of inputs to output `o` and all weights after them; none if there is no such output.
    fn from(self, o: usize, input: usize) -> &'a [f32] {
        debug_assert!(input < self.inputs / BLOCK, "there is such a block");
        self.weights.get((o * self.inputs + input * BLOCK) * TAPS..).unwrap_or_default()
    }

    /// The weights from a block of inputs to output `o`, or zeros.
    #[inline(always)]
    fn row(self, o: usize, input: usize) -> &'a Row {
        static NONE: Row = [[0.0; LANES]; BLOCK * TAPS / LANES];
        let (vectors, _) = self.from(o, input).as_chunks();
        vectors.first_chunk().unwrap_or(&NONE)
    }

    /// Sixteen such rows, from output `o` on.
    #[inline(always)]
    pub(crate) fn rows(self, o: usize, input: usize) -> [&'a Row; LANES] {
        let mut rows = [self.row(o, input); LANES];
        for (place, row) in rows.iter_mut().enumerate().skip(1) {
            *row = self.row(o + place, input);
        }
        rows
    }

    /// The weights from a block of inputs to output `o`, or zeros, and something that follows: [`LONG_ROW`]
    /// floats. Where nothing follows, they are copied into `padded`.
    #[inline(always)]
    pub(crate) fn long_row<'b>(
        self,
        o: usize,
        input: usize,
        padded: &'b mut [f32; LONG_ROW],
    ) -> &'b [f32; LONG_ROW]
    where
        'a: 'b,
    {
        let from = self.from(o, input);
        if let Some(row) = from.first_chunk() {
            return row;
        }
        padded[..from.len()].copy_from_slice(from);
        padded[from.len()..].fill(0.0);
        padded
    }

    /// Prefetches a block of weights that will be read soon. Its rows are far from each other, so that the processor does
    /// not predict them.
    pub(crate) fn prefetch(self, output: usize, input: usize) {
        for o in 0..BLOCK {
            simd_vec::prefetch(self.row(output * BLOCK + o, input).as_flattened());
        }
    }
}

/// The weights from a block of inputs to an output.
type Row = [[f32; LANES]; BLOCK * TAPS / LANES];

/// Vector `at` of each of sixteen outputs' rows, that is sixteen weights, tap by tap and input by input: a
/// vector for a weight, an output a lane.
#[inline(always)]
pub(crate) fn output_lanes<L: SimdVec>(l: L, rows: &[&Row; LANES], at: usize) -> [L::V; LANES] {
    let mut square = [l.splat(0.0); LANES];
    for (vector, row) in square.iter_mut().zip(rows) {
        *vector = l.load(&row[at]);
    }
    l.transpose(square)
}

/// The weights from sixteen inputs, from `c` on, to the output that has this [`OihwWeights::long_row`]: a vector
/// for each of the nine taps, an input a lane. (What follows on them is of no use.)
#[inline(always)]
pub(crate) fn input_lanes<L: SimdVec>(l: L, long_row: &[f32; LONG_ROW], c: usize) -> [L::V; LANES] {
    let mut square = [l.splat(0.0); LANES];
    for (place, vector) in square.iter_mut().enumerate() {
        *vector = l.load(&long_row[(c + place) * TAPS..][..LANES].as_chunks().0[0]);
    }
    l.transpose(square)
}

/// A vector from a kernel's first tap on has its nine taps, and some of what follows: so many floats of a
/// row are loaded.
pub(crate) const LONG_ROW: usize = (BLOCK - 1) * TAPS + LANES;

/// Packs weights as `[o/32][c/32][tap][c%32][o%32]`, missing outputs as zeros, for a
/// convolution.
///
/// # Panics
/// If there is not room for exactly that.
pub fn forward(simd: Simd, weights: OihwWeights<'_>, packed: &mut [f32]) {
    let (outputs, inputs) = weights.blocks();
    assert_eq!(packed.len(), outputs * inputs * WEIGHT_BLOCK, "room for all blocks");
    packed.par_chunks_mut(WEIGHT_BLOCK).enumerate().for_each(|(index, packed)| {
        simd.run(Forward { weights, output: index / inputs, input: index % inputs, packed });
    });
}

/// Packs weights as `[c/32][o/32][8−tap][o%32][c%32]`, missing outputs as zeros, for the
/// input gradient.
///
/// # Panics
/// As [`forward`].
pub fn backward(simd: Simd, weights: OihwWeights<'_>, packed: &mut [f32]) {
    let (outputs, inputs) = weights.blocks();
    assert_eq!(packed.len(), outputs * inputs * WEIGHT_BLOCK, "room for all blocks");
    packed.par_chunks_mut(WEIGHT_BLOCK).enumerate().for_each(|(index, packed)| {
        let (input, output) = (index / outputs, index % outputs);
        simd.run(Backward { weights, output, input, packed });
    });
}

/// One block of [`forward`].
struct Forward<'a> {
    weights: OihwWeights<'a>,
    output: usize,
    input: usize,
    packed: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let (packed, _) = self.packed.as_chunks_mut::<BLOCK>();
        for half in 0..BLOCK / LANES {
            let rows = self.weights.rows(self.output * BLOCK + half * LANES, self.input);
            for at in 0..BLOCK * TAPS / LANES {
                for (place, column) in output_lanes(l, &rows, at).into_iter().enumerate() {
                    let (c, tap) = ((at * LANES + place) / TAPS, (at * LANES + place) % TAPS);
                    l.store(column, &mut packed[tap * BLOCK + c].as_chunks_mut().0[half]);
                }
            }
        }
    }
}

/// One block of [`backward`].
struct Backward<'a> {
    weights: OihwWeights<'a>,
    output: usize,
    input: usize,
    packed: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let (packed, _) = self.packed.as_chunks_mut::<BLOCK>();
        let mut padded = [0.0; LONG_ROW];
        for o in 0..BLOCK {
            let row = self.weights.long_row(self.output * BLOCK + o, self.input, &mut padded);
            for half in 0..BLOCK / LANES {
                let taps = input_lanes(l, row, half * LANES);
                for (tap, column) in taps.into_iter().take(TAPS).enumerate() {
                    l.store(column, &mut packed[(TAPS - 1 - tap) * BLOCK + o].as_chunks_mut().0[half]);
                }
            }
        }
    }
}

/// Floats of a tap's sums, from 32 inputs to 32 outputs, with some space to those of the next: taps a
/// multiple of 4096 bytes apart would push each other out of the first cache.
pub(crate) const TAP: usize = BLOCK * BLOCK + 2 * LANES;
/// Floats of all taps' sums.
pub(crate) const SUMS: usize = TAPS * TAP;

/// Sums `[tap][c][o]` of one block, with [`TAP`] floats to a tap, into the whole gradient
/// `[o][c][tap]` of some outputs: [`Forward`]'s opposite.
pub(crate) struct Unpack<'a> {
    pub sums: &'a [f32],
    /// The block of inputs.
    pub input: usize,
    /// Inputs of the whole.
    pub inputs: usize,
    /// At most a block of outputs.
    pub out: &'a mut [f32],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let (sums, _) = self.sums.as_chunks::<LANES>();
        let row = self.inputs * TAPS;
        for (half, out) in self.out.chunks_mut(LANES * row).enumerate() {
            for first in (0..BLOCK * TAPS).step_by(LANES) {
                let mut square = [l.splat(0.0); LANES];
                for (place, vector) in square.iter_mut().enumerate() {
                    let (c, tap) = ((first + place) / TAPS, (first + place) % TAPS);
                    *vector = l.load(&sums[(tap * TAP + c * BLOCK) / LANES + half]);
                }
                let at = self.input * BLOCK * TAPS + first;
                for (out, values) in out.chunks_exact_mut(row).zip(l.transpose(square)) {
                    l.store(values, &mut out[at..][..LANES].as_chunks_mut().0[0]);
                }
            }
        }
    }
}
