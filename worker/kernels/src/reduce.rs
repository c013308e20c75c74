//! Sums over the images of a microbatch, and over the microbatches along their tree.
//!
//! A microbatch's images are computed in [`Part`]s of at most [`IMAGES`], in their order. A weight gradient is summed part
//! by part, in a part pixel by pixel, in a pixel image by image; then microbatches are added along the tree (**SUM-1**).
//! So the bits of a microbatch's sum do not depend on the microbatches that are computed with it.

use tally_numerics::sum::Fold;
use tally_numerics::wire::WireDtype;

use crate::planes::Planes;
use crate::scratch::{self, Scratch};
use crate::simd::{Kernel, Simd};
use crate::simd_vec::SimdVec;
use crate::{BLOCK, TAPS};

/// The most images of a part. The activations of so many that a layer uses fit the second-level cache. The number decides
/// the order of sums, so it is the same on every machine.
pub const IMAGES: usize = 16;

/// A few images of a microbatch at a layer: its input and the output gradient.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The output gradient.
    pub dy: &'a [f32],
    /// Its shape.
    pub to: Planes,
    /// The input.
    pub x: &'a [f32],
    /// Its shape.
    pub from: Planes,
}

impl Part<'_> {
    /// # Panics
    /// If a slice has not its shape's length, or the two have not the same images.
    pub(crate) fn check(&self) {
        let lengths = (self.x.len(), self.dy.len());
        assert_eq!(lengths, (self.from.len(), self.to.len()), "activations have their shape's length");
        assert_eq!(self.from.images, self.to.images, "as many images out as in");
    }
}

/// The parts of a node's `2^k` microbatches, from the left. A microbatch without parts is empty, and skipped.
#[derive(Clone, Debug)]
pub struct NodeParts<T> {
    /// The parts of each microbatch.
    pub parts: Vec<Vec<T>>,
    /// What the value of a microbatch, and every sum, is rounded to.
    pub rounding: WireDtype,
}

impl NodeParts<Part<'_>> {
    /// Checks the operands of a 3×3 convolution's weight gradient, `out`.
    ///
    /// # Panics
    /// If a slice has not its shape's length, or the shapes don't follow from each other.
    pub(crate) fn check(&self, padding: usize, inputs: usize, out: &[f32]) {
        assert!(inputs.is_multiple_of(BLOCK) && out.len().is_multiple_of(inputs * TAPS), "whole outputs");
        for part in self.parts.iter().flatten() {
            part.check();
            assert_eq!(part.to.side + 2, part.from.side + 2 * padding, "the sides of a 3×3 convolution");
            assert_eq!(part.from.blocks * BLOCK, inputs, "as many inputs as weights");
            assert!(out.len() <= part.to.blocks * BLOCK * inputs * TAPS, "no more outputs than there are");
        }
    }
}

/// Adds the values of microbatches along their tree, as [`tally_numerics::sum`] does. `microbatch(parts, into)` computes
/// one into `len` floats of any content, and `take` gets the sum; zeros if all are empty.
pub fn sum<T>(
    simd: Simd,
    microbatches: &NodeParts<T>,
    len: usize,
    mut microbatch: impl FnMut(&[T], &mut [f32]),
    take: impl FnOnce(&[f32]),
) {
    let mut fold = Fold::default();
    for parts in &microbatches.parts {
        let value = (!parts.is_empty()).then(|| {
            let mut buffer = scratch::take(len);
            microbatch(parts, &mut buffer);
            microbatches.rounding.round(&mut buffer);
            buffer
        });
        fold.push(value, |mut left: Scratch, right| {
            simd.run(Add { left: &mut left, right: &right });
            microbatches.rounding.round(&mut left);
            left
        });
    }
    match fold.finish() {
        Some(total) => take(&total),
        None => take(&vec![0.0; len]),
    }
}

/// `left += right`: `sum::add` with wide vectors, which round alike.
struct Add<'a> {
    left: &'a mut [f32],
    right: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, _: L) {
        for (left, right) in self.left.iter_mut().zip(self.right) {
            *left += right;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microbatches_are_added_along_the_tree_and_empty_ones_skipped() {
        // 1e8 + 1 is 1e8 in float32, so the order shows: 1e8 + (1 − 1e8) but not (1e8 + 1) − 1e8.
        let total = |parts: &[&[f32]], rounding| {
            let microbatches =
                NodeParts { parts: parts.iter().map(|parts| parts.to_vec()).collect(), rounding };
            let mut total = f32::NAN;
            sum(Simd::widest(), &microbatches, 1, |parts, into| into[0] = parts[0], |sum| total = sum[0]);
            total
        };
        let [none, bf16] = [WireDtype::F32, WireDtype::Bf16];
        assert_eq!(total(&[&[1e8], &[], &[1.0], &[-1e8]], none), 1e8f32 + (1.0 - 1e8));
        assert_eq!(total(&[&[], &[]], none), 0.0);
        // Eight bits: 257 is 256 (ties to even), 256 + 3 is 260, and 260 + 1 is 260 again.
        assert_eq!(total(&[&[257.0]], bf16), 256.0);
        assert_eq!(total(&[&[257.0], &[3.0], &[1.0], &[]], bf16), 260.0);
    }
}
