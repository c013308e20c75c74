//! Max-pooling of 2×2 windows after a ReLU, and its gradient together with the ReLU's.
//!
//! The first of equals in row-major order is the greatest; a NaN is greater than any number.

use rayon::prelude::*;

use crate::BLOCK;
use crate::planes::Planes;
use crate::simd::{Kernel, Simd};
use crate::simd_vec::SimdVec;

type Row = [f32; BLOCK];

/// The shape after pooling; an odd last line or column is left out.
#[must_use]
pub fn pooled(from: Planes) -> Planes {
    Planes { side: from.side / 2, ..from }
}

/// Writes the greatest value of each window of `x` to `out`.
///
/// # Panics
/// If a slice has not its shape's length.
pub fn max(simd: Simd, x: &[f32], from: Planes, out: &mut [f32]) {
    let to = pooled(from);
    assert_eq!((x.len(), out.len()), (from.len(), to.len()), "activations have their shape's length");
    out.par_chunks_mut(to.row()).enumerate().for_each(|(line, out)| {
        let (block, y) = (line / to.side, line % to.side);
        let x = &x[from.at(block, 2 * y, 0, 0)..][..2 * from.row()];
        simd.run(Line { x, from, out });
    });
}

struct Line<'a> {
    x: &'a [f32],
    from: Planes,
    out: &'a mut [f32],
}

/// The rows of a window's four values within two lines, for the first image.
fn corners(from: Planes, column: usize) -> [usize; 4] {
    let pixel = from.images;
    let first = 2 * column * pixel;
    [first, first + pixel, first + from.side * pixel, first + (from.side + 1) * pixel]
}

impl Kernel for Line<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, _: L) {
        let rows: &[Row] = self.x.as_chunks().0;
        for (column, out) in self.out.chunks_exact_mut(self.from.pixel()).enumerate() {
            let corners = corners(self.from, column).map(|at| &rows[at..][..self.from.images]);
            for (image, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                let [a, b, c, d]: [Row; 4] = corners.map(|rows| rows[image]);
                *out = std::array::from_fn(|i| greater(greater(greater(a[i], b[i]), c[i]), d[i]));
            }
        }
    }
}

#[inline(always)]
fn greater(first: f32, second: f32) -> f32 {
    if second > first || second.is_nan() { second } else { first }
}

/// The input gradient of the ReLU whose results `x` were pooled: each window's gradient goes to its greatest value,
/// unless that is 0, where the ReLU's slope is.
///
/// # Panics
/// If a slice has not its shape's length.
pub fn gradient(simd: Simd, dy: &[f32], x: &[f32], from: Planes, out: &mut [f32]) {
    let to = pooled(from);
    assert_eq!((x.len(), out.len()), (from.len(), from.len()), "activations have their shape's length");
    assert_eq!(dy.len(), to.len(), "activations have their shape's length");
    assert_eq!(from.side % 2, 0, "whole windows");
    out.par_chunks_mut(2 * from.row()).enumerate().for_each(|(line, out)| {
        let (block, y) = (line / to.side, line % to.side);
        let dy = &dy[to.at(block, y, 0, 0)..][..to.row()];
        let x = &x[from.at(block, 2 * y, 0, 0)..][..2 * from.row()];
        simd.run(Spread { dy, x, from, out });
    });
}

struct Spread<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    from: Planes,
    out: &'a mut [f32],
}

impl Kernel for Spread<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, _: L) {
        let rows: &[Row] = self.x.as_chunks().0;
        let out: &mut [Row] = self.out.as_chunks_mut().0;
        for (column, dy) in self.dy.chunks_exact(self.from.pixel()).enumerate() {
            let corners = corners(self.from, column);
            for (image, dy) in dy.as_chunks::<BLOCK>().0.iter().enumerate() {
                let dy: Row = *dy;
                let [a, b, c, d]: [Row; 4] = corners.map(|at| rows[at + image]);
                let mut spread = [[0.0f32; BLOCK]; 4];
                for i in 0..BLOCK {
                    let window = [a[i], b[i], c[i], d[i]];
                    let top = greater(greater(greater(a[i], b[i]), c[i]), d[i]);
                    // A window of zeros has no gradient; that of a NaN goes to the first NaN.
                    let dy = if top == 0.0 { 0.0 } else { dy[i] };
                    let mut taken = false;
                    for (value, spread) in window.into_iter().zip(&mut spread) {
                        let hit = (value == top || (value.is_nan() & top.is_nan())) & !taken;
                        spread[i] = if hit { dy } else { 0.0 };
                        taken |= hit;
                    }
                }
                for (at, spread) in corners.into_iter().zip(spread) {
                    out[at + image] = spread;
                }
            }
        }
    }
}
