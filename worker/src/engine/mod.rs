//! What a worker computes with, behind one interface.
//!
//! A [`Replica`] is the parameters and the optimizer's state on one device, and their update. An [`Engine`] computes
//! with a replica: the gradient of a microbatch and the sums of its losses and metrics. It knows nothing of the
//! cluster, and the cluster knows nothing of what a sample is. [`synthetic`] is an engine of any size and speed
//! whose gradients are hashed from sample ids, with which everything but the arithmetic can be tested and measured
//! quickly.

pub mod host_replica;
pub mod synthetic;

use tally_numerics::digest::Digest;
use tally_numerics::manifest::Manifest;
use tally_numerics::node_sum::NodeSum;
use tally_numerics::schema::Sums;
use tally_numerics::state::State;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;
use tally_numerics::{chunk_range, chunks};
use tally_proto::convert::Microbatch;
use thiserror::Error;

/// Why an engine cannot be had, or cannot compute.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The backend that was asked for cannot work here; the text says what is missing.
    #[error("{0}")]
    Unavailable(String),
    /// The program's arguments name something that this build does not have.
    #[error("{0}")]
    Arguments(String),
    /// The bytes of a sample are none that the program wrote.
    #[error("a sample cannot be read: {0}")]
    Samples(String),
    /// The device failed.
    #[error("the {backend} backend failed: {what}")]
    Failed {
        /// The backend's name.
        backend: &'static str,
        /// What the backend said.
        what: String,
    },
}

/// Parameters and moments on one device, and their update (**REP-1**).
///
/// All flat vectors are in the order of [`manifest`](Self::manifest).
pub trait Replica: Send {
    /// The model's tensors.
    fn manifest(&self) -> &Manifest;

    /// The device, for logs: `"CPU (burn-flex, 2 threads)"`.
    fn device_name(&self) -> String;

    /// What decides the bits of a gradient: engines of one class give equal ones (**SUM-1**).
    fn numerics_class(&self) -> String;

    /// Takes over a committed state and returns its digest.
    ///
    /// # Panics
    /// If a vector has not the manifest's length; the session checks before.
    fn load(&mut self, state: State) -> Digest;

    /// The committed state.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does not give it back.
    fn state(&mut self) -> Result<State, EngineError>;

    /// The state of the step before the committed one, while nothing has been written over it:
    /// from a commit to the first [`apply`](Self::apply) after it. None, too, if the device
    /// does not give it back.
    fn previous_state(&mut self) -> Option<State>;

    /// Applies the update to the stretch of the replica that starts at element `first`,
    /// into the second buffer, and returns the stretch's digest, or, where the device is still
    /// at it, zero: [`finish_update`](Self::finish_update) has the rest. The committed state stays
    /// as it is; stretches come in any order, each once a step, and all anew in another attempt.
    ///
    /// # Panics
    /// If the update is one for more or fewer moments than the state has; the session checks before.
    fn apply(&mut self, update: &Update, first: usize, gradient: &[f32]) -> Digest;

    /// Completes the second buffer, when every stretch has been given to
    /// [`apply`](Self::apply), and returns what the digests it returned lack of the whole one.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device did, here or in `apply`.
    fn finish_update(&mut self) -> Result<Digest, EngineError> {
        Ok(Digest::default())
    }

    /// Makes the second buffer, once it is finished, the committed state.
    fn commit(&mut self);
}

/// A replica, and the computing with it.
pub trait Engine: Replica {
    /// Whether the program can read these samples.
    ///
    /// # Errors
    /// [`EngineError::Samples`] says what is wrong with them.
    fn check(&self, samples: &Microbatch) -> Result<(), EngineError>;

    /// Copies the samples of a later step to the device, where that takes time; it changes nothing else.
    fn prefetch(&mut self, _samples: &Microbatch) {}

    /// Computes the gradient of `scale` times the sum of the samples' losses at the
    /// committed parameters into `out`, and returns the losses' sums (not scaled).
    ///
    /// `ready` is called with a growing, final prefix of `out` whenever more of it is
    /// done, and with all of it at the end: it can leave while the rest is computed.
    /// Equal samples and parameters give equal bits on devices of one class (**SUM-1**).
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does.
    fn gradient(
        &mut self,
        samples: &Microbatch,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Sums, EngineError>;

    /// Whether [`node_gradient`](Self::node_gradient) with this rounding is quicker than one microbatch after the
    /// other.
    fn fuses_nodes(&self, _rounding: WireDtype) -> bool {
        false
    }

    /// The gradient of a node of the tree: its microbatches' gradients, summed along their subtree, each
    /// microbatch's and each sum rounded, with the bits that [`gradient`](Self::gradient), [`WireDtype::round`] and
    /// [`WireDtype::add`] would give. `microbatches` are `2^k` from the left; empty ones are skipped.
    /// Returns the losses' sums of each. `out`, `scale` and `ready` are as in `gradient`.
    ///
    /// An engine may be quicker here than one after the other: one that computes with small microbatches
    /// at once reads its weights once, and adds up before it stores.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does.
    fn node_gradient(
        &mut self,
        microbatches: &[&Microbatch],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Sums>, EngineError> {
        let present = microbatches.iter().map(|microbatch| (!microbatch.is_empty()).then_some(*microbatch));
        one_by_one(present, rounding, out, ready, |microbatch, gradient| {
            self.gradient(microbatch, scale, gradient, &mut |_| ())
        })
    }

    /// [`node_gradient`](Self::node_gradient) for a caller that takes the sum from `ready` alone. The prefixes may lie in
    /// the engine's own memory, and `out` is only room for engines that need it: what it holds afterwards is undefined. A
    /// sum that comes from a device needs one copy less.
    ///
    /// # Errors
    /// As [`node_gradient`](Self::node_gradient).
    fn node_gradient_as_ready(
        &mut self,
        microbatches: &[&Microbatch],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Sums>, EngineError> {
        self.node_gradient(microbatches, scale, rounding, out, ready)
    }

    /// The sums of the losses and metrics over a microbatch of the test pass at the committed parameters, in the
    /// order of the program's schema.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does.
    fn evaluate(&mut self, samples: &Microbatch) -> Result<Sums, EngineError>;
}

/// Applies a whole gradient, chunk by chunk as one comes, and finishes; returns the digest of the state that a
/// [`commit`](Replica::commit) will make the committed one.
///
/// # Errors
/// As [`Replica::finish_update`].
pub fn apply_whole(
    replica: &mut (impl Replica + ?Sized),
    update: &Update,
    gradient: &[f32],
) -> Result<Digest, EngineError> {
    let digest = (0..chunks(gradient.len())).fold(Digest::default(), |digest, index| {
        let range = chunk_range(gradient.len(), index);
        digest.and(replica.apply(update, range.start, &gradient[range]))
    });
    Ok(digest.and(replica.finish_update()?))
}

/// The gradient of a node from its microbatches' gradients, computed one after the other; see
/// [`Engine::node_gradient`]. An empty microbatch is `None`, and has no losses.
///
/// # Errors
/// As `gradient`.
pub fn one_by_one<M, L: Default>(
    microbatches: impl IntoIterator<Item = Option<M>>,
    rounding: WireDtype,
    out: &mut [f32],
    ready: &mut dyn FnMut(&[f32]),
    mut gradient: impl FnMut(M, &mut [f32]) -> Result<L, EngineError>,
) -> Result<Vec<L>, EngineError> {
    let mut losses = Vec::new();
    let mut sum = NodeSum::new(rounding);
    for microbatch in microbatches {
        let Some(microbatch) = microbatch else {
            losses.push(L::default());
            sum.push_empty();
            continue;
        };
        let mut own = sum.buffer(out.len());
        losses.push(gradient(microbatch, &mut own)?);
        sum.push(own);
    }
    match sum.finish() {
        Some(gradient) => out.copy_from_slice(&gradient),
        None => out.fill(0.0),
    }
    ready(out);
    Ok(losses)
}
