//! The options that decide what is trained, and their defaults.
//!
//! They are all optional on the command line, so that a resumed run can tell what was
//! asked for from what was not.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use tally_data::{DataConfig, Mnist, Schedule};
use tally_exact::tree::Tree;
use tally_exact::wire::WireDtype;
use tally_proto::MAX_LEAF_SAMPLES;
use tally_worker::engine::{LabelLoss, ModelSpec};

use crate::core::recipe::{LrSchedule, Recipe};
use crate::run::config::RunConfig;

/// A named set of training options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RecipeName {
    /// Trains fast and does not diverge: rate 0.1 with warm-up, along a line to zero, clipped at 2
    Default,
    /// The original's: rate 0.01, constant, unclipped, softmax-nll. It is unstable and may
    /// diverge within 100 steps
    Seed,
}

/// A clip norm, or `none`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipNorm(pub Option<f32>);

impl FromStr for ClipNorm {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let norm = text.parse().ok().filter(|n: &f32| n.is_finite() && *n > 0.0);
        norm.map(|n| Self(Some(n))).ok_or_else(|| "a clip norm is a number over 0, or none".into())
    }
}

/// Options that decide what is trained.
#[derive(Clone, Debug, Default, Args)]
pub struct Training {
    /// Epochs to train [default: 19, as the original]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Training")]
    pub epochs: Option<u32>,

    /// Samples of a step, over all workers [default: 64]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch_size: Option<usize>,

    /// Micro-shards a step is cut into: a power of two, fixed for the run. It bounds how many
    /// workers can compute at once, and decides the bits [default: 8]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub shards: Option<u32>,

    /// A set of the options below; any of them given beside it wins [default: default]
    #[arg(long, value_enum, help_heading = "Training")]
    pub recipe: Option<RecipeName>,

    /// The learning rate at its peak [default: 0.1]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub learning_rate: Option<f32>,

    /// Momentum, as PyTorch defines it [default: 0.9]
    #[arg(long, value_name = "M", help_heading = "Training")]
    pub momentum: Option<f32>,

    /// Loss of the digit's answer: cross-entropy, or softmax-nll as the original [default:
    /// cross-entropy]
    #[arg(long, value_name = "LOSS", help_heading = "Training")]
    pub label_loss: Option<LabelLoss>,

    /// Clip the gradient's global norm to this; `none` does not [default: 2]
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub clip_norm: Option<ClipNorm>,

    /// Steps over which the rate rises [default: 200, at most a fifth of the run]
    #[arg(long, value_name = "STEPS", help_heading = "Training")]
    pub warmup_steps: Option<u64>,

    /// How the rate goes on: constant, cosine or linear [default: linear]
    #[arg(long, value_name = "SCHEDULE", help_heading = "Training")]
    pub lr_schedule: Option<LrSchedule>,

    /// What gradients travel as: f32, or bf16 for half the bytes, rounded at every node of the
    /// tree. It decides the bits [default: f32]
    #[arg(long, value_name = "DTYPE", help_heading = "Training")]
    pub wire_dtype: Option<WireDtype>,

    /// Seed of the order, the random numbers and the initial parameters [default: 1]
    #[arg(long, value_name = "SEED", help_heading = "Training")]
    pub seed: Option<u64>,

    /// The network: reference, mlp (small and quick), or
    /// synthetic:parameters=N,us-per-sample=N,jitter=F (none at all, to measure) [default: reference]
    #[arg(long, value_name = "MODEL", help_heading = "Training")]
    pub model: Option<ModelSpec>,

    /// Start from these weights: a safetensors file with PyTorch's names, or a checkpoint; with --resume, where
    /// the weights that the run started from are now
    #[arg(long, value_name = "FILE", help_heading = "Training")]
    pub init: Option<PathBuf>,

    /// The data.
    #[command(flatten)]
    pub data: DataOptions,
}

/// Options that choose samples.
#[derive(Clone, Debug, Default, Args)]
pub struct DataOptions {
    /// Four IDX files of 28×28 digits under MNIST's names, plain or .gz [default: the
    /// embedded MNIST]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data_dir: Option<PathBuf>,

    /// Use only the first N training samples
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub train_limit: Option<usize>,

    /// Use only the first N test samples
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub test_limit: Option<usize>,
}

impl DataOptions {
    /// Reads the samples.
    ///
    /// # Errors
    /// If a file is missing or wrong, or a limit is over what there is.
    pub fn load(&self) -> anyhow::Result<Mnist> {
        let whole = match &self.data_dir {
            Some(directory) => Mnist::from_dir(directory)?,
            None => Mnist::embedded()?,
        };
        Ok(whole.limit(self.train_limit, self.test_limit)?)
    }

    fn config(&self, data: &Mnist) -> DataConfig {
        DataConfig::of(self.data_dir.as_deref(), self.train_limit, self.test_limit, data)
    }
}

/// The batch size unless told otherwise.
pub const BATCH_SIZE: usize = 64;
/// The seed unless told otherwise.
pub const SEED: u64 = 1;

impl Training {
    /// The configuration of a new run: what was given, and defaults for the rest.
    ///
    /// # Errors
    /// If a value cannot work, in one line that says which and why.
    pub fn configure(&self, data: &Mnist, run: u64, workers: u32) -> anyhow::Result<RunConfig> {
        let epochs = self.epochs.unwrap_or(19);
        let batch_size = self.batch_size.unwrap_or(BATCH_SIZE);
        let shards = self.shards.unwrap_or(8);
        let seed = self.seed.unwrap_or(SEED);
        let schedule = Schedule::new(seed, data.train.len(), batch_size).context("--batch-size")?;
        Tree::new(shards).context("--shards")?;
        let leaf = batch_size.min(data.train.len()).div_ceil(shards as usize);
        ensure!(
            leaf <= MAX_LEAF_SAMPLES,
            "--batch-size {batch_size} over --shards {shards} makes micro-shards of {leaf} samples; the most is \
             {MAX_LEAF_SAMPLES}: raise --shards"
        );
        let steps = schedule.steps_per_epoch() as u64 * u64::from(epochs);
        let base = self.recipe.unwrap_or(RecipeName::Default);
        let (recipe, label_loss) = match base {
            RecipeName::Default => (
                Recipe {
                    learning_rate: 0.1,
                    momentum: 0.9,
                    clip_norm: Some(2.0),
                    warmup_steps: 200.min(steps / 5),
                    lr_schedule: LrSchedule::Linear,
                },
                LabelLoss::CrossEntropy,
            ),
            RecipeName::Seed => (
                Recipe {
                    learning_rate: 0.01,
                    momentum: 0.9,
                    clip_norm: None,
                    warmup_steps: 0,
                    lr_schedule: LrSchedule::Constant,
                },
                LabelLoss::SoftmaxNll,
            ),
        };
        let optimizer = Recipe {
            learning_rate: self.learning_rate.unwrap_or(recipe.learning_rate),
            momentum: self.momentum.unwrap_or(recipe.momentum),
            clip_norm: self.clip_norm.map_or(recipe.clip_norm, |clip| clip.0),
            warmup_steps: self.warmup_steps.unwrap_or(recipe.warmup_steps),
            lr_schedule: self.lr_schedule.unwrap_or(recipe.lr_schedule),
        };
        let rate = optimizer.learning_rate;
        ensure!(rate.is_finite() && rate > 0.0, "--learning-rate is a number over 0, not {rate}");
        let momentum = optimizer.momentum;
        ensure!((0.0..1.0).contains(&momentum), "--momentum is at least 0 and under 1, not {momentum}");
        let chosen = self.label_loss.unwrap_or(label_loss);
        let name = match base {
            _ if (optimizer, chosen) != (recipe, label_loss) => "custom",
            RecipeName::Default => "default",
            RecipeName::Seed => "seed",
        };
        let model = self.model.clone().unwrap_or(ModelSpec::Reference);
        Ok(RunConfig {
            version: crate::run::config::RUN_VERSION,
            tally: env!("CARGO_PKG_VERSION").into(),
            run: format!("{run:016x}"),
            tensors: tally_worker::engine::backend::manifest(&model),
            model,
            label_loss: chosen,
            seed,
            epochs,
            batch_size,
            shards,
            recipe: name.into(),
            optimizer,
            data: self.data.config(data),
            init: None,
            chunk: tally_exact::CHUNK,
            workers: workers as usize,
            checkpoint_every: None,
            keep_checkpoints: 3,
            audit_rate: 0.0,
            wire_dtype: self.wire_dtype.unwrap_or_default(),
        })
    }

    /// Checks what was given beside `--resume` against the run, and makes the one change
    /// that is allowed: more or fewer epochs, where the rate does not depend on them.
    ///
    /// # Errors
    /// If an option that is fixed for the run differs from it.
    pub fn adjust(&self, config: &mut RunConfig) -> anyhow::Result<()> {
        fn same<T: PartialEq>(
            option: &str,
            given: Option<&T>,
            run: &T,
            shown: impl Fn(&T) -> String,
        ) -> anyhow::Result<()> {
            match given {
                Some(given) if given != run => bail!(
                    "{option} {} cannot change on --resume: the run has {}; leave it out, or start a new run",
                    shown(given),
                    shown(run)
                ),
                _ => Ok(()),
            }
        }
        let o = config.optimizer;
        same("--batch-size", self.batch_size.as_ref(), &config.batch_size, usize::to_string)?;
        same("--shards", self.shards.as_ref(), &config.shards, u32::to_string)?;
        same("--learning-rate", self.learning_rate.as_ref(), &o.learning_rate, f32::to_string)?;
        same("--momentum", self.momentum.as_ref(), &o.momentum, f32::to_string)?;
        same("--label-loss", self.label_loss.as_ref(), &config.label_loss, LabelLoss::to_string)?;
        let clip = self.clip_norm.map(|c| c.0);
        same("--clip-norm", clip.as_ref(), &o.clip_norm, |c| c.map_or("none".into(), |c| c.to_string()))?;
        same("--warmup-steps", self.warmup_steps.as_ref(), &o.warmup_steps, u64::to_string)?;
        same("--lr-schedule", self.lr_schedule.as_ref(), &o.lr_schedule, LrSchedule::to_string)?;
        same("--wire-dtype", self.wire_dtype.as_ref(), &config.wire_dtype, WireDtype::to_string)?;
        same("--seed", self.seed.as_ref(), &config.seed, u64::to_string)?;
        same("--model", self.model.as_ref(), &config.model, ModelSpec::to_string)?;
        // A custom recipe is one whose parts were given; they have just been compared.
        if let Some(recipe) = self.recipe.filter(|_| config.recipe != "custom") {
            let name = format!("{recipe:?}").to_lowercase();
            same("--recipe", Some(&name), &config.recipe, String::clone)?;
        }
        let limit = |l: &Option<usize>| l.map_or("none".into(), |l| l.to_string());
        same("--train-limit", self.data.train_limit.map(Some).as_ref(), &config.data.train_limit, limit)?;
        same("--test-limit", self.data.test_limit.map(Some).as_ref(), &config.data.test_limit, limit)?;
        if let Some(directory) = &self.data.data_dir {
            // The files may have moved; their SHA-256 is compared when they are read.
            config.data.directory = Some(directory.as_path().into());
        }
        if let Some(init) = &self.init {
            // So may these; their SHA-256 is compared if they are needed again.
            match &mut config.init {
                Some(from) => from.path = init.as_path().into(),
                None => bail!(
                    "--init {} cannot change on --resume: the run started from its seed; leave it out, or start a new run",
                    init.display()
                ),
            }
        }
        if let Some(epochs) = self.epochs.filter(|&epochs| epochs != config.epochs) {
            ensure!(
                o.lr_schedule == LrSchedule::Constant,
                "--epochs cannot change on --resume under --lr-schedule {}, since the rate of every step depends on it; \
                 leave it out, or start a new run with --init from a checkpoint",
                o.lr_schedule
            );
            config.epochs = epochs;
        }
        Ok(())
    }
}

/// Of what was asked for, what works and can hardly be meant: each with what it comes to.
#[must_use]
pub fn remarks(config: &RunConfig) -> Vec<String> {
    let RunConfig { batch_size, shards, workers, audit_rate, .. } = *config;
    let samples = config.data.train_samples;
    let steps = samples.div_ceil(batch_size.max(1)) as u64 * u64::from(config.epochs);
    let warmup = config.optimizer.warmup_steps;
    let mut remarks = Vec::new();
    if warmup >= steps && warmup > 0 {
        remarks.push(format!(
            "--warmup-steps {warmup} is no less than the run's {steps} steps: the learning rate never goes beyond its rise"
        ));
    }
    if audit_rate > 0.0 && workers == 1 {
        remarks.push(format!(
            "--audit-rate {audit_rate} needs two workers, and --workers is 1: nothing is audited until a second one joins"
        ));
    }
    if let Some(every) = config.checkpoint_every.filter(|every| *every > steps) {
        remarks.push(format!(
            "--checkpoint-every {every} is more than the run's {steps} steps: checkpoints come at the ends of epochs alone"
        ));
    }
    let batch = batch_size.min(samples);
    if shards as usize > batch {
        remarks.push(format!(
            "--shards {shards} cuts a step of {batch} samples: no more than {batch} workers can compute at once, and the other \
             micro-shards are empty"
        ));
    }
    remarks
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_data::Split;

    use super::*;

    fn configure(change: impl FnOnce(&mut Training)) -> RunConfig {
        let split = |name, n: usize| Split::new(name, vec![0; n * 784], vec![0; n]).unwrap();
        let data = Mnist { train: split("training", 64), test: split("test", 1) };
        let mut training = Training {
            epochs: Some(2),
            batch_size: Some(16),
            model: Some("synthetic:parameters=10".parse().unwrap()),
            ..Training::default()
        };
        change(&mut training);
        training.configure(&data, 1, 1).unwrap()
    }

    #[test]
    fn what_can_hardly_be_meant_is_remarked_upon() {
        assert_eq!(remarks(&configure(|_| {})), [""; 0]);
        let told = |config: &RunConfig, words: &[&str]| {
            let remarks = remarks(config);
            assert!(
                matches!(&remarks[..], [one] if words.iter().all(|word| one.contains(word))),
                "{remarks:?}"
            );
        };
        told(&configure(|t| t.warmup_steps = Some(8)), &["--warmup-steps 8", "8 steps"]);
        assert!(remarks(&configure(|t| t.warmup_steps = Some(7))).is_empty());
        told(&configure(|t| t.shards = Some(32)), &["--shards 32", "16 samples"]);
        let mut config = configure(|_| {});
        (config.audit_rate, config.checkpoint_every) = (0.5, Some(8));
        told(&config, &["--audit-rate 0.5", "--workers"]);
        (config.workers, config.checkpoint_every) = (2, Some(9));
        told(&config, &["--checkpoint-every 9", "8 steps"]);
    }

    /// A moved data directory or file of weights is kept so that it is found from anywhere.
    #[test]
    fn what_a_run_is_read_from_is_kept_as_an_absolute_path() {
        let here = std::env::current_dir().unwrap();
        let config = configure(|t| t.data.data_dir = Some("data".into()));
        assert_eq!(config.data.directory.unwrap().as_ref(), here.join("data"));

        let mut config = configure(|_| {});
        let moved = Training { init: Some("w.safetensors".into()), ..Training::default() };
        let error = moved.adjust(&mut config).unwrap_err().to_string();
        assert!(error.contains("--init") && error.contains("from its seed"), "{error}");
        let from = std::path::Path::new("/old/w.safetensors").into();
        config.init = Some(crate::run::config::InitConfig { path: from, sha256: "its own".into() });
        moved.adjust(&mut config).unwrap();
        assert_eq!(config.init.unwrap().path.as_ref(), here.join("w.safetensors"));
    }
}
