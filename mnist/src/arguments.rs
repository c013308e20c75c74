//! The program as a worker knows it: its name, its arguments, its engines.

use serde::{Deserialize, Serialize};
use tally_worker::device::DeviceOptions;
use tally_worker::engine::{Engine, EngineError};
use tally_worker::program::WorkerProgram;

use crate::network::{LabelLoss, ModelSpec, backend};

/// The program's name.
pub const NAME: &str = "mnist";

/// The program's arguments: `{"model": "reference", "label_loss": "cross-entropy"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// The model that is trained.
    pub model: ModelSpec,
    /// The loss of the digit.
    pub label_loss: LabelLoss,
}

impl Arguments {
    /// Reads arguments as they are sent to workers.
    ///
    /// # Errors
    /// [`EngineError::Arguments`] says what is wrong with them.
    pub fn from_json(text: &str) -> Result<Self, EngineError> {
        serde_json::from_str(text)
            .map_err(|error| EngineError::Arguments(format!("the arguments {text} of {NAME}: {error}")))
    }

    /// The arguments as they are sent to workers.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }

    /// An engine for these arguments.
    ///
    /// # Errors
    /// As [`backend::network`].
    pub fn engine(&self, device: &DeviceOptions) -> Result<Box<dyn Engine>, EngineError> {
        backend::engine(&self.model, self.label_loss, device)
    }
}

/// The program, for a worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct MnistProgram;

impl WorkerProgram for MnistProgram {
    fn name(&self) -> &str {
        NAME
    }

    fn engine(&self, arguments: &str, device: &DeviceOptions) -> Result<Box<dyn Engine>, EngineError> {
        Arguments::from_json(arguments)?.engine(device)
    }

    fn cuda_devices(&self) -> Result<usize, EngineError> {
        #[cfg(feature = "cuda-kernels")]
        return tally_worker::cuda_probe::count();
        #[cfg(not(feature = "cuda-kernels"))]
        Err(EngineError::Unavailable(
            "the CUDA backend is not in this binary, so it cannot count devices: build it with \
             `--features cuda`, or name the devices, as in --devices 0,1"
                .into(),
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn arguments_read_as_they_are_written() {
        let text = r#"{"model":"synthetic:parameters=9","label_loss":"softmax-nll"}"#;
        let arguments = Arguments::from_json(text).unwrap();
        assert_eq!(arguments.label_loss, LabelLoss::SoftmaxNll);
        assert_eq!(Arguments::from_json(&arguments.to_json().to_string()).unwrap(), arguments);
        let engine = MnistProgram.engine(text, &DeviceOptions::default()).unwrap();
        assert_eq!(engine.manifest().len(), 9);
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (text, named) in [
            ("{", "the arguments {"),
            (r#"{"model":"resnet","label_loss":"softmax-nll"}"#, "resnet"),
            (r#"{"model":"mlp","label_loss":"l2"}"#, "l2"),
            (r#"{"model":"mlp"}"#, "label_loss"),
            (r#"{"model":"mlp","label_loss":"softmax-nll","layers":3}"#, "layers"),
        ] {
            let error = MnistProgram.engine(text, &DeviceOptions::default()).err().unwrap();
            assert!(matches!(error, EngineError::Arguments(_)), "{error:?}");
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
