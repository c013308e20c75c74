//! The optimizer's update as an additional operation of a backend (**REP-1**).
//!
//! Burn's tensors have no fused multiply-add, and a product that is rounded before it is added gives other bits than
//! [`Update`]. So each backend has its own implementation of the whole update: burn-flex, in the host's memory, calls the
//! same function as the coordinator; GPUs have a kernel that uses `fma` and computes the digest in the same pass
//! (`device.rs`).

#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod kernel;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use tally_numerics::digest::Digest;
use tally_numerics::state::State;
use tally_numerics::update::Update;
use tally_numerics::update::examples::{Example, examples};

/// The state after an update.
#[derive(Debug)]
pub struct Updated<B: Backend> {
    /// The new parameters.
    pub parameters: Tensor<B, 1>,
    /// The new moments.
    pub moments: Vec<Tensor<B, 1>>,
    /// The new state's digest in parts, each a low and a high half; the wrapping sum of the parts is the digest. It is on
    /// the device until [`digest`](Self::digest) reads it.
    pub parts: Tensor<B, 1, Int>,
}

impl<B: Backend> Updated<B> {
    /// Waits for the device, and adds the digest's parts up.
    ///
    /// # Errors
    /// The backend's message if it does not give them back.
    pub fn digest(&self) -> Result<Digest, String> {
        let data = self.parts.clone().try_into_data().map_err(|error| error.to_string())?;
        // A backend's integers may be signed, and as wide as they like: 32 bits of each count.
        let words: Vec<u64> = data.iter::<i64>().map(|word| word as u64 & 0xFFFF_FFFF).collect();
        let parts = words.as_chunks::<2>().0.iter().map(|[low, high]| Digest(high << 32 | low));
        Ok(parts.fold(Digest::default(), Digest::and))
    }
}

/// A backend on which a replica can be kept.
pub trait UpdateBackend: Backend {
    /// The state after a step, by the formulas of [`Update`] with their roundings; all vectors are of equal length, in
    /// float32.
    fn update(
        update: &Update,
        gradient: Tensor<Self, 1>,
        parameters: Tensor<Self, 1>,
        moments: Vec<Tensor<Self, 1>>,
    ) -> Updated<Self>;
}

/// Checks that a device rounds an update by any rule as [`Update`] does.
///
/// # Errors
/// Says what the device does wrong.
pub fn check<B: UpdateBackend>(device: &B::Device) -> Result<(), String> {
    let tensor =
        |values: &Vec<f32>| Tensor::from_data(TensorData::new(values.clone(), [values.len()]), device);
    let read = |tensor: Tensor<B, 1>| {
        let data = tensor.try_into_data().map_err(|error| error.to_string())?;
        data.into_vec::<f32>().map_err(|error| format!("{error:?}"))
    };
    for Example { name, update, before, gradient, after, digest } in examples() {
        let moments = before.moments.iter().map(tensor).collect();
        let updated = B::update(&update, tensor(&gradient), tensor(&before.parameters), moments);
        let found = updated.digest()?;
        let moments = updated.moments.into_iter().map(read).collect::<Result<_, _>>()?;
        if found != digest || (State { parameters: read(updated.parameters)?, moments }) != after {
            return Err(format!(
                "it does not round an update by {name} as it must: its multiply-add is not fused, or its division or square \
                 root is not correctly rounded"
            ));
        }
    }
    Ok(())
}

impl UpdateBackend for Flex {
    fn update(
        update: &Update,
        gradient: Tensor<Self, 1>,
        parameters: Tensor<Self, 1>,
        moments: Vec<Tensor<Self, 1>>,
    ) -> Updated<Self> {
        let device = parameters.device();
        let mut parameters = values(parameters);
        let mut moments: Vec<Vec<f32>> = moments.into_iter().map(values).collect();
        let mut state: Vec<&mut [f32]> = moments.iter_mut().map(Vec::as_mut_slice).collect();
        let digest = update.apply(0, &values(gradient), &mut parameters, &mut state).0;
        let halves = vec![digest as u32 as i32, (digest >> 32) as i32];
        let tensor = |values: Vec<f32>| {
            let length = values.len();
            Tensor::from_data(TensorData::new(values, [length]), &device)
        };
        Updated {
            parameters: tensor(parameters),
            moments: moments.into_iter().map(tensor).collect(),
            parts: Tensor::from_data(TensorData::new(halves, [2]), &device),
        }
    }
}

/// A tensor's values; it lies in the host's memory and is float32.
fn values(tensor: Tensor<Flex, 1>) -> Vec<f32> {
    let data = tensor.into_data();
    match data.into_vec() {
        Ok(values) => values,
        Err(_) => unreachable!("a replica is float32"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn_flex::FlexDevice;

    use super::*;

    /// The check can fail: it distinguishes fused multiply-adds from others.
    #[test]
    fn a_device_that_rounds_twice_would_be_found() {
        check::<Flex>(&FlexDevice).unwrap();
        let (factor, v, g, clip) = (0.9f32, 0.317f32, 0.613f32, 0.7312f32);
        assert_ne!(factor.mul_add(v, g * clip), factor * v + g * clip);
    }

    /// REP-1: the operation is the shared update, and its parts are the state's digest.
    #[test]
    fn rep_1_the_operation_is_the_shared_update() {
        let numbers = |seed: u32| -> Vec<f32> {
            (0..1001u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) as f32 / 3e8) - 7.0).collect()
        };
        let [gradient, mut parameters, mut momentum] = [1, 2, 3].map(numbers);
        let tensor = |values: &[f32]| {
            Tensor::<Flex, 1>::from_data(TensorData::new(values.to_vec(), [values.len()]), &FlexDevice)
        };
        let update = Update::sgd(0.03, 0.9, 0.7);
        let updated = Flex::update(&update, tensor(&gradient), tensor(&parameters), vec![tensor(&momentum)]);
        let digest = update.apply(0, &gradient, &mut parameters, &mut [&mut momentum]);
        assert_eq!(updated.digest().unwrap(), digest);
        assert_eq!(values(updated.parameters), parameters);
        assert_eq!(updated.moments.into_iter().map(values).collect::<Vec<_>>(), [momentum]);
    }
}
