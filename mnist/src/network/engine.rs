//! A network as an engine of the cluster.

use tally_numerics::digest::Digest;
use tally_numerics::manifest::Manifest;
use tally_numerics::schema::Sums;
use tally_numerics::state::State;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;
use tally_proto::convert::Microbatch;
use tally_worker::engine::{Engine, EngineError, Replica};

use super::{DigitEngine, LabelLoss};
use crate::data::Samples;

/// An engine that decodes the samples of microbatches and measures a network's outputs.
pub struct MnistEngine {
    inner: Box<dyn DigitEngine>,
    label_loss: LabelLoss,
}

impl MnistEngine {
    /// The engine of a network. `inner` takes its gradients with the same label loss.
    #[must_use]
    pub fn new(inner: Box<dyn DigitEngine>, label_loss: LabelLoss) -> Self {
        Self { inner, label_loss }
    }
}

fn decode(microbatch: &Microbatch) -> Result<Samples, EngineError> {
    Samples::decode(microbatch).map_err(|error| EngineError::Samples(error.to_string()))
}

fn decode_all(microbatches: &[&Microbatch]) -> Result<Vec<Samples>, EngineError> {
    microbatches.iter().map(|samples| decode(samples)).collect()
}

impl Replica for MnistEngine {
    fn manifest(&self) -> &Manifest {
        self.inner.manifest()
    }

    fn device_name(&self) -> String {
        self.inner.device_name()
    }

    fn numerics_class(&self) -> String {
        self.inner.numerics_class()
    }

    fn load(&mut self, state: State) -> Digest {
        self.inner.load(state)
    }

    fn state(&mut self) -> Result<State, EngineError> {
        self.inner.state()
    }

    fn previous_state(&mut self) -> Option<State> {
        self.inner.previous_state()
    }

    fn apply(&mut self, update: &Update, first: usize, gradient: &[f32]) -> Digest {
        self.inner.apply(update, first, gradient)
    }

    fn finish_update(&mut self) -> Result<Digest, EngineError> {
        self.inner.finish_update()
    }

    fn commit(&mut self) {
        self.inner.commit();
    }
}

impl Engine for MnistEngine {
    fn check(&self, samples: &Microbatch) -> Result<(), EngineError> {
        decode(samples).map(drop)
    }

    fn prefetch(&mut self, samples: &Microbatch) {
        // Samples that cannot be read are an error in their own step.
        if let Ok(samples) = decode(samples) {
            self.inner.prefetch(&samples);
        }
    }

    fn gradient(
        &mut self,
        samples: &Microbatch,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Sums, EngineError> {
        Ok(self.inner.gradient(&decode(samples)?, scale, out, ready)?.into())
    }

    fn fuses_nodes(&self, rounding: WireDtype) -> bool {
        self.inner.fuses_nodes(rounding)
    }

    fn node_gradient(
        &mut self,
        microbatches: &[&Microbatch],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Sums>, EngineError> {
        let samples = decode_all(microbatches)?;
        let samples: Vec<&Samples> = samples.iter().collect();
        let losses = self.inner.node_gradient(&samples, scale, rounding, out, ready)?;
        Ok(losses.into_iter().map(Sums::from).collect())
    }

    fn node_gradient_as_ready(
        &mut self,
        microbatches: &[&Microbatch],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<Sums>, EngineError> {
        let samples = decode_all(microbatches)?;
        let samples: Vec<&Samples> = samples.iter().collect();
        let losses = self.inner.node_gradient_as_ready(&samples, scale, rounding, out, ready)?;
        Ok(losses.into_iter().map(Sums::from).collect())
    }

    fn evaluate(&mut self, samples: &Microbatch) -> Result<Sums, EngineError> {
        let samples = decode(samples)?;
        Ok(self.inner.predict(&samples)?.sums(&samples, self.label_loss))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::borrow::Cow;

    use tally_numerics::init;
    use tally_worker::device::{BackendChoice, DeviceOptions};

    use super::*;
    use crate::data::PIXELS;
    use crate::network::{ModelSpec, backend};

    const LOSS: LabelLoss = LabelLoss::CrossEntropy;

    fn samples(first: u32, count: usize) -> Samples {
        let pixels = (0..count * PIXELS).map(|i| (i as u32 * 7919 % 251 + first) as u8).collect();
        let ids = (first..).take(count).collect();
        Samples::new(ids, pixels, vec![3; count], vec![4; count]).unwrap()
    }

    /// The small network, and the same as an engine, with equal parameters.
    fn engines() -> (Box<dyn DigitEngine>, Box<dyn Engine>) {
        let device =
            DeviceOptions { backend: BackendChoice::Cpu, threads: Some(1), ..DeviceOptions::default() };
        let mut network = backend::network(&ModelSpec::Mlp, LOSS, &device).unwrap();
        let mut engine = backend::engine(&ModelSpec::Mlp, LOSS, &device).unwrap();
        let parameters = init::parameters(network.manifest(), 1);
        let state = State::new(parameters, network.manifest(), 1);
        assert_eq!(network.load(state.clone()), engine.load(state));
        (network, engine)
    }

    #[test]
    fn an_engine_computes_the_networks_gradient_and_losses() {
        let (mut network, mut engine) = engines();
        let [mut one, mut two] = [(); 2].map(|()| vec![f32::NAN; network.manifest().len()]);
        let (some, others) = (samples(0, 3), samples(7, 2));
        let losses = network.gradient(&some, 0.5, &mut one, &mut |_| ()).unwrap();
        let sums = engine.gradient(&some.encode(), 0.5, &mut two, &mut |_| ()).unwrap();
        assert_eq!((Sums::from(losses), &one), (sums, &two));

        let microbatches = [some.encode(), Microbatch::default(), others.encode(), Microbatch::default()];
        let microbatches: Vec<&Microbatch> = microbatches.iter().collect();
        let (empty, rounding) = (Samples::default(), WireDtype::Bf16);
        let losses = network
            .node_gradient(&[&some, &empty, &others, &empty], 0.5, rounding, &mut one, &mut |_| ())
            .unwrap();
        let sums = engine.node_gradient(&microbatches, 0.5, rounding, &mut two, &mut |_| ()).unwrap();
        let (mut room, mut given) = (vec![f32::NAN; one.len()], Vec::new());
        let mut ready = |prefix: &[f32]| given = prefix.to_vec();
        let again =
            engine.node_gradient_as_ready(&microbatches, 0.5, rounding, &mut room, &mut ready).unwrap();
        assert_eq!((&again, &given), (&sums, &one), "a sum taken as it is ready");
        assert_eq!((losses.into_iter().map(Sums::from).collect::<Vec<_>>(), one), (sums, two));
    }

    #[test]
    fn a_test_pass_measures_the_networks_outputs() {
        let (mut network, mut engine) = engines();
        let samples = samples(0, 5);
        let sums = network.predict(&samples).unwrap().sums(&samples, LOSS);
        assert_eq!(engine.evaluate(&samples.encode()).unwrap(), sums);
    }

    /// TRUST-1: a coordinator may send anything.
    #[test]
    fn trust_1_samples_that_are_none_are_refused() {
        let (_, mut engine) = engines();
        let broken = Microbatch::new([(3, Cow::Borrowed(&b"no digit"[..]))]);
        assert!(engine.check(&samples(0, 2).encode()).is_ok());
        engine.prefetch(&broken);
        let mut out = vec![0.0; engine.manifest().len()];
        for error in [
            engine.check(&broken),
            engine.gradient(&broken, 1.0, &mut out, &mut |_| ()).map(drop),
            engine.evaluate(&broken).map(drop),
        ] {
            let error = error.unwrap_err();
            assert!(matches!(error, EngineError::Samples(_)), "{error:?}");
            assert!(error.to_string().contains("sample 3 has 8 bytes"), "{error}");
        }
    }
}
