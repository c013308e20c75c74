//! A replica on a device whose failures are errors: what every engine on Burn does with its replica.
//!
//! Each call runs on the device's threads. A device may fail in a call that returns no error; then the next call that
//! can return one does.

use tally_numerics::digest::Digest;
use tally_numerics::state::State;
use tally_numerics::update::Update;

use super::update::UpdateBackend;
use super::{DeviceContext, DeviceReplica};
use crate::engine::EngineError;

/// A replica and its device. The methods are those of [`Replica`](crate::engine::Replica).
pub struct CheckedReplica<B: UpdateBackend> {
    /// The device.
    pub context: DeviceContext<B>,
    /// The replica on it.
    pub replica: DeviceReplica<B>,
    failed: Option<EngineError>,
}

impl<B: UpdateBackend> CheckedReplica<B> {
    /// Uploads a state.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device has no room for it.
    pub fn new(context: DeviceContext<B>, state: State) -> Result<Self, EngineError> {
        let replica = context.run(|device| Ok(DeviceReplica::load(state, device)))?;
        Ok(Self { context, replica, failed: None })
    }

    /// Keeps why the device failed in a call that returns no error. The first failure counts.
    pub fn fail(&mut self, error: EngineError) {
        self.failed.get_or_insert(error);
    }

    /// Whether the device is sound so far.
    ///
    /// # Errors
    /// The failure that was kept, once.
    pub fn check(&mut self) -> Result<(), EngineError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Takes over a committed state and returns its digest, which says only that the state came whole.
    pub fn load(&mut self, state: State) -> Digest {
        let digest = state.digest();
        match self.context.run(|device| Ok(DeviceReplica::load(state, device))) {
            Ok(replica) => (self.replica, self.failed) = (replica, None),
            Err(error) => self.failed = Some(error),
        }
        digest
    }

    /// The committed state.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does not give it back.
    pub fn state(&mut self) -> Result<State, EngineError> {
        self.check()?;
        self.context.run(|_| self.replica.state())
    }

    /// The state of the step before, if it is there and the device gives it back.
    pub fn previous_state(&self) -> Option<State> {
        self.context.run(|_| self.replica.previous_state()).unwrap_or_else(|error| {
            tracing::warn!("the previous step's state is lost: {error}");
            None
        })
    }

    /// Uploads a stretch of the sum. The digest comes from [`finish_update`](Self::finish_update).
    pub fn apply(&mut self, update: &Update, first: usize, gradient: &[f32]) -> Digest {
        let applied = self.context.run(|device| {
            self.replica.apply(update, first, gradient, device);
            Ok(())
        });
        if let Err(error) = applied {
            self.fail(error);
        }
        Digest::default()
    }

    /// Makes the next state, and returns its digest.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device did, here or in [`apply`](Self::apply).
    pub fn finish_update(&mut self) -> Result<Digest, EngineError> {
        self.check()?;
        self.context.run(|_| self.replica.finish_update())
    }

    /// Makes the finished state the committed one.
    pub fn commit(&mut self) {
        self.replica.commit();
    }
}
