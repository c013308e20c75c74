//! Burn's optimizers as Tally's, and what a job says of its parameters by group.

use burn::lr_scheduler::LrScheduler;
use burn::optim::{AdamConfig, AdamWConfig, RmsPropConfig, SgdConfig};
use serde::Serialize;
use serde_json::Value;
use tally_core::optimizer::{Algorithm, GroupConfig, LrSchedule, OptimizerConfig};

/// An optimizer that a job can be trained with: Burn's [`SgdConfig`], [`AdamConfig`], [`AdamWConfig`] and
/// [`RmsPropConfig`], and [`Lion`]. `OptimizerConfig` itself has every setting.
///
/// An optimizer must update each element by itself, so that every replica computes the same bits.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no optimizer that Tally can train with",
    note = "there are burn's SgdConfig, AdamConfig, AdamWConfig and RmsPropConfig, and tally::Lion",
    note = "an optimizer must update each element by itself: Muon, LAMB, L-BFGS and Adafactor do not"
)]
pub trait IntoOptimizer {
    /// Its settings, at the learning rate that Tally has for it.
    ///
    /// # Errors
    /// If it asks for something that Tally does not do, in one line.
    fn into_optimizer(self) -> Result<OptimizerConfig, String>;
}

impl IntoOptimizer for OptimizerConfig {
    fn into_optimizer(self) -> Result<OptimizerConfig, String> {
        Ok(self)
    }
}

/// Lion (Chen and others: Symbolic discovery of optimization algorithms, 2023), which Burn does not have. Its learning
/// rate is usually a third to a tenth of AdamW's, and its weight decay three to ten times as large.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion {
    /// How much of the moment is in the direction of a step.
    pub beta1: f64,
    /// How much of the moment is kept.
    pub beta2: f64,
    /// Weight decay, taken off the parameters.
    pub weight_decay: f64,
}

impl Default for Lion {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.99, weight_decay: 0.0 }
    }
}

impl IntoOptimizer for Lion {
    fn into_optimizer(self) -> Result<OptimizerConfig, String> {
        let Self { beta1, beta2, weight_decay } = self;
        Ok(OptimizerConfig { betas: [beta1, beta2], weight_decay, ..OptimizerConfig::new(Algorithm::Lion) })
    }
}

/// The fields of one of Burn's configurations. They are private there, and serialised exactly.
struct Fields(Value);

impl Fields {
    fn of(config: &impl Serialize) -> Result<Self, String> {
        // By way of text, a 0.9 of 32 bits stays 0.9.
        let text = serde_json::to_string(config).map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map(Self).map_err(|error| error.to_string())
    }

    fn number(&self, path: &str) -> Result<f64, String> {
        let value = self.0.pointer(path).and_then(Value::as_f64);
        value.ok_or_else(|| {
            format!("this version of Burn has no number {path} in its optimizer's configuration")
        })
    }

    /// A number that may be absent.
    fn optional(&self, path: &str) -> f64 {
        self.0.pointer(path).and_then(Value::as_f64).unwrap_or(0.0)
    }

    fn switch(&self, path: &str) -> bool {
        self.0.pointer(path).and_then(Value::as_bool).unwrap_or(false)
    }

    /// By what each element of the gradient is clipped.
    fn clip_value(&self) -> Result<Option<f32>, String> {
        let clipping =
            ["/grad_clipping", "/gradient_clipping"].into_iter().find_map(|path| self.0.pointer(path));
        match clipping {
            None | Some(Value::Null) => Ok(None),
            Some(clipping) => match clipping.get("Value").and_then(Value::as_f64) {
                Some(value) => Ok(Some(value as f32)),
                None => Err("Burn's gradient clipping by norm clips each tensor by itself, which Tally does not: clip the \
                             norm of the whole gradient with `.clip_norm(…)`, or each element with Burn's clipping by value"
                    .into()),
            },
        }
    }
}

impl IntoOptimizer for SgdConfig {
    fn into_optimizer(self) -> Result<OptimizerConfig, String> {
        let fields = Fields::of(&self)?;
        Ok(OptimizerConfig {
            momentum: fields.optional("/momentum/momentum") as f32,
            dampening: fields.optional("/momentum/dampening"),
            nesterov: fields.switch("/momentum/nesterov"),
            weight_decay: fields.optional("/weight_decay/penalty"),
            clip_value: fields.clip_value()?,
            ..OptimizerConfig::new(Algorithm::Sgd)
        })
    }
}

fn adam(fields: &Fields, algorithm: Algorithm) -> Result<OptimizerConfig, String> {
    Ok(OptimizerConfig {
        betas: [fields.number("/beta_1")?, fields.number("/beta_2")?],
        epsilon: fields.number("/epsilon")?,
        amsgrad: fields.switch("/amsgrad"),
        clip_value: fields.clip_value()?,
        ..OptimizerConfig::new(algorithm)
    })
}

impl IntoOptimizer for AdamConfig {
    fn into_optimizer(self) -> Result<OptimizerConfig, String> {
        let fields = Fields::of(&self)?;
        let weight_decay = fields.optional("/weight_decay/penalty");
        Ok(OptimizerConfig { weight_decay, ..adam(&fields, Algorithm::Adam)? })
    }
}

impl IntoOptimizer for AdamWConfig {
    fn into_optimizer(self) -> Result<OptimizerConfig, String> {
        let fields = Fields::of(&self)?;
        let (weight_decay, cautious) =
            (fields.number("/weight_decay")?, fields.switch("/cautious_weight_decay"));
        Ok(OptimizerConfig { weight_decay, cautious, ..adam(&fields, Algorithm::AdamW)? })
    }
}

impl IntoOptimizer for RmsPropConfig {
    fn into_optimizer(self) -> Result<OptimizerConfig, String> {
        let fields = Fields::of(&self)?;
        Ok(OptimizerConfig {
            alpha: fields.number("/alpha")?,
            epsilon: fields.number("/epsilon")?,
            momentum: fields.optional("/momentum") as f32,
            centered: fields.switch("/centered"),
            weight_decay: fields.optional("/weight_decay/penalty"),
            clip_value: fields.clip_value()?,
            ..OptimizerConfig::new(Algorithm::RmsProp)
        })
    }
}

/// A parameter, as groups tell them apart: its name, a path of fields joined by dots, and its shape.
pub type Matches = dyn Fn(&str, &[usize]) -> bool + Send + Sync;

/// Parameters that are trained otherwise than the rest.
pub struct ParameterGroup {
    pub(super) name: String,
    pub(super) matches: Box<Matches>,
    pub(super) kind: GroupKind,
}

/// What is special about a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum GroupKind {
    /// The optimizer's settings.
    Trained(GroupConfig),
    /// They are not trained.
    Frozen,
}

impl std::fmt::Debug for ParameterGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParameterGroup")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl ParameterGroup {
    /// The parameters of which `matches` is true, given their names and shapes. `name` is for error messages.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        matches: impl Fn(&str, &[usize]) -> bool + Send + Sync + 'static,
    ) -> Self {
        let trained = GroupConfig { rate_factor: 1.0, weight_decay: None };
        Self { name: name.into(), matches: Box::new(matches), kind: GroupKind::Trained(trained) }
    }

    /// Their learning rate is the run's times this.
    #[must_use]
    pub fn rate_factor(mut self, factor: f64) -> Self {
        if let GroupKind::Trained(config) = &mut self.kind {
            config.rate_factor = factor;
        }
        self
    }

    /// Their weight decay, whatever the others' is.
    #[must_use]
    pub fn weight_decay(mut self, decay: f64) -> Self {
        if let GroupKind::Trained(config) = &mut self.kind {
            config.weight_decay = Some(decay);
        }
        self
    }

    /// They are not trained: they are in checkpoints, and no step sends or updates them.
    #[must_use]
    pub fn frozen(self) -> Self {
        Self { kind: GroupKind::Frozen, ..self }
    }
}

/// The most steps of a run whose rates a scheduler says: they are all computed when it begins, 4 bytes each.
const MOST_STEPS: u64 = 100_000_000;

/// The rates of a run's steps, for a run of so many.
pub(super) type Rates = dyn Fn(u64) -> Result<Vec<f32>, String> + Send + Sync;

/// What a job says of its optimizer. What is not said is the optimizer's default.
#[derive(Default)]
pub(super) struct OptimizerSettings {
    pub optimizer: Option<Result<OptimizerConfig, String>>,
    pub learning_rate: Option<f32>,
    pub lr_schedule: Option<LrSchedule>,
    pub rates: Option<Box<Rates>>,
    pub momentum: Option<f32>,
    pub clip_norm: Option<f32>,
    pub warmup_steps: Option<u64>,
    pub groups: Vec<ParameterGroup>,
}

impl OptimizerSettings {
    /// The rates of a scheduler of Burn's, stepped from its beginning.
    pub fn scheduler(scheduler: impl LrScheduler + 'static) -> Box<Rates> {
        Box::new(move |steps| {
            if steps > MOST_STEPS {
                return Err(format!(
                    "the run has {steps} steps, and a scheduler says the rates of at most {MOST_STEPS}: train fewer epochs, or \
                     choose an --lr-schedule"
                ));
            }
            let mut scheduler = scheduler.clone();
            (1..=steps)
                .map(|step| {
                    let rate = scheduler.step();
                    if (rate as f32).is_finite() && rate >= 0.0 {
                        return Ok(rate as f32);
                    }
                    Err(format!(
                        "the schedule gives the learning rate {rate} at step {step} of {steps}: a rate is a finite number that is \
                         not below 0"
                    ))
                })
                .collect()
        })
    }

    /// The optimizer's settings for a run of `steps` steps.
    pub fn config(&self, steps: u64) -> Result<OptimizerConfig, String> {
        let mut config = match &self.optimizer {
            Some(optimizer) => optimizer.clone()?,
            None => OptimizerConfig::new(Algorithm::Sgd),
        };
        config.learning_rate = self.learning_rate.unwrap_or(config.learning_rate);
        config.lr_schedule = self.lr_schedule.unwrap_or(config.lr_schedule);
        config.warmup_steps = self.warmup_steps.unwrap_or(config.warmup_steps);
        config.clip_norm = self.clip_norm.or(config.clip_norm);
        if let Some(momentum) = self.momentum {
            if !matches!(config.algorithm, Algorithm::Sgd | Algorithm::RmsProp) {
                return Err(format!(
                    "`.momentum(…)` is a setting of sgd and rmsprop, and the optimizer is {}",
                    config.algorithm
                ));
            }
            config.momentum = momentum;
        }
        if let Some(rates) = &self.rates {
            if let Some(rate) = self.learning_rate {
                return Err(format!(
                    "the job has a `.learning_rate({rate}, …)` and a `.lr_scheduler(…)`: the scheduler says every rate, so leave \
                     the other out"
                ));
            }
            let rates = rates(steps)?;
            config.learning_rate = rates.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
            config.set_rates(rates.into())?;
            config.lr_schedule = LrSchedule::Program;
        }
        if !config.groups.is_empty() {
            return Err(
                "groups are given to the job, with `.group(…)`, and not in its OptimizerConfig".into()
            );
        }
        let trained = self.groups.iter().filter_map(|group| match group.kind {
            GroupKind::Trained(config) => Some(config),
            GroupKind::Frozen => None,
        });
        config.groups = trained.collect();
        config.check(str::to_owned)?;
        config.check_rates(steps)?;
        Ok(config)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::grad_clipping::GradientClippingConfig;
    use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
    use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
    use burn::optim::decay::WeightDecayConfig;
    use burn::optim::momentum::MomentumConfig;

    use super::*;

    #[test]
    fn burns_configurations_are_taken_as_they_are() {
        let momentum = MomentumConfig { momentum: 0.8, dampening: 0.25, nesterov: false };
        let sgd = SgdConfig::new()
            .with_momentum(Some(momentum))
            .with_weight_decay(Some(WeightDecayConfig::new(0.01)))
            .with_gradient_clipping(Some(GradientClippingConfig::Value(0.5)));
        let wanted = OptimizerConfig {
            momentum: 0.8,
            dampening: 0.25,
            weight_decay: 0.01,
            clip_value: Some(0.5),
            ..OptimizerConfig::new(Algorithm::Sgd)
        };
        assert_eq!(sgd.into_optimizer().unwrap(), wanted);
        let plain = OptimizerConfig { momentum: 0.0, ..OptimizerConfig::new(Algorithm::Sgd) };
        assert_eq!(SgdConfig::new().into_optimizer().unwrap(), plain);

        let adamw =
            AdamWConfig::new().with_weight_decay(0.05).with_cautious_weight_decay(true).with_amsgrad(true);
        let wanted = OptimizerConfig {
            betas: [0.9, 0.999],
            epsilon: 1e-5,
            weight_decay: 0.05,
            cautious: true,
            amsgrad: true,
            ..OptimizerConfig::new(Algorithm::AdamW)
        };
        assert_eq!(adamw.into_optimizer().unwrap(), wanted);
        let adam = AdamConfig::new().with_beta_2(0.95).with_weight_decay(Some(WeightDecayConfig::new(0.01)));
        let wanted = OptimizerConfig {
            betas: [0.9, 0.95],
            epsilon: 1e-5,
            weight_decay: 0.01,
            ..OptimizerConfig::new(Algorithm::Adam)
        };
        assert_eq!(adam.into_optimizer().unwrap(), wanted);
        let rms_prop = RmsPropConfig::new().with_centered(true).into_optimizer().unwrap();
        assert_eq!((rms_prop.alpha, rms_prop.momentum, rms_prop.centered), (0.99, 0.9, true));
    }

    #[test]
    fn what_tally_does_not_do_is_refused() {
        let by_norm = AdamConfig::new().with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)));
        assert!(by_norm.into_optimizer().unwrap_err().contains("each tensor by itself"));
        let settings = OptimizerSettings {
            optimizer: Some(Lion::default().into_optimizer()),
            momentum: Some(0.9),
            ..OptimizerSettings::default()
        };
        assert!(settings.config(1).unwrap_err().contains("the optimizer is lion"));
    }

    #[test]
    fn burns_schedules_are_stepped_from_their_beginning() {
        let cosine = CosineAnnealingLrSchedulerConfig::new(0.1, 10).with_min_lr(0.01).init().unwrap();
        let mut own = cosine;
        let settings = OptimizerSettings {
            rates: Some(OptimizerSettings::scheduler(cosine)),
            ..OptimizerSettings::default()
        };
        let config = settings.config(12).unwrap();
        let by_hand: Vec<f32> = (0..12).map(|_| own.step() as f32).collect();
        assert_eq!(config.rates.as_deref(), Some(&by_hand[..]));
        assert_eq!((config.lr_schedule, config.rate(5, 12)), (LrSchedule::Program, by_hand[4]));

        /// A schedule that goes wrong at its third step.
        #[derive(Clone)]
        struct Wrong(u32);
        impl LrScheduler for Wrong {
            type Record<B: burn::tensor::backend::Backend> = ();
            fn step(&mut self) -> f64 {
                self.0 += 1;
                if self.0 == 3 { f64::INFINITY } else { 0.1 }
            }
            fn to_record<B: burn::tensor::backend::Backend>(&self) {}
            fn load_record<B: burn::tensor::backend::Backend>(self, (): ()) -> Self {
                self
            }
        }
        let said = OptimizerSettings::scheduler(Wrong(0))(5).unwrap_err();
        assert!(said.contains("inf at step 3 of 5"), "{said}");
        let linear = LinearLrSchedulerConfig::new(0.5, 0.25, 2).init().unwrap();
        assert_eq!(OptimizerSettings::scheduler(linear)(1).unwrap().len(), 1);
    }
}
