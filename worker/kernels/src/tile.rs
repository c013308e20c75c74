//! The register tile, in which nearly all of the time is spent.
//!
//! A tile is a matrix product with a few rows and [`BLOCK`] columns whose partial sums stay
//! in registers: `out[r][·] += Σ_k a[r, k] · b[k][·]`, one broadcast of `a` and a vector or
//! two of `b` a step. The sum runs over *segments*, stretches of `k` that start anywhere in
//! both operands. So one kernel serves all three products of a convolution:
//!
//! | | rows | a | segments | b |
//! | --- | --- | --- | --- | --- |
//! | forward | (pixel, image) | activations, a row each | valid taps × channels | packed weights |
//! | input gradient | the same with the output gradient and flipped, transposed weights | | | |
//! | weight gradient | input channels | activations, a column each | runs of pixels | output gradient |
//!
//! Row `r`, step `k` of a segment is `a[start + r·A_ROW + k·A_STEP]`.

#![allow(unsafe_code)] // Pointers through slices whose bounds `Tile::check` has checked.

use crate::BLOCK;
use crate::simd_vec::{LANES, SimdVec};

/// A stretch of the sum: where it starts in `a` and in `b`, in floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The first step of row 0.
    pub a: usize,
    /// The first step's columns.
    pub b: usize,
}

/// The initial values of the sums.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// Zero.
    Zero,
    /// The content of `out`.
    Out,
}

/// What a tile does to its sums before it stores them.
#[derive(Clone, Copy, Debug)]
pub enum TileEpilogue<'a> {
    /// Nothing.
    Keep,
    /// The columns' biases are added.
    Bias(&'a [f32; BLOCK]),
    /// The columns' biases are added, then a ReLU.
    BiasRelu(&'a [f32; BLOCK]),
    /// The gradient of a ReLU that gave these values, laid out as `out` is.
    ReluGradient(&'a [f32]),
}

/// A product of `rows` rows; see the module.
#[derive(Debug)]
pub struct Tile<'a, const A_ROW: usize, const A_STEP: usize> {
    /// The operand that is broadcast.
    pub a: &'a [f32],
    /// The operand of the lanes, [`BLOCK`] columns a step.
    pub b: &'a [f32],
    /// The stretches of the sum, in their order.
    pub segments: &'a [Segment],
    /// Steps of each segment.
    pub steps: usize,
    /// The results, [`BLOCK`] a row; as many rows as fit.
    pub out: &'a mut [f32],
    /// The initial values of the sums.
    pub init: Init,
    /// What is done to the sums before they are stored.
    pub epilogue: TileEpilogue<'a>,
}

impl<const A_ROW: usize, const A_STEP: usize> Tile<'_, A_ROW, A_STEP> {
    fn rows(&self) -> usize {
        self.out.len() / BLOCK
    }

    /// # Panics
    /// If a segment or the mask would reach past its slice.
    fn check(&self) {
        let rows = self.rows();
        assert_eq!(self.out.len(), rows * BLOCK, "whole rows");
        if let TileEpilogue::ReluGradient(of) = self.epilogue {
            assert_eq!(of.len(), self.out.len(), "a mask covers what it masks");
        }
        if rows == 0 || self.steps == 0 {
            return;
        }
        let (last_a, last_b) = ((rows - 1) * A_ROW + (self.steps - 1) * A_STEP, self.steps * BLOCK);
        for s in self.segments {
            let a_fits = s.a.checked_add(last_a).is_some_and(|end| end < self.a.len());
            let b_fits = s.b.checked_add(last_b).is_some_and(|end| end <= self.b.len());
            assert!(a_fits && b_fits, "a segment lies within its operands");
        }
    }
}

/// `ROWS` rows from `first` on and `VECTORS` vectors from column `column` on.
///
/// # Safety
/// The tile must be checked, and the rows and columns lie in it.
#[inline(always)]
unsafe fn part<
    L: SimdVec,
    const ROWS: usize,
    const VECTORS: usize,
    const A_ROW: usize,
    const A_STEP: usize,
>(
    lanes: L,
    tile: &mut Tile<'_, A_ROW, A_STEP>,
    first: usize,
    column: usize,
) {
    // SAFETY, of every block below: `check` has shown that all rows and steps of all segments
    // lie within `a` and `b`, and that `out` and the mask hold all rows; the caller keeps
    // rows and columns within those.
    let load = |p: *const f32| lanes.load(unsafe { &*p.cast::<[f32; LANES]>() });
    let out = unsafe { tile.out.as_mut_ptr().add(first * BLOCK + column) };
    let mut sums = [[lanes.splat(0.0); VECTORS]; ROWS];
    match tile.init {
        Init::Zero => {}
        Init::Out => {
            for (r, row) in sums.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = load(unsafe { out.add(r * BLOCK + v * LANES) });
                }
            }
        }
    }

    for segment in tile.segments {
        let mut a = unsafe { tile.a.as_ptr().add(segment.a + first * A_ROW) };
        let mut b = unsafe { tile.b.as_ptr().add(segment.b + column) };
        for _ in 0..tile.steps {
            let columns: [L::V; VECTORS] = std::array::from_fn(|v| load(b.wrapping_add(v * LANES)));
            // `from_fn` above, indices here: written otherwise, the compiler keeps columns or sums in
            // memory, at a third of the speed. `tile_in_the_first_cache` of the bench shows it.
            #[allow(clippy::needless_range_loop)]
            for r in 0..ROWS {
                let factor = lanes.splat(unsafe { *a.wrapping_add(r * A_ROW) });
                for v in 0..VECTORS {
                    sums[r][v] = lanes.fma(factor, columns[v], sums[r][v]);
                }
            }
            a = a.wrapping_add(A_STEP);
            b = b.wrapping_add(BLOCK);
        }
    }

    for (r, row) in sums.iter().enumerate() {
        for (v, &sum) in row.iter().enumerate() {
            let at = r * BLOCK + v * LANES;
            let sum = match tile.epilogue {
                TileEpilogue::Keep => sum,
                TileEpilogue::Bias(bias) => {
                    lanes.add(sum, load(unsafe { bias.as_ptr().add(column + v * LANES) }))
                }
                TileEpilogue::BiasRelu(bias) => {
                    let bias = load(unsafe { bias.as_ptr().add(column + v * LANES) });
                    lanes.relu(lanes.add(sum, bias))
                }
                TileEpilogue::ReluGradient(of) => {
                    let of = unsafe { of.as_ptr().add(first * BLOCK + column + at) };
                    lanes.unless_zero(sum, load(of))
                }
            };
            lanes.store(sum, unsafe { &mut *out.add(at).cast::<[f32; LANES]>() });
        }
    }
}

/// Splits the rows into parts of nearly equal size, `$most` at most.
macro_rules! by {
    ($(#[$doc:meta])* $name:ident, $most:literal rows of $vectors:literal: $($rows:literal)*) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name<L: SimdVec, const A_ROW: usize, const A_STEP: usize>(
            lanes: L,
            mut tile: Tile<'_, A_ROW, A_STEP>,
        ) {
            tile.check();
            let rows = tile.rows();
            let parts = rows.div_ceil($most);
            for column in (0..BLOCK).step_by($vectors * LANES) {
                for index in 0..parts {
                    let (first, end) = (index * rows / parts, (index + 1) * rows / parts);
                    match end - first {
                        // SAFETY: just checked; the rows from first to end are the tile's.
                        $($rows => unsafe {
                            part::<L, $rows, $vectors, A_ROW, A_STEP>(lanes, &mut tile, first, column);
                        },)*
                        _ => unreachable!("a part has 1 to {} rows", $most),
                    }
                }
            }
        }
    };
}

by!(
    /// 24 of AVX-512's 32 registers hold sums, three the operands; a thirteenth row would fit, but
    /// the compiler then spills.
    by_twelves, 12 rows of 2: 1 2 3 4 5 6 7 8 9 10 11 12
);
by!(
    /// A vector is two of AVX2's 16 registers: 12 hold sums, three the operands.
    by_sixes, 6 rows of 1: 1 2 3 4 5 6
);
by!(
    /// For processors with any number of registers.
    by_fours, 4 rows of 1: 1 2 3 4
);
