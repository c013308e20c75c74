//! The options that decide what is trained, and their defaults.
//!
//! They are all optional on the command line, so that a resumed run can tell what was
//! asked for from what was not.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use tally_core::optimizer::LrSchedule;
use tally_numerics::order::Schedule;
use tally_numerics::tree::Tree;
use tally_numerics::wire::WireDtype;
use tally_proto::MAX_MICROBATCH;
use tally_run::config::{RUN_VERSION, RunConfig};

use super::optimizer::OptimizerOptions;
use super::unchanged::unchanged;
use crate::program::{CoordinatorProgram, Splits};

/// The name of a recipe that an option departs from.
pub const CUSTOM: &str = "custom";
/// The seed unless told otherwise.
pub const SEED: u64 = 1;

/// Options that decide what is trained.
#[derive(Clone, Debug, Default, Args)]
pub struct Training<O: Args> {
    /// Epochs to train [default: the program's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Training")]
    pub epochs: Option<u32>,

    /// Samples of a step, over all workers [default: the program's]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch_size: Option<usize>,

    /// Microbatches that a step is cut into: a power of two, fixed for the run. The number limits how many workers
    /// can compute at once, and decides the bits of the trained model [default: the program's, or 8]
    #[arg(long, alias = "shards", value_name = "N", help_heading = "Training")]
    pub microbatches: Option<u32>,

    /// How the parameters are updated.
    #[command(flatten)]
    pub optimizer: OptimizerOptions,

    /// The number format in which gradients travel: f32, or bf16 for half the bytes, rounded at every addition. It
    /// decides the bits of the trained model [default: f32]
    #[arg(long, value_name = "DTYPE", help_heading = "Training")]
    pub wire_dtype: Option<WireDtype>,

    /// Seed of the order, the random numbers and the initial parameters [default: 1]
    #[arg(long, value_name = "SEED", help_heading = "Training")]
    pub seed: Option<u64>,

    /// Start from these weights: a safetensors file with PyTorch's names, or a checkpoint; with --resume, where
    /// the weights that the run started from are now
    #[arg(long, value_name = "FILE", help_heading = "Training")]
    pub init: Option<PathBuf>,

    /// The file of --init may lack tensors, such as those of a new head: these are initialised as in a run without
    /// --init
    #[arg(long, requires = "init", help_heading = "Training")]
    pub init_partial: bool,

    /// The program's own options.
    #[command(flatten)]
    pub program: O,
}

impl<O: Args> Training<O> {
    /// The configuration of a new run, and its samples: what was given, and defaults for the rest.
    ///
    /// # Errors
    /// If a value cannot work, in one line that says which and why.
    pub fn configure<P: CoordinatorProgram<Options = O>>(
        &self,
        program: &P,
        run: u64,
        workers: u32,
    ) -> anyhow::Result<(RunConfig, Splits)> {
        let defaults = program.defaults(Some(&self.program))?;
        let epochs = self.epochs.unwrap_or(defaults.epochs);
        let batch_size = self.batch_size.unwrap_or(defaults.batch_size);
        let microbatches = self.microbatches.unwrap_or(defaults.microbatches);
        let seed = self.seed.unwrap_or(SEED);
        let data = program.data(&self.program, seed)?;
        let samples = data.config.train_samples;
        let schedule = Schedule::new(seed, samples, batch_size).context("--batch-size")?;
        Tree::new(microbatches).context("--microbatches")?;
        check_microbatch(batch_size.min(samples), microbatches)?;
        let steps = schedule.steps_per_epoch() as u64 * u64::from(epochs);
        let job = program.new_run(&self.program, steps, seed)?;
        let optimizer = self.optimizer.configure(&job.optimizer)?;
        optimizer.check_groups(&job.tensors).map_err(anyhow::Error::msg)?;
        optimizer.check_rates(steps).map_err(anyhow::Error::msg)?;
        let config = RunConfig {
            version: RUN_VERSION,
            tally: env!("CARGO_PKG_VERSION").into(),
            run: format!("{run:016x}"),
            tensors: job.tensors,
            program: job.program,
            schema: job.schema,
            seed,
            epochs,
            batch_size,
            microbatches,
            recipe: if optimizer == job.optimizer { job.recipe } else { CUSTOM.into() },
            optimizer,
            data: data.config.clone(),
            init: None,
            chunk: tally_numerics::norm::BLOCK,
            workers: workers as usize,
            checkpoint_every: None,
            keep_checkpoints: 3,
            audit_rate: 0.0,
            wire_dtype: self.wire_dtype.unwrap_or_default(),
        };
        Ok((config, data))
    }

    /// Checks what was given beside `--resume` against the run, and makes the one change
    /// that is allowed: more or fewer epochs, where the rate does not depend on them.
    ///
    /// # Errors
    /// If an option that is fixed for the run differs from it.
    pub fn adjust<P: CoordinatorProgram<Options = O>>(
        &self,
        program: &P,
        config: &mut RunConfig,
    ) -> anyhow::Result<()> {
        unchanged("--batch-size", self.batch_size.as_ref(), &config.batch_size, usize::to_string)?;
        unchanged("--microbatches", self.microbatches.as_ref(), &config.microbatches, u32::to_string)?;
        self.optimizer.check_unchanged(&config.optimizer)?;
        unchanged("--wire-dtype", self.wire_dtype.as_ref(), &config.wire_dtype, WireDtype::to_string)?;
        unchanged("--seed", self.seed.as_ref(), &config.seed, u64::to_string)?;
        program.resume(&self.program, config)?;
        if let Some(init) = &self.init {
            // The file may have moved; its SHA-256 is compared when it is read.
            match &mut config.init {
                Some(from) => from.path = init.as_path().into(),
                None => bail!(
                    "--init {} cannot change on --resume: the run started from its seed; leave it out, or start a new run",
                    init.display()
                ),
            }
        }
        if let Some(epochs) = self.epochs.filter(|&epochs| epochs != config.epochs) {
            let schedule = config.optimizer.lr_schedule;
            ensure!(
                schedule == LrSchedule::Constant,
                "--epochs cannot change on --resume under --lr-schedule {}, since the rate of every step depends on it; \
                 leave it out, or start a new run with --init from a checkpoint",
                schedule
            );
            config.epochs = epochs;
        }
        Ok(())
    }
}

/// Warnings of options that work together but are hardly meant, each with its effect.
#[must_use]
pub fn remarks(config: &RunConfig) -> Vec<String> {
    let RunConfig { batch_size, microbatches, workers, audit_rate, .. } = *config;
    let samples = config.data.train_samples;
    let steps = samples.div_ceil(batch_size.max(1)) as u64 * u64::from(config.epochs);
    let warmup = config.optimizer.warmup_steps;
    let mut remarks = Vec::new();
    if warmup >= steps && warmup > 0 {
        remarks.push(format!(
            "--warmup-steps {warmup} is no less than the run's {steps} steps: the learning rate rises until the end"
        ));
    }
    if audit_rate > 0.0 && workers == 1 {
        remarks.push(format!(
            "--audit-rate {audit_rate} needs two workers, and --workers is 1: nothing is audited until a second one joins"
        ));
    }
    if let Some(every) = config.checkpoint_every.filter(|every| *every > steps) {
        remarks.push(format!(
            "--checkpoint-every {every} is more than the run's {steps} steps: there are checkpoints only at the ends of epochs"
        ));
    }
    let batch = batch_size.min(samples);
    if microbatches as usize > batch {
        remarks.push(format!(
            "--microbatches {microbatches} cuts a step of {batch} samples: at most {batch} workers can compute at once, and the \
             other microbatches are empty"
        ));
    }
    remarks
}

/// Checks that the microbatches of a batch fit into messages.
///
/// # Errors
/// If one has too many samples.
pub fn check_microbatch(batch_size: usize, microbatches: u32) -> anyhow::Result<()> {
    let samples = batch_size.div_ceil(microbatches.max(1) as usize);
    ensure!(
        samples <= MAX_MICROBATCH,
        "--batch-size {batch_size} over --microbatches {microbatches} makes microbatches of {samples} samples; the \
         most is {MAX_MICROBATCH}: raise --microbatches"
    );
    Ok(())
}
