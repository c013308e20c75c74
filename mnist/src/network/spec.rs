//! The model that is trained, and its label loss: the program's arguments, given on the coordinator's command line
//! and sent to every worker.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tally_worker::engine::synthetic::SyntheticSpec;

/// The loss of the digit's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelLoss {
    /// `−log softmax(logits)[label]`: the sound one.
    #[default]
    CrossEntropy,
    /// `−softmax(logits)[label]`: `nll_loss(softmax(logits))`, as in the PyTorch program from which the task comes.
    SoftmaxNll,
}

impl fmt::Display for LabelLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CrossEntropy => "cross-entropy",
            Self::SoftmaxNll => "softmax-nll",
        })
    }
}

impl FromStr for LabelLoss {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cross-entropy" => Ok(Self::CrossEntropy),
            "softmax-nll" => Ok(Self::SoftmaxNll),
            _ => Err(format!("{text:?} is not a label loss; there are cross-entropy and softmax-nll")),
        }
    }
}

/// The models that can be trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ModelSpec {
    /// The PyTorch program's network: seven convolutions and two heads.
    Reference,
    /// A small multi-layer perceptron for the same task.
    Mlp,
    /// No network: hashed gradients of a chosen size at a chosen speed.
    Synthetic(SyntheticSpec),
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference => f.write_str("reference"),
            Self::Mlp => f.write_str("mlp"),
            Self::Synthetic(spec) => write!(f, "synthetic:{spec}"),
        }
    }
}

impl From<ModelSpec> for String {
    fn from(spec: ModelSpec) -> Self {
        spec.to_string()
    }
}

impl TryFrom<String> for ModelSpec {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for ModelSpec {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("reference", "") => Ok(Self::Reference),
            ("mlp", "") => Ok(Self::Mlp),
            ("synthetic", settings) => settings.parse().map(Self::Synthetic),
            _ => Err(format!(
                "{text:?} is not a model; there are reference, mlp and \
                 synthetic:parameters=N,us-per-sample=N,jitter=0.N (each setting optional)"
            )),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_model_reads_as_it_prints() {
        for text in ["reference", "mlp", "synthetic:parameters=7,us-per-sample=20,jitter=0.25"] {
            assert_eq!(text.parse::<ModelSpec>().unwrap().to_string(), text);
        }
        assert_eq!("synthetic".parse::<ModelSpec>().unwrap(), ModelSpec::Synthetic(SyntheticSpec::default()));
    }

    #[test]
    fn a_wrong_model_is_named() {
        for text in ["resnet", "mlp:x", "synthetic:parameters=0", "synthetic:jitter=2", "synthetic:size=3"] {
            assert!(text.parse::<ModelSpec>().is_err(), "{text}");
        }
    }
}
