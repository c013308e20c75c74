//! Sums over the images of a leaf, and over the leaves along their tree.
//!
//! A leaf's images are computed with in [`Part`]s of at most [`IMAGES`], the leaf's first
//! images first. A weight gradient goes part by part, pixel by pixel in a part, image by image
//! in a pixel; then leaves are added along the tree (**SUM-1**). So its bits depend on the
//! leaf, never on what is computed beside it.

use tally_numerics::sum::Fold;
use tally_numerics::wire::WireDtype;

use crate::lanes::Lanes;
use crate::planes::Planes;
use crate::scratch::{self, Scratch};
use crate::simd::{Kernel, Simd};
use crate::{BLOCK, TAPS};

/// The most images of a part: what of them a layer touches then fits the second cache. It
/// decides the order of sums, so it is the same on every machine.
pub const IMAGES: usize = 16;

/// A few images of a leaf at a layer: its input and the gradient by its output.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The gradient by the output.
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

/// The leaves of a subtree, `2^k` from the left, by what they are computed from. One without parts is empty,
/// and skipped.
#[derive(Clone, Debug)]
pub struct Leaves<T> {
    /// The parts of each leaf.
    pub parts: Vec<Vec<T>>,
    /// What a node's value, a leaf's or a sum, is rounded to when it is whole.
    pub rounding: WireDtype,
}

impl Leaves<Part<'_>> {
    /// Checks what the gradient by a 3×3 convolution's weights is taken from, into `out`.
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

/// Adds leaves' values along their tree, as [`tally_numerics::sum`] does. `leaf(parts, into)` computes one into
/// `len` floats of any content, and `take` gets the sum; zeros if all are empty.
pub fn sum<T>(
    simd: Simd,
    leaves: &Leaves<T>,
    len: usize,
    mut leaf: impl FnMut(&[T], &mut [f32]),
    take: impl FnOnce(&[f32]),
) {
    let mut fold = Fold::default();
    for parts in &leaves.parts {
        let value = (!parts.is_empty()).then(|| {
            let mut buffer = scratch::take(len);
            leaf(parts, &mut buffer);
            leaves.rounding.round(&mut buffer);
            buffer
        });
        fold.push(value, |mut left: Scratch, right| {
            simd.run(Add { left: &mut left, right: &right });
            leaves.rounding.round(&mut left);
            left
        });
    }
    match fold.finish() {
        Some(total) => take(&total),
        None => take(&vec![0.0; len]),
    }
}

/// `left += right`: `sum::add` with wide vectors. An addition rounds alike in any.
struct Add<'a> {
    left: &'a mut [f32],
    right: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (left, right) in self.left.iter_mut().zip(self.right) {
            *left += right;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_added_along_the_tree_and_empty_ones_skipped() {
        // 1e8 + 1 is 1e8 in float32, so the order shows: 1e8 + (1 − 1e8) but not (1e8 + 1) − 1e8.
        let total = |parts: &[&[f32]], rounding| {
            let leaves = Leaves { parts: parts.iter().map(|parts| parts.to_vec()).collect(), rounding };
            let mut total = f32::NAN;
            sum(Simd::widest(), &leaves, 1, |parts, into| into[0] = parts[0], |sum| total = sum[0]);
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
