//! Computing with Burn: one engine for every device that Burn has a backend for.
//!
//! The truth is a [`Replica`] in the host's memory, updated there by the arithmetic that
//! coordinator and workers share (**REP-1**). The device's tensors are copies of the
//! committed parameters, made when the first leaf after a commit needs them. A gradient
//! is Burn's automatic differentiation of the network's forward pass; the losses and
//! their gradient by the outputs are worked out on the host ([`losses`]).
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

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use burn_autodiff::Autodiff;
use rayon::ThreadPool;
use tally_data::Samples;
use tally_exact::digest::Digest;
use tally_exact::loss::LossParts;
use tally_exact::manifest::Manifest;
use tally_exact::update::Update;

pub use convolution::ConvolutionBackend;
pub use network::{Network, Outputs, Parameters};

use super::replica::Replica;
use super::{Answers, Engine, EngineError, LabelLoss, losses};

/// How many samples are answered at once, so that a long list needs no more memory than
/// a training step. Fixed, so that a sample's answer does not depend on the list's length
/// beyond that.
const PREDICT_AT_ONCE: usize = 64;

/// Where an engine computes.
pub struct Place<B: Backend> {
    /// The backend's name, for errors: `"CPU"`.
    pub backend: &'static str,
    /// The device in words, for logs.
    pub words: String,
    /// The device.
    pub device: B::Device,
    /// The threads on which it computes; the caller's own without a pool.
    pub pool: Option<ThreadPool>,
}

impl<B: Backend> Place<B> {
    /// Runs `work` on the place's threads. A panic in it, which is how Burn reports a
    /// device's failure, becomes an error.
    pub fn run<T: Send>(
        &self,
        work: impl FnOnce(&B::Device) -> Result<T, String> + Send,
    ) -> Result<T, EngineError> {
        let device = &self.device;
        let result = catch_unwind(AssertUnwindSafe(|| match &self.pool {
            Some(pool) => pool.install(|| work(device)),
            None => work(device),
        }));
        result
            .unwrap_or_else(|panic| Err(words_of(&*panic)))
            .map_err(|what| EngineError::Failed { backend: self.backend, what })
    }
}

/// What a panic said.
pub fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked without a word").to_owned()
}

/// A network on a Burn backend.
pub struct BurnEngine<B: Backend, N> {
    network: N,
    loss: LabelLoss,
    manifest: Manifest,
    place: Place<B>,
    replica: Replica,
    /// The committed parameters on the device; none since they last changed.
    parameters: Option<Parameters<B>>,
}

impl<B: Backend, N: Network> BurnEngine<B, N> {
    /// An engine whose parameters and momentum are zeros until it is given a state.
    #[must_use]
    pub fn new(network: N, loss: LabelLoss, place: Place<B>) -> Self {
        let manifest = network.manifest();
        let mut replica = Replica::default();
        replica.load(vec![0.0; manifest.len()], vec![0.0; manifest.len()]);
        Self { network, loss, manifest, place, replica, parameters: None }
    }
}

/// The committed parameters on the device, copied there unless they already are.
fn on_device<'a, B: Backend>(
    parameters: &'a mut Option<Parameters<B>>,
    place: &Place<B>,
    manifest: &Manifest,
    committed: &[f32],
) -> Result<&'a Parameters<B>, EngineError> {
    let there = match parameters.take() {
        Some(there) => there,
        None => place.run(|device| {
            let copy = |index| {
                let values = &committed[manifest.range(index)];
                Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
            };
            Ok(Parameters::new(manifest.clone(), (0..manifest.tensors().len()).map(copy).collect()))
        })?,
    };
    Ok(parameters.insert(there))
}

impl<B: ConvolutionBackend, N: Network> Engine for BurnEngine<B, N> {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn device(&self) -> String {
        self.place.words.clone()
    }

    fn load(&mut self, parameters: Vec<f32>, momentum: Vec<f32>) -> Digest {
        assert_eq!(parameters.len(), self.manifest.len(), "a state has the manifest's length");
        self.parameters = None;
        self.replica.load(parameters, momentum)
    }

    fn state(&mut self) -> (Vec<f32>, Vec<f32>) {
        (self.replica.parameters().to_vec(), self.replica.momentum().to_vec())
    }

    fn before(&mut self) -> Option<(Vec<f32>, Vec<f32>)> {
        self.replica.before().map(|(parameters, momentum)| (parameters.to_vec(), momentum.to_vec()))
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
        let Self { network, loss, manifest, place, replica, parameters } = self;
        let parameters = on_device(parameters, place, manifest, replica.parameters())?;
        let (losses, gradients) =
            place.run(|device| backward(&*network, parameters, samples, *loss, scale, device))?;
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

    fn apply(&mut self, update: Update, first: usize, gradient: &[f32]) -> Digest {
        self.replica.apply(update, first, gradient)
    }

    fn commit(&mut self) {
        self.parameters = None;
        self.replica.commit();
    }

    fn predict(&mut self, samples: &Samples) -> Result<Answers, EngineError> {
        let Self { network, manifest, place, replica, parameters, .. } = self;
        let network = &*network;
        let parameters = on_device(parameters, place, manifest, replica.parameters())?;
        place.run(|device| {
            let mut outputs = Vec::with_capacity(samples.len() * losses::OUTPUTS);
            for first in (0..samples.len()).step_by(PREDICT_AT_ONCE) {
                let end = samples.len().min(first + PREDICT_AT_ONCE);
                let (images, numbers) = inputs::tensors::<B>(samples, first, end, device);
                let joined = network.forward(parameters, images, numbers).joined();
                read(joined, |values| outputs.extend_from_slice(values))?;
            }
            Ok(losses::answers(&outputs))
        })
    }
}

/// A leaf's losses, and the gradient by each parameter, in the manifest's order.
type Gradients<B> = (LossParts, Vec<Option<Tensor<B, 1>>>);

fn backward<B: ConvolutionBackend, N: Network>(
    network: &N,
    parameters: &Parameters<B>,
    samples: &Samples,
    loss: LabelLoss,
    scale: f32,
    device: &B::Device,
) -> Result<Gradients<B>, String> {
    let tracked = parameters.map(|flat| Tensor::<Autodiff<B>, 1>::from_inner(flat).require_grad());
    let (images, numbers) = inputs::tensors::<Autodiff<B>>(samples, 0, samples.len(), device);
    let joined = network.forward(&tracked, images, numbers).joined();

    let mut answers = Answers::default();
    read(joined.clone().inner(), |outputs| answers = losses::answers(outputs))?;
    let by_outputs = losses::output_gradient(&answers, samples, loss, scale);
    let by_outputs = TensorData::new(by_outputs, [samples.len(), losses::OUTPUTS]);

    // The backward pass of Σ outputs·constants starts with the constants themselves.
    let mut gradients = (joined * Tensor::from_data(by_outputs, device)).sum().backward();
    let by_parameters = tracked.flat().iter().map(|flat| flat.grad_remove(&mut gradients)).collect();
    Ok((answers.losses(samples, loss), by_parameters))
}

/// Hands a tensor's values to `take`, without a copy where the backend can.
fn read<B: Backend, const D: usize>(tensor: Tensor<B, D>, take: impl FnOnce(&[f32])) -> Result<(), String> {
    let data = tensor.try_into_data().map_err(|error| error.to_string())?;
    take(data.as_slice().map_err(|error| format!("{error:?}"))?);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::thread;

    use tally_data::samples::PIXELS;

    use super::*;
    use crate::engine::ModelSpec;
    use crate::engine::backend::{BackendChoice, build};

    /// Samples like digits on a black background, without a file of them.
    fn samples(ids: impl IntoIterator<Item = u32>) -> Samples {
        let ids: Vec<u32> = ids.into_iter().collect();
        let pixel = |id: u32, place: u32| match (place.wrapping_mul(2_654_435_761) ^ id.wrapping_mul(40_503))
            >> 7
            & 1023
        {
            bright @ 0..256 => bright as u8,
            _ => 0,
        };
        let pixels =
            ids.iter().flat_map(|&id| (0..PIXELS as u32).map(move |place| pixel(id, place))).collect();
        let numbers = ids.iter().map(|id| (id * 7 % 10) as u8).collect();
        let labels = ids.iter().map(|id| (id * 3 % 10) as u8).collect();
        Samples::new(ids, pixels, numbers, labels).unwrap()
    }

    fn engine(model: ModelSpec, loss: LabelLoss, threads: usize) -> Box<dyn Engine> {
        let mut engine = build(&model, loss, BackendChoice::Cpu, 0, threads).unwrap();
        let parameters = tally_exact::init::parameters(engine.manifest(), 5);
        let momentum = vec![0.0; parameters.len()];
        engine.load(parameters, momentum);
        engine
    }

    fn gradient(engine: &mut dyn Engine, samples: &Samples) -> (LossParts, Vec<u32>) {
        let mut out = vec![f32::NAN; engine.manifest().len()];
        let losses = engine.gradient(samples, 1.0 / 64.0, &mut out, &mut |_| ()).unwrap();
        (losses, out.iter().map(|g| g.to_bits()).collect())
    }

    /// SUM-1: on one machine, whatever the number of threads and whatever came before.
    #[test]
    fn sum_1_a_gradients_bits_depend_on_samples_and_parameters_alone() {
        for model in [ModelSpec::Mlp, ModelSpec::Reference] {
            let leaf = samples(0..8);
            let (mut one, mut two) = (
                engine(model.clone(), LabelLoss::CrossEntropy, 1),
                engine(model, LabelLoss::CrossEntropy, 2),
            );
            let alone = gradient(one.as_mut(), &leaf);
            gradient(two.as_mut(), &samples(8..19));
            assert!(alone == gradient(two.as_mut(), &leaf), "two threads, after another leaf");
            assert!(alone == gradient(two.as_mut(), &leaf), "repeated");
            two.predict(&samples(3..5)).unwrap();
            // An engine beside it on other threads, as in the local mode.
            let beside = thread::scope(|scope| {
                let beside = scope.spawn(|| gradient(two.as_mut(), &leaf));
                (gradient(one.as_mut(), &leaf), beside.join().unwrap())
            });
            assert!(beside == (alone.clone(), alone), "two engines at once");
        }
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_losses() {
        let leaf = samples(0..6);
        for loss in [LabelLoss::CrossEntropy, LabelLoss::SoftmaxNll] {
            let mut engine = engine(ModelSpec::Mlp, loss, 2);
            let (parameters, momentum) = engine.state();
            let mut out = vec![f32::NAN; parameters.len()];
            let losses = engine.gradient(&leaf, 0.5, &mut out, &mut |_| ()).unwrap();
            let answered = engine.predict(&leaf).unwrap().losses(&leaf, loss);
            assert!((losses.total() / answered.total() - 1.0).abs() < 1e-6, "{losses:?}, {answered:?}");

            for index in 0..engine.manifest().tensors().len() {
                let range = engine.manifest().range(index);
                for place in [range.start, (range.start + range.end) / 2, range.end - 1] {
                    let mut at = |shift: f32| {
                        let mut shifted = parameters.clone();
                        shifted[place] += shift;
                        engine.load(shifted, momentum.clone());
                        engine.predict(&leaf).unwrap().losses(&leaf, loss).total()
                    };
                    // Answers are float32, so that the losses' differences are good to some 1e-3.
                    let step = 1e-3;
                    let slope = 0.5 * (at(step) - at(-step)) / (2.0 * f64::from(step));
                    let error = (slope - f64::from(out[place])).abs();
                    let name = &engine.manifest().tensors()[index].name;
                    assert!(
                        error < 0.003 * slope.abs() + 0.003,
                        "{loss}, {name}, element {place}: {slope}, not {}",
                        out[place]
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_ready_grows_by_tensors_to_the_whole_gradient() {
        let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 1);
        let manifest = engine.manifest().clone();
        let mut out = vec![f32::NAN; manifest.len()];
        let mut prefixes = Vec::new();
        engine.gradient(&samples(0..2), 1.0, &mut out, &mut |done| prefixes.push(done.to_vec())).unwrap();
        let ends: Vec<usize> = (0..manifest.tensors().len()).map(|index| manifest.range(index).end).collect();
        assert_eq!(prefixes.iter().map(Vec::len).collect::<Vec<_>>(), ends);
        assert!(prefixes.iter().all(|prefix| *prefix == out[..prefix.len()]), "what was ready is final");
    }

    #[test]
    fn no_samples_have_no_gradient() {
        let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 1);
        let (losses, bits) = gradient(engine.as_mut(), &samples([]));
        assert_eq!(losses, LossParts::default());
        assert!(bits.iter().all(|&bits| bits == 0));
        assert!(engine.predict(&samples([])).unwrap().is_empty());
    }

    /// REP-1: an engine's update is the shared one, and it computes on with what was committed.
    #[test]
    fn rep_1_the_update_counts_from_the_commit_on() {
        let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 1);
        let leaf = samples(0..8);
        let update = Update { learning_rate: 0.01, momentum: 0.9, clip: 0.5 };
        let (mut parameters, mut momentum) = engine.state();
        for _ in 0..3 {
            let (_, bits) = gradient(engine.as_mut(), &leaf);
            let gradient: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
            let middle = gradient.len() / 2;
            let digest = engine.apply(update, middle, &gradient[middle..]).and(engine.apply(
                update,
                0,
                &gradient[..middle],
            ));
            assert_eq!(engine.state(), (parameters.clone(), momentum.clone()), "not before the commit");
            assert_eq!(update.apply(0, &gradient, &mut parameters, &mut momentum), digest);
            engine.commit();
            assert_eq!(engine.state(), (parameters.clone(), momentum.clone()));
        }
        let later = gradient(engine.as_mut(), &leaf);
        let mut other = self::engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 1);
        other.load(parameters, momentum);
        assert!(later == gradient(other.as_mut(), &leaf), "the device has the committed parameters");
    }

    #[test]
    fn training_lowers_the_loss() {
        let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 2);
        let leaf = samples(0..64);
        let update = Update { learning_rate: 0.002, momentum: 0.9, clip: 1.0 };
        let mut totals = Vec::new();
        for _ in 0..100 {
            let (losses, bits) = gradient(engine.as_mut(), &leaf);
            totals.push(losses.total());
            let gradient: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
            engine.apply(update, 0, &gradient);
            engine.commit();
        }
        assert!(totals[99] < 0.2 * totals[0], "{totals:?}");
    }

    /// A NaN in any tensor must reach losses and gradient, wherever a ReLU or a pool lies between.
    #[test]
    fn a_nan_passes_through() {
        for model in [ModelSpec::Mlp, ModelSpec::Reference] {
            let mut engine = engine(model, LabelLoss::CrossEntropy, 2);
            let manifest = engine.manifest().clone();
            let (parameters, momentum) = engine.state();
            for name in
                ["conv1.weight", "conv3.bias", "conv6.weight", "dense1.weight", "digit1.bias", "sum1.weight"]
            {
                let Some(index) = manifest.find(name) else { continue };
                let mut sick = parameters.clone();
                sick[manifest.range(index).start] = f32::NAN;
                engine.load(sick, momentum.clone());
                let (losses, bits) = gradient(engine.as_mut(), &samples(0..1));
                assert!(losses.total().is_nan(), "{name}: {losses:?}");
                assert!(bits.iter().any(|&bits| f32::from_bits(bits).is_nan()), "{name}");
            }
        }
    }

    #[test]
    fn an_answer_does_not_depend_on_what_is_asked_beside_it() {
        let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 2);
        let (many, few) =
            (engine.predict(&samples(0..150)).unwrap(), engine.predict(&samples(64..128)).unwrap());
        assert_eq!(many.len(), 150);
        assert_eq!((&many.logits[64..128], &many.sums[64..128]), (&few.logits[..], &few.sums[..]));
    }

    #[test]
    fn a_panic_on_the_device_becomes_an_error() {
        let place = Place::<burn_flex::Flex> {
            backend: "CPU",
            words: String::new(),
            device: burn_flex::FlexDevice,
            pool: Some(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap()),
        };
        let error = place.run::<()>(|_| panic!("out of {}", "memory")).unwrap_err();
        assert_eq!(error.to_string(), "the CPU backend failed: out of memory");
    }
}
