//! A trained network, asked: a checkpoint in an engine, and what it answers in words that
//! need no knowledge of the network.
//!
//! Answers are those of the test pass, to the bit: the same engine, from a checkpoint that
//! was verified when it was read (**CKPT-1**).

pub mod command;

use std::path::{Path, PathBuf};

use serde::Serialize;
use tally_checkpoint::{Checkpoint, CheckpointError, Meta};
use tally_data::samples::{BadSamples, PIXELS};
use tally_data::{DataConfig, Samples};
use thiserror::Error;

use crate::cli::DeviceOptions;
use crate::engine::answers::softmax;
use crate::engine::{Answers, Engine, EngineError, LabelLoss, ModelSpec};

/// Samples that are computed with at once.
const BATCH: usize = 100;

/// Why a checkpoint gives no answers.
#[derive(Debug, Error)]
pub enum PredictError {
    /// It cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device cannot be had, or failed.
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
    /// Its tensors are not the network's.
    #[error("{} holds another {model} network than this version has; use the Tally that wrote it", path.display())]
    Network {
        /// The checkpoint.
        path: PathBuf,
        /// The network's name.
        model: ModelSpec,
    },
    /// Pictures and numbers that do not belong together.
    #[error(transparent)]
    Samples(#[from] BadSamples),
}

/// What a network answers to one picture and one number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The digit it sees.
    pub digit: u8,
    /// How sure it is of that: the digit's share of [`probabilities`](Self::probabilities).
    pub confidence: f64,
    /// The softmax of its ten scores.
    pub probabilities: [f64; 10],
    /// Number plus digit, as it answers.
    pub sum: f32,
    /// Their absolute difference, as it answers.
    pub difference: f32,
    /// The integer nearest to the sum, which is what counts; none if that is no number.
    pub sum_answer: Option<i64>,
    /// The integer nearest to the difference.
    pub difference_answer: Option<i64>,
}

impl Answer {
    fn of(answers: &Answers, index: usize) -> Self {
        let digit = answers.digit(index);
        let probabilities = softmax(&answers.logits[index]);
        let nearest = |x: f32| x.is_finite().then(|| x.round() as i64);
        let (sum, difference) = (answers.sums[index], answers.differences[index]);
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

    /// Whether digit, sum and difference are what they should be for this label and number.
    #[must_use]
    pub fn right(&self, label: u8, number: u8) -> [bool; 3] {
        [
            self.digit == label,
            self.sum_answer == Some((number + label).into()),
            self.difference_answer == Some(number.abs_diff(label).into()),
        ]
    }
}

/// A checkpoint's network, ready to answer.
pub struct Predictor {
    engine: Box<dyn Engine>,
    meta: Meta,
    loss: LabelLoss,
    path: PathBuf,
}

impl std::fmt::Debug for Predictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Predictor(step {}, {})", self.meta.step, self.engine.device())
    }
}

impl Predictor {
    /// Reads and verifies a checkpoint, and loads it into an engine.
    ///
    /// # Errors
    /// [`PredictError`] if the checkpoint or the device can't be used.
    pub fn open(path: &Path, device: &DeviceOptions) -> Result<Self, PredictError> {
        Self::load(path, tally_checkpoint::read(path)?, device)
    }

    /// The same with a checkpoint that was read; `path` is for errors alone.
    ///
    /// # Errors
    /// [`PredictError`] if the network is none of this version's, or the device can't be used.
    pub fn load(path: &Path, checkpoint: Checkpoint, device: &DeviceOptions) -> Result<Self, PredictError> {
        let Checkpoint { meta, parameters, momentum } = checkpoint;
        let unknown = |why| PredictError::Unknown { path: path.into(), why };
        let model: ModelSpec = meta.model.parse().map_err(unknown)?;
        let loss: LabelLoss = meta.label_loss.parse().map_err(unknown)?;
        let mut engine = device.build(&model, loss)?;
        if *engine.manifest() != meta.tensors {
            return Err(PredictError::Network { path: path.into(), model });
        }
        engine.load(parameters, momentum);
        Ok(Self { engine, meta, loss, path: path.into() })
    }

    /// What the checkpoint says of itself.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Which samples it was trained on and tested with.
    ///
    /// # Errors
    /// [`PredictError::Unknown`] if the manifest does not say it.
    pub fn data(&self) -> Result<DataConfig, PredictError> {
        let data = self.meta.config.get("data").cloned().unwrap_or_default();
        serde_json::from_value(data).map_err(|why| PredictError::Unknown {
            path: self.path.clone(),
            why: format!("its manifest does not tell the run's data ({why})"),
        })
    }

    /// The label loss that the network was trained with.
    #[must_use]
    pub fn label_loss(&self) -> LabelLoss {
        self.loss
    }

    /// The raw answers to a few samples, all computed at once.
    ///
    /// # Errors
    /// [`EngineError`] if the device fails.
    pub fn raw(&mut self, samples: &Samples) -> Result<Answers, EngineError> {
        self.engine.predict(samples)
    }

    /// The answers to pictures, 784 pixels each, with a number for each.
    ///
    /// # Errors
    /// [`PredictError::Samples`] if there is not one number from 0 to 9 for each, and
    /// [`PredictError::Engine`] if the device fails.
    pub fn answer(&mut self, pixels: &[u8], numbers: &[u8]) -> Result<Vec<Answer>, PredictError> {
        let mut found = Vec::with_capacity(numbers.len());
        let mut rest = pixels;
        for numbers in numbers.chunks(BATCH) {
            let (these, others) = rest.split_at(rest.len().min(numbers.len() * PIXELS));
            rest = others;
            let ids = (0..numbers.len() as u32).collect();
            // What they show is what is asked; the engine does not look at the labels.
            let samples = Samples::new(ids, these.to_vec(), numbers.to_vec(), vec![0; numbers.len()])?;
            let answers = self.engine.predict(&samples)?;
            found.extend((0..answers.len()).map(|index| Answer::of(&answers, index)));
        }
        Ok(found)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answers(sum: f32, difference: f32) -> Answers {
        let mut logits = [0.0; 10];
        logits[7] = 9f32.ln();
        Answers { logits: vec![logits], sums: vec![sum], differences: vec![difference] }
    }

    #[test]
    fn the_confidence_is_the_softmax_of_the_digit() {
        let answer = Answer::of(&answers(11.6, 2.4), 0);
        assert_eq!((answer.digit, answer.sum_answer, answer.difference_answer), (7, Some(12), Some(2)));
        assert!((answer.confidence - 0.5).abs() < 1e-6, "{answer:?}");
        assert!((answer.probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(answer.right(7, 5), [true; 3]);
        assert_eq!(answer.right(3, 9), [false, true, false]);
    }

    #[test]
    fn what_is_no_number_is_never_right() {
        let answer = Answer::of(&answers(f32::NAN, f32::INFINITY), 0);
        assert_eq!((answer.sum_answer, answer.difference_answer), (None, None));
        assert_eq!(answer.right(7, 0), [true, false, false]);
        assert!(serde_json::to_string(&answer).unwrap().contains("\"sum\":null"));
    }
}
