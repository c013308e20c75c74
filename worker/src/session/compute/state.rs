//! Whole states: the coordinator sends one to a new worker, and a worker sends one to a coordinator that has
//! crashed and lost its own (**RESUME-1**).

use tally_numerics::digest::Digest;
use tally_numerics::state::State;
use tally_numerics::update::rule::MAX_MOMENTS;
use tally_numerics::{chunk_range, chunks};
use tally_proto::floats;
use tally_proto::v1::{self, worker_message};

use super::{Compute, ComputeError};
use crate::session::messages::SendCommand;

/// A state that is being received.
#[derive(Debug)]
pub(super) struct Loading {
    step: u64,
    digest: Digest,
    state: State,
    missing: usize,
}

impl Compute {
    pub(super) fn state_begins(&mut self, step: u64, state: &v1::State) -> Result<(), ComputeError> {
        let manifest = self.engine.manifest();
        let wanted = manifest.len();
        if state.elements != wanted as u64 {
            return Err(ComputeError(format!(
                "the coordinator's state has {} elements, not {wanted}",
                state.elements
            )));
        }
        let moments = state.moments as usize;
        if !(1..=MAX_MOMENTS).contains(&moments) {
            return Err(ComputeError(format!(
                "the coordinator's state has {moments} moments; there are 1 to {MAX_MOMENTS}"
            )));
        }
        let trained = manifest.trained_len();
        let zeros = State::zeros(manifest, moments);
        self.committed = None;
        self.previous = None;
        self.retained_states.clear();
        self.pending_update = None;
        self.loading = Some(Loading {
            step,
            digest: Digest(state.digest),
            state: zeros,
            missing: chunks(wanted) + moments * chunks(trained),
        });
        Ok(())
    }

    pub(super) fn state_chunk(&mut self, chunk: &v1::StateChunk) -> Result<(), ComputeError> {
        let Some(loading) = &mut self.loading else {
            return Err(ComputeError("a chunk of a state came before the state was announced".into()));
        };
        let Some(into) = loading.state.vector_mut(chunk.vector as usize) else {
            return Err(ComputeError(format!("the coordinator's state has no vector {}", chunk.vector)));
        };
        let range = chunk_range(into.len(), chunk.index as usize);
        floats::read(&chunk.data, &mut into[range])
            .map_err(|e| ComputeError(format!("the coordinator's state: {e}")))?;
        loading.missing = loading.missing.saturating_sub(1);
        if loading.missing > 0 {
            return Ok(());
        }
        let Some(loaded) = self.loading.take() else { return Ok(()) };
        self.moments = loaded.state.moments.len();
        let digest = self.engine.load(loaded.state);
        if digest != loaded.digest {
            return Err(ComputeError(format!(
                "the state came damaged: digest {digest}, not {}",
                loaded.digest
            )));
        }
        self.committed = Some((loaded.step, digest));
        self.send(loaded.step, worker_message::Body::Loaded(v1::Loaded { digest: digest.0 }));
        Ok(())
    }

    /// Sends a state that this worker said it has.
    pub(super) fn upload(&mut self, step: u64) -> Result<(), ComputeError> {
        let state = match self.retained_states.iter().position(|(retained, _)| *retained == step) {
            Some(0) => Some(self.engine.state()?),
            Some(_) => self.engine.previous_state(),
            None => None,
        };
        let missing = || format!("the coordinator asks for step {step}, whose state is not here");
        let state = state.ok_or_else(|| ComputeError(missing()))?;
        for (vector, values) in state.vectors().enumerate() {
            for index in 0..chunks(values.len()) {
                let data = floats::copy(&values[chunk_range(values.len(), index)]);
                let chunk = v1::StateChunk { vector: vector as u32, index: index as u32, data };
                let _ = self.commands.send(SendCommand::State { step, chunk });
            }
        }
        Ok(())
    }

    /// Resumes from the newest retained state, which is the committed one. Its digest is computed again, so that
    /// a worker with damaged memory does not take part.
    pub(super) fn keep(&mut self, step: u64, wanted: Digest) -> Result<(), ComputeError> {
        if self.retained_states.first().map(|(retained, _)| *retained) != Some(step) {
            return Err(ComputeError(format!(
                "the coordinator resumes from step {step}, whose state is not here"
            )));
        }
        let state = self.engine.state()?;
        self.moments = state.moments.len();
        let digest = self.engine.load(state);
        if digest != wanted {
            return Err(ComputeError(format!(
                "the state of step {step} was damaged in this worker's memory"
            )));
        }
        self.retained_states.clear();
        self.committed = Some((step, digest));
        self.send(step, worker_message::Body::Loaded(v1::Loaded { digest: digest.0 }));
        Ok(())
    }
}
