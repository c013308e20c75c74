//! The networks, and the engines that compute them.
//!
//! A network predicts a digit, its sum with a number and their difference. A [`DigitEngine`] computes one on a device;
//! there are three: the reference network with Tally's own kernels on a CPU ([`cpu`]) and on an NVIDIA GPU (`gpu`),
//! and any network with Burn on either ([`burn`]). [`backend`] chooses. [`MnistEngine`] makes an engine of the cluster
//! of it, which decodes samples and measures the outputs by [`losses`] and [`metrics`].

pub mod backend;
pub mod burn;
pub mod cpu;
pub mod engine;
#[cfg(feature = "cuda-kernels")]
pub mod gpu;
pub mod losses;
pub mod metrics;
pub mod outputs;
pub mod spec;

use tally_numerics::wire::WireDtype;
use tally_worker::engine::{EngineError, Replica, one_by_one};

pub use engine::MnistEngine;
pub use losses::Losses;
pub use outputs::Outputs;
pub use spec::{LabelLoss, ModelSpec};

use crate::data::Samples;

/// A network on one device.
pub trait DigitEngine: Replica {
    /// As [`Engine::prefetch`](tally_worker::engine::Engine::prefetch).
    fn prefetch(&mut self, _samples: &Samples) {}

    /// Computes the gradient of `scale` times the sum of the samples' losses at the committed parameters into `out`,
    /// and returns the sums of the losses (not scaled); `ready` is as in
    /// [`Engine::gradient`](tally_worker::engine::Engine::gradient).
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does.
    fn gradient(
        &mut self,
        samples: &Samples,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Losses, EngineError>;

    /// Whether [`node_gradient`](Self::node_gradient) with this rounding is quicker than one microbatch after the
    /// other.
    fn fuses_nodes(&self, _rounding: WireDtype) -> bool {
        false
    }

    /// The gradient of a node of the tree, as
    /// [`Engine::node_gradient`](tally_worker::engine::Engine::node_gradient).
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does.
    fn node_gradient(
        &mut self,
        microbatches: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Losses>, EngineError> {
        node_gradient_one_by_one(self, microbatches, scale, rounding, out, ready)
    }

    /// As [`Engine::node_gradient_as_ready`](tally_worker::engine::Engine::node_gradient_as_ready).
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does.
    fn node_gradient_as_ready(
        &mut self,
        microbatches: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Losses>, EngineError> {
        self.node_gradient(microbatches, scale, rounding, out, ready)
    }

    /// The network's outputs at the committed parameters.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does.
    fn predict(&mut self, samples: &Samples) -> Result<Outputs, EngineError>;
}

/// [`DigitEngine::node_gradient`] by way of [`DigitEngine::gradient`].
fn node_gradient_one_by_one<E: DigitEngine + ?Sized>(
    engine: &mut E,
    microbatches: &[&Samples],
    scale: f32,
    rounding: WireDtype,
    out: &mut [f32],
    ready: &mut dyn FnMut(&[f32]),
) -> Result<Vec<Losses>, EngineError> {
    let present = microbatches.iter().map(|samples| (!samples.is_empty()).then_some(*samples));
    one_by_one(present, rounding, out, ready, |samples, gradient| {
        engine.gradient(samples, scale, gradient, &mut |_| ())
    })
}
