//! Which network is trained, and with which label loss: words that travel from the
//! coordinator's command line to every worker.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The loss of the digit's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelLoss {
    /// `−log softmax(logits)[label]`: the sound one.
    #[default]
    CrossEntropy,
    /// `−softmax(logits)[label]`: the original's `nll_loss(softmax(logits))`.
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
            _ => Err(format!("{text:?} is no label loss; there are cross-entropy and softmax-nll")),
        }
    }
}

/// The networks an engine can be asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ModelSpec {
    /// The original's seven convolutions and two heads.
    Reference,
    /// A small multi-layer perceptron for the same task.
    Mlp,
    /// No network: hashed gradients of a chosen size at a chosen speed.
    Synthetic(SyntheticSpec),
}

/// Size and speed of the synthetic engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SyntheticSpec {
    /// Elements of the gradient.
    pub parameters: usize,
    /// Time a sample takes.
    pub per_sample: Duration,
    /// Each leaf takes between 1 − jitter and 1 + jitter of its time, by its samples' hash.
    pub jitter: f64,
}

impl Default for SyntheticSpec {
    fn default() -> Self {
        Self { parameters: 100_000, per_sample: Duration::ZERO, jitter: 0.0 }
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference => f.write_str("reference"),
            Self::Mlp => f.write_str("mlp"),
            Self::Synthetic(s) => write!(
                f,
                "synthetic:parameters={},us-per-sample={},jitter={}",
                s.parameters,
                s.per_sample.as_micros(),
                s.jitter
            ),
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
            ("synthetic", settings) => synthetic(settings).map(Self::Synthetic),
            _ => Err(format!(
                "{text:?} is no model; there are reference, mlp and \
                 synthetic:parameters=N,us-per-sample=N,jitter=0.N (each setting optional)"
            )),
        }
    }
}

fn synthetic(settings: &str) -> Result<SyntheticSpec, String> {
    let mut spec = SyntheticSpec::default();
    for setting in settings.split(',').filter(|s| !s.is_empty()) {
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        let bad = || format!("{setting:?} is no setting of the synthetic model");
        match key {
            "parameters" => {
                let most = tally_numerics::manifest::MAX_ELEMENTS;
                spec.parameters = value.parse().ok().filter(|n| (1..=most).contains(n)).ok_or_else(bad)?;
            }
            "us-per-sample" => spec.per_sample = Duration::from_micros(value.parse().map_err(|_| bad())?),
            "jitter" => {
                spec.jitter = value.parse().ok().filter(|j| (0.0..=1.0).contains(j)).ok_or_else(bad)?;
            }
            _ => return Err(bad()),
        }
    }
    Ok(spec)
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
