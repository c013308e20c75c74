//! Networks on Burn: one engine for every device that Burn has a backend for.
//!
//! It is made of the [generic parts](tally_worker::burn). A gradient is Burn's automatic differentiation of the
//! network's forward pass (`pass.rs`).
//!
//! A device with memory of its own transfers everything once: samples are uploaded before their step, the gradients of
//! a node's microbatches are added up on the device, and their sum is read back in one transfer together with the
//! outputs, of which the host computes the losses. Until then the host waits for nothing.
//!
//! On a CPU everything runs on the engine's own thread pool, and a gradient's bits depend neither on the number of
//! threads nor on earlier computations (**SUM-1**). They do depend on the processor: burn-flex's matrix product picks
//! its instructions and its blocking by it. So the promise holds among equal machines here. The reference network has
//! an engine of its own on CPUs, [`cpu`](super::cpu), for which it holds among all machines.

pub mod inputs;
pub mod network;
pub mod networks;
mod pass;
#[cfg(test)]
mod tests;

use std::cell::OnceCell;
use std::collections::VecDeque;

use burn::tensor::Tensor;
use tally_numerics::CHUNK;
use tally_numerics::digest::Digest;
use tally_numerics::manifest::Manifest;
use tally_numerics::state::State;
use tally_numerics::sum::Fold;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;
use tally_worker::burn::sum::{self, Sum, rounded};
use tally_worker::burn::{BurnBackend, CheckedReplica, DeviceContext, Memory, Parameters};
use tally_worker::device::Precision;
use tally_worker::engine::{EngineError, Replica};

pub use network::{Network, OutputTensors};

use self::inputs::Inputs;
use self::pass::{Pass, outputs, read};
use super::outputs::OUTPUTS;
use super::{DigitEngine, LabelLoss, Losses, Outputs, node_gradient_one_by_one};
use crate::data::Samples;

/// How many samples are predicted at once, so that many samples need no more memory than a training step. It is
/// fixed, so that a sample's outputs do not depend on how many samples there are.
const PREDICT_AT_ONCE: usize = 64;

/// The most microbatches that are uploaded ahead of their step.
const MOST_AHEAD: usize = 16;

/// A microbatch on the device: its inputs and targets.
type Uploaded<B> = (Inputs<B>, Tensor<B, 2>);

/// A network on a Burn backend.
pub struct BurnEngine<B: BurnBackend, N> {
    network: N,
    loss: LabelLoss,
    manifest: Manifest,
    replica: CheckedReplica<B>,
    /// The committed parameters tensor by tensor; `None` since they last changed.
    parameters: Option<Parameters<B>>,
    /// Whether the device rounds as the wire does, once that was tried.
    rounds: OnceCell<bool>,
    /// Microbatches that were uploaded ahead of their step, with their samples' ids.
    ahead: VecDeque<(Vec<u32>, Uploaded<B>)>,
}

impl<B: BurnBackend, N: Network> BurnEngine<B, N> {
    /// An engine whose state is zero until it is given one.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device has no room for them.
    pub fn new(network: N, loss: LabelLoss, context: DeviceContext<B>) -> Result<Self, EngineError> {
        let manifest = network.manifest();
        let zeros = State::zeros(&manifest, 1);
        let replica = CheckedReplica::new(context, zeros)?;
        let (ahead, rounds) = (VecDeque::new(), OnceCell::new());
        Ok(Self { network, loss, manifest, replica, parameters: None, rounds, ahead })
    }

    fn rounds(&self) -> bool {
        *self.rounds.get_or_init(|| {
            let rounds = self.replica.context.run(sum::rounds::<B>);
            if !matches!(rounds, Ok(true)) {
                let name = &self.replica.context.name;
                tracing::info!(
                    "{name} does not round to bf16 as the wire does, so the host rounds ({rounds:?})"
                );
            }
            rounds.unwrap_or(false)
        })
    }

    /// Cuts the committed parameters into the manifest's tensors, if that is not done yet.
    fn cut(&mut self) -> Result<(), EngineError> {
        self.replica.check()?;
        if self.parameters.is_none() {
            let Self { manifest, replica: CheckedReplica { context, replica, .. }, .. } = self;
            let flat = context.run(|_| {
                let cut = |index| replica.parameters().clone().slice([manifest.range(index)]);
                Ok((0..manifest.tensors().len()).map(cut).collect())
            })?;
            self.parameters = Some(Parameters::new(manifest.clone(), flat));
        }
        Ok(())
    }

    /// A node whose gradients are added up on the device and read back once.
    fn on_device(
        &mut self,
        microbatches: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Losses>, EngineError> {
        self.cut()?;
        let Self { network, loss, replica: CheckedReplica { context, .. }, parameters, ahead, .. } = self;
        let Some(parameters) = parameters else { return Ok(Vec::new()) };
        let (network, loss, precision) = (&*network, *loss, context.precision);
        let read = context.run(|device| {
            let pass = Pass { network, parameters, loss, scale, precision };
            let mut fold = Fold::default();
            let mut all = Vec::with_capacity(microbatches.len() + 1);
            for samples in microbatches {
                let gradient = (!samples.is_empty()).then(|| {
                    let index = ahead.iter().position(|(ids, _)| ids == samples.ids());
                    let uploaded = index.and_then(|index| ahead.remove(index)).map(|(_, uploaded)| uploaded);
                    let (inputs, targets) = uploaded.unwrap_or_else(|| inputs::with_targets(samples, device));
                    let (outputs, gradient) = pass.on_device(inputs, targets);
                    all.push(outputs);
                    rounded(gradient, rounding)
                });
                fold.push(gradient, |left, right| rounded(left + right, rounding));
            }
            fold.finish().map(|gradient| Sum::read(gradient, all, rounding)).transpose()
        })?;
        let Some(sum) = read else {
            out.fill(0.0);
            ready(out);
            return Ok(vec![Losses::default(); microbatches.len()]);
        };
        let outputs = sum.outputs(out.len());
        let mut outputs = outputs.map_err(|error| context.failed(format!("{error:?}")))?;
        // Each chunk can be sent while the next is copied.
        for first in (0..out.len()).step_by(CHUNK) {
            let end = out.len().min(first + CHUNK);
            sum.copy(first, &mut out[first..end]);
            ready(&out[..end]);
        }
        Ok(microbatches
            .iter()
            .map(|samples| {
                let (own, rest) = outputs.split_at(samples.len() * OUTPUTS);
                outputs = rest;
                Outputs::from_rows(own).losses(samples, loss)
            })
            .collect())
    }

    /// A microbatch whose gradient lies in the host's memory.
    fn in_host(
        &mut self,
        samples: &Samples,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Losses, EngineError> {
        self.cut()?;
        let Self { network, loss, manifest, replica: CheckedReplica { context, .. }, parameters, .. } = self;
        let Some(parameters) = parameters else { return Ok(Losses::default()) };
        let (network, loss, precision) = (&*network, *loss, context.precision);
        let (losses, gradients) = context.run(|device| {
            let inputs = inputs::tensors(samples, 0, samples.len(), device);
            Pass { network, parameters, loss, scale, precision }.on_host(inputs, samples)
        })?;
        for (index, gradient) in gradients.into_iter().enumerate() {
            let range = manifest.range(index);
            let into = &mut out[range.clone()];
            match gradient {
                Some(gradient) => context.run(|_| read(gradient, |values| into.copy_from_slice(values)))?,
                // A tensor that the forward pass does not use.
                None => into.fill(0.0),
            }
            ready(&out[..range.end]);
        }
        Ok(losses)
    }
}

impl<B: BurnBackend, N: Network> Replica for BurnEngine<B, N> {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn device_name(&self) -> String {
        match self.replica.context.precision {
            Precision::F32 | Precision::Tf32 => self.replica.context.name.clone(),
            Precision::Bf16 => format!("{}, bf16", self.replica.context.name),
        }
    }

    fn numerics_class(&self) -> String {
        let DeviceContext { numerics_class, precision, .. } = &self.replica.context;
        format!("{numerics_class}, {precision}")
    }

    fn load(&mut self, state: State) -> Digest {
        assert!(state.fits(&self.manifest), "a state has the manifest's length");
        self.parameters = None;
        // Another run may have other samples of the same ids.
        self.ahead.clear();
        self.replica.load(state)
    }

    fn state(&mut self) -> Result<State, EngineError> {
        self.replica.state()
    }

    fn previous_state(&mut self) -> Option<State> {
        self.replica.previous_state()
    }

    fn apply(&mut self, update: &Update, first: usize, gradient: &[f32]) -> Digest {
        self.replica.apply(update, first, gradient)
    }

    fn finish_update(&mut self) -> Result<Digest, EngineError> {
        self.replica.finish_update()
    }

    fn commit(&mut self) {
        self.parameters = None;
        self.replica.commit();
    }
}

impl<B: BurnBackend, N: Network> DigitEngine for BurnEngine<B, N> {
    fn prefetch(&mut self, samples: &Samples) {
        if self.replica.context.memory == Memory::Host || samples.is_empty() {
            return;
        }
        match self.replica.context.run(|device| Ok(inputs::with_targets(samples, device))) {
            Ok(uploaded) => {
                self.ahead.truncate(MOST_AHEAD - 1);
                self.ahead.push_front((samples.ids().to_vec(), uploaded));
            }
            Err(error) => self.replica.fail(error),
        }
    }

    fn gradient(
        &mut self,
        samples: &Samples,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Losses, EngineError> {
        assert_eq!(out.len(), self.manifest.len(), "a gradient has the manifest's length");
        if samples.is_empty() {
            out.fill(0.0);
            ready(out);
            return Ok(Losses::default());
        }
        match self.replica.context.memory {
            Memory::Host => self.in_host(samples, scale, out, ready),
            Memory::Device => {
                let losses = self.on_device(&[samples], scale, WireDtype::F32, out, ready)?;
                Ok(losses.into_iter().next().unwrap_or_default())
            }
        }
    }

    fn fuses_nodes(&self, rounding: WireDtype) -> bool {
        self.replica.context.memory == Memory::Device && (rounding == WireDtype::F32 || self.rounds())
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
        if self.fuses_nodes(rounding) {
            return self.on_device(microbatches, scale, rounding, out, ready);
        }
        node_gradient_one_by_one(self, microbatches, scale, rounding, out, ready)
    }

    fn predict(&mut self, samples: &Samples) -> Result<Outputs, EngineError> {
        self.cut()?;
        let Self { network, replica: CheckedReplica { context, .. }, parameters, .. } = self;
        let Some(parameters) = parameters.as_ref().filter(|_| !samples.is_empty()) else {
            return Ok(Outputs::default());
        };
        let (network, precision) = (&*network, context.precision);
        context.run(|device| {
            let stretches = (0..samples.len()).step_by(PREDICT_AT_ONCE).map(|first| {
                let end = samples.len().min(first + PREDICT_AT_ONCE);
                outputs(network, parameters, inputs::tensors(samples, first, end, device), precision)
            });
            let mut all = Outputs::default();
            read(Tensor::cat(stretches.collect(), 0), |rows| all = Outputs::from_rows(rows))?;
            Ok(all)
        })
    }
}
