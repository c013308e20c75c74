//! The sum of a node's gradients: rounded on the device, and read back.

use burn::tensor::backend::Backend;
use burn::tensor::{DataError, FloatDType, Tensor, TensorData};
use burn_flex::Flex;
use tally_numerics::wire::WireDtype;

/// A node's gradient, rounded on the device with the bits of [`WireDtype::round`].
pub fn rounded<B: RoundingBackend>(values: Tensor<B, 1>, dtype: WireDtype) -> Tensor<B, 1> {
    match dtype {
        WireDtype::F32 => values,
        WireDtype::Bf16 => B::round_to_bf16(values),
    }
}

/// A backend that can round to bfloat16's numbers.
pub trait RoundingBackend: Backend {
    /// The values, rounded, in float32.
    fn round_to_bf16(values: Tensor<Self, 1>) -> Tensor<Self, 1> {
        by_cast(values)
    }
}

fn by_cast<B: Backend>(values: Tensor<B, 1>) -> Tensor<B, 1> {
    values.cast(FloatDType::BF16).cast(FloatDType::F32)
}

impl RoundingBackend for Flex {
    // Its cast goes by way of float64 and loses the last bits there, which decide near ties.
    fn round_to_bf16(values: Tensor<Self, 1>) -> Tensor<Self, 1> {
        let (device, shape) = (values.device(), values.shape());
        match values.into_data().into_vec::<f32>() {
            Ok(mut values) => {
                WireDtype::Bf16.round(&mut values);
                Tensor::from_data(TensorData::new(values, shape), &device)
            }
            Err(_) => unreachable!("a gradient is float32"),
        }
    }
}

#[cfg(feature = "cuda")]
impl RoundingBackend for super::cuda::Gpu {}

/// Whether a device rounds with the bits of [`WireDtype::round`]: tried with ties, values near ties, and others.
///
/// # Errors
/// The backend's message if the device does not give the values back.
pub fn rounds<B: RoundingBackend>(device: &B::Device) -> Result<bool, String> {
    is_right(B::round_to_bf16, device)
}

fn is_right<B: Backend>(
    round: impl FnOnce(Tensor<B, 1>) -> Tensor<B, 1>,
    device: &B::Device,
) -> Result<bool, String> {
    let bits = (0..4096u32).map(|i| i.wrapping_mul(2_654_435_761));
    let bits = bits.flat_map(|bits| {
        let tie = bits & 0xFFFF_0000 | 0x8000;
        [bits, tie, tie - 1, tie + 1]
    });
    let finite = bits.map(f32::from_bits).filter(|value| value.is_finite());
    let mut values: Vec<f32> = finite.chain([0.0, -0.0, f32::MAX, f32::MIN]).collect();
    let there = Tensor::<B, 1>::from_data(TensorData::new(values.clone(), [values.len()]), device);
    let rounded = round(there).try_into_data().map_err(|error| error.to_string())?;
    let rounded = rounded.as_slice::<f32>().map_err(|error| format!("{error:?}"))?;
    WireDtype::Bf16.round(&mut values);
    Ok(rounded.iter().zip(&values).all(|(there, here)| there.to_bits() == here.to_bits()))
}

/// A node's sum and the outputs of its microbatches, in the host's memory.
#[derive(Debug)]
pub struct Sum {
    dtype: WireDtype,
    /// The sum in the wire's format; in float32 the outputs follow it.
    values: TensorData,
    /// The outputs, unless they follow the sum.
    outputs: Option<TensorData>,
}

impl Sum {
    /// Waits for a [`rounded`] sum and copies it to the host: float32 in one transfer with the outputs; bfloat16 in
    /// half the bytes, and then the outputs, a few kilobytes.
    ///
    /// # Errors
    /// The backend's message if the device does not give it back.
    pub fn read<B: Backend>(
        sum: Tensor<B, 1>,
        mut outputs: Vec<Tensor<B, 1>>,
        dtype: WireDtype,
    ) -> Result<Self, String> {
        let data = |tensor: Tensor<B, 1>| tensor.try_into_data().map_err(|error| error.to_string());
        let (values, outputs) = match dtype {
            WireDtype::F32 => {
                outputs.insert(0, sum);
                (data(Tensor::cat(outputs, 0))?, None)
            }
            WireDtype::Bf16 => {
                let outputs = Tensor::cat(outputs, 0);
                (data(sum.cast(FloatDType::BF16))?, Some(data(outputs)?))
            }
        };
        Ok(Self { dtype, values, outputs })
    }

    /// The elements of the sum from `first` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn copy(&self, first: usize, into: &mut [f32]) {
        let size = self.dtype.bytes();
        self.dtype.unpack(&self.values.as_bytes()[size * first..][..size * into.len()], into);
    }

    /// The outputs of all microbatches, one microbatch's after the other's; the sum has `elements`.
    ///
    /// # Errors
    /// If the device gave something else than float32.
    pub fn outputs(&self, elements: usize) -> Result<&[f32], DataError> {
        match &self.outputs {
            Some(outputs) => outputs.as_slice(),
            None => self.values.as_slice().map(|values| &values[elements..]),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn_flex::FlexDevice;

    use super::*;

    /// SUM-1: a device that rounds near ties as burn-flex's cast does would be found.
    #[test]
    fn sum_1_a_device_is_found_to_round_as_the_wire_or_not() {
        assert!(rounds::<Flex>(&FlexDevice).unwrap());
        assert!(!is_right::<Flex>(by_cast, &FlexDevice).unwrap());
    }
}
