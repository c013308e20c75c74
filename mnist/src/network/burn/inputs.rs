//! Samples as a network's inputs: pixels scaled and normalised as in the PyTorch program from which the task comes.

use std::sync::LazyLock;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::data::{PIXELS, SIDE, Samples};
use crate::network::outputs::OUTPUTS;

/// The mean of MNIST's pixels, scaled to `[0, 1]`.
const MEAN: f64 = 0.1307;
/// Their standard deviation.
const DEVIATION: f64 = 0.3081;

/// Every pixel value scaled to `[0, 1]` and normalised, in double, rounded once at the end.
pub(in crate::network) static NORMALISED: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|pixel| ((pixel as f64 / 255.0 - MEAN) / DEVIATION) as f32));

/// A network's inputs of `n` samples.
#[derive(Clone, Debug)]
pub struct Inputs<B: Backend> {
    /// Images `(n, 1, 28, 28)`.
    pub images: Tensor<B, 4>,
    /// Numbers `(n, 1)`, as they are, 0 to 9.
    pub numbers: Tensor<B, 2>,
}

/// The samples from `first` to before `end`.
pub fn tensors<B: Backend>(samples: &Samples, first: usize, end: usize, device: &B::Device) -> Inputs<B> {
    let table = &*NORMALISED;
    let pixels = &samples.pixels()[first * PIXELS..end * PIXELS];
    let images: Vec<f32> = pixels.iter().map(|&pixel| table[usize::from(pixel)]).collect();
    let numbers: Vec<f32> = samples.numbers()[first..end].iter().map(|&n| f32::from(n)).collect();
    Inputs {
        images: Tensor::from_data(TensorData::new(images, [end - first, 1, SIDE, SIDE]), device),
        numbers: Tensor::from_data(TensorData::new(numbers, [end - first, 1]), device),
    }
}

/// All samples and their targets, uploaded in one transfer. Targets are laid out as outputs are, `(n, 12)`: the digit
/// as ten numbers of which one is 1, the sum, the difference.
pub fn with_targets<B: Backend>(samples: &Samples, device: &B::Device) -> (Inputs<B>, Tensor<B, 2>) {
    const WIDTH: usize = PIXELS + 1 + OUTPUTS;
    let table = &*NORMALISED;
    let n = samples.len();
    let mut rows = Vec::with_capacity(n * WIDTH);
    for (index, pixels) in samples.pixels().chunks_exact(PIXELS).enumerate() {
        rows.extend(pixels.iter().map(|&pixel| table[usize::from(pixel)]));
        rows.push(f32::from(samples.numbers()[index]));
        rows.extend((0..10).map(|digit| f32::from(u8::from(digit == samples.labels()[index]))));
        rows.extend([samples.sum(index), samples.difference(index)].map(f32::from));
    }
    let rows = Tensor::<B, 2>::from_data(TensorData::new(rows, [n, WIDTH]), device);
    let columns = |from: usize, to: usize| rows.clone().slice([0..n, from..to]);
    let images = columns(0, PIXELS).reshape([n, 1, SIDE, SIDE]);
    let inputs = Inputs { images, numbers: columns(PIXELS, PIXELS + 1) };
    (inputs, columns(PIXELS + 1, WIDTH))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    #[test]
    fn pixels_are_scaled_then_normalised() {
        assert_eq!(NORMALISED[0], (-0.1307f64 / 0.3081) as f32);
        assert_eq!(NORMALISED[255], (0.8693f64 / 0.3081) as f32);
    }

    #[test]
    fn samples_with_targets_are_the_same_inputs() {
        let pixels = (0..2 * PIXELS).map(|i| (i * 31 % 256) as u8).collect();
        let samples = Samples::new(vec![5, 6], pixels, vec![7, 9], vec![9, 2]).unwrap();
        let values = |tensor: TensorData| tensor.to_vec::<f32>().unwrap();
        let one = tensors::<Flex>(&samples, 0, 2, &FlexDevice);
        let (two, targets) = with_targets::<Flex>(&samples, &FlexDevice);
        assert_eq!(one.images.dims(), two.images.dims());
        assert_eq!(values(one.images.into_data()), values(two.images.into_data()));
        assert_eq!(values(one.numbers.into_data()), values(two.numbers.into_data()));
        let first = [0., 0., 0., 0., 0., 0., 0., 0., 0., 1., 16., 2.];
        let second = [0., 0., 1., 0., 0., 0., 0., 0., 0., 0., 11., 7.];
        assert_eq!(values(targets.into_data()), [first, second].concat());
    }
}
