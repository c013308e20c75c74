//! Weights in the order in which the register tile reads them.

use rayon::prelude::*;

use crate::direct::WEIGHT_BLOCK;
use crate::lanes::{LANES, Lanes};
use crate::simd::{Kernel, Simd};
use crate::{BLOCK, TAPS};

/// A convolution's weights as the network has them: `weights[output][input][tap]`.
#[derive(Clone, Copy, Debug)]
pub struct Natural<'a> {
    weights: &'a [f32],
    outputs: usize,
    inputs: usize,
}

impl<'a> Natural<'a> {
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

    /// The weights from a block of inputs to output `o`, if there is such an output.
    fn row(self, o: usize, input: usize) -> Option<&'a [f32]> {
        let first = (o * self.inputs + input * BLOCK) * TAPS;
        (o < self.outputs).then(|| &self.weights[first..][..BLOCK * TAPS])
    }
}

/// Packs weights as `[o/32][c/32][tap][c%32][o%32]`, missing outputs as zeros, for a
/// convolution.
///
/// # Panics
/// If there is not room for exactly that.
pub fn forward(simd: Simd, weights: Natural<'_>, packed: &mut [f32]) {
    let (outputs, inputs) = weights.blocks();
    assert_eq!(packed.len(), outputs * inputs * WEIGHT_BLOCK, "room for all blocks");
    packed.par_chunks_mut(WEIGHT_BLOCK).enumerate().for_each(|(index, packed)| {
        simd.run(Forward { weights, output: index / inputs, input: index % inputs, packed });
    });
}

/// Packs weights as `[c/32][o/32][8−tap][o%32][c%32]`, missing outputs as zeros, for the
/// gradient by a convolution's input.
///
/// # Panics
/// As [`forward`].
pub fn backward(simd: Simd, weights: Natural<'_>, packed: &mut [f32]) {
    let (outputs, inputs) = weights.blocks();
    assert_eq!(packed.len(), outputs * inputs * WEIGHT_BLOCK, "room for all blocks");
    packed.par_chunks_mut(WEIGHT_BLOCK).enumerate().for_each(|(index, packed)| {
        let (input, output) = (index / outputs, index % outputs);
        simd.run(Backward { weights, output, input, flipped: true, packed });
    });
}

/// One block of [`forward`].
pub(crate) struct Forward<'a> {
    pub weights: Natural<'a>,
    pub output: usize,
    pub input: usize,
    pub packed: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (packed, _) = self.packed.as_chunks_mut::<BLOCK>();
        for half in 0..BLOCK / LANES {
            let mut rows = [None; LANES];
            for (o, row) in rows.iter_mut().enumerate() {
                *row = self.weights.row(self.output * BLOCK + half * LANES + o, self.input);
            }
            for first in (0..BLOCK * TAPS).step_by(LANES) {
                let mut square = [l.splat(0.0); LANES];
                for (vector, row) in square.iter_mut().zip(rows) {
                    if let Some(row) = row {
                        *vector = l.load(&row[first..][..LANES].as_chunks().0[0]);
                    }
                }
                for (place, column) in l.transpose(square).into_iter().enumerate() {
                    let (c, tap) = ((first + place) / TAPS, (first + place) % TAPS);
                    l.store(column, &mut packed[tap * BLOCK + c].as_chunks_mut().0[half]);
                }
            }
        }
    }
}

/// One block of [`backward`], with taps in their own order unless `flipped`.
pub(crate) struct Backward<'a> {
    pub weights: Natural<'a>,
    pub output: usize,
    pub input: usize,
    pub flipped: bool,
    pub packed: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (packed, _) = self.packed.as_chunks_mut::<BLOCK>();
        // A vector from a kernel's first tap on has its nine taps; the last one's reaches past the row.
        let mut padded = [0.0; BLOCK * TAPS + LANES];
        for o in 0..BLOCK {
            match self.weights.row(self.output * BLOCK + o, self.input) {
                Some(row) => padded[..BLOCK * TAPS].copy_from_slice(row),
                None => padded.fill(0.0),
            }
            for half in 0..BLOCK / LANES {
                let mut square = [l.splat(0.0); LANES];
                for (c, vector) in square.iter_mut().enumerate() {
                    *vector = l.load(&padded[(half * LANES + c) * TAPS..][..LANES].as_chunks().0[0]);
                }
                for (tap, column) in l.transpose(square).into_iter().take(TAPS).enumerate() {
                    let place = if self.flipped { TAPS - 1 - tap } else { tap };
                    l.store(column, &mut packed[place * BLOCK + o].as_chunks_mut().0[half]);
                }
            }
        }
    }
}
