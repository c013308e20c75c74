//! Samples as a network's inputs: pixels scaled and normalised as in the original.

use std::sync::LazyLock;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use tally_data::Samples;
use tally_data::samples::{PIXELS, SIDE};

/// The mean of MNIST's pixels, scaled to `[0, 1]`.
const MEAN: f64 = 0.1307;
/// Their standard deviation.
const DEVIATION: f64 = 0.3081;

/// Every pixel value scaled to `[0, 1]` and normalised, in double, rounded once at the end.
pub(in crate::engine) static NORMALISED: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|pixel| ((pixel as f64 / 255.0 - MEAN) / DEVIATION) as f32));

/// The samples from `first` to before `end` as images `(n, 1, 28, 28)` and numbers
/// `(n, 1)`; the numbers enter as they are, 0 to 9.
pub fn tensors<B: Backend>(
    samples: &Samples,
    first: usize,
    end: usize,
    device: &B::Device,
) -> (Tensor<B, 4>, Tensor<B, 2>) {
    let table = &*NORMALISED;
    let pixels = &samples.pixels()[first * PIXELS..end * PIXELS];
    let images: Vec<f32> = pixels.iter().map(|&pixel| table[usize::from(pixel)]).collect();
    let numbers: Vec<f32> = samples.numbers()[first..end].iter().map(|&n| f32::from(n)).collect();
    (
        Tensor::from_data(TensorData::new(images, [end - first, 1, SIDE, SIDE]), device),
        Tensor::from_data(TensorData::new(numbers, [end - first, 1]), device),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_scaled_then_normalised() {
        assert_eq!(NORMALISED[0], (-0.1307f64 / 0.3081) as f32);
        assert_eq!(NORMALISED[255], (0.8693f64 / 0.3081) as f32);
    }
}
