//! Computing with Burn: one engine for every device that Burn has a backend for.
//!
//! The replica lives on the device ([`resident`]); its update is an operation of the backend
//! that rounds as coordinator and workers have agreed to ([`update`], **REP-1**). A gradient
//! is Burn's automatic differentiation of the network's forward pass (`pass.rs`).
//!
//! Where the device has memory of its own, everything crosses the bus once: samples go up before
//! their step, the leaves of a subtree are added up on the device, and their sum comes back
//! in one transfer together with the answers, from which the host works out the losses. Until
//! then nothing waits for the device.
//!
//! On a CPU everything runs on the engine's own pool of threads, and a gradient's bits
//! depend neither on how many they are nor on what was computed before (**SUM-1**). They do
//! depend on the processor: burn-flex's matrix product picks its instructions and its
//! blocking by it. So the promise holds among equal machines here; the reference network
//! has an engine of its own on CPUs, [`cpu`](super::cpu), where it holds among all.

pub mod convolution;
pub mod inputs;
pub mod layers;
pub mod network;
pub mod networks;
mod pass;
pub mod place;
pub mod resident;
pub mod sum;
#[cfg(test)]
mod tests;
pub mod update;

use std::cell::OnceCell;
use std::collections::VecDeque;

use burn::tensor::Tensor;
use tally_data::Samples;
use tally_numerics::CHUNK;
use tally_numerics::digest::Digest;
use tally_numerics::loss::LossParts;
use tally_numerics::manifest::Manifest;
use tally_numerics::sum::Fold;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;

pub use convolution::ConvolutionBackend;
pub use network::{Network, Outputs, Parameters};
pub use place::{Memory, Place, Precision, words_of};
pub use update::UpdateBackend;

use self::inputs::Inputs;
use self::pass::{Pass, outputs, read};
use self::resident::Resident;
use self::sum::{RoundingBackend, Sum, rounded};
use super::{Answers, Engine, EngineError, LabelLoss, leaf_by_leaf, losses};

/// How many samples are answered at once, so that a long list needs no more memory than
/// a training step. Fixed, so that a sample's answer does not depend on the list's length
/// beyond that.
const PREDICT_AT_ONCE: usize = 64;

/// Leaves that wait on the device for their step.
const MOST_AHEAD: usize = 16;

/// A backend that has what the engine needs beside Burn's own operations.
pub trait BurnBackend: ConvolutionBackend + UpdateBackend + RoundingBackend {}
impl<B: ConvolutionBackend + UpdateBackend + RoundingBackend> BurnBackend for B {}

/// A leaf on the device: its samples and the right answers.
type Uploaded<B> = (Inputs<B>, Tensor<B, 2>);

/// A network on a Burn backend.
pub struct BurnEngine<B: BurnBackend, N> {
    network: N,
    loss: LabelLoss,
    manifest: Manifest,
    place: Place<B>,
    replica: Resident<B>,
    /// The committed parameters tensor by tensor; none since they last changed.
    parameters: Option<Parameters<B>>,
    /// Whether the device rounds as the wire wants it, once that was asked.
    rounds: OnceCell<bool>,
    /// Leaves that were uploaded ahead of their step, with their samples' ids.
    ahead: VecDeque<(Vec<u32>, Uploaded<B>)>,
    /// Why the device failed where that could not be said.
    failed: Option<EngineError>,
}

impl<B: BurnBackend, N: Network> BurnEngine<B, N> {
    /// An engine whose parameters and momentum are zeros until it is given a state.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device has no room for them.
    pub fn new(network: N, loss: LabelLoss, place: Place<B>) -> Result<Self, EngineError> {
        let manifest = network.manifest();
        let zeros = || vec![0.0; manifest.len()];
        let (replica, _) = place.run(|device| Ok(Resident::load(zeros(), zeros(), device)))?;
        let (ahead, rounds) = (VecDeque::new(), OnceCell::new());
        Ok(Self { network, loss, manifest, place, replica, parameters: None, rounds, ahead, failed: None })
    }

    fn rounds(&self) -> bool {
        *self.rounds.get_or_init(|| {
            let rounds = self.place.run(sum::rounds::<B>);
            if !matches!(rounds, Ok(true)) {
                let words = &self.place.words;
                tracing::info!(
                    "{words} does not round to bf16 as the wire wants it: the host does ({rounds:?})"
                );
            }
            rounds.unwrap_or(false)
        })
    }

    fn check(&mut self) -> Result<(), EngineError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Cuts the committed parameters into the manifest's tensors, unless that is done.
    fn cut(&mut self) -> Result<(), EngineError> {
        self.check()?;
        if self.parameters.is_none() {
            let Self { manifest, place, replica, .. } = self;
            let flat = place.run(|_| {
                let cut = |index| replica.parameters().clone().slice([manifest.range(index)]);
                Ok((0..manifest.tensors().len()).map(cut).collect())
            })?;
            self.parameters = Some(Parameters::new(manifest.clone(), flat));
        }
        Ok(())
    }

    /// A subtree that is added up on the device and read back once.
    fn on_device(
        &mut self,
        leaves: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<LossParts>, EngineError> {
        self.cut()?;
        let Self { network, loss, place, parameters, ahead, .. } = self;
        let Some(parameters) = parameters else { return Ok(Vec::new()) };
        let (network, loss, precision) = (&*network, *loss, place.precision);
        let read = place.run(|device| {
            let pass = Pass { network, parameters, loss, scale, precision };
            let mut fold = Fold::default();
            let mut all = Vec::with_capacity(leaves.len() + 1);
            for leaf in leaves {
                let gradient = (!leaf.is_empty()).then(|| {
                    let there = ahead.iter().position(|(ids, _)| ids == leaf.ids());
                    let there = there.and_then(|index| ahead.remove(index)).map(|(_, there)| there);
                    let (inputs, targets) = there.unwrap_or_else(|| inputs::with_targets(leaf, device));
                    let (answers, gradient) = pass.by_device(inputs, targets);
                    all.push(answers);
                    rounded(gradient, rounding)
                });
                fold.push(gradient, |left, right| rounded(left + right, rounding));
            }
            fold.finish().map(|gradient| Sum::read(gradient, all, rounding)).transpose()
        })?;
        let Some(sum) = read else {
            out.fill(0.0);
            ready(out);
            return Ok(vec![LossParts::default(); leaves.len()]);
        };
        let answers = sum.answers(out.len());
        let mut answers = answers.map_err(|error| place.failed(format!("{error:?}")))?;
        // What is copied leaves while the rest is.
        for first in (0..out.len()).step_by(CHUNK) {
            let end = out.len().min(first + CHUNK);
            sum.copy(first, &mut out[first..end]);
            ready(&out[..end]);
        }
        Ok(leaves
            .iter()
            .map(|leaf| {
                let (own, rest) = answers.split_at(leaf.len() * losses::OUTPUTS);
                answers = rest;
                losses::answers(own).losses(leaf, loss)
            })
            .collect())
    }

    /// A leaf whose gradient lies in the host's memory.
    fn in_host(
        &mut self,
        samples: &Samples,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<LossParts, EngineError> {
        self.cut()?;
        let Self { network, loss, manifest, place, parameters, .. } = self;
        let Some(parameters) = parameters else { return Ok(LossParts::default()) };
        let (network, loss, precision) = (&*network, *loss, place.precision);
        let (losses, gradients) = place.run(|device| {
            let inputs = inputs::tensors(samples, 0, samples.len(), device);
            Pass { network, parameters, loss, scale, precision }.by_host(inputs, samples)
        })?;
        for (index, gradient) in gradients.into_iter().enumerate() {
            let range = manifest.range(index);
            let into = &mut out[range.clone()];
            match gradient {
                Some(gradient) => place.run(|_| read(gradient, |values| into.copy_from_slice(values)))?,
                // A tensor that the forward pass does not use.
                None => into.fill(0.0),
            }
            ready(&out[..range.end]);
        }
        Ok(losses)
    }
}

impl<B: BurnBackend, N: Network> Engine for BurnEngine<B, N> {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn device(&self) -> String {
        match self.place.precision {
            Precision::F32 | Precision::Tf32 => self.place.words.clone(),
            Precision::Bf16 => format!("{}, bf16", self.place.words),
        }
    }

    fn kind(&self) -> String {
        let Place { kind, precision, .. } = &self.place;
        format!("{kind}, {precision}")
    }

    fn load(&mut self, parameters: Vec<f32>, momentum: Vec<f32>) -> Digest {
        assert_eq!(parameters.len(), self.manifest.len(), "a state has the manifest's length");
        self.parameters = None;
        // Another run may have other samples of the same ids.
        self.ahead.clear();
        match self.place.run(|device| Ok(Resident::load(parameters, momentum, device))) {
            Ok((replica, digest)) => {
                self.replica = replica;
                digest
            }
            Err(error) => {
                self.failed = Some(error);
                Digest::default()
            }
        }
    }

    fn state(&mut self) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
        self.check()?;
        self.place.run(|_| self.replica.state())
    }

    fn before(&mut self) -> Option<(Vec<f32>, Vec<f32>)> {
        self.place.run(|_| self.replica.before()).unwrap_or_else(|error| {
            tracing::warn!("the step before is lost: {error}");
            None
        })
    }

    fn prefetch(&mut self, samples: &Samples) {
        if self.place.memory == Memory::Host || samples.is_empty() {
            return;
        }
        match self.place.run(|device| Ok(inputs::with_targets(samples, device))) {
            Ok(there) => {
                self.ahead.truncate(MOST_AHEAD - 1);
                self.ahead.push_front((samples.ids().to_vec(), there));
            }
            Err(error) => self.failed = Some(error),
        }
    }

    fn gradient(
        &mut self,
        samples: &Samples,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<LossParts, EngineError> {
        assert_eq!(out.len(), self.manifest.len(), "a gradient has the manifest's length");
        if samples.is_empty() {
            out.fill(0.0);
            ready(out);
            return Ok(LossParts::default());
        }
        match self.place.memory {
            Memory::Host => self.in_host(samples, scale, out, ready),
            Memory::Device => {
                let losses = self.on_device(&[samples], scale, WireDtype::F32, out, ready)?;
                Ok(losses.into_iter().next().unwrap_or_default())
            }
        }
    }

    fn sums_subtrees(&self, rounding: WireDtype) -> bool {
        self.place.memory == Memory::Device && (rounding == WireDtype::F32 || self.rounds())
    }

    fn subtree(
        &mut self,
        leaves: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<LossParts>, EngineError> {
        assert_eq!(out.len(), self.manifest.len(), "a gradient has the manifest's length");
        if self.sums_subtrees(rounding) {
            return self.on_device(leaves, scale, rounding, out, ready);
        }
        leaf_by_leaf(self, leaves, scale, rounding, out, ready)
    }

    fn apply(&mut self, update: Update, first: usize, gradient: &[f32]) -> Digest {
        let Self { place, replica, failed, .. } = self;
        let applied = place.run(|device| {
            replica.apply(update, first, gradient, device);
            Ok(())
        });
        if let Err(error) = applied {
            failed.get_or_insert(error);
        }
        Digest::default()
    }

    fn finish(&mut self) -> Result<Digest, EngineError> {
        self.check()?;
        self.place.run(|_| self.replica.finish())
    }

    fn commit(&mut self) {
        self.parameters = None;
        self.replica.commit();
    }

    fn predict(&mut self, samples: &Samples) -> Result<Answers, EngineError> {
        self.cut()?;
        let Self { network, place, parameters, .. } = self;
        let Some(parameters) = parameters.as_ref().filter(|_| !samples.is_empty()) else {
            return Ok(Answers::default());
        };
        let (network, precision) = (&*network, place.precision);
        place.run(|device| {
            let stretches = (0..samples.len()).step_by(PREDICT_AT_ONCE).map(|first| {
                let end = samples.len().min(first + PREDICT_AT_ONCE);
                outputs(network, parameters, inputs::tensors(samples, first, end, device), precision)
            });
            let mut answers = Answers::default();
            read(Tensor::cat(stretches.collect(), 0), |values| answers = losses::answers(values))?;
            Ok(answers)
        })
    }
}
