//! Weights in the order in which the register tile reads them. Packed once a step.

use rayon::prelude::*;

use crate::direct::WEIGHT_BLOCK;
use crate::{BLOCK, TAPS};

/// Packs `weights[o][c][tap]` as `[o/32][c/32][tap][c%32][o%32]`, missing outputs as zeros,
/// for a convolution.
///
/// # Panics
/// If the slices don't have `outputs` (rounded up to blocks) times `inputs` times nine floats,
/// or `inputs` are no whole blocks.
pub fn forward(weights: &[f32], outputs: usize, inputs: usize, packed: &mut [f32]) {
    check(weights, outputs, inputs, packed);
    packed.par_chunks_mut(WEIGHT_BLOCK).enumerate().for_each(|(index, packed)| {
        let (block, input) = (index / (inputs / BLOCK), index % (inputs / BLOCK));
        // Copied first: rows as far apart as in the whole would push each other out of the cache.
        let mut rows = [[0.0; BLOCK * TAPS + PAD]; BLOCK];
        for (o, row) in rows.iter_mut().enumerate() {
            if let Some(source) = source(weights, outputs, inputs, block * BLOCK + o, input) {
                row[..BLOCK * TAPS].copy_from_slice(source);
            }
        }
        for (at, packed) in packed.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let (tap, c) = (at / BLOCK, at % BLOCK);
            for (packed, row) in packed.iter_mut().zip(&rows) {
                *packed = row[c * TAPS + tap];
            }
        }
    });
}

/// Keeps equal places of neighbouring rows out of the same set of the cache.
const PAD: usize = 16;

/// Packs `weights[o][c][tap]` as `[c/32][o/32][8−tap][o%32][c%32]`, missing outputs as zeros,
/// for the gradient by a convolution's input.
///
/// # Panics
/// As [`forward`].
pub fn backward(weights: &[f32], outputs: usize, inputs: usize, packed: &mut [f32]) {
    check(weights, outputs, inputs, packed);
    let blocks = outputs.div_ceil(BLOCK);
    packed.par_chunks_mut(WEIGHT_BLOCK).enumerate().for_each(|(index, packed)| {
        let (input, block) = (index / blocks, index % blocks);
        for o in 0..BLOCK {
            let source = source(weights, outputs, inputs, block * BLOCK + o, input);
            for tap in 0..TAPS {
                let row = &mut packed[((TAPS - 1 - tap) * BLOCK + o) * BLOCK..][..BLOCK];
                match source {
                    None => row.fill(0.0),
                    Some(source) => {
                        for (w, taps) in row.iter_mut().zip(source.as_chunks::<TAPS>().0) {
                            *w = taps[tap];
                        }
                    }
                }
            }
        }
    });
}

fn check(weights: &[f32], outputs: usize, inputs: usize, packed: &[f32]) {
    assert_eq!(inputs % BLOCK, 0, "inputs in whole blocks");
    assert_eq!(weights.len(), outputs * inputs * TAPS, "a weight for each tap");
    assert_eq!(packed.len(), outputs.next_multiple_of(BLOCK) * inputs * TAPS, "room for all blocks");
}

/// The weights from 32 inputs to output `o`, if there is such an output.
fn source(weights: &[f32], outputs: usize, inputs: usize, o: usize, input: usize) -> Option<&[f32]> {
    (o < outputs).then(|| &weights[(o * inputs + input * BLOCK) * TAPS..][..BLOCK * TAPS])
}
