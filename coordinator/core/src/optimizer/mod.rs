//! The optimizer's settings for a run, and what they come to in each step.
//!
//! The formulas are in [`tally_numerics::update::rule`]. What depends on the step alone is computed here, in double: the
//! learning rate, the bias corrections, and decays.

mod lr_schedule;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tally_numerics::digest::fnv1a;
use tally_numerics::manifest::{Manifest, Segments};
use tally_numerics::update::Update;
use tally_numerics::update::rule::{Adam, Lion, RmsProp, Rule, Sgd};

pub use lr_schedule::LrSchedule;

/// An optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Stochastic gradient descent with momentum.
    #[default]
    Sgd,
    /// Adam; weight decay is added to the gradient.
    Adam,
    /// Adam; weight decay shrinks the parameters.
    AdamW,
    /// RMSProp.
    RmsProp,
    /// Lion.
    Lion,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Sgd, Self::Adam, Self::AdamW, Self::RmsProp, Self::Lion];

    /// Those that have a setting of this name. A name that is not here is a setting of all.
    #[must_use]
    pub fn with(setting: &str) -> &'static [Self] {
        match setting {
            "momentum" => &[Self::Sgd, Self::RmsProp],
            "dampening" | "nesterov" => &[Self::Sgd],
            "beta1" | "beta2" => &[Self::Adam, Self::AdamW, Self::Lion],
            "alpha" | "centered" => &[Self::RmsProp],
            "epsilon" => &[Self::Adam, Self::AdamW, Self::RmsProp],
            "amsgrad" => &[Self::Adam, Self::AdamW],
            "cautious-weight-decay" => &[Self::AdamW],
            _ => &Self::ALL,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sgd => "sgd",
            Self::Adam => "adam",
            Self::AdamW => "adamw",
            Self::RmsProp => "rmsprop",
            Self::Lion => "lion",
        })
    }
}

impl FromStr for Algorithm {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|algorithm| algorithm.to_string() == text);
        named.ok_or_else(|| {
            format!(
                "{text:?} is no optimizer of Tally's; there are sgd, adam, adamw, rmsprop and lion. An optimizer must update \
                 each element by itself, so that every replica computes the same bits: Muon, LAMB, L-BFGS and Adafactor \
                 do not"
            )
        })
    }
}

/// What is special about the tensors of a group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupConfig {
    /// Their learning rate is the run's times this.
    pub rate_factor: f64,
    /// Their weight decay, if it is not the run's.
    pub weight_decay: Option<f64>,
}

/// The optimizer's settings for a whole run. A setting that the algorithm does not have is at its neutral value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerConfig {
    /// Which optimizer.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// The learning rate at its peak.
    pub learning_rate: f32,
    /// Momentum, as PyTorch defines it (SGD, RMSProp).
    pub momentum: f32,
    /// How much less of a gradient comes into the velocity, from the second step on (SGD).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dampening: f64,
    /// Nesterov's momentum (SGD).
    #[serde(default, skip_serializing_if = "is_false")]
    pub nesterov: bool,
    /// How much of the moments is kept (Adam, AdamW, Lion).
    #[serde(default, skip_serializing_if = "are_zero")]
    pub betas: [f64; 2],
    /// How much of the mean square is kept (RMSProp).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub alpha: f64,
    /// What is added to the denominator (Adam, AdamW, RMSProp).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epsilon: f64,
    /// The greatest second moment so far counts (Adam, AdamW).
    #[serde(default, skip_serializing_if = "is_false")]
    pub amsgrad: bool,
    /// The variance takes the mean square's place (RMSProp).
    #[serde(default, skip_serializing_if = "is_false")]
    pub centered: bool,
    /// Weight decay.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub weight_decay: f64,
    /// Parameters decay only where the first moment has their sign (AdamW).
    #[serde(default, skip_serializing_if = "is_false")]
    pub cautious: bool,
    /// The objective is maximized.
    #[serde(default, skip_serializing_if = "is_false")]
    pub maximize: bool,
    /// The gradient's global norm is clipped to this; `None` clips nothing.
    pub clip_norm: Option<f32>,
    /// Each element of the gradient is clipped to ± this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_value: Option<f32>,
    /// Steps over which the rate rises linearly to its peak.
    pub warmup_steps: u64,
    /// How it goes on from there.
    pub lr_schedule: LrSchedule,
    /// The rates of all steps, where the program says them.
    #[serde(skip)]
    pub rates: Option<Arc<[f32]>>,
    /// A digest of them, by which a resumed run knows that they are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates_digest: Option<String>,
    /// The groups after the first one, to which every tensor belongs that no other group has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupConfig>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference.
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference.
fn is_false(value: &bool) -> bool {
    !value
}

fn are_zero(values: &[f64; 2]) -> bool {
    *values == [0.0; 2]
}

impl OptimizerConfig {
    /// An optimizer with PyTorch's defaults, except that SGD has momentum 0.9, at a constant rate, without clipping.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        let none = Self {
            algorithm,
            learning_rate: 1e-3,
            momentum: 0.0,
            dampening: 0.0,
            nesterov: false,
            betas: [0.0; 2],
            alpha: 0.0,
            epsilon: 0.0,
            amsgrad: false,
            centered: false,
            weight_decay: 0.0,
            cautious: false,
            maximize: false,
            clip_norm: None,
            clip_value: None,
            warmup_steps: 0,
            lr_schedule: LrSchedule::Constant,
            rates: None,
            rates_digest: None,
            groups: Vec::new(),
        };
        match algorithm {
            Algorithm::Sgd => Self { learning_rate: 0.01, momentum: 0.9, ..none },
            Algorithm::Adam => Self { betas: [0.9, 0.999], epsilon: 1e-8, ..none },
            Algorithm::AdamW => Self { betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.01, ..none },
            Algorithm::RmsProp => Self { learning_rate: 0.01, alpha: 0.99, epsilon: 1e-8, ..none },
            Algorithm::Lion => Self { learning_rate: 1e-4, betas: [0.9, 0.99], ..none },
        }
    }

    /// Checks the numbers. `option` makes the name of a setting one that the reader knows.
    ///
    /// # Errors
    /// Says which is wrong, and what it can be.
    pub fn check(&self, option: impl Fn(&str) -> String) -> Result<(), String> {
        let is = |name: &str, good: bool, range: &str, value: f64| {
            if good { Ok(()) } else { Err(format!("{} is {range}, not {value}", option(name))) }
        };
        // What counts is the number that the update takes, which has 32 bits.
        let positive = |name, value: f64| {
            let single = value as f32;
            is(name, single.is_finite() && single > 0.0, "a number over 0", value)
        };
        positive("learning-rate", self.learning_rate.into())?;
        for (name, clip) in [("clip-norm", self.clip_norm), ("clip-value", self.clip_value)] {
            clip.map_or(Ok(()), |clip| positive(name, clip.into()))?;
        }
        let fraction =
            |name, value: f64| is(name, (0.0..1.0).contains(&value), "at least 0 and under 1", value);
        fraction("momentum", self.momentum.into())?;
        is("dampening", (0.0..=1.0).contains(&self.dampening), "at least 0 and at most 1", self.dampening)?;
        fraction("beta1", self.betas[0])?;
        fraction("beta2", self.betas[1])?;
        fraction("alpha", self.alpha)?;
        let not_negative = |name, value: f64| {
            is(name, (value as f32).is_finite() && value >= 0.0, "a number that is not below 0", value)
        };
        if Algorithm::with("epsilon").contains(&self.algorithm) {
            positive("epsilon", self.epsilon)?;
        }
        not_negative("weight-decay", self.weight_decay)?;
        self.check_that_settings_belong(&option)?;
        if self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0) {
            let [nesterov, momentum, dampening] = ["nesterov", "momentum", "dampening"].map(&option);
            return Err(format!("{nesterov} needs a {momentum} over 0 and no {dampening}"));
        }
        if self.clip_norm.is_some() && self.clip_value.is_some() {
            let [norm, value] = ["clip-norm", "clip-value"].map(&option);
            return Err(format!(
                "{norm} and {value} exclude each other: clip the norm or each element, not both"
            ));
        }
        for group in &self.groups {
            let decay = group.weight_decay.unwrap_or(0.0);
            for (what, value) in [("rate factor", group.rate_factor), ("weight decay", decay)] {
                if !((value as f32).is_finite() && value >= 0.0) {
                    return Err(format!("a group's {what} is a number that is not below 0, not {value}"));
                }
            }
        }
        Ok(())
    }

    /// A setting that the algorithm does not have would have no effect.
    fn check_that_settings_belong(&self, option: impl Fn(&str) -> String) -> Result<(), String> {
        let settings = [
            ("momentum", self.momentum != 0.0),
            ("dampening", self.dampening != 0.0),
            ("nesterov", self.nesterov),
            ("beta1", self.betas[0] != 0.0),
            ("beta2", self.betas[1] != 0.0),
            ("alpha", self.alpha != 0.0),
            ("epsilon", self.epsilon != 0.0),
            ("amsgrad", self.amsgrad),
            ("centered", self.centered),
            ("cautious-weight-decay", self.cautious),
        ];
        match settings
            .into_iter()
            .find(|(name, set)| *set && !Algorithm::with(name).contains(&self.algorithm))
        {
            Some((name, _)) => {
                Err(format!("{} is no setting of {}, so it has no effect", option(name), self.algorithm))
            }
            None => Ok(()),
        }
    }

    /// The names of the moments that the optimizer keeps of each element, as PyTorch has them.
    #[must_use]
    pub fn moments(&self) -> Vec<String> {
        let names: &[&str] = match self.algorithm {
            Algorithm::Sgd => &["momentum_buffer"],
            Algorithm::Adam | Algorithm::AdamW if self.amsgrad => {
                &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
            }
            Algorithm::Adam | Algorithm::AdamW => &["exp_avg", "exp_avg_sq"],
            Algorithm::RmsProp => match (self.momentum > 0.0, self.centered) {
                (false, false) => &["square_avg"],
                (true, false) => &["square_avg", "momentum_buffer"],
                (false, true) => &["square_avg", "grad_avg"],
                (true, true) => &["square_avg", "momentum_buffer", "grad_avg"],
            },
            Algorithm::Lion => &["exp_avg"],
        };
        names.iter().map(|&name| name.to_owned()).collect()
    }

    /// Whether the factor of every gradient is 1, so that an update need not wait for the gradient's norm.
    #[must_use]
    pub fn is_unscaled(&self) -> bool {
        self.clip_norm.is_none() && !self.maximize
    }

    /// The learning rate of `step` (from 1) in a run of `total` steps.
    ///
    /// Step `s ≤ w` of the warm-up has `peak·s/w`. A later step is `d = (s − w − 1)/(total − w)`
    /// of the way down, and has `peak·(1 + cos(π·d))/2` under cosine and `peak·(1 − d)` under
    /// linear. Computed in double with the `libm` crate, so that every machine gets the same
    /// rate. Where the program says the rates, the warm-up's are `s/w` of what it says.
    #[must_use]
    pub fn rate(&self, step: u64, total: u64) -> f32 {
        let peak = match self.lr_schedule {
            LrSchedule::Program => self.programs_rate(step),
            _ => f64::from(self.learning_rate),
        };
        if step <= self.warmup_steps {
            return (peak * step as f64 / self.warmup_steps as f64) as f32;
        }
        let span = total.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps - 1) as f64 / span).min(1.0);
        let part = match self.lr_schedule {
            LrSchedule::Constant | LrSchedule::Program => 1.0,
            LrSchedule::Cosine => 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done)),
            LrSchedule::Linear => 1.0 - done,
        };
        (peak * part) as f32
    }

    /// Takes the rates that the program says, for all steps of the run.
    ///
    /// # Errors
    /// If the run began with others.
    pub fn set_rates(&mut self, rates: Arc<[f32]>) -> Result<(), String> {
        let digest = format!("{:016x}", fnv1a(rates.iter().flat_map(|rate| rate.to_le_bytes())));
        if self.rates_digest.as_ref().is_some_and(|began_with| *began_with != digest) {
            return Err("the program's schedule gives other learning rates than those that the run began with: resume with the \
                        program that began it"
                .into());
        }
        (self.rates, self.rates_digest) = (Some(rates), Some(digest));
        Ok(())
    }

    /// Whether there is a rate for each of `steps` steps.
    ///
    /// # Errors
    /// If the program was to say the rates, and did not.
    pub fn check_rates(&self, steps: u64) -> Result<(), String> {
        let said = self.rates.as_ref().map_or(0, |rates| rates.len() as u64);
        if self.lr_schedule == LrSchedule::Program && said < steps {
            return Err(format!(
                "the learning rates are the program's, and it says {said} of {steps}: give the job a `.lr_scheduler(…)`"
            ));
        }
        Ok(())
    }

    /// What the program says of a step; NaN if it says nothing, which [`check_rates`](Self::check_rates) excludes.
    fn programs_rate(&self, step: u64) -> f64 {
        let index = usize::try_from(step.saturating_sub(1)).unwrap_or(usize::MAX);
        self.rates.as_ref().and_then(|rates| rates.get(index)).map_or(f64::NAN, |&rate| f64::from(rate))
    }

    /// The rules of `step` (from 1), one for each group, at the step's learning rate. Bias corrections count committed
    /// steps, not attempts.
    #[must_use]
    pub fn rules(&self, step: u64, learning_rate: f32) -> Vec<Rule> {
        let first = GroupConfig { rate_factor: 1.0, weight_decay: None };
        std::iter::once(&first)
            .chain(&self.groups)
            .map(|group| self.rule(step, learning_rate, group))
            .collect()
    }

    fn rule(&self, step: u64, learning_rate: f32, group: &GroupConfig) -> Rule {
        let rate = match group.rate_factor {
            1.0 => f64::from(learning_rate),
            factor => f64::from(learning_rate) * factor,
        };
        let decay = group.weight_decay.unwrap_or(self.weight_decay);
        let [beta1, beta2] = self.betas;
        match self.algorithm {
            Algorithm::Sgd => Rule::Sgd(Sgd {
                learning_rate: rate as f32,
                momentum: self.momentum,
                gradient: if step == 1 { 1.0 } else { (1.0 - self.dampening) as f32 },
                weight_decay: decay as f32,
                nesterov: self.nesterov,
            }),
            Algorithm::Adam | Algorithm::AdamW => {
                let decoupled = self.algorithm == Algorithm::AdamW;
                let steps = step as f64;
                Rule::Adam(Adam {
                    step_size: (rate / (1.0 - libm::pow(beta1, steps))) as f32,
                    beta1: beta1 as f32,
                    gradient1: (1.0 - beta1) as f32,
                    beta2: beta2 as f32,
                    gradient2: (1.0 - beta2) as f32,
                    correction: (1.0 / (1.0 - libm::pow(beta2, steps)).sqrt()) as f32,
                    epsilon: self.epsilon as f32,
                    weight_decay: if decoupled { 0.0 } else { decay as f32 },
                    keep: if decoupled { (1.0 - rate * decay) as f32 } else { 1.0 },
                    cautious: self.cautious,
                    amsgrad: self.amsgrad,
                })
            }
            Algorithm::RmsProp => Rule::RmsProp(RmsProp {
                learning_rate: rate as f32,
                alpha: self.alpha as f32,
                gradient: (1.0 - self.alpha) as f32,
                epsilon: self.epsilon as f32,
                momentum: self.momentum,
                weight_decay: decay as f32,
                centered: self.centered,
            }),
            Algorithm::Lion => Rule::Lion(Lion {
                learning_rate: rate as f32,
                beta1: beta1 as f32,
                gradient1: (1.0 - beta1) as f32,
                beta2: beta2 as f32,
                gradient2: (1.0 - beta2) as f32,
                keep: (1.0 - rate * decay) as f32,
            }),
        }
    }

    /// The factor of a step's gradient whose clip factor is `clip`.
    #[must_use]
    pub fn scale(&self, clip: f32) -> f32 {
        if self.maximize { -clip } else { clip }
    }

    /// To what each element of a scaled gradient is clipped.
    #[must_use]
    pub fn limit(&self) -> f32 {
        self.clip_value.unwrap_or(f32::INFINITY)
    }

    /// The update of `step`, at this learning rate and clip factor, of a model with these segments.
    #[must_use]
    pub fn update(&self, step: u64, learning_rate: f32, clip: f32, segments: &Segments) -> Update {
        Update::new(self.rules(step, learning_rate), segments.clone(), self.scale(clip), self.limit())
    }

    /// Whether there are as many groups as the tensors name.
    ///
    /// # Errors
    /// Says which group has no settings, or no tensor.
    pub fn check_groups(&self, tensors: &Manifest) -> Result<(), String> {
        let (settings, named) = (self.groups.len() + 1, tensors.segments().groups());
        if settings == named {
            return Ok(());
        }
        Err(format!("the tensors are in {named} groups, and the optimizer has settings for {settings}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls() {
        let recipe = OptimizerConfig {
            learning_rate: 0.1,
            warmup_steps: 10,
            lr_schedule: LrSchedule::Cosine,
            ..OptimizerConfig::new(Algorithm::Sgd)
        };
        let rate = |step| recipe.rate(step, 110);
        assert_eq!((rate(1), rate(5), rate(10), rate(11)), (0.01, 0.05, 0.1, 0.1));
        assert!((rate(61) - 0.05).abs() < 1e-6);
        assert!(rate(110) > 0.0 && rate(110) < 1e-4);
        assert!((11..110).all(|s| rate(s + 1) < rate(s)));
        let linear = OptimizerConfig { lr_schedule: LrSchedule::Linear, ..recipe.clone() };
        let rate = |step| linear.rate(step, 110);
        assert_eq!((rate(5), rate(10), rate(11), rate(61)), (0.05, 0.1, 0.1, 0.05));
        assert!((rate(110) - 0.001).abs() < 1e-8 && rate(111) == 0.0);
        let constant =
            OptimizerConfig { warmup_steps: 0, lr_schedule: LrSchedule::Constant, ..recipe.clone() };
        assert!([1, 7, 1000].iter().all(|&s| constant.rate(s, 10) == 0.1));
        let mut program = OptimizerConfig { warmup_steps: 2, lr_schedule: LrSchedule::Program, ..recipe };
        assert_eq!(program.set_rates([0.5, 0.25, 0.125].into()), Ok(()));
        assert!(program.set_rates([0.5, 0.25, 0.5].into()).is_err());
        assert_eq!([1, 2, 3].map(|step| program.rate(step, 3)), [0.25, 0.25, 0.125]);
        assert!(program.rate(4, 3).is_nan());
    }

    #[test]
    fn an_old_run_is_one_of_sgd_with_momentum() {
        let old = r#"{"learning_rate": 0.1, "momentum": 0.5, "clip_norm": 2.0, "warmup_steps": 11, "lr_schedule": "linear"}"#;
        let read: OptimizerConfig = serde_json::from_str(old).unwrap();
        let wanted = OptimizerConfig {
            learning_rate: 0.1,
            momentum: 0.5,
            clip_norm: Some(2.0),
            warmup_steps: 11,
            lr_schedule: LrSchedule::Linear,
            ..OptimizerConfig::new(Algorithm::Sgd)
        };
        assert_eq!(read, wanted);
        let sgd =
            Sgd { learning_rate: 0.25, momentum: 0.5, gradient: 1.0, weight_decay: 0.0, nesterov: false };
        assert_eq!(read.rules(1, 0.25), [Rule::Sgd(sgd)]);
    }

    /// Corrections are of the step, and a step that is tried again has the same.
    #[test]
    fn bias_corrections_count_committed_steps() {
        let adam = OptimizerConfig::new(Algorithm::Adam);
        for (step, first, second) in [(1, 0.1, 0.001), (2, 0.19, 0.001_999), (50, 0.994_846, 0.048_794)] {
            let rules = adam.rules(step, 1.0);
            let [Rule::Adam(rule)] = rules[..] else { unreachable!("it is Adam's") };
            assert!((f64::from(rule.step_size) * first - 1.0).abs() < 1e-5, "step {step}: {rule:?}");
            let correction = f64::from(rule.correction);
            assert!((correction * correction * second - 1.0).abs() < 1e-4, "step {step}: {rule:?}");
        }
    }

    #[test]
    fn what_is_recorded_is_read_again() {
        for algorithm in Algorithm::ALL {
            let mut config = OptimizerConfig::new(algorithm);
            config.groups.push(GroupConfig { rate_factor: 0.1, weight_decay: Some(0.0) });
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<OptimizerConfig>(&text).ok(), Some(config.clone()), "{text}");
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
            let rules = config.rules(3, 0.1);
            assert_eq!(rules.len(), 2);
            assert!(rules.iter().all(|rule| rule.moments() == config.moments().len()), "{algorithm}");
        }
    }

    #[test]
    fn a_number_out_of_range_is_named() {
        let bad = |change: fn(&mut OptimizerConfig)| {
            let mut config = OptimizerConfig::new(Algorithm::AdamW);
            change(&mut config);
            config.check(|name| format!("--{name}")).unwrap_err()
        };
        assert_eq!(bad(|c| c.betas[1] = 1.0), "--beta2 is at least 0 and under 1, not 1");
        assert_eq!(bad(|c| c.epsilon = -1.0), "--epsilon is a number over 0, not -1");
        assert!(bad(|c| c.epsilon = 1e-50).contains("--epsilon"), "it is 0 in float32");
        assert!(bad(|c| c.clip_norm = Some(f32::NAN)).contains("--clip-norm"));
        assert!(bad(|c| c.clip_value = Some(-1.0)).contains("--clip-value"));
        assert!(bad(|c| c.centered = true).contains("--centered is no setting of adamw"));
        let negative = |c: &mut OptimizerConfig| {
            c.groups.push(GroupConfig { rate_factor: -1.0, weight_decay: None });
        };
        assert!(bad(negative).contains("a group's rate factor"));
        assert!(bad(|c| c.weight_decay = f64::NAN).contains("--weight-decay"));
        assert!(bad(|c| c.learning_rate = f32::INFINITY).contains("--learning-rate"));
        assert!(bad(|c| (c.clip_norm, c.clip_value) = (Some(1.0), Some(1.0))).contains("exclude each other"));
        assert!("muon".parse::<Algorithm>().unwrap_err().contains("each element by itself"));
        for algorithm in Algorithm::ALL {
            assert_eq!(OptimizerConfig::new(algorithm).check(str::to_owned), Ok(()));
        }
        let nesterov =
            OptimizerConfig { nesterov: true, momentum: 0.0, ..OptimizerConfig::new(Algorithm::Sgd) };
        assert!(nesterov.check(str::to_owned).unwrap_err().contains("momentum"));
    }
}
