//! Predictions of a checkpoint, for people and programs that know nothing of the network.
//!
//! They have the bits of the test pass: the same engine computes them, from a checkpoint that was verified when it was
//! read (**CKPT-1**).

pub mod command;

use std::path::{Path, PathBuf};

use serde::Serialize;
use tally_checkpoint::{Checkpoint, CheckpointError, Meta};
use tally_run::config::DataConfig;
use tally_worker::device::DeviceOptions;
use tally_worker::engine::{EngineError, Replica};
use thiserror::Error;

use crate::arguments::{Arguments, NAME};
use crate::data::{BadSamples, PIXELS, Samples};
use crate::network::outputs::softmax;
use crate::network::{DigitEngine, ModelSpec, Outputs, backend};

/// Samples that are predicted at once.
const BATCH: usize = 100;

/// Why a checkpoint makes no predictions.
#[derive(Debug, Error)]
pub enum PredictError {
    /// It cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device cannot be used, or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It names something that this version does not have.
    #[error("{} cannot be used: {why}; use the Tally that wrote it", path.display())]
    Unknown {
        /// The checkpoint.
        path: PathBuf,
        /// What it names.
        why: String,
    },
    /// It is of the synthetic model.
    #[error(
        "{} is of the synthetic model, which has no network and makes no predictions; \
         use a checkpoint of a run with another --model", path.display()
    )]
    Synthetic {
        /// The checkpoint.
        path: PathBuf,
    },
    /// Its tensors are not the model's.
    #[error("{} holds another {model} network than this version has; use the Tally that wrote it", path.display())]
    Network {
        /// The checkpoint.
        path: PathBuf,
        /// The model's name.
        model: ModelSpec,
    },
    /// Images and numbers that do not belong together.
    #[error(transparent)]
    Samples(#[from] BadSamples),
}

/// A network's prediction for one image and one number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The digit.
    pub digit: u8,
    /// The digit's probability of [`probabilities`](Self::probabilities).
    pub confidence: f64,
    /// The softmax of the ten digits' scores.
    pub probabilities: [f64; 10],
    /// Number plus digit, as the network puts it out.
    pub sum: f32,
    /// The absolute difference of number and digit, as the network puts it out.
    pub difference: f32,
    /// The integer nearest to the sum, which is the one that counts; none if the sum is NaN or infinite.
    pub sum_answer: Option<i64>,
    /// The integer nearest to the difference.
    pub difference_answer: Option<i64>,
}

impl Prediction {
    fn of(outputs: &Outputs, index: usize) -> Self {
        let digit = outputs.digit(index);
        let probabilities = softmax(&outputs.logits[index]);
        let nearest = |x: f32| x.is_finite().then(|| x.round() as i64);
        let (sum, difference) = (outputs.sums[index], outputs.differences[index]);
        Self {
            digit,
            confidence: probabilities[usize::from(digit)],
            probabilities,
            sum,
            difference,
            sum_answer: nearest(sum),
            difference_answer: nearest(difference),
        }
    }

    /// Whether digit, sum and difference are right for this label and number.
    #[must_use]
    pub fn right(&self, label: u8, number: u8) -> [bool; 3] {
        [
            self.digit == label,
            self.sum_answer == Some((number + label).into()),
            self.difference_answer == Some(number.abs_diff(label).into()),
        ]
    }
}

/// The program's arguments, as a checkpoint has them; `path` is only for errors.
///
/// # Errors
/// [`PredictError::Unknown`] if this version does not have them.
pub(crate) fn arguments(path: &Path, meta: &Meta) -> Result<Arguments, PredictError> {
    let unknown = |why| PredictError::Unknown { path: path.into(), why };
    if meta.program.name != NAME {
        return Err(unknown(format!("it is of the program {:?}", meta.program.name)));
    }
    Arguments::from_json(&meta.program.arguments.to_string()).map_err(|error| unknown(error.to_string()))
}

/// The samples that a checkpoint's run was trained on and tested with; `path` is only for errors.
///
/// # Errors
/// [`PredictError::Unknown`] if the manifest does not tell them.
pub(crate) fn data(path: &Path, meta: &Meta) -> Result<DataConfig, PredictError> {
    let data = meta.config.get("data").cloned().unwrap_or_default();
    serde_json::from_value(data).map_err(|error| PredictError::Unknown {
        path: path.into(),
        why: format!("its manifest does not tell the run's data ({error})"),
    })
}

/// Loads a checkpoint of a model into a replica of it.
///
/// # Errors
/// [`PredictError::Network`] if the tensors are others.
pub(crate) fn load(
    path: &Path,
    checkpoint: Checkpoint,
    model: ModelSpec,
    replica: &mut (impl Replica + ?Sized),
) -> Result<Meta, PredictError> {
    let Checkpoint { meta, state } = checkpoint;
    if *replica.manifest() != meta.tensors {
        return Err(PredictError::Network { path: path.into(), model });
    }
    replica.load(state);
    Ok(meta)
}

/// A checkpoint's network on a device.
pub struct Predictor {
    engine: Box<dyn DigitEngine>,
    meta: Meta,
}

impl std::fmt::Debug for Predictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Predictor(step {}, {})", self.meta.step, self.engine.device_name())
    }
}

impl Predictor {
    /// Reads and verifies a checkpoint, and loads it into an engine.
    ///
    /// # Errors
    /// [`PredictError`] if the checkpoint or the device cannot be used.
    pub fn open(path: &Path, device: &DeviceOptions) -> Result<Self, PredictError> {
        Self::load(path, tally_checkpoint::read(path)?, device)
    }

    /// Loads a checkpoint that was read into an engine; `path` is only for errors.
    ///
    /// # Errors
    /// [`PredictError`] if this version does not have the network, or the device cannot be used.
    pub fn load(path: &Path, checkpoint: Checkpoint, device: &DeviceOptions) -> Result<Self, PredictError> {
        let Arguments { model, label_loss } = arguments(path, &checkpoint.meta)?;
        if matches!(model, ModelSpec::Synthetic(_)) {
            return Err(PredictError::Synthetic { path: path.into() });
        }
        let mut engine = backend::network(&model, label_loss, device)?;
        let meta = load(path, checkpoint, model, &mut *engine)?;
        Ok(Self { engine, meta })
    }

    /// The checkpoint's description of itself.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The predictions for images, 784 pixels each, with a number for each.
    ///
    /// # Errors
    /// [`PredictError::Samples`] if there is not one number from 0 to 9 for each, and
    /// [`PredictError::Engine`] if the device fails.
    pub fn predict(&mut self, pixels: &[u8], numbers: &[u8]) -> Result<Vec<Prediction>, PredictError> {
        let mut all = Vec::with_capacity(numbers.len());
        let mut rest = pixels;
        for numbers in numbers.chunks(BATCH) {
            let (these, others) = rest.split_at(rest.len().min(numbers.len() * PIXELS));
            rest = others;
            let ids = (0..numbers.len() as u32).collect();
            // The labels are unknown; the engine does not read them.
            let samples = Samples::new(ids, these.to_vec(), numbers.to_vec(), vec![0; numbers.len()])?;
            let outputs = self.engine.predict(&samples)?;
            all.extend((0..outputs.len()).map(|index| Prediction::of(&outputs, index)));
        }
        Ok(all)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_numerics::state::State;
    use tally_worker::device::{BackendChoice, Precision};

    use super::*;
    use crate::network::LabelLoss;

    fn prediction(sum: f32, difference: f32) -> Prediction {
        let mut logits = [0.0; 10];
        logits[7] = 9f32.ln();
        Prediction::of(&Outputs { logits: vec![logits], sums: vec![sum], differences: vec![difference] }, 0)
    }

    #[test]
    fn the_confidence_is_the_softmax_of_the_digit() {
        let prediction = prediction(11.6, 2.4);
        assert_eq!(
            (prediction.digit, prediction.sum_answer, prediction.difference_answer),
            (7, Some(12), Some(2))
        );
        assert!((prediction.confidence - 0.5).abs() < 1e-6, "{prediction:?}");
        assert!((prediction.probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(prediction.right(7, 5), [true; 3]);
        assert_eq!(prediction.right(3, 9), [false, true, false]);
    }

    #[test]
    fn a_checkpoint_of_the_synthetic_model_makes_no_predictions() {
        let model: ModelSpec = "synthetic:parameters=10".parse().unwrap();
        let tensors = backend::manifest(&model);
        let state = State::new(vec![0.0; 10], &tensors, 1);
        let meta = Meta {
            version: tally_checkpoint::VERSION,
            run: "0".repeat(16),
            program: tally_checkpoint::ProgramConfig {
                name: NAME.into(),
                variant: model.to_string(),
                arguments: Arguments { model: model.clone(), label_loss: LabelLoss::CrossEntropy }.to_json(),
            },
            step: 1,
            epoch: 1,
            digest: state.digest(),
            parameters_sha256: tensors.sha256(&state.parameters),
            tensors,
            moments: vec!["momentum_buffer".into()],
            config: serde_json::Value::Null,
        };
        let checkpoint = Checkpoint { meta, state };
        let device = DeviceOptions {
            backend: BackendChoice::Cpu,
            device: 0,
            precision: Precision::F32,
            threads: Some(1),
        };
        let refused = Predictor::load(Path::new("runs/x"), checkpoint, &device).unwrap_err().to_string();
        assert!(refused.contains("runs/x") && refused.contains("synthetic"), "{refused}");
    }

    #[test]
    fn a_nan_or_an_infinity_is_never_right() {
        let prediction = prediction(f32::NAN, f32::INFINITY);
        assert_eq!((prediction.sum_answer, prediction.difference_answer), (None, None));
        assert_eq!(prediction.right(7, 0), [true, false, false]);
        assert!(serde_json::to_string(&prediction).unwrap().contains("\"sum\":null"));
    }
}
