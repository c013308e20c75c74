//! The reference network on a CPU, with Tally's own kernels.
//!
//! Forward and backward pass are one hand-written schedule (`pass`) over the [`kernels`](tally_kernels): activations
//! stay in the kernels' layout from end to end, weights are packed once a step, and the gradients of the deepest layers
//! are ready first. A gradient has the same bits on every processor and for every number of threads (**SUM-1**); the
//! kernels' documentation says why. Other networks use Burn ([`burn`](super::burn)).

mod heads;
mod layers;
mod pass;
#[cfg(test)]
mod tests;
mod weights;

use rayon::ThreadPool;
use tally_kernels::Simd;
use tally_numerics::digest::Digest;
use tally_numerics::manifest::Manifest;
use tally_numerics::state::State;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;
use tally_worker::engine::host_replica::HostReplica;
use tally_worker::engine::{EngineError, Replica};

use super::burn::Network;
use super::burn::networks::Reference;
use super::outputs::OUTPUTS;
use super::{DigitEngine, LabelLoss, Losses, Outputs, losses};
use crate::data::Samples;
use pass::Pass;
use weights::Weights;

/// How many images are computed at once, unless a microbatch has more. It bounds the memory of a worker that has a large
/// part of a large batch (0.9 MB an image). No result depends on it.
const AT_ONCE: usize = 128;

/// The reference network on a CPU.
pub struct CpuEngine {
    manifest: Manifest,
    loss: LabelLoss,
    pool: ThreadPool,
    device_name: String,
    replica: HostReplica,
    weights: Weights,
    /// Whether `weights` are the committed ones.
    packed: bool,
    pass: Pass,
    /// Buffers for the gradients of left halves, where a node is computed in parts.
    spare: Vec<Vec<f32>>,
}

impl CpuEngine {
    /// An engine that computes on `pool` with the instructions of `simd`. Its state is zero until it
    /// is given one.
    #[must_use]
    pub fn new(loss: LabelLoss, pool: ThreadPool, simd: Simd, device_name: String) -> Self {
        let manifest = Reference.manifest();
        let mut replica = HostReplica::default();
        replica.load(State::zeros(&manifest, 1));
        Self {
            weights: Weights::new(&manifest, simd),
            pass: Pass::new(simd),
            manifest,
            loss,
            pool,
            device_name,
            replica,
            packed: false,
            spare: Vec::new(),
        }
    }

    fn pack(&mut self) {
        if !self.packed {
            let Self { weights, replica, pool, .. } = self;
            pool.install(|| weights.pack(replica.parameters()));
            self.packed = true;
        }
    }

    /// The gradient of microbatches with at least one sample, all at once.
    fn at_once(
        &mut self,
        microbatches: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Vec<Losses> {
        let Self { loss, pool, weights, pass, replica, .. } = self;
        let parameters = replica.parameters();
        let outputs = pool.install(|| {
            pass.load(microbatches, rounding);
            pass.forward(weights, parameters)
        });
        let mut all = Vec::with_capacity(microbatches.len());
        let mut output_grad = Vec::with_capacity(outputs.len());
        let mut first = 0;
        for samples in microbatches {
            let end = first + samples.len() * OUTPUTS;
            let own = Outputs::from_rows(&outputs[first..end]);
            output_grad.extend(losses::output_gradient(&own, samples, *loss, scale));
            all.push(own.losses(samples, *loss));
            first = end;
        }
        pass.backward(weights, parameters, &output_grad, pool, out, ready);
        all
    }
}

impl Replica for CpuEngine {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn device_name(&self) -> String {
        self.device_name.clone()
    }

    fn numerics_class(&self) -> String {
        // The bits depend neither on the instructions nor on the number of threads.
        "CPU".into()
    }

    fn load(&mut self, state: State) -> Digest {
        assert!(state.fits(&self.manifest), "a state has the manifest's length");
        self.packed = false;
        self.replica.load(state)
    }

    fn state(&mut self) -> Result<State, EngineError> {
        Ok(self.replica.state().clone())
    }

    fn previous_state(&mut self) -> Option<State> {
        self.replica.previous().cloned()
    }

    fn apply(&mut self, update: &Update, first: usize, gradient: &[f32]) -> Digest {
        let Self { pool, replica, .. } = self;
        pool.install(|| replica.apply_in_parallel(update, first, gradient))
    }

    fn commit(&mut self) {
        self.packed = false;
        self.replica.commit();
    }
}

impl DigitEngine for CpuEngine {
    fn gradient(
        &mut self,
        samples: &Samples,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Losses, EngineError> {
        let parts = self.node_gradient(&[samples], scale, WireDtype::F32, out, ready)?;
        Ok(parts.into_iter().next().unwrap_or_default())
    }

    fn fuses_nodes(&self, _: WireDtype) -> bool {
        true
    }

    fn node_gradient(
        &mut self,
        microbatches: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Losses>, EngineError> {
        assert_eq!(out.len(), self.manifest.len(), "a gradient has the manifest's length");
        let images: usize = microbatches.iter().map(|samples| samples.len()).sum();
        if images == 0 {
            out.fill(0.0);
            ready(out);
            return Ok(vec![Losses::default(); microbatches.len()]);
        }
        self.pack();
        let (left, right) = microbatches.split_at(microbatches.len() / 2);
        if images <= AT_ONCE || left.is_empty() {
            return Ok(self.at_once(microbatches, scale, rounding, out, ready));
        }
        let empty = |half: &[&Samples]| half.iter().all(|samples| samples.is_empty());
        if empty(left) || empty(right) {
            // Only the half that is not empty: zeros are not added to it.
            let (full, first) = if empty(left) { (right, left.len()) } else { (left, 0) };
            let mut parts = vec![Losses::default(); microbatches.len()];
            let some = self.node_gradient(full, scale, rounding, out, ready)?;
            parts[first..first + some.len()].copy_from_slice(&some);
            return Ok(parts);
        }
        let mut of_left = self.spare.pop().unwrap_or_default();
        of_left.resize(out.len(), 0.0);
        let mut parts = self.node_gradient(left, scale, rounding, &mut of_left, &mut |_| ())?;
        parts.extend(self.node_gradient(right, scale, rounding, out, &mut |_| ())?);
        rounding.add_left(&of_left, out);
        self.spare.push(of_left);
        ready(out);
        Ok(parts)
    }

    fn predict(&mut self, samples: &Samples) -> Result<Outputs, EngineError> {
        self.pack();
        let Self { pool, weights, pass, replica, .. } = self;
        let mut outputs = Vec::with_capacity(samples.len() * OUTPUTS);
        pool.install(|| {
            for first in (0..samples.len()).step_by(AT_ONCE) {
                pass.load_stretch(samples, first..samples.len().min(first + AT_ONCE));
                outputs.extend(pass.forward(weights, replica.parameters()));
            }
        });
        Ok(Outputs::from_rows(&outputs))
    }
}
