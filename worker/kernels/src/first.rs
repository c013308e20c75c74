//! The first convolution: one channel in, 32 out, padding 1. It has too few inputs for the sum of a register tile, and
//! needs no input gradient.

use rayon::prelude::*;

use crate::reduce::{self, NodeParts};
use crate::simd::{Kernel, Simd};
use crate::simd_vec::{LANES, SimdVec};
use crate::{BLOCK, TAPS};

/// Images of one channel with a border of zeros: `[side + 2][side + 2][images]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bordered {
    /// Height and width without the border.
    pub side: usize,
    /// Images.
    pub images: usize,
}

impl Bordered {
    /// Floats in all.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // No image is empty.
    pub fn len(self) -> usize {
        (self.side + 2) * (self.side + 2) * self.images
    }

    /// Stores images in this layout, `value(image, pixel)` with pixels row by row.
    ///
    /// # Panics
    /// If `out` has not the shape's length.
    pub fn fill(self, out: &mut [f32], value: impl Fn(usize, usize) -> f32) {
        assert_eq!(out.len(), self.len(), "images have their shape's length");
        let inside = |at: usize| (1..=self.side).contains(&at);
        for (place, pixel) in out.chunks_exact_mut(self.images).enumerate() {
            let (y, x) = (place / (self.side + 2), place % (self.side + 2));
            if inside(y) && inside(x) {
                for (image, into) in pixel.iter_mut().enumerate() {
                    *into = value(image, (y - 1) * self.side + x - 1);
                }
            } else {
                pixel.fill(0.0);
            }
        }
    }

    /// Where tap 0 of line `y` starts, for the images from `first` on.
    fn at(self, y: usize, x: usize, tap: usize) -> usize {
        ((y + tap / 3) * (self.side + 2) + x + tap % 3) * self.images
    }
}

/// `relu(x ∗ weights[o][tap] + bias)` into planes of one block.
///
/// # Panics
/// If a slice has not its shape's length.
pub fn convolve(simd: Simd, x: &[f32], from: Bordered, weights: &[f32], bias: &[f32], out: &mut [f32]) {
    assert_eq!((weights.len(), bias.len()), (BLOCK * TAPS, BLOCK), "one block of outputs");
    assert_eq!(x.len(), from.len(), "images have their shape's length");
    let line = from.side * from.images * BLOCK;
    assert_eq!(out.len(), from.side * line, "one block of outputs");
    let by_tap = by_tap(weights);
    out.par_chunks_mut(line).enumerate().for_each(|(y, out)| {
        simd.run(Line { x, from, weights: &by_tap, bias, y, out });
    });
}

fn by_tap(weights: &[f32]) -> [[f32; BLOCK]; TAPS] {
    std::array::from_fn(|tap| std::array::from_fn(|o| weights[o * TAPS + tap]))
}

struct Line<'a> {
    x: &'a [f32],
    from: Bordered,
    weights: &'a [[f32; BLOCK]; TAPS],
    bias: &'a [f32],
    y: usize,
    out: &'a mut [f32],
}

impl Kernel for Line<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, lanes: L) {
        let Self { x, from, weights, bias, y, out } = self;
        let (halves, _) = bias.as_chunks::<LANES>();
        for column in 0..from.side {
            let taps: [&[f32]; TAPS] =
                std::array::from_fn(|tap| &x[from.at(y, column, tap)..][..from.images]);
            let out = &mut out[column * from.images * BLOCK..][..from.images * BLOCK];
            for (half, bias) in halves.iter().enumerate() {
                let weights: [L::V; TAPS] =
                    std::array::from_fn(|tap| lanes.load(&weights[tap].as_chunks().0[half]));
                for (image, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                    let mut sum = lanes.splat(0.0);
                    for (tap, weight) in taps.iter().zip(weights) {
                        sum = lanes.fma(lanes.splat(tap[image]), weight, sum);
                    }
                    let sum = lanes.add(sum, lanes.load(bias));
                    lanes.store(lanes.relu(sum), &mut out.as_chunks_mut().0[half]);
                }
            }
        }
    }
}

/// A few images of a microbatch: the output gradient, the images, their shape.
pub type FirstPart<'a> = (&'a [f32], &'a [f32], Bordered);

/// The weight gradient, `out[o][tap]`, summed over microbatches as [`reduce`] says.
///
/// # Panics
/// If a slice has not its shape's length.
pub fn weight_grad(simd: Simd, microbatches: &NodeParts<FirstPart<'_>>, out: &mut [f32]) {
    assert_eq!(out.len(), BLOCK * TAPS, "one block of outputs");
    for (dy, x, from) in microbatches.parts.iter().flatten() {
        assert_eq!(x.len(), from.len(), "images have their shape's length");
        assert_eq!(dy.len(), from.side * from.side * from.images * BLOCK, "one block of outputs");
    }
    // Two threads at most: one for each half of the outputs.
    out.par_chunks_mut(BLOCK / 2 * TAPS).enumerate().for_each(|(half, out)| {
        let microbatch = |parts: &[FirstPart<'_>], sums: &mut [f32]| {
            sums.fill(0.0);
            for &(dy, x, from) in parts {
                simd.run(Products { dy, x, from, half, sums });
            }
        };
        reduce::sum(simd, microbatches, TAPS * BLOCK / 2, microbatch, |sums| {
            for (tap, sums) in sums.chunks_exact(BLOCK / 2).enumerate() {
                for (o, sum) in sums.iter().enumerate() {
                    out[o * TAPS + tap] = *sum;
                }
            }
        });
    });
}

struct Products<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    from: Bordered,
    half: usize,
    sums: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, lanes: L) {
        let Self { dy, x, from, half, sums } = self;
        let (sums, _) = sums.as_chunks_mut();
        let mut totals: [L::V; TAPS] = std::array::from_fn(|tap| lanes.load(&sums[tap]));
        for (pixel, dy) in dy.chunks_exact(from.images * BLOCK).enumerate() {
            let (y, column) = (pixel / from.side, pixel % from.side);
            let taps: [&[f32]; TAPS] =
                std::array::from_fn(|tap| &x[from.at(y, column, tap)..][..from.images]);
            for (image, row) in dy.as_chunks::<BLOCK>().0.iter().enumerate() {
                let row = lanes.load(&row.as_chunks().0[half]);
                for (total, tap) in totals.iter_mut().zip(taps) {
                    *total = lanes.fma(lanes.splat(tap[image]), row, *total);
                }
            }
        }
        for (total, into) in totals.into_iter().zip(sums) {
            lanes.store(total, into);
        }
    }
}
