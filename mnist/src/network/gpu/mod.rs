//! The reference network on an NVIDIA GPU, with Tally's own kernels.
//!
//! The kernels (`kernels/*.cu`) are compiled when the engine is made, by NVIDIA's run-time compiler, which needs no headers
//! for them; [`program`] puts them together, [`device`] runs them. A [`plan`] says in what order a subtree's leaves are
//! computed, a [`pass`] runs the network over many of them at once, [`state`] keeps the replica.
//!
//! No sum's order depends on anything but the length of a leaf: not on the batch, not on the memory there is, and no
//! kernel is chosen by the clock. So a gradient's bits are the same on every GPU of one model (**SUM-1**), without a
//! cache of choices to be shared.
//!
//! Across the bus go a sample's bytes, ahead of its step; its answers; the sum, part after part while the layers before are
//! still computed; and the reduced sum, chunk after chunk. Losses are the host's, in double, as everywhere; the gradient
//! starts on the device, in double too.

pub mod check;
#[allow(unsafe_code)] // The driver is C: it can't know what a kernel does with a pointer.
pub mod device;
pub mod inputs;
pub mod layers;
pub mod pass;
pub mod plan;
pub mod program;
pub mod state;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cudarc::driver::DriverError;
use rayon::prelude::*;
use tally_numerics::CHUNK;
use tally_numerics::digest::Digest;
use tally_numerics::manifest::Manifest;
use tally_numerics::state::State;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;
use tally_worker::cuda_probe;
use tally_worker::device::Precision;
use tally_worker::engine::{EngineError, Replica};
use tally_worker::panic_message::panic_message;

use self::device::{Device, Found, Landing, Memory, Outcome, Pinned};
use self::inputs::Ahead;
use self::layers::Variant;
use self::pass::{Back, Network, PARTS};
use self::plan::{AT_ONCE, PIECE, Plan};
use self::program::Sources;
use self::state::DeviceState;
use super::burn::Network as _;
use super::burn::networks::Reference;
use super::outputs::OUTPUTS;
use super::{DigitEngine, LabelLoss, Losses, Outputs};
use crate::data::Samples;

/// Elements that a thread copies at a time.
const COPIED: usize = 1 << 16;

/// The reference network on a GPU.
pub struct GpuEngine {
    manifest: Manifest,
    loss: LabelLoss,
    precision: Precision,
    /// How the kernels differ from the usual ones: each word with a comma before it.
    special: String,
    /// The GPU's model.
    model: String,
    number: usize,
    device: Device,
    network: Network,
    state: DeviceState,
    /// Whether the network's weights are the committed ones.
    packed: bool,
    ahead: Ahead,
    /// The most samples of a pass that there is room for.
    at_once: usize,
    slots: Memory,
    slot_count: usize,
    /// Where parts of a sum come down, and answers.
    landing: Landing,
    answers: Pinned,
    /// A sum's upper halves, once they are asked for.
    halves: Option<Memory>,
    /// Why the device failed where that could not be said.
    failed: Option<EngineError>,
}

fn failed(what: impl std::fmt::Display) -> EngineError {
    EngineError::Failed { backend: "CUDA", what: what.to_string() }
}

/// What the driver said, in words where it has none.
fn said(error: DriverError) -> EngineError {
    match device::is_for_want_of_memory(&error) {
        true => failed("the device has not enough memory left"),
        false => failed(error),
    }
}

impl GpuEngine {
    /// An engine whose state is zero until it is given one, on GPU `number`.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] says what is missing, [`EngineError::Failed`] that nothing is and
    /// that it does not work all the same.
    pub fn new(loss: LabelLoss, precision: Precision, number: usize) -> Result<Self, EngineError> {
        let model = cuda_probe::name(number)?;
        let manifest = Reference.manifest();
        let found = Found::new(number).map_err(said)?;
        let shared = found.shared;
        let how = Variant::of_the_environment().map_err(failed)?;
        how.suits(precision, found.capability, shared).map_err(failed)?;
        tracing::info!("compiling the kernels for {model}, {precision}");
        let sources = Sources::of_the_environment();
        let words = [how.to_string(), sources.to_string()];
        let special = words.iter().filter(|word| !word.is_empty()).map(|word| format!(", {word}")).collect();
        let source = program::source(&sources, &manifest, precision, how, shared).map_err(failed)?;
        let device = found.compile(&source, &program::kernels(), how.wgmma, how.streams).map_err(failed)?;
        let length = manifest.len();
        let made = || -> Outcome<_> {
            let network = Network::new(&device, &manifest, how, shared)?;
            let state = DeviceState::new(&device, length)?;
            let landing = device.landing(4 * length, PARTS.len())?;
            Ok((network, state, landing, device.memory::<f32>(0)?, device.pinned(0)?))
        };
        let (network, state, landing, slots, answers) = made().map_err(said)?;
        Ok(Self {
            manifest,
            loss,
            precision,
            special,
            model,
            number,
            device,
            network,
            state,
            packed: false,
            ahead: Ahead::default(),
            at_once: AT_ONCE,
            slots,
            slot_count: 0,
            landing,
            answers,
            halves: None,
            failed: None,
        })
    }

    /// The same once it has shown that it computes what it must.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`EngineError::Failed`] says what it computes wrong.
    pub fn checked(loss: LabelLoss, precision: Precision, number: usize) -> Result<Self, EngineError> {
        // cudarc panics where a driver lacks a function.
        let made = catch_unwind(|| Self::new(loss, precision, number));
        let mut engine = made.unwrap_or_else(|panic| Err(failed(panic_message(&*panic))))?;
        let precision = engine.precision;
        state::check(&engine.device).map_err(failed)?;
        check::check(&mut engine, precision, loss).map_err(failed)?;
        engine.load(State::zeros(&engine.manifest, 1));
        Ok(engine)
    }

    /// Milliseconds that the device has computed since the last call, without copies across the bus. The first call returns 0 and
    /// starts the measurement.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device does, [`EngineError::Unavailable`] if the driver cannot say it.
    pub fn device_ms(&self) -> Result<f64, EngineError> {
        // cudarc panics where a driver lacks a function: drivers before CUDA 12.8 lack the one that cudarc asks for here.
        match catch_unwind(AssertUnwindSafe(|| self.device.milliseconds())) {
            Ok(asked) => asked.map_err(said),
            Err(panic) => Err(EngineError::Unavailable(panic_message(&*panic))),
        }
    }

    /// Does `work` while a profiler looks, if there is one that waits for this call.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the device fails, or as `work` does.
    pub fn profiled<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let profiler = self.device.profiler().map_err(said)?;
        let made = work(self);
        drop(profiler);
        made
    }

    fn check(&mut self) -> Result<(), EngineError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Keeps an error for the next who can be told.
    fn keep(&mut self, outcome: Outcome<()>) {
        if let Err(error) = outcome {
            self.failed.get_or_insert(said(error));
        }
    }

    fn pack(&mut self) -> Outcome<()> {
        if !self.packed {
            self.device.timed(|| self.network.pack(&self.device, self.state.parameters()))?;
            self.packed = true;
        }
        Ok(())
    }

    /// Runs `work` with room for so many samples, and, where the device has not so much, for fewer.
    fn with_room<T>(
        &mut self,
        samples: usize,
        mut work: impl FnMut(&mut Self, usize) -> Outcome<T>,
    ) -> Result<T, EngineError> {
        loop {
            let at_once = self.at_once.min(samples.next_multiple_of(PIECE));
            let error = match work(self, at_once) {
                Ok(made) => return Ok(made),
                Err(error) => error,
            };
            // Nothing may be on its way to memory that is given back.
            let _ = self.device.down.synchronize();
            let _ = self.device.weights.synchronize();
            self.ahead.clear();
            if !device::is_for_want_of_memory(&error) || at_once <= PIECE {
                return Err(said(error));
            }
            self.at_once = (at_once / 2).next_multiple_of(PIECE);
            self.slot_count = 0;
            self.slots = self.device.memory::<f32>(0).map_err(said)?;
            self.network.shrink(&self.device).map_err(said)?;
            tracing::info!("{}: computing {} samples at once, for want of memory", self.model, self.at_once);
        }
    }

    /// A subtree of which some leaf has a sample: everything is given to the device, and the parts of the sum are read as they are done.
    fn sum(
        &mut self,
        leaves: &[&Samples],
        back: Back,
        rounding: WireDtype,
        at_once: usize,
        take: &mut dyn FnMut(Range<usize>, &[u8]),
    ) -> Outcome<Vec<f32>> {
        self.pack()?;
        let rounded = match rounding {
            WireDtype::F32 => false,
            WireDtype::Bf16 => true,
        };
        let plan = Plan::new(&leaves.iter().map(|leaf| leaf.len()).collect::<Vec<_>>(), at_once);
        let Some(result) = plan.result else { return Ok(Vec::new()) };
        let parts = parts(&self.manifest);
        let length = self.manifest.len();
        let Self { device, network, state, ahead, slots, slot_count, landing, answers, halves, .. } = self;
        if *slot_count < plan.slots {
            // What there was goes first: there may not be room for both.
            *slot_count = 0;
            *slots = device.memory::<f32>(0)?;
            (*slots, *slot_count) = (device.memory::<f32>(plan.slots * length)?, plan.slots);
        }
        let slots = slots.start();
        let most = plan.passes.iter().map(plan::Pass::samples).max().unwrap_or(0);
        let all: usize = leaves.iter().map(|leaf| leaf.len()).sum();
        let answer_bytes = size_of::<f32>() * OUTPUTS;
        if answers.bytes() < most * answer_bytes {
            *answers = device.pinned(most * answer_bytes)?;
        }
        let mut outputs: Vec<f32> = Vec::with_capacity(all * OUTPUTS);
        if rounded && halves.is_none() {
            *halves = Some(device.memory::<u16>(length)?);
        }
        for (index, pass) in plan.passes.iter().enumerate() {
            let samples = pass.samples();
            let inputs = network.inputs(device, most)?;
            let mut at = 0;
            for piece in &pass.pieces {
                ahead.take(device, leaves[piece.leaf], (piece.first, piece.count), inputs, at)?;
                at += piece.count;
            }
            let tables = network.tables(device, pass, rounded)?;
            let last = index + 1 == plan.passes.len();
            device.timed(|| {
                let given = network.forward(device, state.parameters(), samples, Some(back))?;
                let answered = device.event()?;
                answered.record(&device.compute)?;
                device.down.wait(&answered)?;
                device.download(&device.down, given, samples * answer_bytes, answers)?;
                network.backward(device, samples, &tables, slots, |part| {
                    let range = parts[part].clone();
                    network.add_nodes(device, &tables, slots, range.clone(), rounded)?;
                    if !last {
                        return Ok(());
                    }
                    let sum = slots.after::<f32>(result * length + range.start);
                    let from = match &*halves {
                        Some(halves) if rounded => {
                            let half = halves.start().after::<u16>(range.start);
                            let grid = [range.len().div_ceil(256), 1];
                            let values = device::values![sum, half, range.len()];
                            device.launch_in(&device.weights, "upper_halves", grid, 256, 0, &values)?;
                            half
                        }
                        _ => sum,
                    };
                    let done = device.event()?;
                    done.record(&device.weights)?;
                    device.down.wait(&done)?;
                    device.land(&device.down, from, landing, part, bytes(&range, rounding))
                })
            })?;
            outputs.extend_from_slice(answers.read(samples * OUTPUTS)?);
        }
        for (index, part) in parts.into_iter().enumerate() {
            // All earlier parts have landed, too.
            let sum = landing.up_to(index, bytes(&part, rounding).end)?;
            take(part, sum);
        }
        Ok(outputs)
    }

    /// Computes a node's sum and gives it to `take`, part after part: the part's elements, and all bytes from the sum's start to
    /// the part's end.
    fn parts_of_node(
        &mut self,
        leaves: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        take: &mut dyn FnMut(Range<usize>, &[u8]),
    ) -> Result<Vec<Losses>, EngineError> {
        let loss = self.loss;
        let samples = leaves.iter().map(|leaf| leaf.len()).sum();
        let outputs = self.with_room(samples, |engine, at_once| {
            engine.sum(leaves, Back { loss, scale }, rounding, at_once, take)
        })?;
        let mut outputs = outputs.as_slice();
        let losses = leaves.iter().map(|leaf| {
            let (own, rest) = outputs.split_at(leaf.len() * OUTPUTS);
            outputs = rest;
            Outputs::from_rows(own).losses(leaf, loss)
        });
        Ok(losses.collect())
    }

    /// The sum of leaves without samples, which needs no device. None if a leaf has samples.
    fn sum_of_nothing(
        leaves: &[&Samples],
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Option<Vec<Losses>> {
        leaves.iter().all(|leaf| leaf.is_empty()).then(|| {
            out.fill(0.0);
            ready(out);
            vec![Losses::default(); leaves.len()]
        })
    }
}

/// The bytes of a stretch of the sum, counted from the sum's start.
fn bytes(range: &Range<usize>, rounding: WireDtype) -> Range<usize> {
    rounding.bytes() * range.start..rounding.bytes() * range.end
}

/// The stretches of the manifest that are read back at once.
fn parts(manifest: &Manifest) -> Vec<Range<usize>> {
    let range = |name: &str| manifest.find(name).map_or(0..0, |index| manifest.range(index));
    PARTS.iter().map(|(first, last)| range(first).start..range(last).end).collect()
}

impl Replica for GpuEngine {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn device_name(&self) -> String {
        let Self { model, number, precision, special, .. } = self;
        format!("{model} (CUDA device {number}, Tally's kernels, {precision}{special})")
    }

    fn numerics_class(&self) -> String {
        let Self { model, precision, special, .. } = self;
        format!("{model}, {precision}{special}")
    }

    fn load(&mut self, state: State) -> Digest {
        assert!(state.fits(&self.manifest), "a state has the manifest's length");
        self.packed = false;
        self.ahead.clear();
        // What failed before was another session's.
        self.failed = None;
        let digest = state.digest();
        let loaded = self.state.load(&self.device, &state);
        self.keep(loaded);
        digest
    }

    fn state(&mut self) -> Result<State, EngineError> {
        self.check()?;
        self.state.read(&self.device).map_err(said)
    }

    fn previous_state(&mut self) -> Option<State> {
        self.state.before(&self.device).unwrap_or_else(|error| {
            tracing::warn!("the step before is lost: {error}");
            None
        })
    }

    fn apply(&mut self, update: &Update, first: usize, gradient: &[f32]) -> Digest {
        let applied = self.state.apply(&self.device, update, first, gradient);
        self.keep(applied);
        Digest::default()
    }

    fn finish_update(&mut self) -> Result<Digest, EngineError> {
        self.check()?;
        self.state.finish(&self.device).map_err(failed)
    }

    fn commit(&mut self) {
        self.packed = false;
        self.state.commit();
    }
}

impl DigitEngine for GpuEngine {
    fn prefetch(&mut self, samples: &Samples) {
        if samples.is_empty() {
            return;
        }
        match self.ahead.bring(&self.device, samples) {
            Ok(_) => (),
            // They come up with their step, when there may be room.
            Err(error) if device::is_for_want_of_memory(&error) => tracing::debug!("no room ahead: {error}"),
            Err(error) => self.keep(Err(error)),
        }
    }

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
        leaves: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Losses>, EngineError> {
        assert_eq!(out.len(), self.manifest.len(), "a gradient has the manifest's length");
        self.check()?;
        if let Some(losses) = Self::sum_of_nothing(leaves, out, ready) {
            return Ok(losses);
        }
        self.parts_of_node(leaves, scale, rounding, &mut |part, sum| {
            // A chunk leaves while the next ones are copied.
            for first in part.clone().step_by(CHUNK) {
                let end = part.end.min(first + CHUNK);
                let size = rounding.bytes();
                let pieces = sum[bytes(&(first..end), rounding)].par_chunks(size * COPIED);
                let pieces = pieces.zip(out[first..end].par_chunks_mut(COPIED));
                pieces.for_each(|(bytes, into)| rounding.unpack(bytes, into));
                ready(&out[..end]);
            }
        })
    }

    fn node_gradient_as_ready(
        &mut self,
        leaves: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Losses>, EngineError> {
        if rounding != WireDtype::F32 || cfg!(target_endian = "big") {
            return self.node_gradient(leaves, scale, rounding, out, ready);
        }
        self.check()?;
        if let Some(losses) = Self::sum_of_nothing(leaves, out, ready) {
            return Ok(losses);
        }
        self.parts_of_node(leaves, scale, rounding, &mut |_, sum| ready(bytemuck::cast_slice(sum)))
    }

    fn predict(&mut self, samples: &Samples) -> Result<Outputs, EngineError> {
        self.check()?;
        if samples.is_empty() {
            return Ok(Outputs::default());
        }
        let outputs = self.with_room(samples.len(), |engine, at_once| {
            engine.pack()?;
            let GpuEngine { device, network, state, ahead, answers, .. } = engine;
            let most = at_once.min(samples.len());
            let bytes = size_of::<f32>() * OUTPUTS;
            if answers.bytes() < most * bytes {
                *answers = device.pinned(most * bytes)?;
            }
            let mut outputs: Vec<f32> = Vec::with_capacity(samples.len() * OUTPUTS);
            // These may be others than those of the same ids that were brought up for training.
            ahead.bring(device, samples)?;
            for first in (0..samples.len()).step_by(at_once) {
                let count = at_once.min(samples.len() - first);
                let inputs = network.inputs(device, most)?;
                ahead.take(device, samples, (first, count), inputs, 0)?;
                let given = network.forward(device, state.parameters(), count, None)?;
                device.download(&device.compute, given, count * bytes, answers)?;
                outputs.extend_from_slice(answers.read(count * OUTPUTS)?);
            }
            Ok(outputs)
        })?;
        Ok(Outputs::from_rows(&outputs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_whole_manifest_in_its_order() {
        let manifest = Reference.manifest();
        let mut end = 0;
        for part in parts(&manifest) {
            assert!(part.start == end && !part.is_empty(), "{part:?}");
            end = part.end;
        }
        assert_eq!(end, manifest.len());
    }
}
