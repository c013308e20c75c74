//! A job as an engine of the cluster, on any backend of Burn's that has the update.

use std::sync::{Mutex, PoisonError};

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Distribution, Tensor};
use tally_numerics::CHUNK;
use tally_numerics::digest::Digest;
use tally_numerics::manifest::{Manifest, TensorSpec};
use tally_numerics::random::{Purpose, Stream};
use tally_numerics::schema::Sums;
use tally_numerics::state::State;
use tally_numerics::sum::Fold;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;
use tally_proto::convert::Microbatch;
use tally_worker::burn::sum::{self, Sum, rounded};
use tally_worker::burn::{CheckedReplica, DeviceContext, Memory, RoundingBackend, UpdateBackend};
use tally_worker::engine::{Engine, EngineError, Replica, one_by_one};

use super::job::{Job, StepOutput};
use super::module::{Layout, read};

/// Samples that are named where a microbatch fails.
const NAMED: usize = 16;

/// A job on a device.
pub(super) struct JobEngine<B: AutodiffBackend>
where
    B::InnerBackend: UpdateBackend + RoundingBackend,
{
    job: Box<dyn Job<B>>,
    layout: Layout,
    replica: CheckedReplica<B::InnerBackend>,
    /// The module has the committed parameters, and the run's constants.
    loaded: (bool, bool),
    /// The device rounds as the wire does.
    rounds: bool,
    seed: u64,
    /// Samples weigh differently.
    weighted: bool,
    /// Whether a step draws from the backend's generator, once one was computed.
    draws: Option<bool>,
}

impl<B: AutodiffBackend> JobEngine<B>
where
    B::InnerBackend: UpdateBackend + RoundingBackend,
{
    /// An engine whose state is zero until it is given one. `make` makes the job on the
    /// context's threads. `seed` is the run's. If `local`, samples come as numbers only.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the job cannot be made, or the device has no room for it.
    pub fn new(
        context: DeviceContext<B::InnerBackend>,
        seed: u64,
        local: bool,
        make: impl FnOnce(&B::Device) -> anyhow::Result<Box<dyn Job<B>>> + Send,
    ) -> Result<Self, EngineError> {
        let on_device = context.memory == Memory::Device;
        // What a program says of itself is no failure of the device.
        let made = context.run(|device| Ok(prepared(device, seed, local, make)))?;
        let (job, layout, weighted) = made.map_err(EngineError::Arguments)?;
        let rounds = on_device && context.run(sum::rounds::<B::InnerBackend>)?;
        let replica = CheckedReplica::new(context, State::zeros(layout.manifest(), 1))?;
        Ok(Self { job, layout, replica, loaded: (false, false), rounds, seed, weighted, draws: None })
    }

    /// Gives the module the committed parameters, if it does not have them.
    fn ready(&mut self) -> Result<(), EngineError> {
        self.replica.check()?;
        if !self.loaded.0 {
            let Self { job, layout, replica: CheckedReplica { context, replica, .. }, loaded, .. } = self;
            context.run(|_| {
                let constants = (!loaded.1).then(|| replica.constants());
                job.load(layout, replica.parameters(), constants);
                Ok(())
            })?;
            self.loaded = (true, true);
        }
        Ok(())
    }

    /// The gradients of microbatches whose sum is computed on the device and read back once.
    fn on_device(
        &mut self,
        microbatches: &[&Microbatch],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Sums>, EngineError> {
        self.ready()?;
        let Self { job, layout, replica, seed, draws, weighted, .. } = self;
        let context = &replica.context;
        let (read, losses) = context.run(|device| {
            let mut fold = Fold::default();
            let mut losses = Vec::with_capacity(microbatches.len());
            for samples in microbatches {
                if samples.is_empty() {
                    losses.push(None);
                    fold.push(None, |left: Tensor<_, 1>, right| rounded(left + right, rounding));
                    continue;
                }
                let StepOutput { gradients, loss, weight } =
                    step(&mut **job, layout, samples, device, *seed, draws)?;
                let factor = factor(scale, weight, samples.len());
                let parts = gradients.into_iter().enumerate().map(|(index, gradient)| {
                    let tensor = &layout.manifest().tensors()[index];
                    match gradient {
                        Some(gradient) => gradient.mul_scalar(factor(tensor)),
                        None => Tensor::zeros([tensor.elements()], device),
                    }
                });
                let gradient = Tensor::cat(parts.collect(), 0);
                losses.push(Some((loss, weight)));
                fold.push(Some(rounded(gradient, rounding)), |left, right| rounded(left + right, rounding));
            }
            let read = fold.finish().map(|sum| Sum::read(sum, vec![Tensor::zeros([1], device)], rounding));
            let losses = losses.into_iter().map(|loss| match loss {
                Some((loss, weight)) => sums(loss(), weight, *weighted),
                None => Sums::default(),
            });
            Ok((read.transpose()?, losses.collect::<Vec<_>>()))
        })?;
        match read {
            None => {
                out.fill(0.0);
                ready(out);
            }
            // Each chunk can be sent while the next is copied.
            Some(sum) => {
                for first in (0..out.len()).step_by(CHUNK) {
                    let end = out.len().min(first + CHUNK);
                    sum.copy(first, &mut out[first..end]);
                    ready(&out[..end]);
                }
            }
        }
        Ok(losses)
    }

    /// The gradient of a microbatch that lies in the host's memory.
    fn in_host(&mut self, samples: &Microbatch, scale: f32, out: &mut [f32]) -> Result<Sums, EngineError> {
        self.ready()?;
        let Self { job, layout, replica, seed, draws, weighted, .. } = self;
        let context = &replica.context;
        context.run(|device| {
            let StepOutput { gradients, loss, weight } =
                step(&mut **job, layout, samples, device, *seed, draws)?;
            let factor = factor(scale, weight, samples.len());
            for (index, gradient) in gradients.into_iter().enumerate() {
                let factor = factor(&layout.manifest().tensors()[index]);
                let into = &mut out[layout.manifest().range(index)];
                match gradient {
                    Some(gradient) => {
                        let values = read(gradient)?;
                        into.iter_mut().zip(&values).for_each(|(into, value)| *into = value * factor);
                    }
                    None => into.fill(0.0),
                }
            }
            Ok(sums(loss(), weight, *weighted))
        })
    }
}

/// What a tensor's gradient, of a microbatch's mean loss, is multiplied with in the sum over the step: a running statistic
/// counts by samples whatever they weigh.
fn factor(scale: f32, weight: f64, samples: usize) -> impl Fn(&TensorSpec) -> f32 {
    move |tensor| scale * if tensor.buffer { samples as f32 } else { weight as f32 }
}

/// A job that is ready for a run, its layout, and whether samples weigh differently.
type PreparedJob<B> = (Box<dyn Job<B>>, Layout, bool);

fn prepared<B: AutodiffBackend>(
    device: &B::Device,
    seed: u64,
    local: bool,
    make: impl FnOnce(&B::Device) -> anyhow::Result<Box<dyn Job<B>>>,
) -> Result<PreparedJob<B>, String> {
    let mut job = make(device).map_err(in_full)?;
    job.prepare(seed, local);
    let layout = job.layout()?;
    let weighted = job.schema().map_err(|error| error.to_string())?.is_weighted();
    Ok((job, layout, weighted))
}

/// Burn's backends have one generator in a process. Whoever seeds it and draws from it holds this.
pub(super) static GENERATOR: Mutex<()> = Mutex::new(());

/// The forward and backward pass over a microbatch. What the model draws, such as dropout's masks, is fixed by the
/// run's seed, the step and the leaf (**SUM-1**). A model that draws has the process's generator for itself
/// meanwhile, so its workers in one process take turns.
fn step<B: AutodiffBackend>(
    job: &mut dyn Job<B>,
    layout: &Layout,
    samples: &Microbatch,
    device: &B::Device,
    seed: u64,
    draws: &mut Option<bool>,
) -> Result<StepOutput<B::InnerBackend>, String> {
    if *draws == Some(false) {
        return job.gradient(layout, samples, device).map_err(in_full);
    }
    let _generator = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let (step, leaf) = samples.place();
    let mut stream = Stream::new(seed, Purpose::Layers { step, leaf });
    let layers = u64::from(stream.word()) << 32 | u64::from(stream.word());
    let draw = || read(Tensor::<B::InnerBackend, 1>::random([4], Distribution::Default, device));
    let untouched = match draws {
        None => {
            B::seed(device, layers);
            Some(draw()?)
        }
        Some(_) => None,
    };
    B::seed(device, layers);
    let output = job.gradient(layout, samples, device).map_err(in_full)?;
    if let Some(untouched) = untouched {
        let drew = draw()? != untouched;
        if drew {
            tracing::info!("the model draws random numbers: workers in one process take turns");
        }
        *draws = Some(drew);
    }
    Ok(output)
}

/// A failure with the samples at which it was.
fn at(samples: &Microbatch) -> impl Fn(EngineError) -> EngineError {
    let (step, leaf) = samples.place();
    let some: Vec<String> = samples.ids().iter().take(NAMED).map(u32::to_string).collect();
    let more = if samples.len() > NAMED { " …" } else { "" };
    let place = format!("step {step}, microbatch {leaf}, samples {}{more}", some.join(" "));
    move |error| match error {
        EngineError::Failed { backend, what } => {
            EngineError::Failed { backend, what: format!("{what} ({place})") }
        }
        other => other,
    }
}

/// The sums of the loss of a microbatch, as the schema has them.
fn sums(mean: f64, weight: f64, weighted: bool) -> Sums {
    Sums(if weighted { vec![mean * weight, weight] } else { vec![mean * weight] })
}

/// An error with its causes, in one line.
fn in_full(error: anyhow::Error) -> String {
    format!("{error:#}")
}

impl<B: AutodiffBackend> Replica for JobEngine<B>
where
    B::InnerBackend: UpdateBackend + RoundingBackend,
{
    fn manifest(&self) -> &Manifest {
        self.layout.manifest()
    }

    fn device_name(&self) -> String {
        self.replica.context.name.clone()
    }

    fn numerics_class(&self) -> String {
        format!("{}, {}", self.replica.context.numerics_class, self.replica.context.precision)
    }

    fn load(&mut self, state: State) -> Digest {
        assert!(state.fits(self.manifest()), "a state has the manifest's length");
        self.loaded = (false, false);
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
        self.loaded.0 = false;
        self.replica.commit();
    }
}

impl<B: AutodiffBackend> Engine for JobEngine<B>
where
    B::InnerBackend: UpdateBackend + RoundingBackend,
{
    fn check(&self, samples: &Microbatch) -> Result<(), EngineError> {
        self.job.check(samples).map_err(|error| EngineError::Samples(in_full(error)))
    }

    fn gradient(
        &mut self,
        samples: &Microbatch,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Sums, EngineError> {
        assert_eq!(out.len(), self.manifest().trained_len(), "a gradient has the manifest's length");
        if samples.is_empty() {
            out.fill(0.0);
            ready(out);
            return Ok(Sums::default());
        }
        match self.replica.context.memory {
            Memory::Host => {
                let losses = self.in_host(samples, scale, out).map_err(at(samples))?;
                ready(out);
                Ok(losses)
            }
            Memory::Device => {
                let losses =
                    self.on_device(&[samples], scale, WireDtype::F32, out, ready).map_err(at(samples))?;
                Ok(losses.into_iter().next().unwrap_or_default())
            }
        }
    }

    fn fuses_nodes(&self, rounding: WireDtype) -> bool {
        self.replica.context.memory == Memory::Device && (rounding == WireDtype::F32 || self.rounds)
    }

    fn node_gradient(
        &mut self,
        microbatches: &[&Microbatch],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Sums>, EngineError> {
        assert_eq!(out.len(), self.manifest().trained_len(), "a gradient has the manifest's length");
        if self.fuses_nodes(rounding) {
            return self.on_device(microbatches, scale, rounding, out, ready);
        }
        let present = microbatches.iter().map(|microbatch| (!microbatch.is_empty()).then_some(*microbatch));
        one_by_one(present, rounding, out, ready, |microbatch, gradient| {
            self.gradient(microbatch, scale, gradient, &mut |_| ())
        })
    }

    fn evaluate(&mut self, samples: &Microbatch) -> Result<Sums, EngineError> {
        self.ready()?;
        let Self { job, replica: CheckedReplica { context, .. }, .. } = self;
        context.run(|device| job.evaluate(samples, device).map(Sums).map_err(in_full)).map_err(at(samples))
    }
}
