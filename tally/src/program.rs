//! What the coordinator's side needs to know of a program.
//!
//! A [Burn program](crate::Program) is adapted to it. A program with an engine of its own implements it itself, as the
//! built-in one does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tally_checkpoint::ProgramConfig;
use tally_coordinator::dataset::Dataset;
use tally_core::optimizer::OptimizerConfig;
use tally_monitor::http::Panels;
use tally_numerics::init;
use tally_numerics::manifest::Manifest;
use tally_numerics::schema::Schema;
use tally_run::config::{DataConfig, RunConfig};
use tally_run::record::Record;
use tally_worker::program::WorkerProgram;

use crate::options::ReportOptions;

/// A program: its options, its data, its model. Its engines are the [`WorkerProgram`]'s.
pub trait CoordinatorProgram: WorkerProgram + 'static {
    /// The program's own options on the command line of a run.
    type Options: clap::Args + Clone + std::fmt::Debug + Send + Sync + 'static;

    /// The commands that start its two halves, for people.
    fn commands(&self) -> Commands;

    /// What a run with these options has unless told otherwise; with the options' defaults, if there are none.
    ///
    /// # Errors
    /// If an option cannot work, in one line.
    fn defaults(&self, options: Option<&Self::Options>) -> anyhow::Result<Defaults>;

    /// Reads the samples of a new run with this seed.
    ///
    /// # Errors
    /// If a file is missing or wrong, or an option cannot work, in one line.
    fn data(&self, options: &Self::Options, seed: u64) -> anyhow::Result<Splits>;

    /// Reads the samples of a run that is on disk; from `data_dir` if its files have moved.
    ///
    /// # Errors
    /// As [`data`](Self::data), and if the samples do not have the SHA-256 that the run has recorded.
    fn recorded_data(&self, config: &RunConfig, data_dir: Option<&Path>) -> anyhow::Result<Splits>;

    /// What a new run of `steps` steps with this seed trains.
    ///
    /// # Errors
    /// If an option cannot work, in one line.
    fn new_run(&self, options: &Self::Options, steps: u64, seed: u64) -> anyhow::Result<NewRun>;

    /// The learning rates of a run on record, if the program says them: one for each of its steps.
    ///
    /// # Errors
    /// If a rate is not one, in one line.
    fn learning_rates(&self, _config: &RunConfig, _steps: u64) -> anyhow::Result<Option<Arc<[f32]>>> {
        Ok(None)
    }

    /// The parameters that a run starts from unless it was given others: by default drawn from its seed, as its list
    /// of tensors says.
    ///
    /// # Errors
    /// If the model cannot be made, in one line.
    fn initial_parameters(&self, config: &RunConfig) -> anyhow::Result<Vec<f32>> {
        Ok(init::parameters(&config.tensors, config.seed))
    }

    /// Compares the options given beside `--resume` with the run; the data's directory may change.
    ///
    /// # Errors
    /// If an option that is fixed for the run differs from it.
    fn resume(&self, options: &Self::Options, config: &mut RunConfig) -> anyhow::Result<()>;

    /// The tensors of a model.
    ///
    /// # Errors
    /// If this build has no such model.
    fn manifest(&self, program: &ProgramConfig) -> anyhow::Result<Manifest>;

    /// What is known of the costs of a model, by the name of its variant; of the default one if `None`.
    ///
    /// # Errors
    /// If this build has no such model.
    fn model_costs(&self, variant: Option<&str>) -> anyhow::Result<ModelCosts>;

    /// The arguments of a model that takes no time that its bits do not depend on: a synthetic model waits so that
    /// clusters can be measured.
    fn untimed(&self, arguments: &serde_json::Value) -> serde_json::Value {
        arguments.clone()
    }

    /// Sections of the program's own for the report of a run.
    ///
    /// # Errors
    /// If they cannot be made; the report is written without them and says so.
    fn report_sections(
        &self,
        _record: &Record,
        _options: &ReportOptions,
    ) -> anyhow::Result<Vec<maud::Markup>> {
        Ok(Vec::new())
    }

    /// The page's panels that are the program's own, for a run whose checkpoints are in `checkpoints`.
    ///
    /// # Errors
    /// If they cannot be made.
    fn panels(&self, _checkpoints: PathBuf, _config: &RunConfig) -> anyhow::Result<Panels> {
        Ok(Panels::default())
    }
}

/// What a run has, unless told otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// Epochs.
    pub epochs: u32,
    /// Samples of a step.
    pub batch_size: usize,
    /// Microbatches of a step.
    pub microbatches: u32,
}

/// The commands that start a program's two halves.
#[derive(Clone, Debug)]
pub struct Commands {
    /// `coordinator`.
    pub coordinator: String,
    /// The command that has the subcommands `status`, `report`, `verify` and `plan`: `coordinator`.
    pub common: String,
    /// `worker`.
    pub worker: String,
}

/// Samples to train and to test with.
#[derive(Clone)]
pub struct Splits {
    /// The training samples.
    pub train: Arc<dyn Dataset>,
    /// The test samples.
    pub test: Arc<dyn Dataset>,
    /// What the run's record says of them.
    pub config: DataConfig,
}

/// What a new run trains, and how unless told otherwise.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// The program with its arguments.
    pub program: ProgramConfig,
    /// Its losses and metrics.
    pub schema: Schema,
    /// The model's tensors.
    pub tensors: Manifest,
    /// The optimizer's settings of the recipe.
    pub optimizer: OptimizerConfig,
    /// The recipe's name; `custom` if the program's own options depart from it.
    pub recipe: String,
}

/// What is known of the costs of a model, to plan a cluster with.
#[derive(Clone, Copy, Debug)]
pub struct ModelCosts {
    /// Its parameters.
    pub parameters: usize,
    /// A node's microbatches are computed in one go.
    pub fused: bool,
    /// Computing keeps a core busy; the synthetic model sleeps.
    pub uses_core: bool,
    /// The share of computing after which the first chunk of the gradient leaves.
    pub first_chunk: f64,
    /// Bytes of a sample on the wire.
    pub sample_bytes: f64,
    /// Samples of the data set, training and test.
    pub samples: usize,
}
