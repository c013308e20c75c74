//! The learning rate of every step, and the rest of the optimizer's settings.

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
}

impl fmt::Display for LrSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Constant => "constant",
            Self::Cosine => "cosine",
            Self::Linear => "linear",
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
            _ => Err(format!("{text:?} is no schedule; there are constant, cosine and linear")),
        }
    }
}

/// SGD's settings for a whole run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerConfig {
    /// The learning rate at its peak.
    pub learning_rate: f32,
    /// Momentum, as PyTorch defines it (no dampening).
    pub momentum: f32,
    /// The gradient's global norm is clipped to this; `None` clips nothing.
    pub clip_norm: Option<f32>,
    /// Steps over which the rate rises linearly to its peak.
    pub warmup_steps: u64,
    /// How it goes on from there.
    pub lr_schedule: LrSchedule,
}

impl OptimizerConfig {
    /// The learning rate of `step` (from 1) in a run of `total` steps.
    ///
    /// Step `s ≤ w` of the warm-up has `peak·s/w`. A later step is `d = (s − w − 1)/(total − w)`
    /// of the way down, and has `peak·(1 + cos(π·d))/2` under cosine and `peak·(1 − d)` under
    /// linear. Computed in double with the `libm` crate, so that every machine gets the same
    /// rate.
    #[must_use]
    pub fn rate(&self, step: u64, total: u64) -> f32 {
        let peak = f64::from(self.learning_rate);
        if step <= self.warmup_steps {
            return (peak * step as f64 / self.warmup_steps as f64) as f32;
        }
        let span = total.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps - 1) as f64 / span).min(1.0);
        let part = match self.lr_schedule {
            LrSchedule::Constant => 1.0,
            LrSchedule::Cosine => 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done)),
            LrSchedule::Linear => 1.0 - done,
        };
        (peak * part) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls() {
        let recipe = OptimizerConfig {
            learning_rate: 0.1,
            momentum: 0.9,
            clip_norm: None,
            warmup_steps: 10,
            lr_schedule: LrSchedule::Cosine,
        };
        let rate = |step| recipe.rate(step, 110);
        assert_eq!((rate(1), rate(5), rate(10), rate(11)), (0.01, 0.05, 0.1, 0.1));
        assert!((rate(61) - 0.05).abs() < 1e-6);
        assert!(rate(110) > 0.0 && rate(110) < 1e-4);
        assert!((11..110).all(|s| rate(s + 1) < rate(s)));
        let linear = OptimizerConfig { lr_schedule: LrSchedule::Linear, ..recipe };
        let rate = |step| linear.rate(step, 110);
        assert_eq!((rate(5), rate(10), rate(11), rate(61)), (0.05, 0.1, 0.1, 0.05));
        assert!((rate(110) - 0.001).abs() < 1e-8 && rate(111) == 0.0);
        let constant = OptimizerConfig { warmup_steps: 0, lr_schedule: LrSchedule::Constant, ..recipe };
        assert!([1, 7, 1000].iter().all(|&s| constant.rate(s, 10) == 0.1));
    }
}
