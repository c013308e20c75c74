//! A network as an engine of the cluster.

use tally_numerics::digest::Digest;
use tally_numerics::manifest::Manifest;
use tally_numerics::schema::Sums;
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

    fn load(&mut self, parameters: Vec<f32>, momentum: Vec<f32>) -> Digest {
        self.inner.load(parameters, momentum)
    }

    fn state(&mut self) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
        self.inner.state()
    }

    fn previous_state(&mut self) -> Option<(Vec<f32>, Vec<f32>)> {
        self.inner.previous_state()
    }

    fn apply(&mut self, update: Update, first: usize, gradient: &[f32]) -> Digest {
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
        let samples: Vec<Samples> = microbatches.iter().map(|samples| decode(samples)).collect::<Result<_, _>>()?;
        let samples: Vec<&Samples> = samples.iter().collect();
        let losses = self.inner.node_gradient(&samples, scale, rounding, out, ready)?;
        Ok(losses.into_iter().map(Sums::from).collect())
    }

    fn evaluate(&mut self, samples: &Microbatch) -> Result<Sums, EngineError> {
        let samples = decode(samples)?;
        Ok(self.inner.predict(&samples)?.sums(&samples, self.label_loss))
    }
}
