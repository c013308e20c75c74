//! How the learning rate goes on after the warm-up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// It stays at its peak.
    Constant,
    /// It falls to zero along half a cosine, reaching it after the run's last step.
    Cosine,
    /// It falls to zero along a line, reaching it after the run's last step.
    Linear,
    /// The program says the rate of each step.
    Program,
}

impl fmt::Display for LrSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Constant => "constant",
            Self::Cosine => "cosine",
            Self::Linear => "linear",
            Self::Program => "program",
        })
    }
}

impl FromStr for LrSchedule {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "constant" => Ok(Self::Constant),
            "cosine" => Ok(Self::Cosine),
            "linear" => Ok(Self::Linear),
            "program" => Ok(Self::Program),
            _ => Err(format!("{text:?} is no schedule; there are constant, cosine, linear and program")),
        }
    }
}
