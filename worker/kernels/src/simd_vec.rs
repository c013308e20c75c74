//! Vectors of sixteen floats: with AVX-512, with AVX2 and FMA, and on any processor.
//!
//! A token such as [`Avx512`] can only be made where the processor has its instructions, so its methods are safe. All
//! operations round as IEEE 754 says, and so every path rounds alike.
//! The methods are inlined into functions that [`Simd::run`](crate::Simd::run) compiles for
//! the token's instruction set.

#![allow(unsafe_code)] // Intrinsics; each token is the proof that they may be called.

use crate::tile::{self, Tile};

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Operations on vectors of sixteen floats.
pub trait SimdVec: Copy + Send + Sync {
    /// Sixteen floats.
    type V: Copy;

    /// The same number in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// Sixteen numbers from memory.
    fn load(self, from: &[f32; LANES]) -> Self::V;
    /// Sixteen numbers into memory.
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    /// `a·b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a − b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a·b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if v <= 0 { +0 } else { v }`: a NaN stays.
    fn relu(self, v: Self::V) -> Self::V;
    /// `if of == 0 { +0 } else { v }`: the gradient of a ReLU whose result was `of`.
    fn unless_zero(self, v: Self::V, of: Self::V) -> Self::V;
    /// The columns of sixteen rows of sixteen numbers.
    #[inline(always)]
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES] {
        let (mut from, mut to) = ([[0.0; LANES]; LANES], [[0.0; LANES]; LANES]);
        for (row, into) in rows.into_iter().zip(&mut from) {
            self.store(row, into);
        }
        for (y, row) in from.iter().enumerate() {
            for (x, value) in row.iter().enumerate() {
                to[x][y] = *value;
            }
        }
        let mut columns = rows;
        for (column, from) in columns.iter_mut().zip(&to) {
            *column = self.load(from);
        }
        columns
    }
    /// Computes a register tile, in parts that fit the registers.
    fn tile<const A_ROW: usize, const A_STEP: usize>(self, tile: Tile<'_, A_ROW, A_STEP>);
}

/// Prefetches floats into the second-level cache, on processors that have an instruction for it.
#[inline]
pub fn prefetch(soon: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in soon.chunks(LANES) {
        // SAFETY: every x86-64 has the instruction, which has no effect but on time.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.as_ptr().cast())
        };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = soon;
}

/// Plain Rust, for every processor.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

impl SimdVec for Portable {
    type V = [f32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        *from
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn relu(self, v: Self::V) -> Self::V {
        v.map(|x| if x <= 0.0 { 0.0 } else { x })
    }
    #[inline(always)]
    fn unless_zero(self, v: Self::V, of: Self::V) -> Self::V {
        std::array::from_fn(|i| if of[i] == 0.0 { 0.0 } else { v[i] })
    }
    #[inline(always)]
    fn tile<const A_ROW: usize, const A_STEP: usize>(self, tile: Tile<'_, A_ROW, A_STEP>) {
        tile::by_fours(self, tile);
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _CMP_NEQ_UQ, _CMP_NLE_UQ, _mm256_add_ps, _mm256_and_ps, _mm256_cmp_ps,
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
        _mm256_sub_ps, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_cmp_ps_mask,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_maskz_mov_ps, _mm512_mul_ps, _mm512_set1_ps,
        _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_sub_ps, _mm512_unpackhi_pd,
        _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };

    use super::{LANES, SimdVec, Tile, tile};

    /// The proof that the processor has AVX-512.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx512(());

    impl Avx512 {
        /// The token, where the processor (and the system) has AVX-512 F, VL, DQ and BW (all that have any but the oldest Xeon Phi do).
        #[must_use]
        pub fn new() -> Option<Self> {
            let all = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("fma");
            all.then_some(Self(()))
        }
    }

    // SAFETY, of every block: the token exists only where the instructions do, and an array
    // reference holds the sixteen floats that a load or a store touches.
    impl SimdVec for Avx512 {
        type V = __m512;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> __m512 {
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, v: __m512, to: &mut [f32; LANES]) {
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn relu(self, v: __m512) -> __m512 {
            unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(v, _mm512_setzero_ps()), v) }
        }
        #[inline(always)]
        fn unless_zero(self, v: __m512, of: __m512) -> __m512 {
            unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(of, _mm512_setzero_ps()), v) }
        }
        #[inline(always)]
        fn transpose(self, mut v: [__m512; LANES]) -> [__m512; LANES] {
            // Pairs, then fours: of rows 4g to 4g+3, `v[4g + k]` gets columns k, 4+k, 8+k and 12+k.
            for fours in v.as_chunks_mut::<4>().0 {
                let [a, b, c, d] = *fours;
                *fours = unsafe {
                    let low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                    let high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                    let low_2 = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
                    let high_2 = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
                    [
                        _mm512_castpd_ps(_mm512_unpacklo_pd(low, low_2)),
                        _mm512_castpd_ps(_mm512_unpackhi_pd(low, low_2)),
                        _mm512_castpd_ps(_mm512_unpacklo_pd(high, high_2)),
                        _mm512_castpd_ps(_mm512_unpackhi_pd(high, high_2)),
                    ]
                };
            }
            // Then quarters of vectors: the even ones of two vectors, and the odd ones.
            for k in 0..4 {
                let [a, b, c, d] = [v[k], v[4 + k], v[8 + k], v[12 + k]];
                unsafe {
                    let (even, even_2) =
                        (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                    let (odd, odd_2) =
                        (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
                    v[k] = _mm512_shuffle_f32x4::<0x88>(even, even_2);
                    v[4 + k] = _mm512_shuffle_f32x4::<0x88>(odd, odd_2);
                    v[8 + k] = _mm512_shuffle_f32x4::<0xdd>(even, even_2);
                    v[12 + k] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_2);
                }
            }
            v
        }
        #[inline(always)]
        fn tile<const A_ROW: usize, const A_STEP: usize>(self, tile: Tile<'_, A_ROW, A_STEP>) {
            tile::by_twelves(self, tile);
        }
    }

    /// The proof that the processor has AVX2 and FMA.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx2(());

    impl Avx2 {
        /// The token, where the processor (and the system) has AVX2 and FMA.
        #[must_use]
        pub fn new() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
        }
    }

    // SAFETY, of every block: as above; each half of an array reference holds eight floats.
    impl SimdVec for Avx2 {
        type V = [__m256; 2];

        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> Self::V {
            unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
        }
        #[inline(always)]
        fn store(self, v: Self::V, to: &mut [f32; LANES]) {
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
            }
        }
        #[inline(always)]
        fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        fn add(self, a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn sub(self, a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn mul(self, a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn relu(self, v: Self::V) -> Self::V {
            let half =
                |v: __m256| unsafe { _mm256_and_ps(v, _mm256_cmp_ps::<_CMP_NLE_UQ>(v, _mm256_setzero_ps())) };
            [half(v[0]), half(v[1])]
        }
        #[inline(always)]
        fn unless_zero(self, v: Self::V, of: Self::V) -> Self::V {
            let half = |v: __m256, of: __m256| unsafe {
                _mm256_and_ps(v, _mm256_cmp_ps::<_CMP_NEQ_UQ>(of, _mm256_setzero_ps()))
            };
            [half(v[0], of[0]), half(v[1], of[1])]
        }
        #[inline(always)]
        fn tile<const A_ROW: usize, const A_STEP: usize>(self, tile: Tile<'_, A_ROW, A_STEP>) {
            tile::by_sixes(self, tile);
        }
    }
}
