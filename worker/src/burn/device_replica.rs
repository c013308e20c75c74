//! A replica in a device's memory (**REP-1**), as [`host_replica`](crate::engine::host_replica) is one in the host's.
//!
//! Parameters and momentum stay on the device, in float32, as two flat tensors. The summed
//! gradient is uploaded once, in stretches as they come, and the whole update is one operation of the
//! backend ([`UpdateBackend`]), which also computes the digest. Only the digest is read back.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use tally_numerics::digest::Digest;
use tally_numerics::update::Update;

use super::update::{UpdateBackend, Updated};
use crate::engine::host_replica::check_stretches;

/// Parameters and momentum in the host's memory.
pub type Read = (Vec<f32>, Vec<f32>);

/// Parameters and momentum, flat.
#[derive(Clone, Debug)]
struct State<B: UpdateBackend> {
    parameters: Tensor<B, 1>,
    momentum: Tensor<B, 1>,
}

/// The committed state, the previous one, and the next one, which an update makes.
#[derive(Debug)]
pub struct DeviceReplica<B: UpdateBackend> {
    committed: State<B>,
    previous: Option<State<B>>,
    next: Option<State<B>>,
    /// The gradient's stretches by their first elements. Those of another attempt replace those of an aborted one.
    stretches: BTreeMap<usize, Tensor<B, 1>>,
    update: Option<Update>,
}

impl<B: UpdateBackend> DeviceReplica<B> {
    /// Uploads a committed state.
    ///
    /// # Panics
    /// If the two differ in length; and as the backend does, if the device fails.
    pub fn load(parameters: Vec<f32>, momentum: Vec<f32>, device: &B::Device) -> Self {
        assert_eq!(parameters.len(), momentum.len(), "a state has two vectors of one length");
        let committed = State { parameters: upload(parameters, device), momentum: upload(momentum, device) };
        Self { committed, previous: None, next: None, stretches: BTreeMap::new(), update: None }
    }

    /// The committed parameters.
    #[must_use]
    pub fn parameters(&self) -> &Tensor<B, 1> {
        &self.committed.parameters
    }

    /// Parameters and momentum of the committed state, read back.
    ///
    /// # Errors
    /// The backend's message if it does not give them back.
    pub fn state(&self) -> Result<Read, String> {
        self.committed.read()
    }

    /// Parameters and momentum of the previous step's state, while it is there.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    pub fn previous_state(&self) -> Result<Option<Read>, String> {
        self.previous.as_ref().map(State::read).transpose()
    }

    /// Uploads the stretch of the sum that starts at `first`.
    ///
    /// # Panics
    /// As the backend does, if the device fails.
    pub fn apply(&mut self, update: Update, first: usize, gradient: &[f32], device: &B::Device) {
        self.previous = None;
        self.update = Some(update);
        self.stretches.insert(first, upload(gradient.to_vec(), device));
    }

    /// Makes the next state when all stretches are there, and returns its digest; the zero digest if there is none.
    ///
    /// # Errors
    /// Says where stretches are missing or overlap; or the backend's message if it failed.
    pub fn finish_update(&mut self) -> Result<Digest, String> {
        let Some(update) = self.update.take() else { return Ok(Digest::default()) };
        let stretches = self.stretches.iter().map(|(&first, stretch)| (first, stretch.dims()[0]));
        check_stretches(stretches, self.committed.parameters.dims()[0])?;
        let gradient = Tensor::cat(std::mem::take(&mut self.stretches).into_values().collect(), 0);
        let State { parameters, momentum } = self.committed.clone();
        let updated = B::update(update, gradient, parameters, momentum);
        let digest = updated.digest()?;
        let Updated { parameters, momentum, .. } = updated;
        self.next = Some(State { parameters, momentum });
        Ok(digest)
    }

    /// Makes the finished state the committed one. After that and until the next
    /// [`apply`](Self::apply), the previous state is kept.
    pub fn commit(&mut self) {
        if let Some(next) = self.next.take() {
            self.previous = Some(std::mem::replace(&mut self.committed, next));
        }
    }
}

impl<B: UpdateBackend> State<B> {
    fn read(&self) -> Result<Read, String> {
        let read = |tensor: &Tensor<B, 1>| {
            let data = tensor.clone().try_into_data().map_err(|error| error.to_string())?;
            data.into_vec().map_err(|error| format!("{error:?}"))
        };
        Ok((read(&self.parameters)?, read(&self.momentum)?))
    }
}

fn upload<B: UpdateBackend>(values: Vec<f32>, device: &B::Device) -> Tensor<B, 1> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::engine::host_replica::HostReplica;

    const UPDATE: Update = Update { learning_rate: 0.1, momentum: 0.5, clip: 0.3 };

    fn values(seed: u32) -> Vec<f32> {
        (0..1003u32).map(|i| ((i + seed) % 97) as f32 * 0.37 - 18.0).collect()
    }

    /// REP-1: any order of the stretches, step after step, gives the host's bits and digests.
    #[test]
    fn rep_1_it_is_the_hosts_replica() {
        let mut host = HostReplica::default();
        host.load(values(1), values(2));
        let mut device = DeviceReplica::<Flex>::load(values(1), values(2), &FlexDevice);
        for step in 0..3 {
            let gradient = values(5 * step);
            for range in [600..1003, 0..250, 250..600] {
                device.apply(UPDATE, range.start, &gradient[range], &FlexDevice);
            }
            let committed = (host.parameters().to_vec(), host.momentum().to_vec());
            assert_eq!(device.state().unwrap(), committed, "not before the commit");
            assert_eq!(device.finish_update().unwrap(), host.apply(UPDATE, 0, &gradient));
            assert_eq!(device.state().unwrap(), committed, "not before the commit");
            device.commit();
            host.commit();
            assert_eq!(device.state().unwrap(), (host.parameters().to_vec(), host.momentum().to_vec()));
            assert_eq!(device.previous_state().unwrap(), Some(committed));
        }
        device.apply(UPDATE, 0, &[0.0], &FlexDevice);
        assert_eq!(device.previous_state().unwrap(), None, "it is being written over");
    }

    #[test]
    fn another_attempt_takes_an_aborted_ones_place() {
        let mut device = DeviceReplica::<Flex>::load(values(1), values(2), &FlexDevice);
        let mut host = HostReplica::default();
        host.load(values(1), values(2));
        let other = Update { clip: 1.0, ..UPDATE };
        device.apply(other, 0, &values(9)[..500], &FlexDevice);
        let gradient = values(4);
        for range in [0..500, 500..1003] {
            device.apply(UPDATE, range.start, &gradient[range], &FlexDevice);
        }
        assert_eq!(device.finish_update().unwrap(), host.apply(UPDATE, 0, &gradient));
    }

    #[test]
    fn a_sum_with_a_hole_is_an_error() {
        let mut device = DeviceReplica::<Flex>::load(values(1), values(2), &FlexDevice);
        assert_eq!(device.finish_update(), Ok(Digest::default()), "nothing was applied");
        device.apply(UPDATE, 0, &[1.0; 500], &FlexDevice);
        assert!(device.finish_update().unwrap_err().contains("500"));
        device.apply(UPDATE, 600, &[1.0; 403], &FlexDevice);
        assert!(device.finish_update().unwrap_err().contains("600"));
    }
}
