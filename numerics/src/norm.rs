//! The gradient's global norm, its clip factor, and the scan for NaN and infinity.
//!
//! The squares are added in double precision in one fixed order: sixteen lanes inside a
//! [block](BLOCK), folded pairwise, and the blocks one after the other.

use crate::simd::for_each_instruction_set;

const LANES: usize = 16;

/// Elements whose squares are added in lanes. It is fixed for all runs, because it decides the bits of a norm.
pub const BLOCK: usize = 1 << 18;

/// The sum of the squares of one block, given in stretches.
#[derive(Clone, Debug, Default)]
pub struct SquareSum([f64; LANES]);

impl SquareSum {
    /// Adds the next stretch. All stretches but the last have a multiple of sixteen elements.
    pub fn add(&mut self, stretch: &[f32]) {
        squares(&mut self.0, stretch);
    }

    /// The sum. NaN or infinite if an element is.
    #[must_use]
    pub fn finish(self) -> f64 {
        let mut lanes = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// The sum of the squares of one block. NaN or infinite if an element is.
#[must_use]
pub fn sum_of_squares(block: &[f32]) -> f64 {
    let mut sum = SquareSum::default();
    sum.add(block);
    sum.finish()
}

/// The factor that brings a gradient of the given squared norm to at most `max_norm`, as
/// `torch.nn.utils.clip_grad_norm_` defines it: `min(1, max_norm / (norm + 1e-6))`.
#[must_use]
pub fn clip_factor(squared_norm: f64, max_norm: Option<f32>) -> f32 {
    match max_norm {
        None => 1.0,
        Some(max) => (f64::from(max) / (squared_norm.sqrt() + 1e-6)).min(1.0) as f32,
    }
}

/// The factor of an update whose gradient is the sum over samples that weigh `mean_weight` on average, divided by their
/// number: it makes that the mean over the weight, and clips it. Also returns the norm before clipping.
#[must_use]
pub fn update_factor(squared_norm: f64, max_norm: Option<f32>, mean_weight: f64) -> (f32, f64) {
    let norm = squared_norm.sqrt() / mean_weight;
    let clip = clip_factor(squared_norm / (mean_weight * mean_weight), max_norm);
    let factor = if mean_weight == 1.0 { clip } else { (f64::from(clip) / mean_weight) as f32 };
    (factor, norm)
}

/// The index of the first NaN or infinity.
#[must_use]
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    const BLOCK: usize = 4096;
    values
        .chunks(BLOCK)
        .enumerate()
        .filter(|(_, block)| greatest_magnitude(block) >= f32::INFINITY.to_bits())
        .find_map(|(i, block)| block.iter().position(|x| !x.is_finite()).map(|at| i * BLOCK + at))
}

for_each_instruction_set! {
    squares(lanes: &mut [f64; LANES], stretch: &[f32]);
    greatest_magnitude(block: &[f32]) -> u32;
}

mod body {
    use super::LANES;

    #[inline(always)]
    pub(super) fn squares(lanes: &mut [f64; LANES], stretch: &[f32]) {
        let mut sums = *lanes;
        let mut rows = stretch.chunks_exact(LANES);
        for row in &mut rows {
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
        for (sum, x) in sums.iter_mut().zip(rows.remainder()) {
            *sum += f64::from(*x) * f64::from(*x);
        }
        *lanes = sums;
    }

    /// The bits of the value with the greatest magnitude, without its sign. A NaN has greater bits than infinity.
    #[inline(always)]
    pub(super) fn greatest_magnitude(block: &[f32]) -> u32 {
        block.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// SUM-1: the path that was chosen here and the portable one.
        #[test]
        fn sum_1_all_paths_agree(bits in proptest::collection::vec(any::<u32>(), 0..200)) {
            let finite = |x: &f32| x.is_finite();
            let chunk: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).filter(finite).collect();
            let mut portable = SquareSum::default();
            body::squares(&mut portable.0, &chunk);
            prop_assert_eq!(sum_of_squares(&chunk).to_bits(), portable.finish().to_bits());
            let any: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
            prop_assert_eq!(first_non_finite(&any), any.iter().position(|x| !x.is_finite()));
        }
    }

    #[test]
    fn sum_1_the_stretches_of_a_block_do_not_show_in_its_sum() {
        let block: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 1e3).collect();
        for cut in [0, 16, 512, 992] {
            let mut sum = SquareSum::default();
            sum.add(&block[..cut]);
            sum.add(&block[cut..]);
            assert_eq!(sum.finish().to_bits(), sum_of_squares(&block).to_bits());
        }
    }

    #[test]
    fn squares_add_up() {
        let chunk: Vec<f32> = (1..=100).map(|i| i as f32).collect();
        assert_eq!(sum_of_squares(&chunk), 338_350.0);
        assert_eq!(sum_of_squares(&[]), 0.0);
        assert!(sum_of_squares(&[1.0, f32::NAN]).is_nan());
    }

    #[test]
    fn a_small_gradient_is_not_scaled() {
        assert_eq!(clip_factor(4.0, Some(5.0)), 1.0);
        assert_eq!(clip_factor(1e12, None), 1.0);
        let factor = clip_factor(100.0, Some(5.0));
        assert!((factor - 0.5).abs() < 1e-6 && factor < 0.5);
    }

    #[test]
    fn the_first_bad_value_is_found_wherever_it_is() {
        let mut values = vec![1.0f32; 5000];
        assert_eq!(first_non_finite(&values), None);
        values[4999] = f32::NEG_INFINITY;
        assert_eq!(first_non_finite(&values), Some(4999));
        values[1500] = f32::NAN;
        assert_eq!(first_non_finite(&values), Some(1500));
    }
}
