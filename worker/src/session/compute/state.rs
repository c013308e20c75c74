//! Whole states: sent by the coordinator to a newcomer, and back to a coordinator that has
//! crashed (**RESUME-1**).

use tally_numerics::digest::Digest;
use tally_numerics::{chunk_range, chunks};
use tally_proto::floats;
use tally_proto::v1::{self, worker_message};

use super::{Compute, Failure};
use crate::session::sender::Item;

/// A state on its way in.
#[derive(Debug)]
pub(super) struct Loading {
    step: u64,
    digest: Digest,
    parameters: Vec<f32>,
    momentum: Vec<f32>,
    missing: usize,
}

impl Compute {
    pub(super) fn state_begins(&mut self, step: u64, state: &v1::State) -> Result<(), Failure> {
        let wanted = self.engine.manifest().len();
        if state.elements != wanted as u64 {
            return Err(Failure(format!(
                "the coordinator's state has {} elements, not {wanted}",
                state.elements
            )));
        }
        self.committed = None;
        self.before = None;
        self.held.clear();
        self.second = None;
        self.loading = Some(Loading {
            step,
            digest: Digest(state.digest),
            parameters: vec![0.0; wanted],
            momentum: vec![0.0; wanted],
            missing: 2 * chunks(wanted),
        });
        Ok(())
    }

    pub(super) fn state_chunk(&mut self, chunk: &v1::StateChunk) -> Result<(), Failure> {
        let Some(loading) = &mut self.loading else { return Err(Failure("a chunk of no state came".into())) };
        let into = if chunk.momentum { &mut loading.momentum } else { &mut loading.parameters };
        let range = chunk_range(into.len(), chunk.index as usize);
        floats::read(&chunk.data, &mut into[range])
            .map_err(|e| Failure(format!("the coordinator's state: {e}")))?;
        loading.missing = loading.missing.saturating_sub(1);
        if loading.missing > 0 {
            return Ok(());
        }
        let Some(loaded) = self.loading.take() else { return Ok(()) };
        let digest = self.engine.load(loaded.parameters, loaded.momentum);
        if digest != loaded.digest {
            return Err(Failure(format!("the state came damaged: digest {digest}, not {}", loaded.digest)));
        }
        self.committed = Some((loaded.step, digest));
        self.tell(loaded.step, worker_message::Body::Loaded(v1::Loaded { digest: digest.0 }));
        Ok(())
    }

    /// Sends a state that was offered.
    pub(super) fn upload(&mut self, step: u64) -> Result<(), Failure> {
        let state = match self.held.iter().position(|(held, _)| *held == step) {
            Some(0) => Some(self.engine.state().map_err(|e| Failure(e.to_string()))?),
            Some(_) => self.engine.before(),
            None => None,
        };
        let (parameters, momentum) = state
            .ok_or_else(|| Failure(format!("the coordinator asks for step {step}, which is not held")))?;
        for (momentum, values) in [(false, parameters), (true, momentum)] {
            for index in 0..chunks(values.len()) {
                let data = floats::copy(&values[chunk_range(values.len(), index)]);
                let chunk = v1::StateChunk { momentum, index: index as u32, data };
                let _ = self.items.send(Item::State { step, chunk });
            }
        }
        Ok(())
    }

    /// The newest state that is held is the committed one; its digest is taken anew, so that
    /// a worker never takes part with other bits than it thinks.
    pub(super) fn keep(&mut self, step: u64, wanted: Digest) -> Result<(), Failure> {
        if self.held.first().map(|(held, _)| *held) != Some(step) {
            return Err(Failure(format!("the coordinator goes on from step {step}, which is not held")));
        }
        let (parameters, momentum) = self.engine.state().map_err(|e| Failure(e.to_string()))?;
        let digest = self.engine.load(parameters, momentum);
        if digest != wanted {
            return Err(Failure(format!("the state of step {step} was damaged while it was held")));
        }
        self.held.clear();
        self.committed = Some((step, digest));
        self.tell(step, worker_message::Body::Loaded(v1::Loaded { digest: digest.0 }));
        Ok(())
    }
}
