//! The optimizer's options. They are all optional, so that a resumed run can tell what was asked for from what was not.

use std::fmt::Display;
use std::str::FromStr;

use anyhow::{bail, ensure};
use clap::Args;
use tally_core::optimizer::{Algorithm, LrSchedule, OptimizerConfig};

use super::unchanged::unchanged;

/// A number over 0, or `none`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip(pub Option<f32>);

impl FromStr for Clip {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let bound = text.parse().ok().filter(|n: &f32| n.is_finite() && *n > 0.0);
        bound.map(|n| Self(Some(n))).ok_or_else(|| "it is a number over 0, or none".into())
    }
}

fn shown(clip: &Option<f32>) -> String {
    clip.map_or("none".into(), |clip| clip.to_string())
}

/// How the parameters are updated.
#[derive(Clone, Debug, Default, Args)]
pub struct OptimizerOptions {
    /// The optimizer: sgd, adam, adamw, rmsprop or lion. Another one than the program's has PyTorch's defaults, and sgd a
    /// momentum of 0.9 [default: the program's]
    #[arg(long, value_name = "NAME", help_heading = "Optimizer")]
    pub optimizer: Option<Algorithm>,

    /// The learning rate at its peak [default: the program's]
    #[arg(long, value_name = "RATE", help_heading = "Optimizer")]
    pub learning_rate: Option<f32>,

    /// Steps over which the learning rate rises [default: the program's]
    #[arg(long, value_name = "STEPS", help_heading = "Optimizer")]
    pub warmup_steps: Option<u64>,

    /// The learning rate after the warm-up: constant, cosine, linear, or program where the program has a schedule
    /// [default: the program's]
    #[arg(long, value_name = "SCHEDULE", help_heading = "Optimizer")]
    pub lr_schedule: Option<LrSchedule>,

    /// Weight decay: added to the gradient by sgd, adam and rmsprop, taken off the parameters by adamw and lion [default:
    /// the program's]
    #[arg(long, value_name = "DECAY", help_heading = "Optimizer")]
    pub weight_decay: Option<f64>,

    /// Clip the gradient's global norm to this; `none` does not [default: the program's]
    #[arg(long, value_name = "NORM", help_heading = "Optimizer")]
    pub clip_norm: Option<Clip>,

    /// Clip each element of the gradient to ± this; `none` does not [default: the program's]
    #[arg(long, value_name = "VALUE", help_heading = "Optimizer")]
    pub clip_value: Option<Clip>,

    /// sgd, rmsprop: momentum, as PyTorch defines it [default: the program's]
    #[arg(long, value_name = "M", help_heading = "Optimizer")]
    pub momentum: Option<f32>,

    /// sgd: dampening of the momentum [default: the program's]
    #[arg(long, value_name = "D", help_heading = "Optimizer")]
    pub dampening: Option<f64>,

    /// sgd: Nesterov's momentum
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Optimizer")]
    pub nesterov: Option<bool>,

    /// adam, adamw, lion: how much of the first moment is kept [default: the program's]
    #[arg(long, value_name = "BETA", help_heading = "Optimizer")]
    pub beta1: Option<f64>,

    /// adam, adamw, lion: how much of the second moment (lion: of the moment) is kept [default: the program's]
    #[arg(long, value_name = "BETA", help_heading = "Optimizer")]
    pub beta2: Option<f64>,

    /// rmsprop: how much of the mean square is kept [default: the program's]
    #[arg(long, value_name = "ALPHA", help_heading = "Optimizer")]
    pub alpha: Option<f64>,

    /// adam, adamw, rmsprop: what keeps the denominator from zero [default: the program's]
    #[arg(long, value_name = "EPSILON", help_heading = "Optimizer")]
    pub epsilon: Option<f64>,

    /// adam, adamw: the greatest second moment so far counts
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Optimizer")]
    pub amsgrad: Option<bool>,

    /// rmsprop: the variance takes the mean square's place
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Optimizer")]
    pub centered: Option<bool>,

    /// adamw: parameters decay only where the first moment has their sign
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Optimizer")]
    pub cautious_weight_decay: Option<bool>,

    /// Maximize the objective
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Optimizer")]
    pub maximize: Option<bool>,
}

impl OptimizerOptions {
    /// The optimizer of a new run: what was given, and the program's settings for the rest; the defaults of another
    /// optimizer than the program's, where that was given.
    ///
    /// # Errors
    /// If a value cannot work, or is one of another optimizer, in one line.
    pub fn configure(&self, recipe: &OptimizerConfig) -> anyhow::Result<OptimizerConfig> {
        let mut config = match self.optimizer.filter(|algorithm| *algorithm != recipe.algorithm) {
            None => recipe.clone(),
            Some(algorithm) => {
                let OptimizerConfig { warmup_steps, lr_schedule, clip_norm, clip_value, maximize, .. } =
                    *recipe;
                let (rates, rates_digest) = (recipe.rates.clone(), recipe.rates_digest.clone());
                let groups = recipe.groups.clone();
                let defaults = OptimizerConfig::new(algorithm);
                OptimizerConfig {
                    warmup_steps,
                    lr_schedule,
                    rates,
                    rates_digest,
                    clip_norm,
                    clip_value,
                    maximize,
                    groups,
                    ..defaults
                }
            }
        };
        self.check_that_they_belong_to(config.algorithm)?;
        ensure!(
            config.algorithm == recipe.algorithm
                || recipe.lr_schedule != LrSchedule::Program
                || self.lr_schedule.is_some(),
            "--optimizer {} would train at the rates that the program's schedule has for {}: choose an --lr-schedule as well",
            config.algorithm,
            recipe.algorithm
        );
        if let Some(schedule) = self.lr_schedule {
            let known = schedule != LrSchedule::Program || recipe.lr_schedule == LrSchedule::Program;
            ensure!(known, "--lr-schedule program: this program has no schedule of its own");
            config.lr_schedule = schedule;
        }
        if config.lr_schedule != LrSchedule::Program {
            (config.rates, config.rates_digest) = (None, None);
        }
        if let (LrSchedule::Program, Some(rate)) = (config.lr_schedule, self.learning_rate) {
            bail!(
                "--learning-rate {rate} has no effect, since the program's schedule says every rate; choose another \
                 --lr-schedule as well"
            );
        }
        let set = |value: &mut f64, given: Option<f64>| *value = given.unwrap_or(*value);
        let switch = |value: &mut bool, given: Option<bool>| *value = given.unwrap_or(*value);
        config.learning_rate = self.learning_rate.unwrap_or(config.learning_rate);
        config.warmup_steps = self.warmup_steps.unwrap_or(config.warmup_steps);
        config.momentum = self.momentum.unwrap_or(config.momentum);
        set(&mut config.weight_decay, self.weight_decay);
        set(&mut config.dampening, self.dampening);
        set(&mut config.betas[0], self.beta1);
        set(&mut config.betas[1], self.beta2);
        set(&mut config.alpha, self.alpha);
        set(&mut config.epsilon, self.epsilon);
        switch(&mut config.nesterov, self.nesterov);
        switch(&mut config.amsgrad, self.amsgrad);
        switch(&mut config.centered, self.centered);
        switch(&mut config.cautious, self.cautious_weight_decay);
        switch(&mut config.maximize, self.maximize);
        // One way of clipping that is asked for takes the place of the program's other way.
        if let Some(Clip(norm)) = self.clip_norm {
            config.clip_norm = norm;
            config.clip_value = config.clip_value.filter(|_| norm.is_none());
        }
        if let Some(Clip(value)) = self.clip_value {
            config.clip_value = value;
            config.clip_norm = config.clip_norm.filter(|_| value.is_none() || self.clip_norm.is_some());
        }
        config.check(|name| format!("--{name}")).map_err(anyhow::Error::msg)?;
        Ok(config)
    }

    fn check_that_they_belong_to(&self, algorithm: Algorithm) -> anyhow::Result<()> {
        let options = [
            ("momentum", self.momentum.is_some()),
            ("dampening", self.dampening.is_some()),
            ("nesterov", self.nesterov.is_some()),
            ("beta1", self.beta1.is_some()),
            ("beta2", self.beta2.is_some()),
            ("alpha", self.alpha.is_some()),
            ("epsilon", self.epsilon.is_some()),
            ("amsgrad", self.amsgrad.is_some()),
            ("centered", self.centered.is_some()),
            ("cautious-weight-decay", self.cautious_weight_decay.is_some()),
        ];
        for (option, given) in options {
            let owners = Algorithm::with(option);
            let names: Vec<String> = owners.iter().map(Algorithm::to_string).collect();
            let names = match names.split_last() {
                Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
                _ => names.concat(),
            };
            ensure!(
                !given || owners.contains(&algorithm),
                "--{option} is an option of {names}; the optimizer is {algorithm}: leave it out, or choose another --optimizer"
            );
        }
        Ok(())
    }

    /// Checks what was given beside `--resume` against the run's optimizer.
    ///
    /// # Errors
    /// If one differs.
    pub fn check_unchanged(&self, run: &OptimizerConfig) -> anyhow::Result<()> {
        fn same<T: PartialEq + Display>(option: &str, given: Option<T>, run: T) -> anyhow::Result<()> {
            unchanged(option, given.as_ref(), &run, T::to_string)
        }
        same("--optimizer", self.optimizer, run.algorithm)?;
        self.check_that_they_belong_to(run.algorithm)?;
        same("--learning-rate", self.learning_rate, run.learning_rate)?;
        same("--warmup-steps", self.warmup_steps, run.warmup_steps)?;
        same("--lr-schedule", self.lr_schedule, run.lr_schedule)?;
        same("--weight-decay", self.weight_decay, run.weight_decay)?;
        unchanged("--clip-norm", self.clip_norm.map(|c| c.0).as_ref(), &run.clip_norm, shown)?;
        unchanged("--clip-value", self.clip_value.map(|c| c.0).as_ref(), &run.clip_value, shown)?;
        same("--momentum", self.momentum, run.momentum)?;
        same("--dampening", self.dampening, run.dampening)?;
        same("--nesterov", self.nesterov, run.nesterov)?;
        same("--beta1", self.beta1, run.betas[0])?;
        same("--beta2", self.beta2, run.betas[1])?;
        same("--alpha", self.alpha, run.alpha)?;
        same("--epsilon", self.epsilon, run.epsilon)?;
        same("--amsgrad", self.amsgrad, run.amsgrad)?;
        same("--centered", self.centered, run.centered)?;
        same("--cautious-weight-decay", self.cautious_weight_decay, run.cautious)?;
        same("--maximize", self.maximize, run.maximize)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(options: OptimizerOptions, recipe: Algorithm) -> String {
        options.configure(&OptimizerConfig::new(recipe)).unwrap_err().to_string()
    }

    #[test]
    fn another_optimizer_has_its_own_defaults_and_the_runs_schedule() {
        let recipe = OptimizerConfig {
            clip_norm: Some(2.0),
            warmup_steps: 7,
            lr_schedule: LrSchedule::Cosine,
            learning_rate: 0.3,
            ..OptimizerConfig::new(Algorithm::Sgd)
        };
        let options = OptimizerOptions {
            optimizer: Some(Algorithm::AdamW),
            beta2: Some(0.95),
            amsgrad: Some(true),
            ..OptimizerOptions::default()
        };
        let config = options.configure(&recipe).unwrap();
        let wanted = OptimizerConfig {
            betas: [0.9, 0.95],
            amsgrad: true,
            clip_norm: Some(2.0),
            warmup_steps: 7,
            lr_schedule: LrSchedule::Cosine,
            ..OptimizerConfig::new(Algorithm::AdamW)
        };
        assert_eq!(config, wanted);
        options.check_unchanged(&config).unwrap();
        let other = OptimizerOptions { beta2: Some(0.9), ..OptimizerOptions::default() };
        assert!(
            other.check_unchanged(&config).unwrap_err().to_string().contains("--beta2 0.9 cannot change")
        );
        let same = OptimizerOptions { optimizer: Some(Algorithm::Sgd), ..OptimizerOptions::default() };
        assert_eq!(same.configure(&recipe).unwrap(), recipe);
    }

    #[test]
    fn an_option_of_another_optimizer_is_refused() {
        let nesterov = OptimizerOptions { nesterov: Some(true), ..OptimizerOptions::default() };
        let said = refused(nesterov, Algorithm::AdamW);
        assert!(said.contains("--nesterov is an option of sgd; the optimizer is adamw"), "{said}");
        let beta = OptimizerOptions { beta1: Some(0.5), ..OptimizerOptions::default() };
        assert!(refused(beta, Algorithm::Sgd).contains("adam, adamw and lion"));
        let program =
            OptimizerOptions { lr_schedule: Some(LrSchedule::Program), ..OptimizerOptions::default() };
        assert!(refused(program, Algorithm::Sgd).contains("no schedule of its own"));
    }

    #[test]
    fn one_way_of_clipping_takes_the_others_place() {
        let recipe = OptimizerConfig { clip_norm: Some(1.0), ..OptimizerConfig::new(Algorithm::Sgd) };
        let by_value = OptimizerOptions { clip_value: Some(Clip(Some(0.5))), ..OptimizerOptions::default() };
        let config = by_value.configure(&recipe).unwrap();
        assert_eq!((config.clip_norm, config.clip_value), (None, Some(0.5)));
        let both = OptimizerOptions { clip_norm: Some(Clip(Some(2.0))), ..by_value };
        assert!(both.configure(&recipe).unwrap_err().to_string().contains("exclude each other"));
    }
}
