//! What a worker computes with, behind one interface.
//!
//! An [`Engine`] holds one replica of the network and computes with it: the gradient of a
//! leaf, the update, answers. It knows nothing of the cluster. Five stand behind the
//! interface: the reference network with Tally's own kernels on a CPU ([`cpu`]) and on an NVIDIA GPU (`gpu`), any network
//! with Burn on either ([`burn`]), and a [`synthetic`] one
//! of any size and speed whose gradients are hashed from sample ids, with which everything
//! but the arithmetic can be tested and measured quickly.

pub mod answers;
pub mod backend;
pub mod burn;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda-kernels")]
pub mod gpu;
pub mod losses;
pub mod replica;
pub mod spec;
pub mod synthetic;

use tally_data::Samples;
use tally_exact::digest::Digest;
use tally_exact::loss::LossParts;
use tally_exact::manifest::Manifest;
use tally_exact::sum::Fold;
use tally_exact::update::Update;
use tally_exact::wire::WireDtype;
use tally_exact::{chunk_range, chunks};
use thiserror::Error;

pub use answers::Answers;
pub use spec::{LabelLoss, ModelSpec};

/// Why an engine cannot be had, or cannot compute.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The backend that was asked for cannot work here; the text says what is missing.
    #[error("{0}")]
    Unavailable(String),
    /// The device failed.
    #[error("the {backend} backend failed: {what}")]
    Failed {
        /// The backend's name.
        backend: &'static str,
        /// What the backend said.
        what: String,
    },
}

/// One replica of the network on one device, and the computing with it.
///
/// All flat vectors are in the order of [`manifest`](Self::manifest).
pub trait Engine: Send {
    /// The network's tensors.
    fn manifest(&self) -> &Manifest;

    /// The device in words, for logs: `"CPU (burn-flex, 2 threads)"`.
    fn device(&self) -> String;

    /// What decides the bits of a gradient: engines of one kind give equal ones (**SUM-1**).
    fn kind(&self) -> String;

    /// Takes over a committed state and returns its digest.
    ///
    /// # Panics
    /// If a vector has not the manifest's length; the session checks before.
    fn load(&mut self, parameters: Vec<f32>, momentum: Vec<f32>) -> Digest;

    /// The committed state: parameters and momentum.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does not give it back.
    fn state(&mut self) -> Result<(Vec<f32>, Vec<f32>), EngineError>;

    /// The state of the step before the committed one, while nothing has been written over it:
    /// from a commit to the first [`apply`](Self::apply) after it. None, too, if the device
    /// does not give it back.
    fn before(&mut self) -> Option<(Vec<f32>, Vec<f32>)>;

    /// Brings samples of a later step to the device, where that takes time; it changes nothing else.
    fn prefetch(&mut self, _samples: &Samples) {}

    /// Computes the gradient of `scale` times the sum of the samples' losses at the
    /// committed parameters into `out`, and returns the losses' sums (not scaled).
    ///
    /// `ready` is called with a growing, final prefix of `out` whenever more of it is
    /// done, and with all of it at the end: it can leave while the rest is computed.
    /// Equal samples and parameters give equal bits on devices of one kind (**SUM-1**).
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does.
    fn gradient(
        &mut self,
        samples: &Samples,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<LossParts, EngineError>;

    /// Whether [`subtree`](Self::subtree) with this rounding is quicker than leaf by leaf.
    fn sums_subtrees(&self, _rounding: WireDtype) -> bool {
        false
    }

    /// The gradient of a subtree: its leaves' gradients, summed along their tree, each leaf's and each sum
    /// rounded, with the bits that [`gradient`](Self::gradient), [`WireDtype::round`] and
    /// [`WireDtype::add`] would give. `leaves` are the samples of `2^k` leaves from the left; empty ones are skipped.
    /// Returns the losses' sums of each leaf. `out`, `scale` and `ready` are as in `gradient`.
    ///
    /// An engine may be quicker here than leaf by leaf: one that computes with small leaves
    /// at once reads its weights once, and adds up before it stores.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does.
    fn subtree(
        &mut self,
        leaves: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<LossParts>, EngineError> {
        leaf_by_leaf(self, leaves, scale, rounding, out, ready)
    }

    /// [`subtree`](Self::subtree) for one who takes the sum from `ready` alone: what that is given may lie in memory of the
    /// engine's, and `out` may be left with anything in it. It saves a copy where the sum comes from a device.
    ///
    /// # Errors
    /// As [`subtree`](Self::subtree).
    fn subtree_as_ready(
        &mut self,
        leaves: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<LossParts>, EngineError> {
        self.subtree(leaves, scale, rounding, out, ready)
    }

    /// Applies the update to the stretch of the replica that starts at element `first`,
    /// into the second buffer, and returns the stretch's digest, or, where the device is still
    /// at it, zero: [`finish`](Self::finish) has the rest. The committed state stays
    /// as it is; stretches come in any order, each once a step, and all anew in another attempt.
    fn apply(&mut self, update: Update, first: usize, gradient: &[f32]) -> Digest;

    /// Completes the second buffer, when every stretch has been given to
    /// [`apply`](Self::apply), and returns what the digests it returned lack of the whole one.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device did, here or in `apply`.
    fn finish(&mut self) -> Result<Digest, EngineError> {
        Ok(Digest::default())
    }

    /// Makes the second buffer, once it is finished, the committed state.
    fn commit(&mut self);

    /// The network's answers at the committed parameters.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does.
    fn predict(&mut self, samples: &Samples) -> Result<Answers, EngineError>;
}

/// Applies a whole gradient, chunk by chunk as one comes, and finishes; returns the digest of the state that a
/// [`commit`](Engine::commit) will make the committed one.
///
/// # Errors
/// As [`Engine::finish`].
pub fn apply_whole(engine: &mut dyn Engine, update: Update, gradient: &[f32]) -> Result<Digest, EngineError> {
    let digest = (0..chunks(gradient.len())).fold(Digest::default(), |digest, index| {
        let range = chunk_range(gradient.len(), index);
        digest.and(engine.apply(update, range.start, &gradient[range]))
    });
    Ok(digest.and(engine.finish()?))
}

/// [`Engine::subtree`] by way of [`Engine::gradient`].
fn leaf_by_leaf<E: Engine + ?Sized>(
    engine: &mut E,
    leaves: &[&Samples],
    scale: f32,
    rounding: WireDtype,
    out: &mut [f32],
    ready: &mut dyn FnMut(&[f32]),
) -> Result<Vec<LossParts>, EngineError> {
    let mut parts = Vec::with_capacity(leaves.len());
    let mut fold = Fold::default();
    for leaf in leaves {
        let value = if leaf.is_empty() {
            parts.push(LossParts::default());
            None
        } else {
            let mut gradient = vec![0.0; out.len()];
            parts.push(engine.gradient(leaf, scale, &mut gradient, &mut |_| ())?);
            rounding.round(&mut gradient);
            Some(gradient)
        };
        fold.push(value, |mut left: Vec<f32>, right| {
            rounding.add(&mut left, &right);
            left
        });
    }
    match fold.finish() {
        Some(gradient) => out.copy_from_slice(&gradient),
        None => out.fill(0.0),
    }
    ready(out);
    Ok(parts)
}
