//! A replica in a device's memory (**REP-1**), as [`host_replica`](crate::engine::host_replica) is one in the host's.
//!
//! Parameters and moments stay on the device, in float32, as flat tensors. The summed
//! gradient is uploaded once, in stretches as they come, and the whole update is one operation of the
//! backend ([`UpdateBackend`]), which also computes the digest. Only the digest is read back.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use tally_numerics::digest::{self, Digest};
use tally_numerics::state::State;
use tally_numerics::update::Update;

use super::update::{UpdateBackend, Updated};
use crate::engine::host_replica::check_stretches;

/// Parameters that are not constant, and moments, flat.
#[derive(Clone, Debug)]
struct DeviceState<B: UpdateBackend> {
    parameters: Tensor<B, 1>,
    moments: Vec<Tensor<B, 1>>,
}

/// The committed state, the previous one, and the next one, which an update makes.
#[derive(Debug)]
pub struct DeviceReplica<B: UpdateBackend> {
    committed: DeviceState<B>,
    previous: Option<DeviceState<B>>,
    next: Option<DeviceState<B>>,
    /// Elements that are not trained, behind the others.
    constants: Vec<f32>,
    constants_digest: Digest,
    /// The gradient's stretches by their first elements. Those of another attempt replace those of an aborted one.
    stretches: BTreeMap<usize, Tensor<B, 1>>,
    update: Option<Update>,
}

impl<B: UpdateBackend> DeviceReplica<B> {
    /// Uploads a committed state. Elements behind its moments are constant, and stay on the host.
    ///
    /// # Panics
    /// As the backend does, if the device fails.
    pub fn load(state: State, device: &B::Device) -> Self {
        let trained = state.trained_len();
        let State { mut parameters, moments } = state;
        let constants = parameters.split_off(trained);
        let constants_digest = digest::of(trained, &constants, &[]);
        let moments = moments.into_iter().map(|moment| upload(moment, device)).collect();
        let committed = DeviceState { parameters: upload(parameters, device), moments };
        Self {
            committed,
            previous: None,
            next: None,
            constants,
            constants_digest,
            stretches: BTreeMap::new(),
            update: None,
        }
    }

    /// The elements that are not trained.
    #[must_use]
    pub fn constants(&self) -> &[f32] {
        &self.constants
    }

    /// The committed parameters that are trained.
    #[must_use]
    pub fn parameters(&self) -> &Tensor<B, 1> {
        &self.committed.parameters
    }

    /// The committed state, read back.
    ///
    /// # Errors
    /// The backend's message if it does not give it back.
    pub fn state(&self) -> Result<State, String> {
        self.whole(&self.committed)
    }

    /// The previous step's state, while it is there.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    pub fn previous_state(&self) -> Result<Option<State>, String> {
        self.previous.as_ref().map(|state| self.whole(state)).transpose()
    }

    fn whole(&self, state: &DeviceState<B>) -> Result<State, String> {
        let mut parameters = read(&state.parameters)?;
        parameters.extend_from_slice(&self.constants);
        Ok(State { parameters, moments: state.moments.iter().map(read).collect::<Result<_, _>>()? })
    }

    /// Uploads the stretch of the sum that starts at `first`.
    ///
    /// # Panics
    /// As the backend does, if the device fails.
    pub fn apply(&mut self, update: &Update, first: usize, gradient: &[f32], device: &B::Device) {
        self.previous = None;
        self.update = Some(update.clone());
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
        let DeviceState { parameters, moments } = self.committed.clone();
        let updated = B::update(&update, gradient, parameters, moments);
        let digest = updated.digest()?.and(self.constants_digest);
        let Updated { parameters, moments, .. } = updated;
        self.next = Some(DeviceState { parameters, moments });
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

fn read<B: UpdateBackend>(tensor: &Tensor<B, 1>) -> Result<Vec<f32>, String> {
    let data = tensor.clone().try_into_data().map_err(|error| error.to_string())?;
    data.into_vec().map_err(|error| format!("{error:?}"))
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

    fn update() -> Update {
        Update::sgd(0.1, 0.5, 0.3)
    }

    fn values(seed: u32) -> Vec<f32> {
        (0..1003u32).map(|i| ((i + seed) % 97) as f32 * 0.37 - 18.0).collect()
    }

    fn state() -> State {
        State { parameters: values(1), moments: vec![values(2)] }
    }

    /// REP-1: any order of the stretches, step after step, gives the host's bits and digests.
    #[test]
    fn rep_1_it_is_the_hosts_replica() {
        let mut host = HostReplica::default();
        host.load(state());
        let mut device = DeviceReplica::<Flex>::load(state(), &FlexDevice);
        for step in 0..3 {
            let gradient = values(5 * step);
            for range in [600..1003, 0..250, 250..600] {
                device.apply(&update(), range.start, &gradient[range], &FlexDevice);
            }
            let committed = host.state().clone();
            assert_eq!(device.state().unwrap(), committed, "not before the commit");
            assert_eq!(device.finish_update().unwrap(), host.apply(&update(), 0, &gradient));
            assert_eq!(device.state().unwrap(), committed, "not before the commit");
            device.commit();
            host.commit();
            assert_eq!(device.state().unwrap(), *host.state());
            assert_eq!(device.previous_state().unwrap(), Some(committed));
        }
        device.apply(&update(), 0, &[0.0], &FlexDevice);
        assert_eq!(device.previous_state().unwrap(), None, "it is being written over");
    }

    #[test]
    fn constants_stay_and_count_in_the_digest() {
        let before = State { parameters: values(1), moments: vec![values(2)[..800].to_vec()] };
        let mut device = DeviceReplica::<Flex>::load(before.clone(), &FlexDevice);
        assert_eq!(device.state().unwrap(), before);
        device.apply(&update(), 0, &values(3)[..800], &FlexDevice);
        let digest = device.finish_update().unwrap();
        device.commit();
        let after = device.state().unwrap();
        assert_eq!(digest, after.digest());
        assert_eq!(after.parameters[800..], before.parameters[800..]);
        assert_ne!(after.parameters[..800], before.parameters[..800]);
    }

    #[test]
    fn another_attempt_takes_an_aborted_ones_place() {
        let mut device = DeviceReplica::<Flex>::load(state(), &FlexDevice);
        let mut host = HostReplica::default();
        host.load(state());
        device.apply(&Update::sgd(0.1, 0.5, 1.0), 0, &values(9)[..500], &FlexDevice);
        let gradient = values(4);
        for range in [0..500, 500..1003] {
            device.apply(&update(), range.start, &gradient[range], &FlexDevice);
        }
        assert_eq!(device.finish_update().unwrap(), host.apply(&update(), 0, &gradient));
    }

    #[test]
    fn a_sum_with_a_hole_is_an_error() {
        let mut device = DeviceReplica::<Flex>::load(state(), &FlexDevice);
        assert_eq!(device.finish_update(), Ok(Digest::default()), "nothing was applied");
        device.apply(&update(), 0, &[1.0; 500], &FlexDevice);
        assert!(device.finish_update().unwrap_err().contains("500"));
        device.apply(&update(), 600, &[1.0; 403], &FlexDevice);
        assert!(device.finish_update().unwrap_err().contains("600"));
    }
}
