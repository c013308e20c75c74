//! The program as a coordinator knows it: its options, its data, its models, its panels.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use clap::{Args, ValueEnum};
use maud::Markup;
use tally::options::{CUSTOM, ReportOptions, unchanged};
use tally::program::{Commands, CoordinatorProgram, Defaults, ModelCosts, NewRun, Splits};
use tally_checkpoint::ProgramConfig;
use tally_coordinator::dataset::Dataset;
use tally_core::optimizer::{Algorithm, LrSchedule, OptimizerConfig};
use tally_monitor::http::Panels;
use tally_numerics::manifest::Manifest;
use tally_run::config::{DataConfig, RunConfig};
use tally_run::record::Record;

use crate::arguments::{Arguments, MnistProgram, NAME};
use crate::data::{DataOptions, ITEM, Mnist, MnistWithNumbers, RecordedData, recorded};
use crate::gallery::Gallery;
use crate::network::backend::manifest;
use crate::network::metrics::schema;
use crate::network::{LabelLoss, ModelSpec};
use crate::panels::PANELS;
use crate::prediction_server::PredictionServer;

/// A named set of training options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Recipe {
    /// Trains fast and does not diverge: batch 16, learning rate 0.05 after a warm-up, falling linearly to 0, gradient
    /// norm clipped at 2
    #[default]
    Default,
    /// That of the PyTorch program from which the task comes: batch 64, rate 0.01, constant, unclipped, softmax-nll. It
    /// is unstable and may diverge within 100 steps
    #[value(alias = "seed")]
    Original,
}

impl Recipe {
    fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Original => "original",
        }
    }

    fn label_loss(self) -> LabelLoss {
        match self {
            Self::Default => LabelLoss::CrossEntropy,
            Self::Original => LabelLoss::SoftmaxNll,
        }
    }

    /// Samples of a step, over all workers.
    pub const fn batch_size(self) -> usize {
        match self {
            Self::Default => 16,
            Self::Original => 64,
        }
    }

    /// The optimizer of a run of `steps` steps.
    fn optimizer(self, steps: u64) -> OptimizerConfig {
        match self {
            Self::Default => OptimizerConfig {
                learning_rate: 0.05,
                momentum: 0.9,
                clip_norm: Some(2.0),
                warmup_steps: 400.min(steps / 5),
                lr_schedule: LrSchedule::Linear,
                ..OptimizerConfig::new(Algorithm::Sgd)
            },
            Self::Original => OptimizerConfig::new(Algorithm::Sgd),
        }
    }
}

/// The program's own options of a run.
#[derive(Clone, Debug, Default, Args)]
pub struct MnistOptions {
    /// A set of training options; any of them given beside it wins [default: default]
    #[arg(long, value_enum, help_heading = "Training")]
    pub recipe: Option<Recipe>,

    /// The loss of the digit: cross-entropy or softmax-nll [default: cross-entropy, or softmax-nll with --recipe
    /// original]
    #[arg(long, value_name = "LOSS", help_heading = "Training")]
    pub label_loss: Option<LabelLoss>,

    /// The network: reference, mlp (small and quick), or synthetic:parameters=N,us-per-sample=N,jitter=F (no
    /// network: workers only wait so many microseconds, to measure a cluster) [default: reference]
    #[arg(long, value_name = "MODEL", help_heading = "Training")]
    pub model: Option<ModelSpec>,

    /// The data.
    #[command(flatten)]
    pub data: DataOptions,
}

impl CoordinatorProgram for MnistProgram {
    type Options = MnistOptions;

    fn commands(&self) -> Commands {
        Commands { coordinator: "coordinator".into(), common: "coordinator".into(), worker: "worker".into() }
    }

    fn defaults(&self, options: Option<&MnistOptions>) -> anyhow::Result<Defaults> {
        let recipe = options.and_then(|options| options.recipe).unwrap_or_default();
        Ok(Defaults { epochs: 19, batch_size: recipe.batch_size(), microbatches: 8 })
    }

    fn data(&self, options: &MnistOptions, seed: u64) -> anyhow::Result<Splits> {
        let data = options.data.load()?;
        let config = recorded::describe(&options.data, &data);
        Ok(with_numbers(data, config, seed))
    }

    fn recorded_data(&self, config: &RunConfig, data_dir: Option<&Path>) -> anyhow::Result<Splits> {
        let data = RecordedData(&config.data).load(data_dir)?;
        Ok(with_numbers(data, config.data.clone(), config.seed))
    }

    fn new_run(&self, options: &MnistOptions, steps: u64, _seed: u64) -> anyhow::Result<NewRun> {
        let recipe = options.recipe.unwrap_or_default();
        let model = options.model.clone().unwrap_or(ModelSpec::Reference);
        let label_loss = options.label_loss.unwrap_or(recipe.label_loss());
        let departs = label_loss != recipe.label_loss();
        Ok(NewRun {
            tensors: manifest(&model),
            program: ProgramConfig {
                name: NAME.into(),
                variant: model.to_string(),
                arguments: Arguments { model, label_loss }.to_json(),
            },
            schema: schema(),
            optimizer: recipe.optimizer(steps),
            recipe: if departs { CUSTOM } else { recipe.name() }.into(),
        })
    }

    fn resume(&self, options: &MnistOptions, config: &mut RunConfig) -> anyhow::Result<()> {
        let run = Arguments::from_json(&config.program.arguments.to_string())?;
        unchanged("--label-loss", options.label_loss.as_ref(), &run.label_loss, LabelLoss::to_string)?;
        unchanged("--model", options.model.as_ref(), &run.model, ModelSpec::to_string)?;
        // A custom recipe is one whose parts were given; they are compared one by one.
        if let Some(recipe) = options.recipe.filter(|_| config.recipe != CUSTOM) {
            unchanged("--recipe", Some(&recipe.name().to_owned()), &config.recipe, String::clone)?;
        }
        let data = &mut config.data;
        let limit = |limit: &Option<usize>| limit.map_or("none".into(), |limit| limit.to_string());
        unchanged("--train-limit", options.data.train_limit.map(Some).as_ref(), &data.train_limit, limit)?;
        unchanged("--test-limit", options.data.test_limit.map(Some).as_ref(), &data.test_limit, limit)?;
        if let Some(directory) = &options.data.data_dir {
            // The files may have moved; their SHA-256 is compared when they are read.
            data.directory = Some(directory.as_path().into());
        }
        Ok(())
    }

    fn manifest(&self, program: &ProgramConfig) -> anyhow::Result<Manifest> {
        Ok(manifest(&Arguments::from_json(&program.arguments.to_string())?.model))
    }

    fn model_costs(&self, variant: Option<&str>) -> anyhow::Result<ModelCosts> {
        let model: ModelSpec = variant.unwrap_or("reference").parse().map_err(anyhow::Error::msg)?;
        let synthetic = matches!(model, ModelSpec::Synthetic(_));
        Ok(ModelCosts {
            parameters: manifest(&model).len(),
            // Tally's own kernels compute a node in one go.
            fused: model == ModelSpec::Reference,
            uses_core: !synthetic,
            first_chunk: if synthetic { 0.0 } else { FIRST_CHUNK },
            sample_bytes: SAMPLE_BYTES,
            samples: 70_000,
        })
    }

    fn untimed(&self, arguments: &serde_json::Value) -> serde_json::Value {
        match Arguments::from_json(&arguments.to_string()) {
            Ok(Arguments { model: ModelSpec::Synthetic(mut spec), label_loss }) => {
                spec.per_sample = Duration::ZERO;
                Arguments { model: ModelSpec::Synthetic(spec), label_loss }.to_json()
            }
            _ => arguments.clone(),
        }
    }

    fn panels(&self, checkpoints: PathBuf, config: &RunConfig) -> anyhow::Result<Panels> {
        let data = RecordedData(&config.data).load(None)?;
        let test = MnistWithNumbers::test(data.test, config.seed);
        let routes = PredictionServer::start(checkpoints, test)?.routes();
        Ok(Panels { routes, ..PANELS.clone() })
    }

    fn report_sections(&self, record: &Record, options: &ReportOptions) -> anyhow::Result<Vec<Markup>> {
        if options.pictures == 0 {
            return Ok(Vec::new());
        }
        let (config, count) = (&record.config, options.pictures as usize);
        let test = RecordedData(&config.data).whole(None)?.test;
        let test = MnistWithNumbers::test(test, config.seed);
        let gallery = Gallery::of(&record.path.join("checkpoints"), &test, count, &options.device)?;
        Ok(vec![gallery.markup()])
    }
}

/// The share of the reference network's computing after which the first chunk of its gradient leaves: the forward
/// pass, and the last layer's part of the backward pass. Measured by `scaling figures`.
pub const FIRST_CHUNK: f64 = 0.44;

/// Bytes of a sample on the wire, three of them its id's, as a rule.
pub const SAMPLE_BYTES: f64 = (ITEM + 3) as f64;

fn with_numbers(data: Mnist, config: DataConfig, seed: u64) -> Splits {
    let train = Arc::new(MnistWithNumbers::train(data.train, seed));
    let test = Arc::new(MnistWithNumbers::test(data.test, seed));
    Splits { train, test, config }
}

impl Dataset for MnistWithNumbers {
    fn len(&self) -> usize {
        MnistWithNumbers::len(self)
    }

    fn item(&self, id: u32) -> anyhow::Result<Cow<'_, [u8]>> {
        let len = MnistWithNumbers::len(self);
        ensure!((id as usize) < len, "there is no sample {id}: the data has {len}, numbered from 0");
        Ok(MnistWithNumbers::item(self, id))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use tally::options::{Training, remarks};
    use tally_run::config::InitConfig;

    use super::*;

    fn configure(change: impl FnOnce(&mut Training<MnistOptions>)) -> RunConfig {
        let data = DataOptions { train_limit: Some(64), test_limit: Some(1), ..DataOptions::default() };
        let model = Some("synthetic:parameters=10".parse().unwrap());
        let mut training = Training {
            epochs: Some(2),
            batch_size: Some(16),
            program: MnistOptions { model, data, ..MnistOptions::default() },
            ..Training::default()
        };
        change(&mut training);
        training.configure(&MnistProgram, 1, 1).unwrap().0
    }

    #[test]
    fn options_that_are_hardly_meant_are_remarked_upon() {
        assert_eq!(remarks(&configure(|_| {})), [""; 0]);
        let only = |config: &RunConfig, words: &[&str]| {
            let remarks = remarks(config);
            assert!(
                matches!(&remarks[..], [one] if words.iter().all(|word| one.contains(word))),
                "{remarks:?}"
            );
        };
        only(&configure(|t| t.optimizer.warmup_steps = Some(8)), &["--warmup-steps 8", "8 steps"]);
        assert!(remarks(&configure(|t| t.optimizer.warmup_steps = Some(7))).is_empty());
        only(&configure(|t| t.microbatches = Some(32)), &["--microbatches 32", "16 samples"]);
        let mut config = configure(|_| {});
        (config.audit_rate, config.checkpoint_every) = (0.5, Some(8));
        only(&config, &["--audit-rate 0.5", "--workers"]);
        (config.workers, config.checkpoint_every) = (2, Some(9));
        only(&config, &["--checkpoint-every 9", "8 steps"]);
    }

    #[test]
    fn each_recipe_has_a_batch_size_of_its_own() {
        let configured = |recipe, batch_size| {
            let config = configure(|training| {
                training.program.recipe = recipe;
                training.batch_size = batch_size;
            });
            (config.recipe, config.batch_size)
        };
        assert_eq!(configured(None, None), ("default".into(), 16));
        assert_eq!(configured(Some(Recipe::Default), None), ("default".into(), 16));
        assert_eq!(configured(Some(Recipe::Original), None), ("original".into(), 64));
        assert_eq!(configured(Some(Recipe::Original), Some(8)), ("original".into(), 8));
    }

    #[test]
    fn what_a_run_reads_is_recorded_with_absolute_paths() {
        let here = std::env::current_dir().unwrap();
        let mut config = configure(|_| {});
        let data = DataOptions { data_dir: Some("data".into()), ..DataOptions::default() };
        let program = MnistOptions { data, ..MnistOptions::default() };
        let moved = Training { program, ..Training::default() };
        moved.adjust(&MnistProgram, &mut config).unwrap();
        assert_eq!(config.data.directory.as_ref().unwrap().as_ref(), here.join("data"));

        let moved = Training { init: Some("w.safetensors".into()), ..Training::default() };
        let error = moved.adjust(&MnistProgram, &mut config).unwrap_err().to_string();
        assert!(error.contains("--init") && error.contains("from its seed"), "{error}");
        let path = Path::new("/old/w.safetensors").into();
        config.init = Some(InitConfig { path, sha256: "its own".into(), partial: false });
        moved.adjust(&MnistProgram, &mut config).unwrap();
        assert_eq!(config.init.unwrap().path.as_ref(), here.join("w.safetensors"));
    }
}
