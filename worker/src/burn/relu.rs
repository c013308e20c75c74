//! ReLU, with NaN kept.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// `if x <= 0 { +0 } else { x }`.
///
/// Written so because `max(x, 0)`, which burn-flex computes, is 0 for a NaN.
pub fn relu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let off = x.clone().lower_equal_elem(0.0);
    x.mask_fill(off, 0.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    #[test]
    fn relu_keeps_nan_and_gives_a_positive_zero() {
        let x = Tensor::<Flex, 1>::from_floats(
            [-1.0, -0.0, 0.0, 2.0, f32::NAN, f32::INFINITY],
            &Default::default(),
        );
        let y = relu(x).into_data().to_vec::<f32>().unwrap();
        assert_eq!(y[..4].iter().map(|y| y.to_bits()).collect::<Vec<_>>(), [0, 0, 0, 2.0f32.to_bits()]);
        assert!(y[4].is_nan() && y[5] == f32::INFINITY);
    }
}
