//! The transforms of Winograd's minimal filtering F(3×3, 3×3).
//!
//! They follow from the points at which polynomials are multiplied (Toom and Cook): 0, 1, −1, 2
//! and ∞.
//!
//! ```text
//!      ⎡2 −1 −2  1  0⎤        ⎡ 3  0  0⎤
//!      ⎢0 −2 −1  1  0⎥        ⎢−3 −3 −3⎥          ⎡1 1  1 1 0⎤
//! Bᵀ = ⎢0  2 −3  1  0⎥   6G = ⎢−1  1 −1⎥     Aᵀ = ⎢0 1 −1 2 0⎥
//!      ⎢0 −1  0  1  0⎥        ⎢ 1  2  4⎥          ⎣0 1  1 4 1⎦
//!      ⎣0  2 −1 −2  1⎦        ⎣ 0  0  6⎦
//! ```
//!
//! All constants but a sixth and 3 are powers of two, which cost no rounding of their own.

use super::{M, N};
use crate::simd_vec::SimdVec;

/// `Bᵀ v`.
#[inline(always)]
pub(super) fn from_input<L: SimdVec>(l: L, [a, b, c, d, e]: [L::V; N]) -> [L::V; N] {
    let slope = l.sub(d, b);
    [
        l.fma(l.splat(2.0), l.sub(a, c), slope),
        l.sub(slope, l.add(b, c)),
        l.fma(l.splat(3.0), l.sub(b, c), slope),
        slope,
        l.fma(l.splat(-2.0), slope, l.sub(e, c)),
    ]
}

/// `B v`.
#[inline(always)]
pub(super) fn to_input<L: SimdVec>(l: L, [a, b, c, d, e]: [L::V; N]) -> [L::V; N] {
    // What multiplies the slope above.
    let slope = l.fma(l.splat(-2.0), e, l.add(l.add(a, d), l.add(b, c)));
    let (three, minus_b) = (l.splat(3.0), l.sub(l.splat(0.0), b));
    [
        l.mul(l.splat(2.0), a),
        l.sub(l.fma(three, c, minus_b), slope),
        l.sub(l.fma(l.splat(-2.0), a, minus_b), l.fma(three, c, e)),
        slope,
        e,
    ]
}

/// `Aᵀ v`.
#[inline(always)]
pub(super) fn to_output<L: SimdVec>(l: L, [a, b, c, d, e]: [L::V; N]) -> [L::V; M] {
    let sum = l.add(b, c);
    [l.add(l.add(a, sum), d), l.fma(l.splat(2.0), d, l.sub(b, c)), l.add(l.fma(l.splat(4.0), d, sum), e)]
}

/// `A v`.
#[inline(always)]
pub(super) fn from_output<L: SimdVec>(l: L, [a, b, c]: [L::V; M]) -> [L::V; N] {
    let ends = l.add(a, c);
    [a, l.add(ends, b), l.sub(ends, b), l.fma(l.splat(4.0), c, l.fma(l.splat(2.0), b, a)), c]
}

/// `G v`.
#[inline(always)]
pub(super) fn from_kernel<L: SimdVec>(l: L, [a, b, c]: [L::V; 3]) -> [L::V; N] {
    let (sixth, ends) = (l.splat(1.0 / 6.0), l.add(a, c));
    [
        l.mul(a, l.splat(0.5)),
        l.mul(l.add(ends, b), l.splat(-0.5)),
        l.mul(l.sub(b, ends), sixth),
        l.mul(l.fma(l.splat(4.0), c, l.fma(l.splat(2.0), b, a)), sixth),
        c,
    ]
}

/// `Gᵀ v`.
#[inline(always)]
pub(super) fn to_kernel<L: SimdVec>(l: L, [a, b, c, d, e]: [L::V; N]) -> [L::V; 3] {
    let (half, sixth) = (l.splat(0.5), l.splat(1.0 / 6.0));
    let b = l.mul(b, half);
    [
        l.fma(l.sub(d, c), sixth, l.sub(l.mul(a, half), b)),
        l.sub(l.mul(l.fma(l.splat(2.0), d, c), sixth), b),
        l.add(l.sub(l.mul(l.sub(l.mul(l.splat(4.0), d), c), sixth), b), e),
    ]
}

/// `M x Mᵀ` for a transform `M` from `N` to `K` numbers; `x[row][column]`.
///
/// A macro, and loops here and wherever vectors are collected: a closure of this size, like
/// `array::from_fn`, is not inlined into code compiled for the instructions, and passes its vectors
/// through memory at a tenth of the speed.
macro_rules! both_ways {
    ($x:expr, $n:tt to $k:tt, |$v:ident| $map:expr) => {{
        let x = $x;
        let mut columns = [[x[0][0]; $k]; $n];
        for (index, column) in columns.iter_mut().enumerate() {
            let mut $v = [x[0][0]; $n];
            for (value, row) in $v.iter_mut().zip(&x) {
                *value = row[index];
            }
            *column = $map;
        }
        let mut result = [[x[0][0]; $k]; $k];
        for (index, row) in result.iter_mut().enumerate() {
            let mut $v = [x[0][0]; $n];
            for (value, column) in $v.iter_mut().zip(&columns) {
                *value = column[index];
            }
            *row = $map;
        }
        result
    }};
}
pub(super) use both_ways;

/// A tile of `N` times `N` vectors, `load(row, column)` each.
#[inline(always)]
pub(super) fn tile_of<L: SimdVec, const N: usize>(
    l: L,
    load: impl Fn(usize, usize) -> L::V,
) -> [[L::V; N]; N] {
    let mut tile = [[l.splat(0.0); N]; N];
    for (y, row) in tile.iter_mut().enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            *value = load(y, x);
        }
    }
    tile
}
